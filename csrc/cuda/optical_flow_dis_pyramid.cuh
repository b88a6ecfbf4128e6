// From images to the levels of a pyramid, from an initial flow to its coarsest level, and from a level's flow to that
// of the images. A thread makes one number, but for the initial flow, whose squares of pixels are large where few are
// left: there it is a warp. All of it is traffic of memory: for a finest level of 1 the images are read once, 2 bytes a
// pixel for grey bytes, and the flow is written once, 8 bytes; what lies between is a quarter of the pixels and less.
#pragma once

#include "cuda/optical_flow_dis.h"
#include "cuda/optical_flow_dis_level.cuh"
#include "cuda/optical_flow_grey.cuh"

namespace vidgen::cuda {
namespace {

template <typename T>
struct ReadLevel {
  PixelView prev, next;
  Size size;  // of the images
  T* planes;  // [pairs, 2, to.height, to.width]
  Size to;
  int channels;
  bool halves;  // makes level 1, else level 0
};

template <typename Source, typename T>
__device__ inline T grey_level(const Source* image, const PixelView& by, Size size, int channels, int x, int y) {
  const Source* const pixel = image + edged(y, size.height) * by.row_stride + edged(x, size.width) * by.column_stride;
  return grey_of<Source, T>(pixel, by.channel_stride, channels);
}

// The first level that is needed, 0 or 1, of both images; the grid's last axis is twice the pairs, as in all that
// follow.
template <typename Source, typename T>
__global__ void __launch_bounds__(kBlockThreads) read_level_kernel(const ReadLevel<T> a) {
  const Pixel at;
  if (!at.inside(a.to)) return;
  const PixelView by = blockIdx.z % 2 == 0 ? a.prev : a.next;
  const Source* const image = static_cast<const Source*>(by.data) + blockIdx.z / 2 * by.pair_stride;
  const auto level = [&](int x, int y) { return grey_level<Source, T>(image, by, a.size, a.channels, x, y); };
  T value;
  if (a.halves) {
    const int x = 2 * at.x, y = 2 * at.y;
    value = T(0.25) * (level(x, y) + level(x + 1, y) + level(x, y + 1) + level(x + 1, y + 1));
  } else {
    value = level(at.x, at.y);
  }
  a.planes[blockIdx.z * a.to.pixels() + static_cast<int64_t>(at.y) * a.to.width + at.x] = value;
}

template <typename T>
struct Halve {
  const T* from;  // [pairs, 2, size.height, size.width]
  Size size;
  T* to;  // [pairs, 2, half.height, half.width]
  Size half;
};

// The next level of both images.
template <typename T>
__global__ void __launch_bounds__(kBlockThreads) halve_kernel(const Halve<T> a) {
  const Pixel at;
  if (!at.inside(a.half)) return;
  const T* const from = a.from + blockIdx.z * a.size.pixels();
  const T* const above = from + static_cast<int64_t>(2 * at.y) * a.size.width;
  const T* const below = from + static_cast<int64_t>(edged(2 * at.y + 1, a.size.height)) * a.size.width;
  const int left = 2 * at.x, right = edged(left + 1, a.size.width);
  const T sum = above[left] + above[right] + below[left] + below[right];
  a.to[blockIdx.z * a.half.pixels() + static_cast<int64_t>(at.y) * a.half.width + at.x] = T(0.25) * sum;
}

template <typename T>
struct CoarseStart {
  PixelView init;
  Size size;  // of the images
  T* flow;    // [pairs, 2, to.height, to.width]
  Size to;
  int level;
};

// `init` on the coarsest level, in its pixels: means over squares of 2^level pixels, continued. A warp makes a number.
template <typename T>
__global__ void __launch_bounds__(kBlockThreads) coarse_start_kernel(const CoarseStart<T> a) {
  const int lane = threadIdx.x % kWarp;
  const int64_t index = (static_cast<int64_t>(blockIdx.x) * kBlockThreads + threadIdx.x) / kWarp;
  if (index >= 2 * a.to.pixels()) return;
  const int64_t component = index / a.to.pixels(), pixel = index % a.to.pixels();
  const int64_t side = int64_t{1} << a.level;
  const int64_t left = pixel % a.to.width * side, top = pixel / a.to.width * side;
  const T* const init =
      static_cast<const T*>(a.init.data) + blockIdx.z * a.init.pair_stride + component * a.init.channel_stride;
  T sum[1] = {0};
  for (int64_t i = lane; i < side * side; i += kWarp) {
    const int64_t x = left + i % side, y = top + i / side;
    sum[0] += init[(y < a.size.height ? y : a.size.height - 1) * a.init.row_stride +
                   (x < a.size.width ? x : a.size.width - 1) * a.init.column_stride];
  }
  sum_over_lanes<kWarp>(sum);
  const T count = static_cast<T>(side);
  if (lane == 0) a.flow[blockIdx.z * 2 * a.to.pixels() + index] = sum[0] / (count * count * count);
}

template <typename T>
struct Smooth {
  const T* from;  // [pairs, 2, height, width]
  T* to;
  Size size;
};

// 1/4 (1 2 1) along both axes.
template <typename T>
__global__ void __launch_bounds__(kBlockThreads) smooth_kernel(const Smooth<T> a) {
  const Pixel at;
  if (!at.inside(a.size)) return;
  const T* const from = a.from + blockIdx.z * a.size.pixels();
  const int left = edged(at.x - 1, a.size.width), right = edged(at.x + 1, a.size.width);
  const auto across = [&](int y) {
    const T* const row = from + static_cast<int64_t>(edged(y, a.size.height)) * a.size.width;
    return row[left] + T(2) * row[at.x] + row[right];
  };
  a.to[blockIdx.z * a.size.pixels() + static_cast<int64_t>(at.y) * a.size.width + at.x] =
      T(1. / 16) * (across(at.y - 1) + T(2) * across(at.y) + across(at.y + 1));
}

template <typename T>
struct Magnify {
  const T* from;  // [pairs, 2, size.height, size.width]
  Size size;
  T* to;  // [pairs, 2, full.height, full.width]
  Size full;
  int level;
};

// Bilinear magnification by 2^level, cut to the images.
template <typename T>
__global__ void __launch_bounds__(kBlockThreads) magnify_kernel(const Magnify<T> a) {
  const Pixel at;
  if (!at.inside(a.full)) return;
  const T* const from = a.from + blockIdx.z * a.size.pixels();
  const T factor = static_cast<T>(int64_t{1} << a.level);
  const T x = clamped((T(at.x) + T(0.5)) / factor - T(0.5), T(0), T(a.size.width - 1));
  const T y = clamped((T(at.y) + T(0.5)) / factor - T(0.5), T(0), T(a.size.height - 1));
  a.to[blockIdx.z * a.full.pixels() + static_cast<int64_t>(at.y) * a.full.width + at.x] =
      factor * value_at(from, a.size, Place<T>(a.size, x, y, 1), 0, 0);
}

}  // namespace
}  // namespace vidgen::cuda
