// Draws from the heads of vidgen/sampling/heads.py, in double whatever the network computes in, from uniform numbers.
#pragma once

#include <cmath>

#include "cpu/elementary.h"
#include "cpu/sample_causal.h"

namespace vidgen::VIDGEN_ISA {

// Inverts the cumulative softmax of logits / temperature. `weights` is room for `count` numbers and a vector more.
template <class T>
int64_t draw_index(const T* logits, int64_t count, double temperature, double uniform, double* weights) {
  double greatest = -std::numeric_limits<double>::infinity();
  for (int64_t k = 0; k < count; ++k) {
    weights[k] = double(logits[k]) / temperature;
    if (weights[k] > greatest) greatest = weights[k];
  }
  constexpr int64_t lanes = kLanes<double>;
  for (int64_t k = 0; k < count; k += lanes)
    store(weights + k, exponential<double>(load(weights + k) - greatest).exp());
  double total = 0;
  for (int64_t k = 0; k < count; ++k) weights[k] = total += weights[k];
  const double threshold = uniform * total;
  int64_t index = 0;
  for (int64_t k = 0; k < count; ++k) index += weights[k] <= threshold;
  return index < count ? index : count - 1;
}

// The grey level nearest to a value of [-1, 1]; ties to even.
inline int64_t nearest_level(double value, int64_t levels) {
  const double level = std::nearbyint((value + 1) * (double(levels - 1) / 2));
  return int64_t(level > 0 ? (level < double(levels - 1) ? level : double(levels - 1)) : 0);
}

// Value k of a pixel's step goes to values[k * pitch] where it is not known; noise is two numbers per value.
template <class T>
void draw_step(const SamplingHead& head, const T* parameters, int64_t channels, const double* noise,
               int64_t noise_pitch, const bool* known, T* values, int64_t pitch, double* weights) {
  if (!head.mixture) {
    if (*known) return;
    const int64_t level = draw_index(parameters, head.levels, head.temperature, noise[0], weights);
    *values = T(level) * T(2.0 / double(head.levels - 1)) - T(1);
    return;
  }
  // blocks of K: logits, then for every colour means, log-scales and, while there are pairs of colours, coefficients
  const int64_t k = head.mixtures, pairs = channels * (channels - 1) / 2;
  const T* chosen = parameters + draw_index(parameters, k, head.temperature, noise[0], weights);
  double drawn[3] = {};
  for (int64_t i = 0; i < channels; ++i) {
    const int64_t block = 1 + 2 * i + (i < pairs ? i : pairs);
    double mean = double(chosen[block * k]);
    for (int64_t j = 0; j < i; ++j) {
      const int64_t pair = i * (i - 1) / 2 + j;
      mean += std::tanh(double(chosen[(3 + 3 * pair) * k])) * drawn[j];
    }
    double u = noise[i * noise_pitch + 1];
    u = u < 1e-5 ? 1e-5 : u > 1 - 1e-5 ? 1 - 1e-5 : u;
    double log_scale = double(chosen[(block + 1) * k]);
    log_scale = log_scale < -7 ? -7 : log_scale;
    double value = mean + std::exp(log_scale) * head.temperature * (std::log(u) - std::log(1 - u));
    value = value < -1 ? -1 : value > 1 ? 1 : value;
    if (head.quantize) value = double(nearest_level(value, head.levels)) * (2.0 / double(head.levels - 1)) - 1;
    drawn[i] = value;
    if (!known[i * pitch]) values[i * pitch] = T(value);
  }
}

}  // namespace vidgen::VIDGEN_ISA
