// The iteration of TV-L1 on the device, blocked in time over windows of the image.
//
// One iteration, for every pixel, with the residual r = rho + gx u + gy v of the linearised data term:
//
//     U:  (u, v) += clamp(-r / |g|^2, -lambda theta, lambda theta) g + theta div p
//     P:  p = (p + c grad u) / (1 + c |grad u|),  c = tau / theta,  for the component u and its p; the same for v
//
// The arithmetic. A pixel of float has 9 numbers that are read (u, v, four of p, rho, gx, gy) and 6 that are written:
// 60 bytes for 53 instructions (of sm_80), where the data sheet of an A100 has 1.5 TB/s and 9.8e12 of them per second,
// 8 bytes for 53. So `depth` iterations are done between a read and a write. U looks left and up, P right and down: a
// window whose surroundings are unknown loses one row and one column on each side with every iteration. Of a window of
// 64 x 64 pixels, in picoseconds per pixel and iteration on that card,
//
//     depth                                1      2      4      5      10
//     part that is kept, (1 - depth/32)^2  0.94   0.88   0.77   0.71   0.47
//     bytes per pixel and iteration        62     32     18     15     10
//     time for the bytes                   41     22     12     10     6.7
//     time for the instructions            5.8    6.2    7.1    7.6    11
//
// and 5 it is, about where the two meet: two launches are then the ten iterations after which the change is looked at.
// Windows on the image's edge lose nothing there. All of this is arithmetic: no card has been asked yet.
//
// Tiling. A thread owns 4 rows x 2 columns, a warp 4 rows x 64 columns, a block of 16 warps (8 for double) a window of
// 64 rows; fewer where the image needs fewer. All ten numbers of a pixel, 80 for a thread, stay in registers, of which
// it has 128. Only what crosses the border of a thread goes through shared memory: p of its right column and its last
// row before U, u and v of its left column and first row before P, 24 numbers in quads, so that each goes in one access
// of 16 bytes; 48 KB for a block. With two barriers, one iteration of a thread is 12 such accesses for its 8 pixels.
//
// A window reads from one set of planes and writes to another, as its neighbours still need what it overwrites.
#pragma once

#include "cuda/optical_flow_tvl1_launch.cuh"

#include <algorithm>

