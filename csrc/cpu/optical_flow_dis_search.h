// The inverse search: for every patch of the first image, the displacement at which the second looks alike.
//
// A patch of P x P pixels of grey I0 is compared with I1 displaced by w, mean levels apart: with the residual r(x) =
// I1(x + w) - I0(x) and its mean m, the distance is s = sum (r - m)^2. Gauss-Newton steps take the gradient g of I0 in
// place of that of I1, less its mean over the patch, so that the 2 x 2 matrix H = sum g g' is one of the patch alone
// and the mean of r is of no account in b:
//
//     b = sum r g,    w <- w - H^-1 b / 4
//
// The mean is taken away before anything is multiplied: of sums in which it is still contained, a smooth patch would
// leave nothing but rounding, in which there seems to be a way down.
//
// All pixels of a patch lie at the same fraction between those of I1, so that interpolation is two products along a row
// and two across rows with constant weights, and every row of I1 is used twice. A row of a patch is one vector (two of
// 4 floats without AVX): 8 rows cost some 11 operations each; then come four sums over lanes and the step.
//
// Patches are taken in order, and one may begin at the result of its neighbour to the left or above if that is better
// than its own start; then in the opposite order, from the right and below. Stripes of patch rows are free of each
// other within a pass, which is what threads share; how many there are depends on the image alone. On the way back the
// row below a stripe is read as the first pass left it.
#pragma once

#include "cpu/optical_flow_planes.h"

// A row of a patch may be wider than a register. How such a vector would be passed is of no account: all is inlined.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace vidgen::VIDGEN_ISA {

// One row of a patch.
template <class T, int P>
using PatchRow __attribute__((vector_size(P * sizeof(T)))) = T;

