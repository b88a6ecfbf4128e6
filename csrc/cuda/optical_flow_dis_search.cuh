// The inverse search: for every patch of the first image, the displacement at which the second looks alike.
//
// A patch is a warp. A lane has one column of it and 2 neighbouring rows (8 x 8 pixels; 8 rows of 16 x 16; of 4 x 4
// one, and both halves of the warp do the same): their grey levels and gradients stay in registers while the patch
// moves, so that a displacement costs a lane 6 loads, 2 interpolations in three steps each, and 5 exchanges with other
// lanes in which four sums (of r, r^2, r gx, r gy) go side by side.
//
// Order. A patch looks at the results of its neighbours to the left and above, those of one stripe of 8 rows of
// patches; on the way back at those to the right and below. Stripes are free of each other: a stripe is a block, of 8
// warps, and warp l does row l, one column after the other. It may do column c when warp l - 1 has done c, which a
// counter in shared memory tells: the front is a diagonal, but no patch waits for more than the one above it. On the
// way back a stripe reads the row below it as the first pass left it: passes read one array of states and write
// another.
//
// What depends on nothing is done before, by all of the device: the sums of a patch's gradients, where it begins and
// what that is worth. In what is left latency is all: 1920 x 1080 pixels with the preset "medium" have, on level 1, 179
// rows of 319 patches, 23 blocks a pair, each a chain of at least 319 + 7 patches; it takes several pairs to fill the
// device. So both neighbours are tried at once, for the latency of one displacement instead of two.
#pragma once

#include "cuda/optical_flow_dis_level.cuh"

namespace vidgen::cuda {
namespace {

constexpr int kStripeRows = 8;
constexpr double kLeastDeterminant = 1e-5, kStep = 0.25, kLeastStep = 0.01, kLeastGain = 0.01;

// A displacement, what it is worth, and b, which with H^-1 gives the next step.
template <typename T>
struct PatchState {
  T u, v, squares, bx, by;
};

// H^-1, all zero where there is none, and the means of the gradients.
template <typename T>
struct PatchTensor {
  T xx, xy, yy, mean_gx, mean_gy;
};

// The patches of a level: corners every `stride` pixels, the last flush with the edge.
template <typename T>
struct Patches {
  const T* images;  // [pairs, 2, height, width]
  Size size;
  int patch, stride, rows, columns;

  __device__ const T* prev(int64_t pair) const { return images + 2 * pair * size.pixels(); }
  __device__ const T* next(int64_t pair) const { return prev(pair) + size.pixels(); }
  __device__ int x(int column) const { return min(column * stride, size.width - patch); }
  __device__ int y(int row) const { return min(row * stride, size.height - patch); }
  __host__ __device__ int64_t count() const { return static_cast<int64_t>(rows) * columns; }
};

// A lane's share of a patch.
template <typename T, int P>
struct Share {
  static constexpr int kLanes = P == 4 ? 16 : 32, kRows = P * P / kLanes;
  int left, top;  // of the patch
  int column, row;
  T grey[kRows], gx[kRows], gy[kRows];

  __device__ Share(const T* prev, Size size, int patch_x, int patch_y) : left(patch_x), top(patch_y) {
    const int lane = threadIdx.x % kLanes;
    column = lane % P;
    row = lane / P * kRows;
    const int x = left + column, before = edged(x - 1, size.width), after = edged(x + 1, size.width);
    // Sobel's operator: differences across three columns, added up by (1 2 1) over rows, and the other way round
    T middle[kRows + 2], difference[kRows + 2], sum[kRows + 2];
#pragma unroll
    for (int i = 0; i < kRows + 2; ++i) {
      const T* const line = prev + static_cast<int64_t>(edged(top + row + i - 1, size.height)) * size.width;
      const T left_of = line[before], right_of = line[after];
      middle[i] = line[x];
      difference[i] = right_of - left_of;
      sum[i] = left_of + T(2) * middle[i] + right_of;
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      grey[i] = middle[i + 1];
      gx[i] = T(0.125) * (difference[i] + T(2) * difference[i + 1] + difference[i + 2]);
      gy[i] = T(0.125) * (sum[i + 2] - sum[i]);
    }
  }

  // Makes gradients those less their means: then sum r g is what b asks for, whatever the mean of r.
  __device__ void center(T mean_gx, T mean_gy) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      gx[i] -= mean_gx;
      gy[i] -= mean_gy;
    }
  }

