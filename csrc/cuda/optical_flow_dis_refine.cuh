// The variational refinement of a level's flow: robust constancy of grey levels and of their gradients, and smoothness.
//
// Linearised once around the flow w0 that comes in, with A = (I0 + I1(x + w0)) / 2 and Z = I1(x + w0) - I0, a pixel has
// three residuals a u + b v + c: of A_x, A_y, Z; of A_xx, A_xy, Z_x; of A_xy, A_yy, Z_y; each divided by the length of
// its gradient. They are nine planes. A block makes them for 32 x 8 pixels from A and Z of 36 x 12 in shared memory.
//
// An iteration is one kernel: the weights of the linear system from residuals and flow, then its 5 sweeps of red-black
// over-relaxation, ten half sweeps of which each sees one pixel further. A block does them on a tile of 64 x 64 pixels
// (64 x 32 of double) and keeps the inner 42 x 42: the smoothness of a pixel needs its neighbours' flow, an edge
// between two pixels the smoothness of both, and a half sweep all neighbours, so that of 64 pixels 1 + 10 on each side
// go wrong from outside in. The flow of the tile lies in shared memory, 32 kB, with the smoothness beside it, 16 kB;
// the system, 9 numbers a pixel, stays in the registers of the thread that moves the pixel: 512 threads with 4 red and
// 4 black ones each.
//
// Colours lie apart: column 2k + s of a row, s = (row + colour) % 2, is number k of its colour, and its neighbours are
// numbers k of the other colour above and below, k - 1 + s and k + s beside. So the 32 lanes of a warp move 32
// neighbouring numbers of one row, and read no bank of shared memory twice.
//
// Traffic of an iteration in bytes per pixel of float: sweeps through memory with colours apart would read the nine
// residuals and the flow and write a system of 7 numbers (72), and in each half sweep read half of the system and all
// of the flow and write half of the flow (10 times 26): 332, by 11 kernels. The tile reads the residuals and the flow
// of 64^2 pixels for 42^2 (102), mostly from the second-level cache where its neighbours do too, and writes the flow
// (8): 110, by one.
#pragma once

#include "cuda/optical_flow_dis_level.cuh"

namespace vidgen::cuda {
namespace {

constexpr int kSweeps = 5;
constexpr double kOmega = 1.6, kEpsilon = 1e-3, kLeastGradient = 0.1;

template <typename T>
struct Linearise {
  const T* images;  // [pairs, 2, height, width]
  const T* flow;    // [pairs, 2, height, width]
  T* residuals;     // [pairs, 3, 3, height, width]: of each equation a, b, c
  Size size;
};

template <typename T>
__global__ void __launch_bounds__(kBlockThreads) linearise_kernel(const Linearise<T> a) {
  constexpr int border = 2, width = kBlockWidth + 2 * border, height = kBlockHeight + 2 * border;
  __shared__ T mean[height][width], change[height][width];
  const Size size = a.size;
  const int64_t pair = blockIdx.z;
  const T *const prev = a.images + 2 * pair * size.pixels(), *const next = prev + size.pixels();
  const T *const flow_u = a.flow + 2 * pair * size.pixels(), *const flow_v = flow_u + size.pixels();
  const int left = blockIdx.x * kBlockWidth - border, top = blockIdx.y * kBlockHeight - border;
  for (int i = threadIdx.x; i < height * width; i += kBlockThreads) {
    const int x = edged(left + i % width, size.width), y = edged(top + i / width, size.height);
    const int64_t pixel = static_cast<int64_t>(y) * size.width + x;
    const T grey = prev[pixel];
    const T value = value_at(next, size, Place<T>(size, T(x) + flow_u[pixel], T(y) + flow_v[pixel], 1), 0, 0);
    mean[i / width][i % width] = T(0.5) * (grey + value);
    change[i / width][i % width] = value - grey;
  }
  __syncthreads();
  const Pixel at;
  if (!at.inside(size)) return;

  // central differences; what lies beyond the edge of the image is the slope at the edge
  const auto slope_x = [&](const T(&plane)[height][width], int x, int y) {
    x = edged(x, size.width), y = edged(y, size.height);
    const T* const row = plane[y - top] - left;
    return T(0.5) * (row[x + 1] - row[x - 1]);
  };
  const auto slope_y = [&](const T(&plane)[height][width], int x, int y) {
    x = edged(x, size.width), y = edged(y, size.height);
    return T(0.5) * (plane[y + 1 - top][x - left] - plane[y - 1 - top][x - left]);
  };
  const int x = at.x, y = at.y;
  const T xx = T(0.5) * (slope_x(mean, x + 1, y) - slope_x(mean, x - 1, y));
  const T xy = T(0.5) * (slope_x(mean, x, y + 1) - slope_x(mean, x, y - 1));
  const T yy = T(0.5) * (slope_y(mean, x, y + 1) - slope_y(mean, x, y - 1));
  const T parts[3][3] = {{slope_x(mean, x, y), slope_y(mean, x, y), change[y - top][x - left]},
                         {xx, xy, slope_x(change, x, y)},
                         {xy, yy, slope_y(change, x, y)}};
  const int64_t pixel = static_cast<int64_t>(y) * size.width + x;
  const T u = flow_u[pixel], v = flow_v[pixel];
  const T to_x = T(x) + u, to_y = T(y) + v;
  const bool known = to_x >= 0 && to_x <= T(size.width - 1) && to_y >= 0 && to_y <= T(size.height - 1);
  T* const residuals = a.residuals + 9 * pair * size.pixels() + pixel;
#pragma unroll
  for (int e = 0; e < 3; ++e) {
    const T p = parts[e][0], q = parts[e][1];
    const T scale = (known ? T(1) : T(0)) * inverse_root(p * p + q * q + T(kLeastGradient * kLeastGradient));
    residuals[(3 * e + 0) * size.pixels()] = p * scale;
    residuals[(3 * e + 1) * size.pixels()] = q * scale;
    residuals[(3 * e + 2) * size.pixels()] = (parts[e][2] - p * u - q * v) * scale;
  }
}

constexpr int kColumns = 32, kLines = 16;             // of a block's threads; each has two columns of pixels
constexpr int kRelaxThreads = kColumns * kLines;      // 512
constexpr int kHalo = 2 * kSweeps + 1;                // what is lost on each side
constexpr int kKeptWidth = 2 * kColumns - 2 * kHalo;  // 42

// Rows of a thread, `kLines` apart.
template <typename T>
constexpr int kRows = sizeof(T) == 4 ? 4 : 2;
template <typename T>
constexpr int kTileHeight = kLines * kRows<T>;
template <typename T>
constexpr int kKeptHeight = kTileHeight<T> - 2 * kHalo;  // 42, or 10 of double

template <typename T>
struct Iterate {
  const T* from;       // [pairs, 2, height, width], the flow before
  T* to;               // and after
  const T* residuals;  // [pairs, 3, 3, height, width]
  Size size;
  T alpha, delta, gamma;
};

// A tile's plane of numbers, [colour][row][number].
template <typename T>
using Coloured = T[2][kTileHeight<T>][kColumns];

// Where a thread's pixels of one colour have their neighbours.
struct Beside {
  int shift;        // (row + colour) % 2, the same for all rows of a thread
  int left, right;  // numbers of the neighbours; at the rim of the tile any that exist

