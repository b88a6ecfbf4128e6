// What the kernels of TV-L1 share: planes of numbers, grey levels from pixels of any layout, and resizing with the
// triangle filter.
//
// A plane's rows start on a sector of memory, 8 numbers. Where a thread has a pixel, a block has a tile of 32 x 8
// pixels of one pair, a warp a row of it, and blocks count the tiles of one pair after those of another.
//
// Resizing by s = in / out: output pixel i is the mean of the input pixels j weighted by max(0, 1 - |j + 1/2 - (i +
// 1/2) s| / max(s, 1)), the weights normalised over the pixels that exist: PyTorch's antialiased bilinear filter. A
// thread weighs all pixels of its output's support, 2 x 2 upwards and at most 3 x 3 for s = 1.25; caches serve the
// overlaps.
#pragma once

#include "cuda/optical_flow_grey.cuh"
#include "cuda/optical_flow_planes.h"

#include <cuda_runtime.h>

namespace vidgen::cuda {
namespace {

constexpr int kTileColumns = 32, kTileRows = 8, kTileThreads = kTileColumns * kTileRows;

__device__ inline float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
__device__ inline double multiply_add(double a, double b, double c) { return fma(a, b, c); }

// The planes of one level of a pyramid.
struct Level {
  int height, width, pitch;

  __host__ __device__ int64_t plane() const { return static_cast<int64_t>(height) * pitch; }
  __device__ int64_t at(int y, int x) const { return static_cast<int64_t>(y) * pitch + x; }
};

inline Level level_of(int height, int width) { return {height, width, (width + 7) / 8 * 8}; }

inline int64_t tiles_of(const Level& level) {
  return static_cast<int64_t>((level.width + kTileColumns - 1) / kTileColumns) *
         ((level.height + kTileRows - 1) / kTileRows);
}

// The pixel of this thread, which may lie beyond the level's edge.
struct Place {
  int64_t pair;
  int y, x;
  bool exists, first;  // first: of its pair
};

__device__ inline Place place_in(const Level& level) {
  const unsigned across = (level.width + kTileColumns - 1) / kTileColumns;
  const unsigned down = (level.height + kTileRows - 1) / kTileRows;
  const int y = static_cast<int>(blockIdx.x / across % down * kTileRows + threadIdx.x / kTileColumns);
  const int x = static_cast<int>(blockIdx.x % across * kTileColumns + threadIdx.x % kTileColumns);
  return {blockIdx.x / across / down, y, x, y < level.height && x < level.width, y == 0 && x == 0};
}

template <typename S, typename T>
__device__ inline T grey_at(const PixelView& image, int channels, int64_t pair, int y, int x) {
  const S* const pixel =
      static_cast<const S*>(image.data) + pair * image.pair_stride + y * image.row_stride + x * image.column_stride;
  return grey_of<S, T>(pixel, image.channel_stride, channels);
}

// The inputs with which one output is made: `count` from `first` on, the first `offset` from the centre.
template <typename T>
struct Support {
  int first, count;
  T offset, inverse_reach;

  __device__ T weight(int j) const {
    const T away = (offset + T(j)) * inverse_reach;
    const T weight = T(1) - (away < T(0) ? -away : away);
    return weight > T(0) ? weight : T(0);
  }
};

template <typename T>
__device__ inline Support<T> support_of(int output, int inputs, int outputs) {
  // the centre in double: of a thousandth pixel a float would leave the fraction to four digits
  const double scale = static_cast<double>(inputs) / outputs, reach = scale > 1 ? scale : 1;
  const double centre = scale * (output + 0.5);
  const int lowest = static_cast<int>(centre - reach + 0.5), end = static_cast<int>(centre + reach + 0.5);
  const int first = lowest > 0 ? lowest : 0, last = end < inputs ? end : inputs;
  return {first, last - first, static_cast<T>(first - centre + 0.5), static_cast<T>(1 / reach)};
}

// Pixel (y, x) of `to` from an image of `height` x `width` whose numbers are `row_stride` and `column_stride` apart.
template <typename T>
__device__ inline T resized(const T* from, int height, int width, int64_t row_stride, int64_t column_stride,
                            const Level& to, int y, int x) {
  const Support<T> rows = support_of<T>(y, height, to.height), columns = support_of<T>(x, width, to.width);
  T sum = 0, row_weights = 0, column_weights = 0;
  for (int j = 0; j < columns.count; ++j) column_weights += columns.weight(j);
  for (int i = 0; i < rows.count; ++i) {
    const T* const row = from + (rows.first + i) * row_stride + columns.first * column_stride;
    T along = 0;
    for (int j = 0; j < columns.count; ++j) along = multiply_add(columns.weight(j), row[j * column_stride], along);
    sum = multiply_add(rows.weight(i), along, sum);
    row_weights += rows.weight(i);
  }
  return sum / (row_weights * column_weights);
}

}  // namespace
}  // namespace vidgen::cuda
