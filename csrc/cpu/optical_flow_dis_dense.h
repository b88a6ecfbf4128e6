// From displacements of patches to those of pixels, and from a level to the full size.
#pragma once

#include "cpu/optical_flow_dis_search.h"

namespace vidgen::VIDGEN_ISA {

// A flow of one level, in its pixels.
template <class T>
struct Flow {
  Plane<T> u, v;
};

// Bilinear, at a point in pixels; beyond the edge its value continues.
template <class T>
VIDGEN_INLINE void sample(const Flow<T>& flow, T x, T y, T* u, T* v) {
  x = std::min(std::max(x, T(0)), T(flow.u.width - 1));
  y = std::min(std::max(y, T(0)), T(flow.u.height - 1));
  const int64_t left = int64_t(x), top = int64_t(y);
  const int64_t right = std::min(left + 1, flow.u.width - 1), bottom = std::min(top + 1, flow.u.height - 1);
  const T fx = x - T(left), fy = y - T(top);
  const auto at = [&](const Plane<T>& plane) {
    const T above = (1 - fx) * plane.row(top)[left] + fx * plane.row(top)[right];
    const T below = (1 - fx) * plane.row(bottom)[left] + fx * plane.row(bottom)[right];
    return (1 - fy) * above + fy * below;
  };
  *u = at(flow.u);
  *v = at(flow.v);
}

template <class T, int P>
VIDGEN_INLINE void add_row(T* at, const PatchRow<T, P>& value) {
  const PatchRow<T, P> sum = value + load_row<T, P>(at);
  __builtin_memcpy(at, &sum, sizeof sum);
}

// The flow of rows [begin, end): the mean of the displacements of all patches that cover a pixel, weighted by
// 1 / max(1, |I1(x + w) - I0(x)|). Patches are added in order, so that any cut into rows gives the same bits.
template <class T, int P>
void densify_rows(const Patches<T, P>& patches, const Flow<T>& flow, const Plane<T>& weight, int64_t begin,
                  int64_t end) {
  using Row = PatchRow<T, P>;
  const Level<T>& level = patches.level;
  const int64_t width = level.prev.width;
  for (int64_t y = begin; y < end; ++y) {
    std::fill_n(flow.u.row(y), width, T(0));
    std::fill_n(flow.v.row(y), width, T(0));
    std::fill_n(weight.row(y), width, T(0));
  }
  const int64_t first = std::max<int64_t>(0, (begin - P) / patches.stride);
  for (int64_t row = first; row < patches.rows && patches.y(row) < end; ++row) {
    const int64_t y = patches.y(row);
    const int64_t from = std::max<int64_t>(begin - y, 0), to = std::min<int64_t>(end - y, P);
    if (from >= to) continue;
    for (int64_t column = 0; column < patches.columns; ++column) {
      const int64_t x = patches.x(column);
      const PatchState<T>& s = patches.state(row, column);
      const Row u = Row{} + s.u, v = Row{} + s.v, one = Row{} + T(1);
      const Place<T> place(level.next, T(x) + s.u, T(y) + s.v, P);
      residual_rows<T, P>(level.prev.row(y) + x, level.prev.pitch, place, level.next.pitch, from, to,
                          [&](int64_t i, const Row& r) __attribute__((always_inline)) {
                            const Row size = r < 0 ? -r : r, w = one / (size > one ? size : one);
                            add_row<T, P>(weight.row(y + i) + x, w);
                            add_row<T, P>(flow.u.row(y + i) + x, w * u);
                            add_row<T, P>(flow.v.row(y + i) + x, w * v);
                          });
    }
  }
  for (int64_t y = begin; y < end; ++y) {
    T *const pu = flow.u.row(y), *const pv = flow.v.row(y), *const pw = weight.row(y);
    // beyond the row there may be anything, in a plane's own border
    for (int64_t x = 0; x < width; x += kLanes<T>) {
      const Vec<T> inverse = splat<T>(1) / load(pw + x);
      store(pu + x, load(pu + x) * inverse);
      store(pv + x, load(pv + x) * inverse);
    }
  }
}

// Numbers k ... of a row between its points k - 1 and k, `side` of them, as far as they lie in [0, width).
template <class T>
void spread_rest(const T* row, int64_t k, int64_t points, int64_t side, int64_t width, T* to) {
  for (; k <= points; ++k) {
    const T left = row[k - 1], step = row[k] - left;
    for (int64_t i = 0; i < side; ++i) {
      const int64_t x = k * side - side / 2 + i;
      if (x >= 0 && x < width) to[x] = left + step * (T(2 * i + 1) / T(2 * side));
    }
  }
}

// a0 b0 a1 b1 ...
template <class T, size_t... lane>
VIDGEN_INLINE void interleave(Vec<T> a, Vec<T> b, Vec<T>* to, std::index_sequence<lane...>) {
  constexpr size_t lanes = kLanes<T>;
  to[0] = (Vec<T>)__builtin_shufflevector(a, b, (lane / 2 + lane % 2 * lanes)...);
  to[1] = (Vec<T>)__builtin_shufflevector(a, b, ((lane + lanes) / 2 + lane % 2 * lanes)...);
}

// The same by whole vectors of points; returns the first point that is left to do.
template <class T, int side>
int64_t spread(const T* row, int64_t points, int64_t width, T* to) {
  constexpr int64_t lanes = kLanes<T>;
  constexpr auto all = std::make_index_sequence<lanes>();
  spread_rest(row, 0, 0, side, width, to);
  int64_t k = 1;
  for (; k + lanes <= points && (k + lanes) * side - side / 2 <= width; k += lanes) {
    const Vec<T> left = load(row + k - 1), step = load(row + k) - left;
    Vec<T> at[side], out[side];
    for (int i = 0; i < side; ++i) at[i] = left + step * (T(2 * i + 1) / T(2 * side));
    if constexpr (side == 2) {
      interleave<T>(at[0], at[1], out, all);
    } else {
      Vec<T> even[2], odd[2];
      interleave<T>(at[0], at[2], even, all);
      interleave<T>(at[1], at[3], odd, all);
      interleave<T>(even[0], odd[0], out, all);
      interleave<T>(even[1], odd[1], out + 2, all);
    }
    for (int i = 0; i < side; ++i) store(to + k * side - side / 2 + i * lanes, out[i]);
  }
  return k;
}

}  // namespace vidgen::VIDGEN_ISA
