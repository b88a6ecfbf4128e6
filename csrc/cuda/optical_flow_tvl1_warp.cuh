// Linearising the data term of TV-L1 on the device: the second image and its gradient at displaced points.
//
// The 16 pixels around a point give value and gradient of one surface (Catmull-Rom cubics, gradient by their
// derivatives). A thread has a point. Neighbours are displaced alike but for fractions of a pixel, so that the 16 reads
// of a warp are rows of the image, and come from the L1 cache but for the first.
#pragma once

#include "cuda/optical_flow_tvl1_launch.cuh"

namespace vidgen::cuda {
namespace {

// The weights of the pixels at -1, 0, 1 and 2 for a point at t in [0, 1), and their derivatives in t.
template <typename T>
__device__ inline void cubic_weights(T t, T (&weight)[4], T (&slope)[4]) {
  weight[0] = ((T(-0.5) * t + T(1)) * t - T(0.5)) * t;
  weight[1] = (T(1.5) * t - T(2.5)) * t * t + T(1);
  weight[2] = ((T(-1.5) * t + T(2)) * t + T(0.5)) * t;
  weight[3] = (T(0.5) * t - T(0.5)) * t * t;
  slope[0] = (T(-1.5) * t + T(2)) * t - T(0.5);
  slope[1] = (T(4.5) * t - T(5)) * t;
  slope[2] = (T(-4.5) * t + T(4)) * t + T(0.5);
  slope[3] = (T(1.5) * t - T(1)) * t;
}

// Writes rho and the gradient, all zero where the displaced point lies outside the image, so that only the smoothness
// speaks there; every pair moves again.
template <typename T>
__global__ void __launch_bounds__(kTileThreads) linearise_kernel(const Launch<T> launch) {
  const Level& level = launch.level;
  const Place place = place_in(level);
  if (!place.exists) return;
  if (place.first) launch.moving[place.pair] = 1;
  const int64_t plane = level.plane(), at = level.at(place.y, place.x);
  const T* const flow = launch.flow + place.pair * 2 * plane;
  const T u = flow[at], v = flow[plane + at], x = T(place.x) + u, y = T(place.y) + v;
  T rho = 0, gx = 0, gy = 0;
  if (x >= T(0) && x <= T(level.width - 1) && y >= T(0) && y <= T(level.height - 1)) {
    const int left = static_cast<int>(x), top = static_cast<int>(y);
    T weight_x[4], slope_x[4], weight_y[4], slope_y[4];
    cubic_weights(x - T(left), weight_x, slope_x);
    cubic_weights(y - T(top), weight_y, slope_y);
    int columns[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int column = left + i - 1;
      columns[i] = column < 0 ? 0 : column >= level.width ? level.width - 1 : column;
    }
    const T* const next = launch.next + place.pair * plane;
    T value = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int row = top + j - 1;
      const T* const pixels = next + level.at(row < 0 ? 0 : row >= level.height ? level.height - 1 : row, 0);
      T along = 0, rise = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const T pixel = pixels[columns[i]];
        along = multiply_add(weight_x[i], pixel, along);
        rise = multiply_add(slope_x[i], pixel, rise);
      }
      value = multiply_add(weight_y[j], along, value);
      gx = multiply_add(weight_y[j], rise, gx);
      gy = multiply_add(slope_y[j], along, gy);
    }
    rho = value - launch.prev[place.pair * plane + at];
    // a NaN of the residual alone would be lost where the step is clamped
    gx += rho - rho;
    rho -= multiply_add(gx, u, gy * v);
  }
  T* const term = launch.term + place.pair * 3 * plane;
  term[at] = rho;
  term[plane + at] = gx;
  term[2 * plane + at] = gy;
}

}  // namespace
}  // namespace vidgen::cuda
