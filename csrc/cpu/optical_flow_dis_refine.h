// The variational refinement of a level's flow: robust constancy of grey levels and of their gradients, and smoothness.
//
// Linearised once around the flow w0 that comes in, with A = (I0 + I1(x + w0)) / 2 and Z = I1(x + w0) - I0, each pixel
// has three residuals, linear in the flow w = (u, v): that of the grey level, A_x, A_y, Z, and those of its gradient,
// A_xx, A_xy, Z_x and A_xy, A_yy, Z_y, each divided by the length of its own gradient (Zimmer et al.), so that an
// edge's contrast does not count. They are kept as a u + b v + c: nine numbers. Outside of I1 there is no data.
//
// Every outer iteration weighs the residuals and the differences to neighbours by the robust penalty sqrt(s +
// epsilon^2), whose weight is 1 / sqrt(s + epsilon^2), and solves the linear system approximately
// (optical_flow_dis_relax.h). Weighing costs some 80 operations, three roots and four divisions for a
// pixel, the ten half sweeps 18 operations each for half of the pixels.
#pragma once

#include "cpu/optical_flow_dis_dense.h"
#include "cpu/optical_flow_dis_relax.h"

namespace vidgen::VIDGEN_ISA {

constexpr double kEpsilon = 1e-3, kLeastGradient = 0.1, kOmega = 1.6;
constexpr int64_t kSweeps = 5;

template <class T>
struct Refinement {
  Plane<T> mean, change, mean_x, mean_y, inside;
  Halves<T> residual[3][3];
  Halves<T> smooth;
  System<T> system;
};

template <class T>
void take_refinement(Arena& arena, int64_t height, int64_t width, Refinement<T>* r) {
  for (Plane<T>* plane : {&r->mean, &r->change, &r->mean_x, &r->mean_y, &r->inside})
    *plane = take_plane<T>(arena, height, width);
  for (auto& equation : r->residual)
    for (Halves<T>& part : equation) part = take_halves<T>(arena, height, width);
  System<T>& s = r->system;
  s.height = height;
  s.width = width;
  for (Halves<T>* part : {&r->smooth, &s.u, &s.v, &s.m11, &s.m12, &s.m22, &s.c1, &s.c2, &s.across, &s.down})
    *part = take_halves<T>(arena, height, width);
}

template <class T>
void warp_row(const Level<T>& level, const Flow<T>& flow, const Refinement<T>& r, int64_t y) {
  const int64_t width = level.prev.width, height = level.prev.height;
  const T *const grey = level.prev.row(y), *const pu = flow.u.row(y), *const pv = flow.v.row(y);
  for (int64_t x = 0; x < width; ++x) {
    const T px = T(x) + pu[x], py = T(y) + pv[x];
    const bool inside = px >= 0 && px <= T(width - 1) && py >= 0 && py <= T(height - 1);
    const Place<T> at(level.next, px, py, 1);
    const T* const corner = at.corner;
    const int64_t pitch = level.next.pitch;
    const T value = at.upper * (at.left * corner[0] + at.right * corner[1]) +
                    at.lower * (at.left * corner[pitch] + at.right * corner[pitch + 1]);
    r.mean.row(y)[x] = T(0.5) * (grey[x] + value);
    r.change.row(y)[x] = value - grey[x];
    r.inside.row(y)[x] = inside ? T(1) : T(0);
  }
  extend_row(r.mean, y);
  extend_row(r.change, y);
}

template <class T>
VIDGEN_INLINE Vec<T> slope_x(const Plane<T>& plane, int64_t y, int64_t x) {
  const T* const at = plane.row(y) + x;
  return T(0.5) * (load(at + 1) - load(at - 1));
}

template <class T>
VIDGEN_INLINE Vec<T> slope_y(const Plane<T>& plane, int64_t y, int64_t x) {
  const T* const at = plane.row(y) + x;
  return T(0.5) * (load(at + plane.pitch) - load(at - plane.pitch));
}

template <class T, size_t... lane>
VIDGEN_INLINE void split(Vec<T> a, Vec<T> b, T* even, T* odd, std::index_sequence<lane...>) {
  store(even, (Vec<T>)__builtin_shufflevector(a, b, (2 * lane)...));
  store(odd, (Vec<T>)__builtin_shufflevector(a, b, (2 * lane + 1)...));
}

template <class T>
VIDGEN_INLINE void store_split(const Halves<T>& to, int64_t y, int64_t x, Vec<T> a, Vec<T> b) {
  split<T>(a, b, to.row(y, 0) + x / 2, to.row(y, 1) + x / 2, std::make_index_sequence<kLanes<T>>());
}

// The nine numbers of a row's residuals, and its flow, in halves.
template <class T>
void linearise_row(const Flow<T>& flow, const Refinement<T>& r, int64_t y) {
  constexpr int64_t lanes = kLanes<T>;
  const int64_t width = r.system.width;
  for (int64_t x = 0; x < width; x += 2 * lanes) {
    Vec<T> part[3][3][2], u[2], v[2];
    for (int i = 0; i < 2; ++i) {
      const int64_t at = x + i * lanes;
      u[i] = Vec<T>{};
      v[i] = Vec<T>{};
      for (auto& equation : part)
        for (auto& number : equation) number[i] = Vec<T>{};
      if (at >= width) continue;
      u[i] = load(flow.u.row(y) + at);
      v[i] = load(flow.v.row(y) + at);
      const Vec<T> xx = slope_x(r.mean_x, y, at), xy = slope_y(r.mean_x, y, at), yy = slope_y(r.mean_y, y, at);
      const Vec<T> rows[3][3] = {{load(r.mean_x.row(y) + at), load(r.mean_y.row(y) + at), load(r.change.row(y) + at)},
                                 {xx, xy, slope_x(r.change, y, at)},
                                 {xy, yy, slope_y(r.change, y, at)}};
      Vec<T> known = load(r.inside.row(y) + at);
      for (int64_t lane = width - at; lane < lanes; ++lane) known[lane] = u[i][lane] = v[i][lane] = 0;
      for (int e = 0; e < 3; ++e) {
        const Vec<T> a = rows[e][0], b = rows[e][1];
        const Vec<T> length = fused<T>(a, a, fused<T>(b, b, splat<T>(T(kLeastGradient * kLeastGradient))));
        const Vec<T> scale = known / square_root<T>(length);
        const Vec<T> c = rows[e][2] - fused<T>(a, u[i], b * v[i]);
        // lanes beyond the row hold anything, but not for long
        part[e][0][i] = known > 0 ? a * scale : Vec<T>{};
        part[e][1][i] = known > 0 ? b * scale : Vec<T>{};
        part[e][2][i] = known > 0 ? c * scale : Vec<T>{};
      }
    }
    store_split(r.system.u, y, x, u[0], u[1]);
    store_split(r.system.v, y, x, v[0], v[1]);
    for (int e = 0; e < 3; ++e)
      for (int i = 0; i < 3; ++i) store_split(r.residual[e][i], y, x, part[e][i][0], part[e][i][1]);
  }
}

// The weight of smoothness at every pixel of a row, from central differences; across the edge the flow continues.
template <class T>
void weigh_smoothness_row(const Refinement<T>& r, T alpha, int64_t y) {
  const System<T>& s = r.system;
  const int64_t count = (s.width + 1) / 2, above = std::max<int64_t>(y - 1, 0), below = std::min(y + 1, s.height - 1);
  for (const Halves<T>* half : {&s.u, &s.v}) {
    half->row(y, 1)[-1] = half->row(y, 0)[0];
    T* const beyond = half->row(y, s.width & 1) + s.width / 2;
    *beyond = s.width & 1 ? half->row(y, 0)[s.width / 2] : half->row(y, 1)[s.width / 2 - 1];
  }
  for (int64_t odd = 0; odd < 2; ++odd) {
    const int64_t shift = odd ? 0 : -1;
    T* const to = r.smooth.row(y, odd);
    for (int64_t k = 0; k < count; k += kLanes<T>) {
      Vec<T> sum = splat<T>(T(4 * kEpsilon * kEpsilon));
      for (const Halves<T>* half : {&s.u, &s.v}) {
        const T* const side = half->row(y, 1 - odd) + shift + k;
        const Vec<T> dx = load(side + 1) - load(side),
                     dy = load(half->row(below, odd) + k) - load(half->row(above, odd) + k);
        sum = fused<T>(dx, dx, fused<T>(dy, dy, sum));
      }
      store(to + k, splat<T>(2 * alpha) / square_root<T>(sum));
    }
  }
}

// The linear system of a row.
template <class T>
void weigh_row(const Refinement<T>& r, T delta, T gamma, int64_t y) {
  const System<T>& s = r.system;
  const int64_t count = (s.width + 1) / 2;
  const T half = T(0.5), last_row = y + 1 < s.height ? half : T(0), first_row = y > 0 ? half : T(0);
  for (int64_t odd = 0; odd < 2; ++odd) {
    const T *const here = r.smooth.row(y, odd), *const next = r.smooth.row(y, 1 - odd) + (odd ? 1 : 0);
    T* const across = s.across.row(y, odd);
    T* const down = s.down.row(y, odd);
    const T* const under = r.smooth.row(y + 1 < s.height ? y + 1 : y, odd);
    for (int64_t k = 0; k < count; k += kLanes<T>) {
      store(across + k, half * (load(here + k) + load(next + k)));
      store(down + k, last_row * (load(here + k) + load(under + k)));
    }
    // none beyond the last column
    const int64_t none = odd ? (s.width - 1) / 2 : s.width / 2;
    std::fill(across + none, across + count + kLanes<T>, T(0));
  }
  s.across.row(y, 1)[-1] = 0;
  for (int64_t odd = 0; odd < 2; ++odd) {
    const T *const across = s.across.row(y, odd), *const before = s.across.row(y, 1 - odd) + (odd ? 0 : -1);
    const T *const here = r.smooth.row(y, odd), *const over = r.smooth.row(y > 0 ? y - 1 : y, odd);
    const T* const down = s.down.row(y, odd);
    for (int64_t k = 0; k < count; k += kLanes<T>) {
      const Vec<T> u = load(s.u.row(y, odd) + k), v = load(s.v.row(y, odd) + k);
      Vec<T> a[3], b[3], c[3], value[3];
      for (int e = 0; e < 3; ++e) {
        a[e] = load(r.residual[e][0].row(y, odd) + k);
        b[e] = load(r.residual[e][1].row(y, odd) + k);
        c[e] = load(r.residual[e][2].row(y, odd) + k);
        value[e] = fused<T>(a[e], u, fused<T>(b[e], v, c[e]));
      }
      const Vec<T> epsilon = splat<T>(T(kEpsilon * kEpsilon));
      const Vec<T> grey = delta / square_root<T>(fused<T>(value[0], value[0], epsilon));
      const Vec<T> slopes = gamma / square_root<T>(fused<T>(value[1], value[1], fused<T>(value[2], value[2], epsilon)));
      const Vec<T> total =
          (load(before + k) + load(across + k)) + (load(down + k) + first_row * (load(here + k) + load(over + k)));
      // a pixel beyond the row has no weights at all
      const Vec<T> least = splat<T>(T(1e-9));
      Vec<T> a11 = total + least, a12{}, a22 = total + least, c1{}, c2{};
      for (int e = 0; e < 3; ++e) {
        const Vec<T> weight = e == 0 ? grey : slopes, wa = weight * a[e], wb = weight * b[e];
        a11 = fused<T>(wa, a[e], a11);
        a12 = fused<T>(wa, b[e], a12);
        a22 = fused<T>(wb, b[e], a22);
        c1 -= wa * c[e];
        c2 -= wb * c[e];
      }
      const Vec<T> scale = splat<T>(T(kOmega)) / (a11 * a22 - a12 * a12);
      store(s.m11.row(y, odd) + k, a22 * scale);
      store(s.m12.row(y, odd) + k, -a12 * scale);
      store(s.m22.row(y, odd) + k, a11 * scale);
      store(s.c1.row(y, odd) + k, c1);
      store(s.c2.row(y, odd) + k, c2);
    }
  }
}

}  // namespace vidgen::VIDGEN_ISA
