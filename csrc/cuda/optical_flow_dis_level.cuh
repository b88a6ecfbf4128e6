// What the kernels of dense inverse search share: planes of one level, points between their pixels, sums over the lanes
// of a warp, and launches.
//
// Planes are dense, those of all pairs one behind the other, and have no border: who reads beyond an edge reads the
// edge. The pair is the last axis of every grid. A pixel's numbers lie in planes of their own, so that the lanes of a
// warp, neighbouring pixels of a row, read and write whole segments.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace vidgen::cuda {
namespace {

struct Size {
  int height, width;

  __host__ __device__ int64_t pixels() const { return static_cast<int64_t>(height) * width; }
};

// `low` for NaN, so that whatever comes in gives a place that exists.
template <typename T>
__device__ inline T clamped(T x, T low, T high) {
  return x > low ? (x < high ? x : high) : low;
}

// The row or column of an image's edge stands for all beyond it.
__device__ inline int edged(int at, int side) { return clamped(at, 0, side - 1); }

template <typename T>
__device__ inline T squared(T x) {
  return x * x;
}

// 1 / sqrt(x), good to two units in the last place.
__device__ inline float inverse_root(float x) { return rsqrtf(x); }
__device__ inline double inverse_root(double x) { return rsqrt(x); }

// A point between pixels: the one to its upper left and the weights of those to the right and below, which are NaN
// where the point is NaN or infinite.
template <typename T>
struct Place {
  int x, y;
  T right, below;

  // Of the corner of a square of `side` pixels. One that lies farther out than its side is moved to where it touches
  // the image.
  __device__ Place(Size size, T at_x, T at_y, int side) {
    const T near_x = clamped(at_x, T(-side), T(size.width)), near_y = clamped(at_y, T(-side), T(size.height));
    const T left = floor(near_x), top = floor(near_y);
    x = static_cast<int>(left);
    y = static_cast<int>(top);
    right = near_x - left + 0 * at_x;
    below = near_y - top + 0 * at_y;
  }
};

template <typename T>
__device__ inline T between(T a, T b, T share) {
  return (T(1) - share) * a + share * b;
}

// The value at a place moved by (dx, dy) pixels.
template <typename T>
__device__ inline T value_at(const T* plane, Size size, const Place<T>& at, int dx, int dy) {
  const int left = edged(at.x + dx, size.width), right = edged(at.x + dx + 1, size.width);
  const T* const above = plane + static_cast<int64_t>(edged(at.y + dy, size.height)) * size.width;
  const T* const below = plane + static_cast<int64_t>(edged(at.y + dy + 1, size.height)) * size.width;
  return between(between(above[left], above[right], at.right), between(below[left], below[right], at.right), at.below);
}

// Every lane gets the sums over `kLanes` neighbouring lanes, the same bits in each. The chains of several sums overlap.
template <int kLanes, int kCount, typename T>
__device__ inline void sum_over_lanes(T (&values)[kCount]) {
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2)
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] += __shfl_xor_sync(0xffffffffu, values[i], distance);
}

constexpr int kWarp = 32;

// A thread per pixel, blocks of 32 x 8.
constexpr int kBlockWidth = 32, kBlockHeight = 8, kBlockThreads = kBlockWidth * kBlockHeight;

struct Pixel {
  int x, y;

  __device__ Pixel()
      : x(blockIdx.x * kBlockWidth + threadIdx.x % kBlockWidth),
        y(blockIdx.y * kBlockHeight + threadIdx.x / kBlockWidth) {}

  __device__ bool inside(Size size) const { return x < size.width && y < size.height; }
};

inline unsigned parts(int64_t whole, int part) { return static_cast<unsigned>((whole + part - 1) / part); }

inline dim3 pixel_grid(Size size, int64_t planes) {
  return dim3(parts(size.width, kBlockWidth), parts(size.height, kBlockHeight), static_cast<unsigned>(planes));
}

// Enqueues kernels, whose one argument is a struct, until one fails to start.
struct Queue {
  cudaStream_t stream;
  cudaError_t error = cudaSuccess;

  template <typename Arguments>
  void run(void (*kernel)(Arguments), dim3 grid, int threads, Arguments arguments) {
    if (error != cudaSuccess) return;
    void* pointers[] = {&arguments};
    error = cudaLaunchKernel(kernel, grid, dim3(threads), pointers, 0, stream);
  }
};

}  // namespace
}  // namespace vidgen::cuda