namespace vidgen::cuda {
namespace {

constexpr int kDepth = 5;
constexpr int kRows = 4, kColumns = 2;  // of a thread
constexpr int kWindowColumns = 32 * kColumns;
template <typename T>
constexpr int kMostWarps = sizeof(T) == 4 ? 16 : 8;
template <typename T>
constexpr int kMostThreads = 32 * kMostWarps<T>;

// Windows overlap by kDepth on either side of the border between what they keep. The step from one to the next is
// their size less twice that.
struct Windows {
  int across, down, warps;
};

template <typename T>
Windows windows_of(const Level& level) {
  const auto count = [](int size, int window) {
    return size <= window ? 1 : (size - 2 * kDepth + window - 2 * kDepth - 1) / (window - 2 * kDepth);
  };
  const int down = count(level.height, kMostWarps<T> * kRows);
  // no higher than it takes
  const int rows = down == 1 ? level.height : (level.height - 2 * kDepth + down - 1) / down + 2 * kDepth;
  return {count(level.width, kWindowColumns), down, (rows + kRows - 1) / kRows};
}

template <typename T>
struct alignas(16) Quad {
  T at[4];
};

// What goes through shared memory; the quads of all threads for one edge lie side by side.
enum Edge { kRightPux, kRightPvx, kLowerP, kLeftU, kLeftV, kUpperFlow, kEdges };

template <typename T>
struct Patch {
  T u[kRows][kColumns], v[kRows][kColumns];
  T pux[kRows][kColumns], puy[kRows][kColumns], pvx[kRows][kColumns], pvy[kRows][kColumns];
  T rho[kRows][kColumns], gx[kRows][kColumns], gy[kRows][kColumns], inverse[kRows][kColumns];
};

// A thread's facts, a bit each, in one register: which pixels it keeps, row by row, and where the image ends.
constexpr int kLastRow = kRows * kColumns, kLastColumn = kLastRow + kRows;

// To a unit or two in the last place, one instruction each: nothing here is so small that it needs more.
__device__ inline float reciprocal(float x) {
#ifdef __CUDA_ARCH__
  asm("rcp.approx.ftz.f32 %0, %0;" : "+f"(x));
  return x;
#else
  return 1.0f / x;
#endif
}

__device__ inline float root(float x) {
#ifdef __CUDA_ARCH__
  float inverse;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(fmaxf(x, 2e-38f)));
  return x * inverse;
#else
  return sqrtf(x);
#endif
}

__device__ inline double reciprocal(double x) { return 1.0 / x; }
__device__ inline double root(double x) { return sqrt(x); }

// x within -most and most; NaN stays.
template <typename T>
__device__ inline T clamped(T x, T most) {
  return x > most ? most : x < -most ? -most : x;
}

// U; returns the squared changes of the pixels that are kept, if they are wanted.
template <bool measure, typename T>
__device__ inline T update_flow(const Launch<T>& launch, const Quad<T>& left_u, const Quad<T>& left_v,
                                const Quad<T>& above, unsigned bits, Patch<T>& p) {
  T change = 0;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const T pux = c == 0 ? left_u.at[r] : p.pux[r][c - 1], pvx = c == 0 ? left_v.at[r] : p.pvx[r][c - 1];
      const T puy = r == 0 ? above.at[c] : p.puy[r - 1][c], pvy = r == 0 ? above.at[2 + c] : p.pvy[r - 1][c];
      const T residual = multiply_add(p.gx[r][c], p.u[r][c], multiply_add(p.gy[r][c], p.v[r][c], p.rho[r][c]));
      const T along = clamped(-residual * p.inverse[r][c], launch.limit.value);
      const T div_u = (p.pux[r][c] - pux) + (p.puy[r][c] - puy), div_v = (p.pvx[r][c] - pvx) + (p.pvy[r][c] - pvy);
      const T u = multiply_add(launch.theta.value, div_u, multiply_add(along, p.gx[r][c], p.u[r][c]));
      const T v = multiply_add(launch.theta.value, div_v, multiply_add(along, p.gy[r][c], p.v[r][c]));
      if constexpr (measure) {
        const T du = u - p.u[r][c], dv = v - p.v[r][c];
        if (bits >> (r * kColumns + c) & 1) change += multiply_add(du, du, dv * dv);
      }
      p.u[r][c] = u;
      p.v[r][c] = v;
    }
  }
  return change;
}

template <typename T>
__device__ inline void pull(T ratio, T along_x, T along_y, T& px, T& py) {
  const T size = root(multiply_add(along_x, along_x, along_y * along_y));
  const T shrink = reciprocal(multiply_add(ratio, size, T(1)));
  px = multiply_add(ratio, along_x, px) * shrink;
  py = multiply_add(ratio, along_y, py) * shrink;
}

// P; the image ends with those rows and columns of the patch that `bits` says.
template <typename T>
__device__ inline void update_dual(T ratio, const Quad<T>& right_u, const Quad<T>& right_v, const Quad<T>& below,
                                   unsigned bits, Patch<T>& p) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const bool ends_x = bits >> (kLastColumn + c) & 1, ends_y = bits >> (kLastRow + r) & 1;
      const T ux = c + 1 == kColumns ? right_u.at[r] : p.u[r][c + 1];
      const T vx = c + 1 == kColumns ? right_v.at[r] : p.v[r][c + 1];
      const T uy = r + 1 == kRows ? below.at[c] : p.u[r + 1][c], vy = r + 1 == kRows ? below.at[2 + c] : p.v[r + 1][c];
      const T u = p.u[r][c], v = p.v[r][c];
      pull(ratio, ends_x ? T(0) : ux - u, ends_y ? T(0) : uy - u, p.pux[r][c], p.puy[r][c]);
      pull(ratio, ends_x ? T(0) : vx - v, ends_y ? T(0) : vy - v, p.pvx[r][c], p.pvy[r][c]);
    }
  }
}