  __device__ Beside(int line, int k, int colour)
      : shift((line + colour) & 1), left(max(k - 1 + shift, 0)), right(min(k + shift, kColumns - 1)) {}
};

template <typename T>
struct System {
  T m11, m12, m22, c1, c2;  // omega times the inverse of the 2 x 2 matrix, and the right side
  T left, right, above, below;
};

// The weights of data: adds to the matrix and the right side.
template <typename T>
__device__ inline void add_data(const T* residuals, int64_t plane, T u, T v, T delta, T gamma, T (&matrix)[3],
                                T (&side)[2]) {
  T a[3], b[3], c[3], squares[3];
#pragma unroll
  for (int e = 0; e < 3; ++e) {
    a[e] = residuals[(3 * e + 0) * plane];
    b[e] = residuals[(3 * e + 1) * plane];
    c[e] = residuals[(3 * e + 2) * plane];
    squares[e] = squared(a[e] * u + b[e] * v + c[e]);
  }
  const T grey = delta * inverse_root(squares[0] + T(kEpsilon * kEpsilon));
  const T slopes = gamma * inverse_root(squares[1] + squares[2] + T(kEpsilon * kEpsilon));
#pragma unroll
  for (int e = 0; e < 3; ++e) {
    const T weight = e == 0 ? grey : slopes, wa = weight * a[e], wb = weight * b[e];
    matrix[0] += wa * a[e];
    matrix[1] += wa * b[e];
    matrix[2] += wb * b[e];
    side[0] -= wa * c[e];
    side[1] -= wb * c[e];
  }
}

template <typename T>
__global__ void __launch_bounds__(kRelaxThreads) iterate_kernel(const Iterate<T> a) {
  __shared__ Coloured<T> u, v, smooth;
  constexpr int height = kTileHeight<T>;
  const Size size = a.size;
  const int k = threadIdx.x % kColumns, line = threadIdx.x / kColumns;
  // an even sum, so that a colour of the tile is one of the image
  const int left = blockIdx.x * kKeptWidth - kHalo, top = blockIdx.y * kKeptHeight<T> - kHalo;
  const int64_t pair = blockIdx.z;
  const T* const from = a.from + 2 * pair * size.pixels();
  const T* const residuals = a.residuals + 9 * pair * size.pixels();

#pragma unroll
  for (int j = 0; j < kRows<T>; ++j)
#pragma unroll
    for (int colour = 0; colour < 2; ++colour) {
      const int row = line + j * kLines;
      const int x = edged(left + 2 * k + Beside(line, k, colour).shift, size.width), y = edged(top + row, size.height);
      const int64_t pixel = static_cast<int64_t>(y) * size.width + x;
      u[colour][row][k] = from[pixel];
      v[colour][row][k] = from[size.pixels() + pixel];
    }
  __syncthreads();

#pragma unroll
  for (int j = 0; j < kRows<T>; ++j)
#pragma unroll
    for (int colour = 0; colour < 2; ++colour) {
      const int row = line + j * kLines, above = max(row - 1, 0), below = min(row + 1, height - 1);
      const Beside at(line, k, colour);
      T sum = T(4 * kEpsilon * kEpsilon);
      for (const Coloured<T>* plane : {&u, &v}) {
        const auto& other = (*plane)[1 - colour];
        sum += squared(other[row][at.right] - other[row][at.left]) + squared(other[below][k] - other[above][k]);
      }
      smooth[colour][row][k] = 2 * a.alpha * inverse_root(sum);
    }
  __syncthreads();

  System<T> systems[kRows<T>][2];
#pragma unroll
  for (int j = 0; j < kRows<T>; ++j)
#pragma unroll
    for (int colour = 0; colour < 2; ++colour) {
      System<T>& s = systems[j][colour];
      s = {};
      const Beside at(line, k, colour);
      const int row = line + j * kLines, x = left + 2 * k + at.shift, y = top + row;
      // beyond the image a pixel only decays
      if (x < 0 || x >= size.width || y < 0 || y >= size.height) continue;
      const T here = smooth[colour][row][k];
      const auto& other = smooth[1 - colour];
      // no pixel has a neighbour across the edge
      if (x > 0) s.left = T(0.5) * (here + other[row][at.left]);
      if (x < size.width - 1) s.right = T(0.5) * (here + other[row][at.right]);
      if (y > 0) s.above = T(0.5) * (here + other[max(row - 1, 0)][k]);
      if (y < size.height - 1) s.below = T(0.5) * (here + other[min(row + 1, height - 1)][k]);
      const T edges = s.left + s.right + s.above + s.below + T(1e-9);
      T matrix[3] = {edges, 0, edges}, side[2] = {0, 0};
      add_data(residuals + static_cast<int64_t>(y) * size.width + x, size.pixels(), u[colour][row][k],
               v[colour][row][k], a.delta, a.gamma, matrix, side);
      const T scale = T(kOmega) / (matrix[0] * matrix[2] - matrix[1] * matrix[1]);
      s.m11 = matrix[2] * scale;
      s.m12 = -matrix[1] * scale;
      s.m22 = matrix[0] * scale;
      s.c1 = side[0];
      s.c2 = side[1];
    }

  for (int sweep = 0; sweep < kSweeps; ++sweep)
#pragma unroll
    for (int colour = 0; colour < 2; ++colour) {
      const Beside at(line, k, colour);
#pragma unroll
      for (int j = 0; j < kRows<T>; ++j) {
        const int row = line + j * kLines, above = max(row - 1, 0), below = min(row + 1, height - 1);
        const System<T>& s = systems[j][colour];
        const auto &other_u = u[1 - colour], &other_v = v[1 - colour];
        const T r1 = s.c1 + s.left * other_u[row][at.left] + s.right * other_u[row][at.right] +
                     s.above * other_u[above][k] + s.below * other_u[below][k];
        const T r2 = s.c2 + s.left * other_v[row][at.left] + s.right * other_v[row][at.right] +
                     s.above * other_v[above][k] + s.below * other_v[below][k];
        u[colour][row][k] = T(1 - kOmega) * u[colour][row][k] + (s.m11 * r1 + s.m12 * r2);
        v[colour][row][k] = T(1 - kOmega) * v[colour][row][k] + (s.m12 * r1 + s.m22 * r2);
      }
      __syncthreads();
    }

  T* const to = a.to + 2 * pair * size.pixels();
#pragma unroll
  for (int j = 0; j < kRows<T>; ++j)
#pragma unroll
    for (int colour = 0; colour < 2; ++colour) {
      const int row = line + j * kLines, column = 2 * k + Beside(line, k, colour).shift;
      const int x = left + column, y = top + row;
      const bool kept = row >= kHalo && row < height - kHalo && column >= kHalo && column < 2 * kColumns - kHalo;
      if (!kept || x >= size.width || y >= size.height) continue;
      const int64_t pixel = static_cast<int64_t>(y) * size.width + x;
      to[pixel] = u[colour][row][k];
      to[size.pixels() + pixel] = v[colour][row][k];
    }
}

}  // namespace
}  // namespace vidgen::cuda
