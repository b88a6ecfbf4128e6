// What every kernel of TV-L1 is launched with.
#pragma once

#include "cuda/optical_flow_planes.cuh"

namespace vidgen::cuda {
namespace {

// |g|^2 is at least this where it divides.
constexpr double kGradientFloor = 1e-6;

// 8 bytes, so that the launches of float and of double have the same size.
template <typename T>
struct alignas(8) Constant {
  T value;
};

// One launch's argument; each kernel reads the part that it is about. A pair's planes lie one after the other: of a
// flow u and v; of the dual variables those of u along both axes, then those of v; of the data term rho, gx and gy,
// with the residual rho + gx u + gy v.
template <typename T>
struct Launch {
  Level level;

  // grey levels
  PixelView pixels;
  int channels;

  // resizing: (pairs, components, from_height, from_width) by strides, to `image`, times a factor for each component
  const T* from;
  int from_height, from_width, components;
  int64_t from_pair, from_component, from_row, from_column;
  Constant<T> factor[2];
  T* image;

  // a warp of a level
  const T *prev, *next;  // grey levels
  const T *flow, *dual;  // what is read
  T *new_flow, *new_dual, *term;
  Constant<T> theta, limit, ratio;  // limit = lambda theta, ratio = tau / theta
  int iterations;
  unsigned windows_across, windows_down;
  bool measure;     // whether the last iteration's change is wanted
  double* changes;  // [pair][window], sums of squares
  int* moving;      // [pair], 0 when the pair has come to rest in this warp
  double enough;    // the sum of squares at which it does
};

}  // namespace
}  // namespace vidgen::cuda