// The two columns of a row of a plane as one access; `row` is the plane's, from the thread's first column on.
template <typename T>
struct alignas(2 * sizeof(T)) Pair {
  T at[kColumns];
};

template <typename T>
__device__ inline void load_row(const T* row, T (&to)[kColumns]) {
  const Pair<T> pair = *reinterpret_cast<const Pair<T>*>(row);
  to[0] = pair.at[0];
  to[1] = pair.at[1];
}

template <typename T>
__device__ inline void store_row(const T (&from)[kColumns], unsigned kept, T* row) {
  if (kept == 3) {
    *reinterpret_cast<Pair<T>*>(row) = {{from[0], from[1]}};
  } else if (kept == 1) {
    row[0] = from[0];
  } else if (kept == 2) {
    row[1] = from[1];
  }
}

// The sum over the block's threads, in an order that depends on their number alone; thread 0 gets it.
__device__ inline double block_sum(double value, double* shared) {
  const int thread = threadIdx.x, threads = blockDim.x;
  __syncthreads();
  shared[thread] = value;
  for (int step = 512; step > 0; step /= 2) {
    __syncthreads();
    if (thread < step && thread + step < threads) shared[thread] += shared[thread + step];
  }
  return shared[0];
}

template <typename T>
__global__ void __launch_bounds__(kMostThreads<T>) iterate_kernel(const Launch<T> launch) {
  extern __shared__ __align__(16) float shared[];
  const unsigned windows = launch.windows_across * launch.windows_down;
  const unsigned pair = blockIdx.x / windows, window = blockIdx.x % windows;
  if (launch.moving[pair] == 0) return;

  const Level& level = launch.level;
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, warps = blockDim.x / 32;
  const unsigned window_row = window / launch.windows_across, window_column = window % launch.windows_across;
  const int y0 = static_cast<int>(window_row) * (warps * kRows - 2 * kDepth) + warp * kRows;
  const int x0 = static_cast<int>(window_column) * (kWindowColumns - 2 * kDepth) + lane * kColumns;
  // what this window keeps, counted from the thread's first pixel
  const int keep_top = (window_row == 0 ? 0 : kDepth) - warp * kRows;
  const int keep_left = (window_column == 0 ? 0 : kDepth) - lane * kColumns;
  const int keep_bottom = window_row == launch.windows_down - 1 ? kRows : (warps - warp) * kRows - kDepth;
  const int keep_right = window_column == launch.windows_across - 1 ? kColumns : (32 - lane) * kColumns - kDepth;

  const int64_t plane = level.plane();
  const T* const flow = launch.flow + pair * 2 * plane;
  const T* const dual = launch.dual + pair * 4 * plane;
  const T* const term = launch.term + pair * 3 * plane;
  Patch<T> p{};
  unsigned bits = 0;
#pragma unroll
  for (int c = 0; c < kColumns; ++c) bits |= static_cast<unsigned>(x0 + c == level.width - 1) << (kLastColumn + c);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    bits |= static_cast<unsigned>(y0 + r == level.height - 1) << (kLastRow + r);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const bool kept = r >= keep_top && r < keep_bottom && c >= keep_left && c < keep_right && y0 + r < level.height &&
                        x0 + c < level.width;
      bits |= static_cast<unsigned>(kept) << (r * kColumns + c);
    }
    if (y0 + r < level.height && x0 < level.width) {
      const int64_t at = level.at(y0 + r, x0);
      load_row(flow + at, p.u[r]);
      load_row(flow + plane + at, p.v[r]);
      load_row(dual + at, p.pux[r]);
      load_row(dual + plane + at, p.puy[r]);
      load_row(dual + 2 * plane + at, p.pvx[r]);
      load_row(dual + 3 * plane + at, p.pvy[r]);
      load_row(term + at, p.rho[r]);
      load_row(term + plane + at, p.gx[r]);
      load_row(term + 2 * plane + at, p.gy[r]);
    }
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const T square = multiply_add(p.gx[r][c], p.gx[r][c], p.gy[r][c] * p.gy[r][c]);
      p.inverse[r][c] = reciprocal(square > T(kGradientFloor) ? square : T(kGradientFloor));
    }
  }

  Quad<T>* const edges = reinterpret_cast<Quad<T>*>(shared);
  const auto edge = [&](Edge which, int of) -> Quad<T>& { return edges[which * kMostThreads<T> + of]; };
  T change = 0;
