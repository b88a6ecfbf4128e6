// The median of the 3x3 or 5x5 pixels around each pixel, edges repeated; a lane is a pixel.
//
// Forgetful selection: of half of the numbers and two more, neither the smallest nor the largest can be the median of
// all. They are moved to the ends and forgotten, the next number comes in, and so on until three are left. Two rows at
// a time, for their windows have all but one row of each in common: 20 of 25 numbers are dealt with once for both, from
// 14 candidates down to 6 survivors, and each row adds its own five. That is 103 / 2 + 29 exchanges of two vectors for
// one of medians, without a branch.
#pragma once

#include "cpu/optical_flow_planes.h"

namespace vidgen::VIDGEN_ISA {

template <class T>
VIDGEN_INLINE void order(Vec<T>& a, Vec<T>& b) {
  const Vec<T> low = lesser<T>(a, b), high = greater<T>(a, b);
  a = low;
  b = high;
}

// Moves the smallest of v[0 ... count) to v[0] and the largest to v[count - 1].
template <class T, int count>
VIDGEN_INLINE void to_ends(Vec<T>* v) {
  // pairs first: the smaller halves hold the smallest, the larger ones the largest
#pragma GCC unroll 16
  for (int i = 0; i < count / 2; ++i) order<T>(v[i], v[count - 1 - i]);
#pragma GCC unroll 16
  for (int i = 1; i < (count + 1) / 2; ++i) order<T>(v[0], v[i]);
#pragma GCC unroll 16
  for (int i = count / 2; i < count - 1; ++i) order<T>(v[i], v[count - 1]);
}

// Forgets from `count` candidates down to `last`, whose ends are found but not yet forgotten. `next(i)` is number i of
// those to come.
template <class T, int count, int last, class Next>
VIDGEN_INLINE void forget(Vec<T>* v, const Next& next, int i) {
  to_ends<T, count>(v);
  if constexpr (count > last) {
    // the new number takes the place of the smallest, the largest is cut off
    v[0] = next(i);
    forget<T, count - 1, last>(v, next, i + 1);
  }
}

// Rows y and, if `both`, y + 1; `from` has its borders.
template <class T, int size>
void median_rows(const Plane<T>& from, int64_t y, bool both, T* first, T* second) {
  constexpr int common = size * (size - 1), candidates = size * size / 2 + 2, last = 2 * candidates - common;
  for (int64_t x = 0; x < from.width; x += kLanes<T>) {
    const T* const corner = from.row(y - size / 2) + x - size / 2;
    const auto row = [&](int64_t i) __attribute__((always_inline)) { return corner + i * from.pitch; };
    const auto shared = [&](int i) __attribute__((always_inline)) { return load(row(1 + i / size) + i % size); };
    Vec<T> v[candidates];
#pragma GCC unroll 16
    for (int i = 0; i < candidates; ++i) v[i] = shared(i);
    forget<T, candidates, last>(v, shared, candidates);
    for (int64_t which = 0; which < (both ? 2 : 1); ++which) {
      const T* const own = row(which * size);
      const auto number = [&](int i) __attribute__((always_inline)) { return load(own + i); };
      Vec<T> w[last - 1];
#pragma GCC unroll 16
      for (int i = 1; i < last - 1; ++i) w[i] = v[i];
      w[0] = number(0);
      forget<T, last - 1, 3>(w, number, 1);
      store((which == 0 ? first : second) + x, w[1]);
    }
  }
}

}  // namespace vidgen::VIDGEN_ISA