  // This lane's part of the sums of r, r^2, r gx, r gy at the displacement (u, v).
  __device__ void add_up(const T* next, Size size, T u, T v, T* sums) const {
    const Place<T> at(size, T(left) + u, T(top) + v, P);
    const int x0 = edged(at.x + column, size.width), x1 = edged(at.x + column + 1, size.width);
    const auto along = [&](int i) {
      const T* const line = next + static_cast<int64_t>(edged(at.y + row + i, size.height)) * size.width;
      return between(line[x0], line[x1], at.right);
    };
    T above = along(0);
    sums[0] = sums[1] = sums[2] = sums[3] = T(0);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const T below = along(i + 1), r = between(above, below, at.below) - grey[i];
      sums[0] += r;
      sums[1] += r * r;
      sums[2] += r * gx[i];
      sums[3] += r * gy[i];
      above = below;
    }
  }

  __device__ static PatchState<T> state(T u, T v, const T* sums) {
    return {u, v, sums[1] - sums[0] * sums[0] * (T(1) / (P * P)), sums[2], sums[3]};
  }

  __device__ PatchState<T> moved_to(const T* next, Size size, T u, T v) const {
    T sums[4];
    add_up(next, size, u, v, sums);
    sum_over_lanes<kLanes>(sums);
    return state(u, v, sums);
  }
};

template <typename T>
struct Prepare {
  Patches<T> patches;
  const T* start;  // [pairs, 2, start_size]; null begins with zero
  Size start_size;
  T zoom;  // how many pixels of this level are one of the start's, per axis
  PatchTensor<T>* tensors;
  PatchState<T>* states;
};

// Tensors of all patches, where they begin, and what that is worth: a warp for each.
template <typename T, int P>
__global__ void __launch_bounds__(kBlockThreads) prepare_kernel(const Prepare<T> a) {
  const Patches<T>& patches = a.patches;
  const int64_t index = (static_cast<int64_t>(blockIdx.x) * kBlockThreads + threadIdx.x) / kWarp;
  if (index >= patches.count()) return;
  const int64_t pair = blockIdx.z, number = pair * patches.count() + index;
  const int left = patches.x(static_cast<int>(index % patches.columns));
  const int top = patches.y(static_cast<int>(index / patches.columns));
  using Mine = Share<T, P>;
  Mine mine(patches.prev(pair), patches.size, left, top);

  T means[2] = {0, 0}, squares[3] = {0, 0, 0};
  for (int i = 0; i < Mine::kRows; ++i) {
    means[0] += mine.gx[i];
    means[1] += mine.gy[i];
  }
  sum_over_lanes<Mine::kLanes>(means);
  const T mean_gx = means[0] / (P * P), mean_gy = means[1] / (P * P);
  mine.center(mean_gx, mean_gy);
  for (int i = 0; i < Mine::kRows; ++i) {
    squares[0] += mine.gx[i] * mine.gx[i];
    squares[1] += mine.gx[i] * mine.gy[i];
    squares[2] += mine.gy[i] * mine.gy[i];
  }
  sum_over_lanes<Mine::kLanes>(squares);
  const T xx = squares[0], xy = squares[1], yy = squares[2], determinant = xx * yy - xy * xy;
  const bool solvable = determinant > T(kLeastDeterminant) * (1 + squared(xx + yy));
  const T scale = solvable ? 1 / determinant : T(0);

  T u = 0, v = 0;
  if (a.start != nullptr) {
    const T* const start = a.start + 2 * pair * a.start_size.pixels();
    const T x = clamped((T(left) + T(P / 2)) / a.zoom - T(0.5), T(0), T(a.start_size.width - 1));
    const T y = clamped((T(top) + T(P / 2)) / a.zoom - T(0.5), T(0), T(a.start_size.height - 1));
    const Place<T> at(a.start_size, x, y, 1);
    u = a.zoom * value_at(start, a.start_size, at, 0, 0);
    v = a.zoom * value_at(start + a.start_size.pixels(), a.start_size, at, 0, 0);
  }
  const PatchState<T> state = mine.moved_to(patches.next(pair), patches.size, u, v);
  if (threadIdx.x % kWarp != 0) return;
  a.tensors[number] = {yy * scale, -xy * scale, xx * scale, mean_gx, mean_gy};
  a.states[number] = state;
}

template <typename T>
struct Pass {
  Patches<T> patches;
  const PatchTensor<T>* tensors;
  const PatchState<T>* from;
  PatchState<T>* to;
  int descent_iterations;
  bool backward;
};

