// Draws from the heads of vidgen/sampling/heads.py by a warp, in double whatever the network computes in.
#pragma once

#include "cuda/sample_causal_launch.cuh"

namespace vidgen::cuda {
namespace {

// Inverts the cumulative softmax of logits / temperature; every lane returns the index. Exponentials are taken side by
// side and added up one after the other, in every lane, as csrc/cpu/sample_causal_draw.h does.
template <typename T>
__device__ int64_t draw_index(const T* logits, int64_t count, double temperature, double uniform) {
  const int lane = threadIdx.x % 32;
  double greatest = -HUGE_VAL;
  for (int64_t k = lane; k < count; k += 32) {
    const double scaled = double(__ldcg(logits + k)) / temperature;
    if (scaled > greatest) greatest = scaled;
  }
  for (int half = 16; half > 0; half /= 2) {
    const double other = __shfl_xor_sync(kAll, greatest, half);
    if (other > greatest) greatest = other;
  }
  // first the total, then how many sums do not exceed the threshold
  double threshold = 0;
  int64_t index = 0;
  for (int pass = 0; pass < 2; ++pass) {
    double total = 0;
    for (int64_t first = 0; first < count; first += 32) {
      const int here = count - first < 32 ? int(count - first) : 32;
      const double weight = lane < here ? exp(double(__ldcg(logits + first + lane)) / temperature - greatest) : 0;
      for (int k = 0; k < here; ++k) {
        total += __shfl_sync(kAll, weight, k);
        index += pass == 1 && total <= threshold;
      }
    }
    threshold = uniform * total;
  }
  return index < count ? index : count - 1;
}

// The grey level nearest to a value of [-1, 1]; ties to even.
__device__ inline double nearest_level(double value, int64_t levels) {
  const double level = rint((value + 1) * (double(levels - 1) / 2));
  return level > 0 ? (level < double(levels - 1) ? level : double(levels - 1)) : 0;
}

// A grey level in [-1, 1]. Rounded twice, as PyTorch does: left alone, nvcc makes one multiply-add of it.
__device__ inline float scaled(float level, int64_t levels) {
  return __fmul_rn(level, float(2.0 / double(levels - 1))) - 1;
}
__device__ inline double scaled(double level, int64_t levels) { return __dmul_rn(level, 2.0 / double(levels - 1)) - 1; }

// Value k of a pixel's step goes to values[k * pitch] where it is not known; noise is two numbers per value.
template <typename T>
__device__ void draw_step(const SamplingHead& head, const T* parameters, int64_t channels, const double* noise,
                          const bool* known, T* values, int64_t pitch) {
  const bool writes = threadIdx.x % 32 == 0;
  if (!head.mixture) {
    const int64_t level = draw_index(parameters, head.levels, head.temperature, noise[0]);
    if (writes && !*known) *values = scaled(T(level), head.levels);
    return;
  }
  // blocks of K: logits, then for every colour means, log-scales and, while there are pairs of colours, coefficients
  const int64_t k = head.mixtures, pairs = channels * (channels - 1) / 2;
  const T* const chosen = parameters + draw_index(parameters, k, head.temperature, noise[0]);
  double drawn[3] = {};
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    if (i >= channels) break;
    const int64_t block = 1 + 2 * i + (i < pairs ? i : pairs);
    double mean = double(__ldcg(chosen + block * k));
#pragma unroll
    for (int j = 0; j < i; ++j) mean += tanh(double(__ldcg(chosen + (3 + 3 * (i * (i - 1) / 2 + j)) * k))) * drawn[j];
    double u = noise[2 * i * pitch + 1];
    u = u < 1e-5 ? 1e-5 : u > 1 - 1e-5 ? 1 - 1e-5 : u;
    double log_scale = double(__ldcg(chosen + (block + 1) * k));
    log_scale = log_scale < -7 ? -7 : log_scale;
    double value = mean + exp(log_scale) * head.temperature * (log(u) - log(1 - u));
    value = value < -1 ? -1 : value > 1 ? 1 : value;
    if (head.quantize) value = scaled(nearest_level(value, head.levels), head.levels);
    drawn[i] = value;
    if (writes && !known[i * pitch]) values[i * pitch] = T(value);
  }
}

// What is done to one pixel's step of an image, by a warp.
template <typename T>
__device__ void settle(const Launch<T>& launch, const ScriptPixel& pixel, int64_t image, int what) {
  const int lane = threadIdx.x % 32;
  const int64_t each = launch.channels / launch.steps, plane = launch.height * launch.width;
  const int64_t inside = pixel.row * launch.width + pixel.column;
  const int64_t first = (image * launch.channels + pixel.step * each) * plane + inside;
  const T* const parameters = address(launch, pixel.parameters, image);
  if ((what & kRecord) && launch.recorded != nullptr)
    for (int64_t k = lane; k < launch.parameters; k += 32)
      launch.recorded[((image * launch.parameters + k) * launch.steps + pixel.step) * plane + inside] =
          __ldcg(parameters + k);
  if (what & kDraw) {
    bool any = false;
    for (int64_t c = 0; c < each; ++c) any |= !launch.known[first + c * plane];
    if (any)
      draw_step(launch.head, parameters, each, launch.noise + 2 * first, launch.known + first, launch.canvas + first,
                plane);
  }
  if ((what & kEnter) && lane == 0)
    for (int64_t c = 0; c < each; ++c) address(launch, pixel.input, image)[c] = launch.canvas[first + c * plane];
}

}  // namespace
}  // namespace vidgen::cuda
