// Red-black relaxation of the linear system of a variational refinement.
//
// Every pixel has two unknowns, its flow (u, v), two equations and a weight for each of its four neighbours n:
//
//     (A + sum w_n) (u, v) = c + sum w_n (u_n, v_n)
//
// with A a symmetric 2 x 2 matrix. M = omega (A + sum w_n)^-1 is stored; a step of successive over-relaxation is
// (u, v) <- (1 - omega) (u, v) + M (c + sum w_n (u_n, v_n)): 18 operations. Pixels with x + y even do not see each
// other, nor do the odd ones: half a sweep takes one kind, in any order.
//
// So that the pixels of one kind fill vectors, every row is kept in two halves, its even columns and its odd ones.
// Column 2k is at [k] of the even half, with neighbours [k - 1] and [k] of the odd one; column 2k + 1 at [k] of the odd
// half, with neighbours [k] and [k + 1] of the even one; and above and below a half is its own kind.
//
// A row of half sweep h + 1 needs the rows around it after half sweep h, so all half sweeps go down an image as one
// wave front, one row apart: ten of them are a front of 12 rows, 140 kB for 320 pixels of float, and memory is read
// once. For threads the image is cut into bands, and a block is done in two steps without dependences between its
// tiles: bands that lose a row at each inner edge for every half sweep, then the seams between them, which grow by as
// many.
#pragma once

#include "cpu/optical_flow_planes.h"

namespace vidgen::VIDGEN_ISA {

// A plane of numbers in halves of rows; one row of border above and below, and one line before and after a half.
template <class T>
struct Halves {
  T* data;
  int64_t pitch;

  T* row(int64_t y, int64_t odd) const { return data + (2 * y + odd) * pitch; }
};

template <class T>
Halves<T> take_halves(Arena& arena, int64_t height, int64_t width) {
  const int64_t pitch = pitch_of<T>((width + 1) / 2);
  T* const all = arena.take<T>(2 * (height + 2) * pitch + 2 * kLine<T>);
  return {all + 2 * pitch + kLine<T>, pitch};
}

template <class T>
struct System {
  int64_t height, width;
  Halves<T> u, v;
  Halves<T> m11, m12, m22, c1, c2;
  Halves<T> across, down;  // weights of the neighbours to the right and below; zero at the edge
};

template <class T>
VIDGEN_INLINE void relax_row(const System<T>& s, T keep, int64_t y, int64_t odd) {
  const int64_t count = (s.width + 1) / 2, shift = odd ? 0 : -1;
  T *const pu = s.u.row(y, odd), *const pv = s.v.row(y, odd);
  const T *const lu = s.u.row(y, 1 - odd) + shift, *const lv = s.v.row(y, 1 - odd) + shift;
  const T *const au = s.u.row(y - 1, odd), *const av = s.v.row(y - 1, odd);
  const T *const bu = s.u.row(y + 1, odd), *const bv = s.v.row(y + 1, odd);
  const T *const left = s.across.row(y, 1 - odd) + shift, *const right = s.across.row(y, odd);
  const T *const above = s.down.row(y - 1, odd), *const below = s.down.row(y, odd);
  const T *const m11 = s.m11.row(y, odd), *const m12 = s.m12.row(y, odd), *const m22 = s.m22.row(y, odd);
  const T *const c1 = s.c1.row(y, odd), *const c2 = s.c2.row(y, odd);
  const Vec<T> rest = splat<T>(keep);
  for (int64_t k = 0; k < count; k += kLanes<T>) {
    const Vec<T> wl = load(left + k), wr = load(right + k), wa = load(above + k), wb = load(below + k);
    Vec<T> ru = fused<T>(wl, load(lu + k), load(c1 + k)), rv = fused<T>(wl, load(lv + k), load(c2 + k));
    ru = fused<T>(wr, load(lu + k + 1), ru);
    rv = fused<T>(wr, load(lv + k + 1), rv);
    ru = fused<T>(wa, load(au + k), ru);
    rv = fused<T>(wa, load(av + k), rv);
    ru = fused<T>(wb, load(bu + k), ru);
    rv = fused<T>(wb, load(bv + k), rv);
    const Vec<T> cross = load(m12 + k);
    store(pu + k, fused<T>(load(m11 + k), ru, fused<T>(cross, rv, rest * load(pu + k))));
    store(pv + k, fused<T>(load(m22 + k), rv, fused<T>(cross, ru, rest * load(pv + k))));
  }
}

// Rows [begin, end) that a half sweep of a tile covers.
struct Rows {
  int64_t begin, end;
};

// `count` half sweeps of a tile, of which half sweep h covers rows(h).
template <class T, class Cover>
void relax_tile(const System<T>& s, T keep, int64_t count, const Cover& rows) {
  int64_t first = s.height, last = 0;
  for (int64_t h = 0; h < count; ++h) {
    first = std::min(first, rows(h).begin + h);
    last = std::max(last, rows(h).end + h);
  }
  for (int64_t front = first; front < last; ++front) {
    for (int64_t h = 0; h < count; ++h) {
      const int64_t y = front - h;
      const Rows tile = rows(h);
      if (y >= tile.begin && y < tile.end) relax_row(s, keep, y, (y + h) & 1);
    }
  }
}

template <class T>
void relax(const System<T>& s, T omega, int64_t sweeps, const Loop& loop) {
  const int64_t height = s.height, count = 2 * sweeps;
  const int64_t bands = std::clamp<int64_t>(height / (2 * count), 1, loop.threads);
  const auto seam = [&](int64_t i) { return height * i / bands; };
  each(loop, bands, [&](int64_t band) {
    const int64_t a = seam(band), b = seam(band + 1);
    const bool first = band == 0, last = band == bands - 1;
    relax_tile(s, 1 - omega, count, [=](int64_t h) { return Rows{first ? 0 : a + h, last ? b : b - h}; });
  });
  each(loop, bands - 1, [&](int64_t i) {
    const int64_t c = seam(i + 1);
    relax_tile(s, 1 - omega, count, [=](int64_t h) { return Rows{c - h, c + h}; });
  });
}

}  // namespace vidgen::VIDGEN_ISA
