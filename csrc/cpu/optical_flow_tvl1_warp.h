// Linearising the data term of TV-L1 around the present flow: the second image and its gradient at displaced points.
//
// The 16 pixels around a point give value and gradient of one surface (Catmull-Rom cubics, gradient by their
// derivatives). The points of a vector lie close together but anywhere, so the pixels are not gathered one by one: for
// each point, its four rows of four pixels are four loads, weighted vertically once with the cubics and once with their
// derivatives. Four points are then transposed, so that the horizontal sums are plain vectors again. Per point that is
// 4 loads, 16 multiplications and 8 shuffles, where a gather would fetch 16 numbers.
#pragma once

#include "cpu/optical_flow_tvl1_state.h"

namespace vidgen::VIDGEN_ISA {

// The weights of the pixels at -1, 0, 1 and 2 for a point at t in [0, 1), and their derivatives in t.
template <class V>
VIDGEN_INLINE void cubic_weights(V t, V* weight, V* slope) {
  weight[0] = ((-0.5f * t + 1) * t - 0.5f) * t;
  weight[1] = (1.5f * t - 2.5f) * t * t + 1;
  weight[2] = ((-1.5f * t + 2) * t + 0.5f) * t;
  weight[3] = (0.5f * t - 0.5f) * t * t;
  slope[0] = (-1.5f * t + 2) * t - 0.5f;
  slope[1] = (4.5f * t - 5) * t;
  slope[2] = (-4.5f * t + 4) * t + 0.5f;
  slope[3] = (1.5f * t - 1) * t;
}

template <class T>
using Quad __attribute__((vector_size(4 * sizeof(T)))) = T;

// Writes rho, gradient and 1 / |g|^2 of row y; all zero where the displaced point lies outside the image, so that only
// the smoothness speaks there. `floor` keeps the inverse finite where the image is flat.
template <class T>
void linearise_row(const Plane<T>& prev, const Plane<T>& next, const State<T>& state, T floor, int64_t y) {
  constexpr int64_t lanes = kLanes<T>, points = lanes < 4 ? 4 : lanes;
  const T* const grey = prev.row(y);
  const T right = T(state.width - 1), bottom = T(state.height - 1);
  Vec<T> column{};
  for (int64_t lane = 0; lane < lanes; ++lane) column[lane] = T(lane);
  for (int64_t x0 = 0; x0 < state.width; x0 += points) {
    alignas(64) T along[4][points], across[4][points];  // sums over rows, one for each of the four columns
    Vec<T> weight[points / lanes][4], slope[points / lanes][4], known[points / lanes];
    alignas(64) T down[4][points], steep[4][points];
    alignas(64) T left_of[points], top_of[points];
    for (int64_t part = 0; part < points / lanes; ++part) {
      const int64_t x = x0 + part * lanes;
      const Vec<T> px = column + T(x) + load(state.part(y, kU) + x), py = T(y) + load(state.part(y, kV) + x);
      const auto inside = (px >= 0) & (px <= right) & (py >= 0) & (py <= bottom);
      const Vec<T> zero{};
      known[part] = inside ? splat<T>(1) : zero;
      const Vec<T> qx = inside ? px : zero, qy = inside ? py : zero;
      const Vec<T> left = __builtin_convertvector(__builtin_convertvector(qx, IntVec<T>), Vec<T>);
      const Vec<T> top = __builtin_convertvector(__builtin_convertvector(qy, IntVec<T>), Vec<T>);
      store(left_of + part * lanes, left);
      store(top_of + part * lanes, top);
      cubic_weights<Vec<T>>(qx - left, weight[part], slope[part]);
      Vec<T> vertical[4], vertical_slope[4];
      cubic_weights<Vec<T>>(qy - top, vertical, vertical_slope);
      for (int i = 0; i < 4; ++i) {
        store(down[i] + part * lanes, vertical[i]);
        store(steep[i] + part * lanes, vertical_slope[i]);
      }
    }
    for (int64_t first = 0; first < points; first += 4) {
      Quad<T> sum[4], difference[4];
#pragma GCC unroll 4
      for (int64_t i = 0; i < 4; ++i) {
        const int64_t point = first + i;
        const T* corner = next.row(int64_t(top_of[point]) - 1) + int64_t(left_of[point]) - 1;
        Quad<T> s{}, d{};
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j, corner += next.pitch) {
          Quad<T> pixels;
          __builtin_memcpy(&pixels, corner, sizeof pixels);
          s += pixels * down[j][point];
          d += pixels * steep[j][point];
        }
        sum[i] = s;
        difference[i] = d;
      }
      const auto transposed = [&](const Quad<T>* q, T(*to)[points]) __attribute__((always_inline)) {
        const Quad<T> a = __builtin_shufflevector(q[0], q[1], 0, 4, 1, 5);
        const Quad<T> b = __builtin_shufflevector(q[2], q[3], 0, 4, 1, 5);
        const Quad<T> c = __builtin_shufflevector(q[0], q[1], 2, 6, 3, 7);
        const Quad<T> d = __builtin_shufflevector(q[2], q[3], 2, 6, 3, 7);
        const Quad<T> columns[4] = {
            __builtin_shufflevector(a, b, 0, 1, 4, 5), __builtin_shufflevector(a, b, 2, 3, 6, 7),
            __builtin_shufflevector(c, d, 0, 1, 4, 5), __builtin_shufflevector(c, d, 2, 3, 6, 7)};
        for (int i = 0; i < 4; ++i) __builtin_memcpy(to[i] + first, &columns[i], sizeof columns[i]);
      };
      transposed(sum, along);
      transposed(difference, across);
    }
    for (int64_t part = 0; part < points / lanes; ++part) {
      const int64_t x = x0 + part * lanes;
      Vec<T> value{}, gx{}, gy{};
      for (int i = 0; i < 4; ++i) {
        const Vec<T> a = load(along[i] + part * lanes);
        value = fused<T>(a, weight[part][i], value);
        gx = fused<T>(a, slope[part][i], gx);
        gy = fused<T>(load(across[i] + part * lanes), weight[part][i], gy);
      }
      gx *= known[part];
      gy *= known[part];
      const Vec<T> u = load(state.part(y, kU) + x), v = load(state.part(y, kV) + x);
      const Vec<T> residual = (value - load(grey + x)) * known[part];
      store(state.part(y, kGx) + x, gx);
      store(state.part(y, kGy) + x, gy);
      store(state.part(y, kRho) + x, residual - fused<T>(gx, u, gy * v));
      store(state.part(y, kInverse) + x, known[part] / at_least<T>(fused<T>(gx, gx, gy * gy), floor));
    }
  }
}

}  // namespace vidgen::VIDGEN_ISA