// What a warp has written before it counts up, another sees that has seen the count.
__device__ inline void count_up(volatile int* done, int count) {
  __threadfence_block();
  *done = count;
}

__device__ inline void await(const volatile int* done, int count) {
  while (*done < count) __nanosleep(20);
  __threadfence_block();
}

// Quarters of steps for as long as they are of any length, up to and with the first that does not lead down:
// interpolation blurs between pixels, so that the distance may be greater there though the patches fit better. NaN ends
// it.
template <typename T, int P>
__device__ inline PatchState<T> descend(const Share<T, P>& mine, const PatchTensor<T>& tensor, const T* next, Size size,
                                        int steps, const PatchState<T>& start) {
  PatchState<T> here = start;
  for (int i = 0; i < steps; ++i) {
    const T du = T(kStep) * (tensor.xx * here.bx + tensor.xy * here.by);
    const T dv = T(kStep) * (tensor.xy * here.bx + tensor.yy * here.by);
    if (!(du * du + dv * dv > T(kLeastStep * kLeastStep))) break;
    const T before = here.squares;
    here = mine.moved_to(next, size, here.u - du, here.v - dv);
    if (!(here.squares < before)) break;
  }
  // farther than a patch it has lost its way
  return squared(here.u - start.u) + squared(here.v - start.v) > T(P * P) ? start : here;
}

// One pass over a stripe. One block of a multiprocessor is enough: told nothing, the compiler spills for a fourth.
template <typename T, int P>
__global__ void __launch_bounds__(kStripeRows* kWarp, 1) pass_kernel(const Pass<T> a) {
  __shared__ int done[kStripeRows];  // columns of every row
  if (threadIdx.x < kStripeRows) done[threadIdx.x] = 0;
  __syncthreads();
  const Patches<T>& patches = a.patches;
  const Size size = patches.size;
  const int first = blockIdx.x * kStripeRows, rows = min(kStripeRows, patches.rows - first);
  const int line = threadIdx.x / kWarp;
  if (line >= rows) return;
  const int row = first + (a.backward ? rows - 1 - line : line), over = a.backward ? row + 1 : row - 1;
  // beyond the stripe there is something to see only on the way back
  const bool sees_over = line > 0 || (a.backward && over < patches.rows);
  const int64_t pair = blockIdx.z, offset = pair * patches.count();
  const T *const prev = patches.prev(pair), *const next = patches.next(pair);
  PatchState<T>* const to = a.to + offset + static_cast<int64_t>(row) * patches.columns;
  const PatchState<T>* const from = a.from + offset + static_cast<int64_t>(row) * patches.columns;
  const PatchTensor<T>* const tensors = a.tensors + offset + static_cast<int64_t>(row) * patches.columns;
  const PatchState<T>* const above = (line > 0 ? a.to : a.from) + offset + static_cast<int64_t>(over) * patches.columns;

  using Mine = Share<T, P>;
  PatchState<T> beside{};
  for (int step = 0; step < patches.columns; ++step) {
    const int column = a.backward ? patches.columns - 1 - step : step;
    Mine mine(prev, size, patches.x(column), patches.y(row));
    const PatchTensor<T> tensor = tensors[column];
    mine.center(tensor.mean_gx, tensor.mean_gy);
    PatchState<T> here = from[column];
    if (line > 0) await(&done[line - 1], step + 1);

    T u = here.u, v = here.v;
    if (sees_over) {
      u = above[column].u;
      v = above[column].v;
    }
    T sums[8];
    mine.add_up(next, size, beside.u, beside.v, sums);
    mine.add_up(next, size, u, v, sums + 4);
    sum_over_lanes<Mine::kLanes>(sums);
    const PatchState<T> first_offer = Mine::state(beside.u, beside.v, sums);
    const PatchState<T> second_offer = Mine::state(u, v, sums + 4);
    if (step > 0 && first_offer.squares + T(kLeastGain) < here.squares) here = first_offer;
    if (sees_over && second_offer.squares + T(kLeastGain) < here.squares) here = second_offer;

    here = descend<T, P>(mine, tensor, next, size, a.descent_iterations, here);
    if (threadIdx.x % kWarp == 0) {
      to[column] = here;
      count_up(&done[line], step + 1);
    }
    beside = here;
  }
}

}  // namespace
}  // namespace vidgen::cuda