template <class T, int P>
VIDGEN_INLINE PatchRow<T, P> load_row(const T* p) {
  PatchRow<T, P> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

// a * b + c, fused where the processor can, a piece of a row at a time.
template <class T, int P>
VIDGEN_INLINE PatchRow<T, P> fused_row(const PatchRow<T, P>& a, const PatchRow<T, P>& b, const PatchRow<T, P>& c) {
#if defined(__FMA__)
  constexpr int bytes = P * sizeof(T), most = kVectorBytes, piece = bytes < most ? bytes : most;
  PatchRow<T, P> result;
#pragma GCC unroll 8
  for (int i = 0; i < bytes / piece; ++i) {
    const char *pa = (const char*)&a + i * piece, *pb = (const char*)&b + i * piece, *pc = (const char*)&c + i * piece;
    char* const to = (char*)&result + i * piece;
    if constexpr (piece == 16) {
      __m128 x, y, z;
      __builtin_memcpy(&x, pa, piece), __builtin_memcpy(&y, pb, piece), __builtin_memcpy(&z, pc, piece);
      x = _mm_fmadd_ps(x, y, z);
      __builtin_memcpy(to, &x, piece);
    } else if constexpr (piece == 32 && sizeof(T) == 4) {
      __m256 x, y, z;
      __builtin_memcpy(&x, pa, piece), __builtin_memcpy(&y, pb, piece), __builtin_memcpy(&z, pc, piece);
      x = _mm256_fmadd_ps(x, y, z);
      __builtin_memcpy(to, &x, piece);
    } else if constexpr (piece == 32) {
      __m256d x, y, z;
      __builtin_memcpy(&x, pa, piece), __builtin_memcpy(&y, pb, piece), __builtin_memcpy(&z, pc, piece);
      x = _mm256_fmadd_pd(x, y, z);
      __builtin_memcpy(to, &x, piece);
    } else {
      Vec<T> x, y, z;
      __builtin_memcpy(&x, pa, piece), __builtin_memcpy(&y, pb, piece), __builtin_memcpy(&z, pc, piece);
      x = fused<T>(x, y, z);
      __builtin_memcpy(to, &x, piece);
    }
  }
  return result;
#else
  return a * b + c;
#endif
}

// The sum of all lanes, halves first.
template <class T, int P>
VIDGEN_INLINE T sum_row(const PatchRow<T, P>& v) {
  if constexpr (P == 1) {
    return v[0];
  } else {
    PatchRow<T, P / 2> low, high;
    __builtin_memcpy(&low, &v, sizeof low);
    __builtin_memcpy(&high, (const char*)&v + sizeof low, sizeof high);
    return sum_row<T, P / 2>(low + high);
  }
}

// Pixels around a displaced patch that may be read: it may lie outside the image, but touches it.
constexpr int64_t search_border(int64_t patch_size) { return patch_size + 2; }

// The images of one level. `next` has a border of search_border(P) pixels.
template <class T>
struct Level {
  Plane<T> prev, gx, gy, next;
};

// Where a displaced patch's corner comes to lie: whole pixel and weights of the four pixels around.
template <class T>
struct Place {
  const T* corner;
  T left, right, upper, lower;

  Place(const Plane<T>& next, T x, T y, int64_t patch_size) {
    x = std::min(std::max(x, T(-patch_size)), T(next.width));
    y = std::min(std::max(y, T(-patch_size)), T(next.height));
    const T floor_x = std::floor(x), floor_y = std::floor(y);
    right = x - floor_x, lower = y - floor_y, left = 1 - right, upper = 1 - lower;
    corner = next.row(int64_t(floor_y)) + int64_t(floor_x);
  }
};

// f(row, residual) for the rows [begin, end) of a patch whose corner in I0 is at `grey`.
template <class T, int P, class F>
VIDGEN_INLINE void residual_rows(const T* grey, int64_t grey_pitch, const Place<T>& at, int64_t pitch, int64_t begin,
                                 int64_t end, const F& f) {
  using Row = PatchRow<T, P>;
  const Row left = Row{} + at.left, right = Row{} + at.right, upper = Row{} + at.upper, lower = Row{} + at.lower;
  const T* pixels = at.corner + begin * pitch;
  Row above = fused_row<T, P>(right, load_row<T, P>(pixels + 1), left * load_row<T, P>(pixels));
#pragma GCC unroll 8
  for (int64_t i = begin; i < end; ++i) {
    pixels += pitch;
    const Row below = fused_row<T, P>(right, load_row<T, P>(pixels + 1), left * load_row<T, P>(pixels));
    const Row value = fused_row<T, P>(upper, above, lower * below);
    f(i, value - load_row<T, P>(grey + i * grey_pitch));
    above = below;
  }
}

// What a displacement is worth, and which way is down.
template <class T>
struct Distance {
  T squares, bx, by;
};

template <class T>
struct PatchState {
  T u, v;
  Distance<T> distance;
  T inverse_xx, inverse_xy, inverse_yy;  // of H; all zero where H has none
};

constexpr double kLeastDeterminant = 1e-5, kStep = 0.25, kLeastStep = 0.01, kLeastGain = 0.01;

// The sum over all pixels of a patch.
template <class T, int P>
VIDGEN_INLINE T sum_patch(const PatchRow<T, P> (&rows)[P]) {
  PatchRow<T, P> sum = rows[0];
  for (int i = 1; i < P; ++i) sum += rows[i];
  return sum_row<T, P>(sum);
}

// A patch of I0, its gradient less the mean: read from the images once a pass, and then by every displacement.
template <class T, int P>
struct Patch {
  using Row = PatchRow<T, P>;
  Row grey[P], gx[P], gy[P];

  VIDGEN_INLINE Patch(const Level<T>& level, int64_t x, int64_t y) {
    // first less one pixel's, near the mean of a smooth patch, so that the mean of the rest is exact
    const Row near_x = Row{} + level.gx.row(y + P / 2)[x + P / 2], near_y = Row{} + level.gy.row(y + P / 2)[x + P / 2];
    for (int i = 0; i < P; ++i) {
      grey[i] = load_row<T, P>(level.prev.row(y + i) + x);
      gx[i] = load_row<T, P>(level.gx.row(y + i) + x) - near_x;
      gy[i] = load_row<T, P>(level.gy.row(y + i) + x) - near_y;
    }
    constexpr T share = T(1) / (P * P);
    const T mean_x = share * sum_patch<T, P>(gx), mean_y = share * sum_patch<T, P>(gy);
    for (int i = 0; i < P; ++i) {
      gx[i] -= mean_x;
      gy[i] -= mean_y;
    }
  }

  // H^-1 into `s`.
  VIDGEN_INLINE void invert(PatchState<T>* s) const {
    Row xx{}, xy{}, yy{};
    for (int i = 0; i < P; ++i) {
      xx = fused_row<T, P>(gx[i], gx[i], xx);
      xy = fused_row<T, P>(gx[i], gy[i], xy);
      yy = fused_row<T, P>(gy[i], gy[i], yy);
    }
    const T hxx = sum_row<T, P>(xx), hxy = sum_row<T, P>(xy), hyy = sum_row<T, P>(yy);
    const T determinant = hxx * hyy - hxy * hxy;
    const T trace = hxx + hyy;
    const T inverse = determinant > T(kLeastDeterminant) * (1 + trace * trace) ? 1 / determinant : T(0);
    s->inverse_xx = hyy * inverse;
    s->inverse_xy = -hxy * inverse;
    s->inverse_yy = hxx * inverse;
  }

  // Of the patch with its corner at (x, y) of I1. Residuals are summed less those of the first row, f: with their sums
  // s over the columns, m = sum (s + P f) / n and d = f - m, the distance is sum (r - f)^2 + sum d (2 s + P d).
  VIDGEN_INLINE Distance<T> distance(const Plane<T>& next, T x, T y) const {
    Row first, sum{}, squares{}, bx{}, by{};
    residual_rows<T, P>(reinterpret_cast<const T*>(grey), P, Place<T>(next, x, y, P), next.pitch, 0, P,
                        [&](int64_t i, const Row& r) __attribute__((always_inline)) {
                          if (i == 0) first = r;
                          const Row rest = r - first;
                          sum += rest;
                          squares = fused_row<T, P>(rest, rest, squares);
                          bx = fused_row<T, P>(r, gx[i], bx);
                          by = fused_row<T, P>(r, gy[i], by);
                        });
    const T mean = sum_row<T, P>(sum + T(P) * first) * (T(1) / (P * P));
    const Row above = first - mean;
    squares = fused_row<T, P>(above, T(2) * sum + T(P) * above, squares);
    return {sum_row<T, P>(squares), sum_row<T, P>(bx), sum_row<T, P>(by)};
  }
};

// The patches of a level: corners every `stride` pixels, the last flush with the edge.
template <class T, int P>
struct Patches {
  const Level<T>& level;
  int64_t stride, rows, columns, descent_iterations;
  PatchState<T>* states;

  static constexpr int64_t count(int64_t side, int64_t stride) { return 1 + (side - P + stride - 1) / stride; }
  int64_t x(int64_t column) const { return std::min(column * stride, level.prev.width - P); }
  int64_t y(int64_t row) const { return std::min(row * stride, level.prev.height - P); }
  PatchState<T>& state(int64_t row, int64_t column) const { return states[row * columns + column]; }

  VIDGEN_INLINE Distance<T> distance(const Patch<T, P>& patch, int64_t x, int64_t y, T u, T v) const {
    return patch.distance(level.next, T(x) + u, T(y) + v);
  }

  // Begins at the neighbour's displacement if it is better.
  VIDGEN_INLINE void consider(const Patch<T, P>& patch, int64_t x, int64_t y, const PatchState<T>& neighbour,
                              PatchState<T>* s) const {
    const Distance<T> there = distance(patch, x, y, neighbour.u, neighbour.v);
    if (there.squares + T(kLeastGain) < s->distance.squares) {
      s->u = neighbour.u;
      s->v = neighbour.v;
      s->distance = there;
    }
  }

  // Quarters of steps for as long as they are of any length, up to and with the first that does not lead down:
  // interpolation blurs between pixels, so that the distance may be greater there though the patches fit better.
  VIDGEN_INLINE void descend(const Patch<T, P>& patch, int64_t x, int64_t y, int64_t steps, PatchState<T>* s) const {
    const T u0 = s->u, v0 = s->v;
    const Distance<T> first = s->distance;
    for (int64_t i = 0; i < steps; ++i) {
      const T du = T(kStep) * (s->inverse_xx * s->distance.bx + s->inverse_xy * s->distance.by);
      const T dv = T(kStep) * (s->inverse_xy * s->distance.bx + s->inverse_yy * s->distance.by);
      if (!(du * du + dv * dv > T(kLeastStep * kLeastStep))) break;
      const T before = s->distance.squares;
      s->u -= du;
      s->v -= dv;
      s->distance = distance(patch, x, y, s->u, s->v);
      if (!(s->distance.squares < before)) break;
    }
    const T mu = s->u - u0, mv = s->v - v0;
    // farther than a patch it has lost its way
    if (mu * mu + mv * mv > T(P * P)) {
      s->u = u0;
      s->v = v0;
      s->distance = first;
    }
  }

  // The first pass over rows [begin, end); start(x, y, &u, &v) is where the patch at (x, y) begins.
  template <class Start>
  void forward(int64_t begin, int64_t end, const Start& start) const {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t column = 0; column < columns; ++column) {
        const int64_t px = x(column), py = y(row);
        PatchState<T>& s = state(row, column);
        const Patch<T, P> patch(level, px, py);
        patch.invert(&s);
        start(px, py, &s.u, &s.v);
        s.distance = distance(patch, px, py, s.u, s.v);
        if (column > 0) consider(patch, px, py, state(row, column - 1), &s);
        if (row > begin) consider(patch, px, py, state(row - 1, column), &s);
        descend(patch, px, py, (descent_iterations + 1) / 2, &s);
      }
    }
  }

  // The second pass; `below` is row `end` as the first pass left it, or null.
  void backward(int64_t begin, int64_t end, const PatchState<T>* below) const {
    for (int64_t row = end - 1; row >= begin; --row) {
      const PatchState<T>* const under = row == end - 1 ? below : &state(row + 1, 0);
      for (int64_t column = columns - 1; column >= 0; --column) {
        const int64_t px = x(column), py = y(row);
        PatchState<T>& s = state(row, column);
        const Patch<T, P> patch(level, px, py);
        if (column < columns - 1) consider(patch, px, py, state(row, column + 1), &s);
        if (under != nullptr) consider(patch, px, py, under[column], &s);
        descend(patch, px, py, descent_iterations / 2, &s);
      }
    }
  }
};

}  // namespace vidgen::VIDGEN_ISA
