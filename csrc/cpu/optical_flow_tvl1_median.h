// The median of the 3x3 or 5x5 pixels around each pixel, edges repeated; a lane is a pixel.
//
// Forgetful selection: of the first half of the numbers and two more, neither the smallest nor the largest can be the
// median of all. They are moved to the ends and forgotten, the next number comes in, and so on until three are left.
// For 25 numbers that is 14 + 13 + ... + 3 candidates, 165 exchanges of two vectors at most, without a branch.
#pragma once

#include "cpu/optical_flow_planes.h"

namespace vidgen::VIDGEN_ISA {

template <class T>
VIDGEN_INLINE void order(Vec<T>& a, Vec<T>& b) {
  const Vec<T> low = a < b ? a : b, high = a < b ? b : a;
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

// `next` is called for the numbers that are not yet among the `count` candidates.
template <class T, int count, class Next>
VIDGEN_INLINE Vec<T> median_of(Vec<T>* v, const Next& next, int taken) {
  to_ends<T, count>(v);
  if constexpr (count == 3) {
    return v[1];
  } else {
    // the new number takes the place of the smallest, the largest is cut off
    v[0] = next(taken);
    return median_of<T, count - 1>(v, next, taken + 1);
  }
}

// One row; `from` has its borders.
template <class T, int size>
void median_row(const Plane<T>& from, int64_t y, T* to) {
  constexpr int all = size * size, candidates = all / 2 + 2, reach = size / 2;
  for (int64_t x = 0; x < from.width; x += kLanes<T>) {
    const T* const corner = from.row(y - reach) + x - reach;
    const auto number = [&](int i) __attribute__((always_inline)) {
      return load(corner + (i / size) * from.pitch + i % size);
    };
    Vec<T> v[candidates];
#pragma GCC unroll 16
    for (int i = 0; i < candidates; ++i) v[i] = number(i);
    store(to + x, median_of<T, candidates>(v, number, candidates));
  }
}

}  // namespace vidgen::VIDGEN_ISA
