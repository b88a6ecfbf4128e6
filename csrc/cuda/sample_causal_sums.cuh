// Sums of a sampling program: of a tile at pixels, and of a line's tile.
#pragma once

#include "cuda/sample_causal_launch.cuh"

namespace vidgen::cuda {
namespace {

// Numbers side by side, fetched at once.
template <typename T>
struct alignas(16) Four {
  T x[4];
};

// Of twice kHalf numbers each lane keeps and adds up one half with the lane that keeps the other.
template <int kHalf, typename T>
__device__ void exchange(T* sum, int lane) {
  const bool upper = lane & kHalf;
#pragma unroll
  for (int k = 0; k < kHalf; ++k) {
    const T kept = upper ? sum[k + kHalf] : sum[k], given = upper ? sum[k] : sum[k + kHalf];
    sum[k] = kept + __shfl_xor_sync(kAll, given, kHalf);
  }
}

// What this warp's slices add to a tile: lane l ends with number l, image l / 4 and channel l % 4 of the tile.
//
// Every lane has its own depth in a slice and all 32 numbers. Then lanes exchange halves: in five rounds each gives
// away half of the numbers that it still has, and adds what it gets for the other half. So a number is added up along
// the same tree of depths wherever it stands in the batch.
template <typename T>
__device__ T sum_of_warp(const Launch<T>& launch, const ScriptOperation& o, const ScriptSite* sites,
                         const ScriptSlice* slices, int64_t first_image, int panel, int warp, int lane) {
  T sum[kTileImages * kPanel];
#pragma unroll
  for (int k = 0; k < kTileImages * kPanel; ++k) sum[k] = 0;
  const Four<T>* const weights =
      reinterpret_cast<const Four<T>*>(launch.packed + o.weight_at) + int64_t(panel) * o.depth;
  const int64_t last = launch.images - 1;
  for (int s = warp; s < o.slices; s += kWarps<T>) {
    const ScriptSlice slice = slices[o.first_slice + s];
    if (lane >= slice.length) continue;
    const ScriptSite site = sites[2 + slice.read];
    const Four<T> weight = weights[slice.depth + lane];
    T value[kTileImages];
#pragma unroll
    for (int i = 0; i < kTileImages; ++i) {
      const int64_t image = first_image + i < last ? first_image + i : last;
      value[i] = site.at < 0 ? T(0) : __ldcg(address(launch, site, image) + slice.from + lane);
    }
#pragma unroll
    for (int i = 0; i < kTileImages; ++i)
#pragma unroll
      for (int c = 0; c < kPanel; ++c) sum[i * kPanel + c] += value[i] * weight.x[c];
  }
  exchange<16>(sum, lane);
  exchange<8>(sum, lane);
  exchange<4>(sum, lane);
  exchange<2>(sum, lane);
  exchange<1>(sum, lane);
  return sum[0];
}

template <typename T>
__device__ T with_bias_and_initial(const Launch<T>& launch, const ScriptOperation& o, const ScriptSite* sites,
                                   int channels, int64_t image, int channel, T sum) {
  if (o.has_bias) sum += launch.packed[o.weight_at + panel_count(channels) * kPanel * o.depth + channel];
  // a line that does not exist is zeros
  if (o.has_initial && sites[1].at >= 0) sum += __ldcg(address(launch, sites[1], image) + channel);
  return sum;
}

// A tile of a line: kLineRows rows ([place][image]) of kLineChannels channels. A slice of depth is laid into shared
// memory while the next one is fetched; each 64 threads take a part of it, one thread 4 x 4 numbers of the tile, and
// add up in the order of the parts at the end.
constexpr int kLineRows = 32;
constexpr int kLineChannels = 32;
constexpr int kRowPitch = kLineRows + 4;
template <typename T>
constexpr int kParts = kThreads<T> / 64;

template <typename T>
struct alignas(16) LineMemory {
  T values[kLineSlice][kRowPitch];
  T weights[kLineSlice][kLineChannels];
  T sums[kLineRows][kLineChannels];
};

// Of a line's tile, what a thread fetches of one slice: values of its warp's rows at two depths, and of one depth the
// weights of one panel or two.
template <typename T>
struct Fetched {
  static constexpr int kRows = kLineRows / kWarps<T>;
  static constexpr int kPanels = kLineChannels / kPanel / kParts<T>;
  T values[kRows][2];
  Four<T> weights[kPanels];
};

template <typename T>
__device__ Fetched<T> fetched(const Launch<T>& launch, const ScriptOperation& o, const ScriptSite* sites,
                              const ScriptSlice& slice, int64_t first_row, int64_t rows, int first_panel, int panels) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  Fetched<T> f;
#pragma unroll
  for (int r = 0; r < f.kRows; ++r) {
    const int64_t row = first_row + f.kRows * warp + r, place = row / launch.images;
    f.values[r][0] = f.values[r][1] = T(0);
    if (row >= rows) continue;
    const ScriptSite site = sites[place * o.sites + 2 + slice.read];
    if (site.at < 0) continue;
    const T* const from = address(launch, site, row - place * launch.images) + slice.from;
    if (lane < slice.length) f.values[r][0] = __ldcg(from + lane);
    if (lane + 32 < slice.length) f.values[r][1] = __ldcg(from + lane + 32);
  }
  const int depth = threadIdx.x % kLineSlice;
#pragma unroll
  for (int k = 0; k < f.kPanels; ++k) {
#pragma unroll
    for (int c = 0; c < kPanel; ++c) f.weights[k].x[c] = T(0);
    const int panel = first_panel + threadIdx.x / kLineSlice + k * kParts<T>;
    if (panel < panels && depth < slice.length)
      f.weights[k] =
          reinterpret_cast<const Four<T>*>(launch.packed + o.weight_at)[int64_t(panel) * o.depth + slice.depth + depth];
  }
  return f;
}

template <typename T>
__device__ void sum_of_line(const Launch<T>& launch, const ScriptStage& stage, const ScriptOperation& o,
                            const ScriptSite* sites, const ScriptSlice* slices, int64_t tile, LineMemory<T>& memory) {
  const int panels = int(panel_count(stage.channels)), across = (stage.channels + kLineChannels - 1) / kLineChannels;
  const int64_t rows = stage.places * launch.images, first_row = tile / across * kLineRows;
  const int first_channel = int(tile % across) * kLineChannels, first_panel = first_channel / kPanel;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int part = threadIdx.x / 64, row = threadIdx.x % 64 / 8 * 4, channel = threadIdx.x % 8 * 4;
  T sum[4][4];
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int c = 0; c < 4; ++c) sum[i][c] = 0;
  Fetched<T> next;
  if (o.slices > 0) next = fetched(launch, o, sites, slices[o.first_slice], first_row, rows, first_panel, panels);
  for (int s = 0; s < o.slices; ++s) {
#pragma unroll
    for (int r = 0; r < next.kRows; ++r) {
      memory.values[lane][next.kRows * warp + r] = next.values[r][0];
      memory.values[lane + 32][next.kRows * warp + r] = next.values[r][1];
    }
#pragma unroll
    for (int k = 0; k < next.kPanels; ++k)
      *reinterpret_cast<Four<T>*>(
          &memory.weights[threadIdx.x % kLineSlice][(threadIdx.x / kLineSlice + k * kParts<T>)*kPanel]) =
          next.weights[k];
    __syncthreads();
    if (s + 1 < o.slices)
      next = fetched(launch, o, sites, slices[o.first_slice + s + 1], first_row, rows, first_panel, panels);
#pragma unroll
    for (int k = 0; k < kLineSlice / kParts<T>; ++k) {
      const int depth = k * kParts<T> + part;
      const Four<T> a = *reinterpret_cast<const Four<T>*>(&memory.values[depth][row]);
      const Four<T> b = *reinterpret_cast<const Four<T>*>(&memory.weights[depth][channel]);
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int c = 0; c < 4; ++c) sum[i][c] += a.x[i] * b.x[c];
    }
    __syncthreads();
  }
  for (int p = 0; p < kParts<T>; ++p) {
    if (part == p)
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          T& all = memory.sums[row + i][channel + c];
          all = p == 0 ? sum[i][c] : all + sum[i][c];
        }
    __syncthreads();
  }
  for (int k = warp; k < kLineRows; k += kWarps<T>) {
    const int64_t place = (first_row + k) / launch.images, image = first_row + k - place * launch.images;
    if (first_row + k >= rows || first_channel + lane >= stage.channels) continue;
    const ScriptSite* const at = sites + place * o.sites;
    address(launch, at[0], image)[first_channel + lane] =
        with_bias_and_initial(launch, o, at, stage.channels, image, first_channel + lane, memory.sums[k][lane]);
  }
  __syncthreads();
}

}  // namespace
}  // namespace vidgen::cuda
