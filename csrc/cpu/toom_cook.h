// F(m, r): m outputs of an r-tap filter from n = m + r - 1 products (Toom-Cook, "Winograd" convolution).
//
// With finite points p_0 .. p_{n-2} and the point at infinity, y = A [(G g) * (B d)]:
//   B: row i holds the coefficients of prod_{j != i} (x - p_j), row infinity those of prod_j (x - p_j);
//   G: row i is p_i^k / prod_{j != i} (p_i - p_j), row infinity takes the last tap;
//   A: row j is p_i^j, and the product at infinity enters the last output alone.
// Two things follow. The last input d_{n-1} has a coefficient only in row infinity of B. So with m = 2 the last
// input, the only one later than y_0, reaches y_1 alone: **F(2, r) is causal to the bit**, NaN included, as long
// as zero coefficients are left out instead of multiplied. And forms with the same m share the columns of A
// that belong to common points, so a long filter may be cut into short ones whose products add up.
//
// Points are 0, 1, -1, 2, -2, 1/2, -1/2: small powers of two, which keeps rounding low, in opposite pairs:
// p and -p share the sum and the difference of their rows of B, and of their columns of A.
#pragma once

#include "simd.h"

namespace vidgen::VIDGEN_ISA {

constexpr double kPoints[] = {0, 1, -1, 2, -2, .5, -.5};

template <int m, int r>
struct ToomCook {
  static constexpr int n = m + r - 1;
  double input[n][n] = {}, weight[n][r] = {}, output[m][n] = {};

  constexpr ToomCook() {
    for (int i = 0; i < n; ++i) {
      bool infinity = i == n - 1;
      double norm = 1;
      input[i][0] = 1;
      for (int j = 0, degree = 0; j < n - 1; ++j) {
        if (j == i) continue;
        for (int k = ++degree; k >= 0; --k) input[i][k] = (k > 0 ? input[i][k - 1] : 0) - kPoints[j] * input[i][k];
        if (!infinity) norm *= kPoints[i] - kPoints[j];
      }
      double power = 1;
      for (int k = 0; k < (m > r ? m : r); ++k) {
        if (k < r) weight[i][k] = infinity ? k == r - 1 : power / norm;
        if (k < m) output[k][i] = infinity ? k == m - 1 : power;
        if (!infinity) power *= kPoints[i];
      }
    }
  }

