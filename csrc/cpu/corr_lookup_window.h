// Windows of a correlation lookup: where they lie, and what interpolation and its adjoint make of them.
//
// A query looks up n x n values, n = 2 * radius + 1, between (n + 1) x (n + 1) whole pixels; all of them lie equally
// far between their neighbours, so a window is a small image that moves by one fraction of a pixel. Lanes are columns.
#pragma once

#include <type_traits>

#include "cpu/corr_lookup.h"
#include "cpu/panels.h"

namespace vidgen::VIDGEN_ISA {

// Lengths of what lies in scratch, in elements of T.
template <class T>
struct CorrSizes {
  int64_t n, side, taps;  // n; n + 1, pixels along a window; n * n
  int64_t values;         // of a query: taps of every level
  int64_t line;           // room for the values, read and written by whole vectors
  int64_t pitch;          // of a window's rows in scratch: a vector and a column may be read beyond the last
  int64_t shared;         // room for the window that several queries share
  int64_t channels;       // by whole vectors

  VIDGEN_INLINE explicit CorrSizes(const CorrLookup& p)
      : n(2 * p.radius + 1),
        side(n + 1),
        taps(n * n),
        values(p.levels * taps),
        line(round_up(values, kLanes<T>) + kLanes<T>),
        pitch(round_up(side, kLanes<T>) + kLanes<T>),
        shared(2 * side * side + 4 * side * kLanes<T>),
        channels(round_up(p.channels, kLanes<T>)) {}
};

// The upper left pixel of a window, which may lie outside, and how far beyond it the window begins.
template <class T>
struct Place {
  int64_t column, row;
  T fx, fy;
};

template <class T>
struct Window {
  const T* at;
  int64_t pitch;
};

// Weights of two neighbours along each axis.
template <class T>
struct Blend {
  T left, right, top, bottom;
};

template <class T>
VIDGEN_INLINE Blend<T> blend_of(const Place<T>& at) {
  return {1 - at.fx, at.fx, 1 - at.fy, at.fy};
}

template <class T>
VIDGEN_INLINE void split(T position, int64_t size, int64_t radius, int64_t& first, T& fraction) {
  // beyond the image all is one, and integers must not overflow
  const T low = T(-radius - 2), high = T(size + radius + 1);
  position = position < low ? low : position > high ? high : position;
  int64_t whole = int64_t(position);
  whole -= T(whole) > position;
  first = whole - radius;
  fraction = position - T(whole);
}

// False, and a place outside, where a coordinate is not finite.
template <class T>
VIDGEN_INLINE bool place_of(const CorrLookup& p, T x, T y, int64_t level, Place<T>& at) {
  const CorrLevel& size = p.level[level];
  const bool known = x - x == 0 && y - y == 0;
  T scale = 1;
  for (int64_t i = 0; i < level; ++i) scale *= T(0.5);
  split<T>(known ? x * scale : T(-p.radius - 2), size.width, p.radius, at.column, at.fx);
  split<T>(known ? y * scale : T(-p.radius - 2), size.height, p.radius, at.row, at.fy);
  return known;
}

template <class T>
VIDGEN_INLINE bool meets(const CorrLevel& size, const Place<T>& at, int64_t side) {
  return at.row + side > 0 && at.row < size.height && at.column + side > 0 && at.column < size.width;
}

// The window of a query's correlations: where they lie, if the window does so with what whole vectors read beyond it,
// else in `tile`, with zeros for what is outside.
template <class E>
Window<Acc<E>> read_window(const E* plane, const CorrLevel& level, const Place<Acc<E>>& at,
                           const CorrSizes<Acc<E>>& sizes, Acc<E>* tile) {
  using T = Acc<E>;
  const int64_t side = sizes.side;
  if constexpr (std::is_same_v<E, T>) {
    const int64_t stride = level.row_stride;
    if (level.column_stride == 1 && stride >= 0 && at.row >= 0 && at.column >= 0 && at.row + side <= level.height &&
        at.column + side <= level.width &&
        (at.row + side - 1) * stride + at.column + round_up(sizes.n, kLanes<T>) <=
            (level.height - 1) * stride + level.width - 1)
      return {plane + at.row * stride + at.column, stride};
  }
  const int64_t first = at.column < 0 ? -at.column : 0;
  const int64_t last = level.width - at.column < side ? level.width - at.column : side;
  for (int64_t r = 0; r < side; ++r) {
    T* to = tile + r * sizes.pitch;
    for (int64_t c = 0; c < sizes.pitch; c += kLanes<T>) store(to + c, Vec<T>{});
    const int64_t row = at.row + r;
    if (row < 0 || row >= level.height) continue;
    const E* from = plane + row * level.row_stride + at.column * level.column_stride;
    if (level.column_stride == 1 && last - first >= kLanes<T>) {
      // the last vector may overlap the one before
      for (int64_t c = first; c + kLanes<T> < last; c += kLanes<T>) store(to + c, load(from + c));
      store(to + last - kLanes<T>, load(from + last - kLanes<T>));
    } else {
      for (int64_t c = first; c < last; ++c) to[c] = to_scalar(from[c * level.column_stride]);
    }
  }
  return {tile, sizes.pitch};
}

// to[r * n + c] = the window between rows r and r + 1, columns c and c + 1, for r, c < n. Whole vectors are written: as
// the last columns come first and rows go down, what they write too much is written again; a vector at the end is lost.
template <class T>
VIDGEN_INLINE void interpolate(const Window<T>& window, const Blend<T>& by, int64_t n, T* to) {
  for (int64_t c = (n - 1) / kLanes<T> * kLanes<T>; c >= 0; c -= kLanes<T>) {
    const T* from = window.at + c;
    Vec<T> above = by.left * load(from) + by.right * load(from + 1);
    for (int64_t r = 0; r < n; ++r) {
      from += window.pitch;
      const Vec<T> below = by.left * load(from) + by.right * load(from + 1);
      store(to + r * n + c, by.top * above + by.bottom * below);
      above = below;
    }
  }
}

// The gradient of one level's looked-up values, strided, into the middle of a tile of side + 1 rows with a rim of
// zeros.
template <class T>
void read_gradient(const T* grad, int64_t channel_stride, const CorrSizes<T>& sizes, T* tile) {
  const int64_t n = sizes.n;
  for (int64_t i = 0; i < (sizes.side + 1) * sizes.pitch; i += kLanes<T>) store(tile + i, Vec<T>{});
  for (int64_t c = 0; c < n; ++c)
    for (int64_t r = 0; r < n; ++r) tile[(r + 1) * sizes.pitch + c + 1] = grad[(c * n + r) * channel_stride];
}

// The gradient of a window's side * side pixels: interpolation backwards, the weights having changed places.
template <class T>
VIDGEN_INLINE void spread(const T* tile, const Place<T>& at, const CorrSizes<T>& sizes, T* to) {
  const Blend<T> by = {at.fx, 1 - at.fx, at.fy, 1 - at.fy};
  interpolate<T>({tile, sizes.pitch}, by, sizes.side, to);
}

// Calls visit(row, column, weight) for a window's pixels in the image, in raster order.
template <class T, class Visit>
VIDGEN_INLINE void for_each_pixel(const CorrLevel& size, const Place<T>& at, int64_t side, const T* weights,
                                  const Visit& visit) {
  for (int64_t r = 0; r < side; ++r) {
    const int64_t row = at.row + r;
    if (row < 0 || row >= size.height) continue;
    for (int64_t c = 0; c < side; ++c) {
      const int64_t column = at.column + c;
      if (column >= 0 && column < size.width) visit(row, column, weights[r * side + c]);
    }
  }
}

}  // namespace vidgen::VIDGEN_ISA