#pragma unroll 1
  for (int i = 0; i < launch.iterations; ++i) {
    edge(kRightPux, thread) = {{p.pux[0][1], p.pux[1][1], p.pux[2][1], p.pux[3][1]}};
    edge(kRightPvx, thread) = {{p.pvx[0][1], p.pvx[1][1], p.pvx[2][1], p.pvx[3][1]}};
    edge(kLowerP, thread) = {{p.puy[3][0], p.puy[3][1], p.pvy[3][0], p.pvy[3][1]}};
    __syncthreads();
    {
      // no dual variable points in across the image's edge; across a window's nobody needs to know
      Quad<T> left_u{}, left_v{}, above{};
      if (lane > 0) {
        left_u = edge(kRightPux, thread - 1);
        left_v = edge(kRightPvx, thread - 1);
      }
      if (warp > 0) above = edge(kLowerP, thread - 32);
      if (launch.measure && i == launch.iterations - 1) {
        change = update_flow<true>(launch, left_u, left_v, above, bits, p);
      } else {
        update_flow<false>(launch, left_u, left_v, above, bits, p);
      }
    }
    edge(kLeftU, thread) = {{p.u[0][0], p.u[1][0], p.u[2][0], p.u[3][0]}};
    edge(kLeftV, thread) = {{p.v[0][0], p.v[1][0], p.v[2][0], p.v[3][0]}};
    edge(kUpperFlow, thread) = {{p.u[0][0], p.u[0][1], p.v[0][0], p.v[0][1]}};
    __syncthreads();
    const int right = lane < 31 ? thread + 1 : thread, below = warp < warps - 1 ? thread + 32 : thread;
    update_dual(launch.ratio.value, edge(kLeftU, right), edge(kLeftV, right), edge(kUpperFlow, below), bits, p);
  }

  T* const new_flow = launch.new_flow + pair * 2 * plane;
  T* const new_dual = launch.new_dual + pair * 4 * plane;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const unsigned columns = bits >> (r * kColumns) & 3;
    const int64_t at = level.at(y0 + r, x0);
    store_row(p.u[r], columns, new_flow + at);
    store_row(p.v[r], columns, new_flow + plane + at);
    store_row(p.pux[r], columns, new_dual + at);
    store_row(p.puy[r], columns, new_dual + plane + at);
    store_row(p.pvx[r], columns, new_dual + 2 * plane + at);
    store_row(p.pvy[r], columns, new_dual + 3 * plane + at);
  }
  if (launch.measure) {
    const double sum = block_sum(static_cast<double>(change), reinterpret_cast<double*>(shared));
    if (thread == 0) launch.changes[blockIdx.x] = sum;
  }
}

// A pair whose change is small enough comes to rest: launches return at once for it until the next warp.
constexpr int kDecideThreads = 128;

template <typename T>
__global__ void __launch_bounds__(kDecideThreads) decide_kernel(const Launch<T> launch) {
  extern __shared__ __align__(16) float shared[];
  const int64_t windows = static_cast<int64_t>(launch.windows_across) * launch.windows_down;
  if (launch.moving[blockIdx.x] == 0) return;
  double sum = 0;
  for (int64_t i = threadIdx.x; i < windows; i += kDecideThreads) sum += launch.changes[blockIdx.x * windows + i];
  sum = block_sum(sum, reinterpret_cast<double*>(shared));
  // a NaN comes to rest, too
  if (threadIdx.x == 0 && !(sum > launch.enough)) launch.moving[blockIdx.x] = 0;
}

}  // namespace
}  // namespace vidgen::cuda