  // Row i of B is followed by that of the opposite point.
  static constexpr bool paired(int i) { return i % 2 == 1 && i + 1 < n - 1; }
};

template <int m, int r>
constexpr ToomCook<m, r> kToomCook{};

// Calls f with the integral constants 0 .. n-1.
template <int n, class F>
VIDGEN_INLINE void static_for(F f) {
  [&]<size_t... i>(std::index_sequence<i...>) __attribute__((always_inline)) {
    (f(std::integral_constant<int, int(i)>{}), ...);
  }(std::make_index_sequence<n>());
}

// The sum of coefficient(j) * v[j]; terms with a zero coefficient are left out.
template <int count, class V, class C>
VIDGEN_INLINE V weighted_sum(const V* v, C) {
  V sum = {};
  bool empty = true;
  static_for<count>([&](auto j) __attribute__((always_inline)) {
    constexpr double c = C{}(decltype(j)::value);
    if constexpr (c != 0) {
      using T = decltype(sum[0] + 0);
      if (empty) {
        sum = c == 1 ? v[j] : c == -1 ? -v[j] : v[j] * T(c);
      } else {
        sum = c == 1 ? sum + v[j] : c == -1 ? sum - v[j] : multiply_add<T>(T(c), v[j], sum);
      }
      empty = false;
    }
  });
  return sum;
}

// Transforms an r-tap filter, a vector of filters at a time.
template <int m, int r, class S>
void transform_filter(const Vec<S>* taps, Vec<S>* out) {
  static_for<m + r - 1>([&](auto index) __attribute__((always_inline)) {
    constexpr int i = decltype(index)::value;
    out[i] = weighted_sum<r>(taps, [](int k) constexpr { return kToomCook<m, r>.weight[i][k]; });
  });
}

// B d: calls out(constant i, row i of B times d). Opposite points share the sums of even and of odd coefficients.
template <int m, int r, class V, class Out>
VIDGEN_INLINE void transform_input(const V* d, Out out) {
  using F = ToomCook<m, r>;
  constexpr int n = F::n;
  static_for<n>([&](auto index) __attribute__((always_inline)) {
    constexpr int i = decltype(index)::value;
    if constexpr (F::paired(i)) {
      auto half_sum = [](int j) constexpr {
        return (kToomCook<m, r>.input[i][j] + kToomCook<m, r>.input[i + 1][j]) / 2;
      };
      auto half_difference = [](int j) constexpr {
        return (kToomCook<m, r>.input[i][j] - kToomCook<m, r>.input[i + 1][j]) / 2;
      };
      V s = weighted_sum<n>(d, half_sum), e = weighted_sum<n>(d, half_difference);
      out(index, s + e);
      out(std::integral_constant<int, i + 1>{}, s - e);
    } else if constexpr (i == 0 || !F::paired(i - 1)) {
      out(index, weighted_sum<n>(d, [](int j) constexpr { return kToomCook<m, r>.input[i][j]; }));
    }
  });
}

// y += A z, where product(i) gives z_i and y has m entries.
template <int m, int r, class V, class Product>
VIDGEN_INLINE void transform_output(Product product, V* y) {
  using F = ToomCook<m, r>;
  using T = decltype(V{}[0] + 0);
  static_for<F::n>([&](auto index) __attribute__((always_inline)) {
    constexpr int i = decltype(index)::value;
    if constexpr (F::paired(i)) {
      V plus = product(i), minus = product(i + 1), sum = plus + minus, difference = plus - minus;
      static_for<m>([&](auto k) __attribute__((always_inline)) {
        constexpr double c = kToomCook<m, r>.output[k][i];
        y[k] = multiply_add<T>(T(c), k % 2 ? difference : sum, y[k]);
      });
    } else if constexpr (i == 0 || !F::paired(i - 1)) {
      V z = product(i);
      static_for<m>([&](auto k) __attribute__((always_inline)) {
        constexpr double c = kToomCook<m, r>.output[k][i];
        if constexpr (c != 0) y[k] = multiply_add<T>(T(c), z, y[k]);
      });
    }
  });
}

// F(2, rows) along another axis, rows = 2 or 3: every row of B is one input, or one plus or minus another.
struct VerticalTerms {
  int row, other;  // other < 0: none
  bool subtract;
};

VIDGEN_INLINE VerticalTerms vertical_terms(int rows, int product) {
  const double* b = rows == 2 ? kToomCook<2, 2>.input[product] : kToomCook<2, 3>.input[product];
  VerticalTerms terms{-1, -1, false};
  for (int j = rows; j >= 0; --j) {
    if (b[j] == 0) continue;
    if (terms.row < 0) {
      terms.row = j;
    } else {
      terms.other = j;
      terms.subtract = b[j] < 0;
    }
  }
  return terms;
}

// Where a line of input comes from: one staged row, or the sum or difference of two (the vertical transform).
template <class S>
struct LineSource {
  const S* row;
  const S* other;  // null: none
  bool subtract;
};

// Transforms a line for a filter of (taps + ...) taps, cut into pieces: F(m, taps) of each. Tiles lie m pixels apart;
// coefficient i of tile t of piece s goes to out[s][i * stride + t * pitch]. Pieces share the pixels they read, and so
// do tiles: in bf16, where a pixel costs its conversion too, a vector of channels walks a strip of tiles with the
// pixels of one in registers, and reads m new ones a tile. A strip is some lines of cache; fp32 takes tile after tile.
template <class S, int m, int... taps>
void transform_line(const LineSource<S>& source, int64_t pitch, int64_t tiles, S* const* out, int64_t stride) {
  constexpr int columns = (taps + ...) + m - 1;
  constexpr int64_t kStripBytes = 1024;
  const int64_t fitting = sizeof(S) == 2 ? kStripBytes / (pitch * int64_t(sizeof(S))) : 1;
  const int64_t length = fitting > 1 ? fitting : 1;
  auto walk = [&](auto pixel) __attribute__((always_inline)) {
    Vec<S> d[columns];
    auto transform = [&](S* const* to, int64_t at) __attribute__((always_inline)) {
      const Vec<S>* first = d;
      auto piece = [&](auto count) __attribute__((always_inline)) {
        S* coefficients = *to++ + at;
        transform_input<m, decltype(count)::value>(first,
                                                   [&](auto i, Vec<S> v) { store(coefficients + i * stride, v); });
        first += decltype(count)::value;
      };
      (piece(std::integral_constant<int, taps>{}), ...);
    };
    for (int64_t strip = 0; strip < tiles; strip += length) {
      for (int64_t c = 0; c < pitch; c += kLanes<S>) {
        int64_t at = strip * m * pitch + c;
#pragma GCC unroll 16
        for (int j = 0; j < columns; ++j) d[j] = pixel(at + j * pitch);
        transform(out, strip * pitch + c);
        if constexpr (sizeof(S) == 2) {
          int64_t end = strip + length < tiles ? strip + length : tiles;
          for (int64_t t = strip + 1; t < end; ++t) {
            at += m * pitch;
#pragma GCC unroll 16
            for (int j = 0; j < columns - m; ++j) d[j] = d[j + m];
#pragma GCC unroll 4
            for (int j = columns - m; j < columns; ++j) d[j] = pixel(at + j * pitch);
            transform(out, t * pitch + c);
          }
        }
      }
    }
  };
  if (source.other == nullptr) {
    walk([&](int64_t at) __attribute__((always_inline)) { return load(source.row + at); });
  } else if (source.subtract) {
    walk([&](int64_t at) __attribute__((always_inline)) { return load(source.row + at) - load(source.other + at); });
  } else {
    walk([&](int64_t at) __attribute__((always_inline)) { return load(source.row + at) + load(source.other + at); });
  }
}

}  // namespace vidgen::VIDGEN_ISA
