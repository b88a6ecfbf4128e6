// From displacements of patches to those of pixels: the mean of the displacements of the patches that cover a pixel,
// weighted by 1 / max(1, |I1(x + w) - I0(x)|).
//
// A thread is a pixel and collects from its patches, row by row: at most (8 / 3 + 1)^2, that is 9, for patches of 8
// pixels every 3. So nobody adds to another's sum, and the order is always the same. Every patch costs 4 loads near
// those of the neighbouring thread; the patches' states are the same for most lanes of a warp.
#pragma once

#include "cuda/optical_flow_dis_search.cuh"

namespace vidgen::cuda {
namespace {

template <typename T>
struct Densify {
  Patches<T> patches;
  const PatchState<T>* states;
  T* flow;  // [pairs, 2, height, width]
};

template <typename T>
__global__ void __launch_bounds__(kBlockThreads) densify_kernel(const Densify<T> a) {
  const Pixel at;
  const Patches<T>& patches = a.patches;
  const Size size = patches.size;
  if (!at.inside(size)) return;
  const int pair = blockIdx.z;
  const int64_t pixel = static_cast<int64_t>(at.y) * size.width + at.x;
  const T grey = patches.prev(pair)[pixel];
  const T* const next = patches.next(pair);
  // the first patch, by its number, that reaches the pixel
  const auto first = [&](int to) { return (max(to - patches.patch + 1, 0) + patches.stride - 1) / patches.stride; };
  const int first_column = first(at.x);
  T total = 0, u = 0, v = 0;
  for (int row = first(at.y); row < patches.rows && patches.y(row) <= at.y; ++row) {
    const int top = patches.y(row);
    const PatchState<T>* const states = a.states + pair * patches.count() + static_cast<int64_t>(row) * patches.columns;
    for (int column = first_column; column < patches.columns && patches.x(column) <= at.x; ++column) {
      const int left = patches.x(column);
      const T du = states[column].u, dv = states[column].v;
      const Place<T> place(size, T(left) + du, T(top) + dv, patches.patch);
      const T square = squared(value_at(next, size, place, at.x - left, at.y - top) - grey);
      const T weight = square <= T(1) ? T(1) : inverse_root(square);  // NaN for NaN
      total += weight;
      u += weight * du;
      v += weight * dv;
    }
  }
  T* const flow = a.flow + 2 * pair * size.pixels() + pixel;
  const T share = T(1) / total;
  flow[0] = u * share;
  flow[size.pixels()] = v * share;
}

}  // namespace
}  // namespace vidgen::cuda
