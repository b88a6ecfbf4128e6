// Linearising the data term of TV-L1 around the present flow: the second image and its gradient at displaced points.
//
// The 16 pixels around a point give value and gradient of one surface (Catmull-Rom cubics, gradient by their
// derivatives): the sums over the four rows, weighted with the cubics and with their derivatives, for each of the four
// columns; then the sums over the columns. Points are taken by vectors.
//
// A flow is smooth, so that most vectors of points are displaced alike but for fractions of a pixel. Then their pixels
// lie side by side, and 16 unaligned loads fetch them all. Elsewhere they are not gathered one by one either: for each
// point, its four rows of four pixels are four loads, and four points at a time are transposed when their rows have
// been summed. Both ways do the same operations in the same order, and give the same bits.
#pragma once

#include <type_traits>

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

// sum += a * b, fused where the processor can.
template <class T>
VIDGEN_INLINE void add_product(const Quad<T>& a, T b, Quad<T>* sum) {
#if defined(__FMA__)
  if constexpr (sizeof(T) == 4) {
    *sum = (Quad<T>)_mm_fmadd_ps((__m128)a, _mm_set1_ps(b), (__m128)*sum);
  } else {
    *sum = (Quad<T>)_mm256_fmadd_pd((__m256d)a, _mm256_set1_pd(b), (__m256d)*sum);
  }
#else
  *sum = *sum + a * b;
#endif
}

// What is known of a vector of points (of four where a vector is shorter): pixel and fraction, as weights.
template <class T>
struct Points {
  using Whole = std::remove_cvref_t<decltype(IntVec<T>{}[0])>;
  static constexpr int64_t lanes = kLanes<T>, count = lanes < 4 ? 4 : lanes;

  alignas(64) T weight_x[4][count], slope_x[4][count], weight_y[4][count], slope_y[4][count];
  alignas(64) T known[count];  // 1 where the point lies inside the image, else 0
  alignas(64) Whole left[count], top[count];
  bool side_by_side;

  // The points of the pixels x ... of row y.
  VIDGEN_INLINE void place(const State<T>& state, int64_t x, int64_t y) {
    const T right = T(state.width - 1), bottom = T(state.height - 1);
    uint64_t apart = 0;
    for (int64_t i = 0; i < count; i += lanes) {
      Vec<T> column{};
      for (int64_t lane = 0; lane < lanes; ++lane) column[lane] = T(x + i + lane);
      const Vec<T> px = column + load(state.part(y, kU) + x + i), py = T(y) + load(state.part(y, kV) + x + i);
      const auto inside = (px >= 0) & (px <= right) & (py >= 0) & (py <= bottom);
      const Vec<T> zero{}, qx = inside ? px : zero, qy = inside ? py : zero;
      store(known + i, inside ? splat<T>(1) : zero);
      const IntVec<T> whole_x = __builtin_convertvector(qx, IntVec<T>),
                      whole_y = __builtin_convertvector(qy, IntVec<T>);
      const Vec<T> floor_x = __builtin_convertvector(whole_x, Vec<T>),
                   floor_y = __builtin_convertvector(whole_y, Vec<T>);
      __builtin_memcpy(left + i, &whole_x, sizeof whole_x);
      __builtin_memcpy(top + i, &whole_y, sizeof whole_y);
      weigh(qx - floor_x, weight_x, slope_x, i);
      weigh(qy - floor_y, weight_y, slope_y, i);
      // displaced like the first point?
      const IntVec<T> off = (IntVec<T>)((floor_x - column) != (T(left[0]) - T(x))) | (whole_y != top[0]);
      uint64_t words[sizeof off / 8];
      __builtin_memcpy(words, &off, sizeof off);
      for (uint64_t word : words) apart |= word;
    }
    side_by_side = apart == 0;
  }

 private:
  static VIDGEN_INLINE void weigh(Vec<T> t, T (*weight)[count], T (*slope)[count], int64_t i) {
    Vec<T> weights[4], slopes[4];
    cubic_weights<Vec<T>>(t, weights, slopes);
    for (int tap = 0; tap < 4; ++tap) {
      store(weight[tap] + i, weights[tap]);
      store(slope[tap] + i, slopes[tap]);
    }
  }
};

// Sums over the four rows for each of the four columns, weighted with the cubics and with their derivatives.
template <class T>
struct ColumnSums {
  static constexpr int64_t count = Points<T>::count;
  alignas(64) T value[4][count], slope[4][count];
};

