// The median of the 3x3 or 5x5 numbers around each pixel of both components of a flow, edges repeated.
//
// A thread has a pixel and reads its windows from the caches; 25 numbers are 5 new ones for each row that a warp walks
// on. Forgetful selection: of half of the numbers and two more, neither the smallest nor the largest can be the median
// of all. They are moved to the ends and forgotten, the next number comes in, and so on until three are left: 14
// registers, and for 25 numbers 103 exchanges without a branch.
#pragma once

#include "cuda/optical_flow_tvl1_launch.cuh"

namespace vidgen::cuda {
namespace {

__device__ inline void order(float& a, float& b) {
  const float low = fminf(a, b);
  b = fmaxf(a, b);
  a = low;
}

__device__ inline void order(double& a, double& b) {
  const double low = fmin(a, b);
  b = fmax(a, b);
  a = low;
}

// Moves the smallest of v[0 ... count) to v[0] and the largest to v[count - 1].
template <int count, typename T>
__device__ inline void to_ends(T* v) {
  // pairs first: the smaller halves hold the smallest, the larger ones the largest
#pragma unroll
  for (int i = 0; i < count / 2; ++i) order(v[i], v[count - 1 - i]);
#pragma unroll
  for (int i = 1; i < (count + 1) / 2; ++i) order(v[0], v[i]);
#pragma unroll
  for (int i = count / 2; i < count - 1; ++i) order(v[i], v[count - 1]);
}

// Forgets from `count` candidates down to three; `next(i)` is number i of those to come.
template <int count, typename T, typename Next>
__device__ inline T forget(T* v, const Next& next, int i) {
  to_ends<count>(v);
  if constexpr (count == 3) {
    return v[1];
  } else {
    // the new number takes the place of the smallest, the largest is cut off
    v[0] = next(i);
    return forget<count - 1>(v, next, i + 1);
  }
}

template <int size, typename T>
__global__ void __launch_bounds__(kTileThreads) median_kernel(const Launch<T> launch) {
  const Level& level = launch.level;
  const Place place = place_in(level);
  if (!place.exists || launch.moving[place.pair] == 0) return;
  int columns[size];
#pragma unroll
  for (int i = 0; i < size; ++i) {
    const int x = place.x + i - size / 2;
    columns[i] = x < 0 ? 0 : x >= level.width ? level.width - 1 : x;
  }
  for (int component = 0; component < 2; ++component) {
    const int64_t start = (place.pair * 2 + component) * level.plane();
    T lost = 0;
    const auto number = [&](int i) {
      const int y = place.y + i / size - size / 2, row = y < 0 ? 0 : y >= level.height ? level.height - 1 : y;
      const T here = launch.flow[start + level.at(row, columns[i % size])];
      // no exchange keeps a NaN
      lost += here - here;
      return here;
    };
    constexpr int candidates = size * size / 2 + 2;
    T v[candidates];
#pragma unroll
    for (int i = 0; i < candidates; ++i) v[i] = number(i);
    const T median = forget<candidates>(v, number, candidates);
    launch.new_flow[start + level.at(place.y, place.x)] = median + lost;
  }
}

}  // namespace
}  // namespace vidgen::cuda