template <class T>
VIDGEN_INLINE void sum_side_by_side(const Plane<T>& image, const Points<T>& points, ColumnSums<T>* sums) {
  const T* const corner = image.row(points.top[0] - 1) + (points.left[0] - 1);
  for (int64_t i = 0; i < points.count; i += kLanes<T>) {
#pragma GCC unroll 4
    for (int column = 0; column < 4; ++column) {
      Vec<T> value{}, slope{};
#pragma GCC unroll 4
      for (int row = 0; row < 4; ++row) {
        const Vec<T> pixels = load(corner + row * image.pitch + column + i);
        value = fused<T>(pixels, load(points.weight_y[row] + i), value);
        slope = fused<T>(pixels, load(points.slope_y[row] + i), slope);
      }
      store(sums->value[column] + i, value);
      store(sums->slope[column] + i, slope);
    }
  }
}

// Four quads, one for each point, become one for each column.
template <class T>
VIDGEN_INLINE void store_transposed(const Quad<T>* q, T (*to)[Points<T>::count], int64_t first) {
  const Quad<T> a = __builtin_shufflevector(q[0], q[1], 0, 4, 1, 5),
                b = __builtin_shufflevector(q[2], q[3], 0, 4, 1, 5);
  const Quad<T> c = __builtin_shufflevector(q[0], q[1], 2, 6, 3, 7),
                d = __builtin_shufflevector(q[2], q[3], 2, 6, 3, 7);
  const Quad<T> columns[4] = {__builtin_shufflevector(a, b, 0, 1, 4, 5), __builtin_shufflevector(a, b, 2, 3, 6, 7),
                              __builtin_shufflevector(c, d, 0, 1, 4, 5), __builtin_shufflevector(c, d, 2, 3, 6, 7)};
  for (int column = 0; column < 4; ++column) __builtin_memcpy(to[column] + first, &columns[column], sizeof columns[0]);
}

template <class T>
VIDGEN_INLINE void sum_scattered(const Plane<T>& image, const Points<T>& points, ColumnSums<T>* sums) {
  for (int64_t first = 0; first < points.count; first += 4) {
    Quad<T> values[4], slopes[4];
#pragma GCC unroll 4
    for (int64_t i = 0; i < 4; ++i) {
      const int64_t point = first + i;
      const T* const corner = image.row(points.top[point] - 1) + (points.left[point] - 1);
      Quad<T> value{}, slope{};
#pragma GCC unroll 4
      for (int row = 0; row < 4; ++row) {
        Quad<T> pixels;
        __builtin_memcpy(&pixels, corner + row * image.pitch, sizeof pixels);
        add_product<T>(pixels, points.weight_y[row][point], &value);
        add_product<T>(pixels, points.slope_y[row][point], &slope);
      }
      values[i] = value;
      slopes[i] = slope;
    }
    store_transposed<T>(values, sums->value, first);
    store_transposed<T>(slopes, sums->slope, first);
  }
}

// Writes rho, gradient and 1 / |g|^2 of row y; all zero where the displaced point lies outside the image, so that only
// the smoothness speaks there. `floor` keeps the inverse finite where the image is flat.
template <class T>
void linearise_row(const Plane<T>& prev, const Plane<T>& next, const State<T>& state, T floor, int64_t y) {
  const T* const grey = prev.row(y);
  Points<T> points;
  ColumnSums<T> sums;
  for (int64_t x0 = 0; x0 < state.width; x0 += points.count) {
    points.place(state, x0, y);
    if (points.side_by_side) {
      sum_side_by_side(next, points, &sums);
    } else {
      sum_scattered(next, points, &sums);
    }
    for (int64_t i = 0; i < points.count; i += kLanes<T>) {
      Vec<T> value{}, gx{}, gy{};
      for (int column = 0; column < 4; ++column) {
        const Vec<T> weight = load(points.weight_x[column] + i), sum = load(sums.value[column] + i);
        value = fused<T>(sum, weight, value);
        gx = fused<T>(sum, load(points.slope_x[column] + i), gx);
        gy = fused<T>(load(sums.slope[column] + i), weight, gy);
      }
      const int64_t x = x0 + i;
      const Vec<T> known = load(points.known + i);
      gx *= known;
      gy *= known;
      const Vec<T> u = load(state.part(y, kU) + x), v = load(state.part(y, kV) + x);
      const Vec<T> residual = (value - load(grey + x)) * known;
      store(state.part(y, kGx) + x, gx);
      store(state.part(y, kGy) + x, gy);
      store(state.part(y, kRho) + x, residual - fused<T>(gx, u, gy * v));
      store(state.part(y, kInverse) + x, known / at_least<T>(fused<T>(gx, gx, gy * gy), floor));
    }
  }
}

}  // namespace vidgen::VIDGEN_ISA
