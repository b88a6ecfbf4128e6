// Exponentials, logarithm, sigmoid and tanh of a vector of floats or doubles.
//
// Argument reduction and series, without tables and without branches: a lane's result depends on that lane alone, so it
// is the same bits wherever in a vector a number stands. Errors are below 2 units in the last place for e^x and log,
// below 4 for the others (tests/csrc/test_elementary.py); limits at infinity and NaN are those of the C library.
//
//     e^x    x = n ln 2 + r, |r| <= ln 2 / 2: 2^n (1 + expm1(r)); ln 2 in two parts, the first times any n exact
//     log    x = 2^e m, 1/sqrt 2 <= m < sqrt 2: e ln 2 + 2 artanh((m - 1) / (m + 1))
#pragma once

#include <limits>

#include "cpu/simd.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace vidgen::VIDGEN_ISA {

// a * b + c, fused where the processor can; all three are vectors.
template <class T>
VIDGEN_INLINE Vec<T> fused(Vec<T> a, Vec<T> b, Vec<T> c) {
#if defined(__AVX512F__)
  if constexpr (sizeof(Acc<T>) == 4) {
    return (Vec<T>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
  } else {
    return (Vec<T>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
  }
#elif defined(__FMA__) && defined(__AVX2__)
  if constexpr (sizeof(Acc<T>) == 4) {
    return (Vec<T>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
  } else {
    return (Vec<T>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
  }
#else
  return a * b + c;
#endif
}

template <class T>
VIDGEN_INLINE Vec<T> splat(Acc<T> value) {
  return Vec<T>{} + value;
}

// The larger, the smaller of two, b where they are equal or one is NaN: what the processors' own instructions do.
template <class T>
VIDGEN_INLINE Vec<T> larger(Vec<T> a, Vec<T> b) {
#if defined(__AVX512F__)
  if constexpr (sizeof(Acc<T>) == 4) {
    return (Vec<T>)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b);
  } else {
    return (Vec<T>)_mm512_maskz_max_pd(0xff, (__m512d)a, (__m512d)b);
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(Acc<T>) == 4) {
    return (Vec<T>)_mm256_max_ps((__m256)a, (__m256)b);
  } else {
    return (Vec<T>)_mm256_max_pd((__m256d)a, (__m256d)b);
  }
#else
  return a > b ? a : b;
#endif
}
template <class T>
VIDGEN_INLINE Vec<T> smaller(Vec<T> a, Vec<T> b) {
#if defined(__AVX512F__)
  if constexpr (sizeof(Acc<T>) == 4) {
    return (Vec<T>)_mm512_maskz_min_ps(0xffff, (__m512)a, (__m512)b);
  } else {
    return (Vec<T>)_mm512_maskz_min_pd(0xff, (__m512d)a, (__m512d)b);
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(Acc<T>) == 4) {
    return (Vec<T>)_mm256_min_ps((__m256)a, (__m256)b);
  } else {
    return (Vec<T>)_mm256_min_pd((__m256d)a, (__m256d)b);
  }
#else
  return a < b ? a : b;
#endif
}

// A NaN passes through both.
template <class T>
VIDGEN_INLINE Vec<T> at_least(Vec<T> x, Acc<T> low) {
  return larger<T>(splat<T>(low), x);
}
template <class T>
VIDGEN_INLINE Vec<T> at_most(Vec<T> x, Acc<T> high) {
  return smaller<T>(splat<T>(high), x);
}

// a < b ? a : b and a > b ? a : b, in one instruction where there is one: b, if either is a NaN.
template <class T>
VIDGEN_INLINE Vec<T> lesser(Vec<T> a, Vec<T> b) {
  constexpr bool single = sizeof(Acc<T>) == 4;
#if defined(__AVX512F__)
  if constexpr (single) {
    return (Vec<T>)_mm512_maskz_min_ps(0xffff, (__m512)a, (__m512)b);
  } else {
    return (Vec<T>)_mm512_maskz_min_pd(0xff, (__m512d)a, (__m512d)b);
  }
#elif defined(__AVX2__)
  if constexpr (single) {
    return (Vec<T>)_mm256_min_ps((__m256)a, (__m256)b);
  } else {
    return (Vec<T>)_mm256_min_pd((__m256d)a, (__m256d)b);
  }
#elif defined(__SSE2__)
  if constexpr (single) {
    return (Vec<T>)_mm_min_ps((__m128)a, (__m128)b);
  } else {
    return (Vec<T>)_mm_min_pd((__m128d)a, (__m128d)b);
  }
#else
  return a < b ? a : b;
#endif
}

template <class T>
VIDGEN_INLINE Vec<T> greater(Vec<T> a, Vec<T> b) {
  constexpr bool single = sizeof(Acc<T>) == 4;
#if defined(__AVX512F__)
  if constexpr (single) {
    return (Vec<T>)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b);
  } else {
    return (Vec<T>)_mm512_maskz_max_pd(0xff, (__m512d)a, (__m512d)b);
  }
#elif defined(__AVX2__)
  if constexpr (single) {
    return (Vec<T>)_mm256_max_ps((__m256)a, (__m256)b);
  } else {
    return (Vec<T>)_mm256_max_pd((__m256d)a, (__m256d)b);
  }
#elif defined(__SSE2__)
  if constexpr (single) {
    return (Vec<T>)_mm_max_ps((__m128)a, (__m128)b);
  } else {
    return (Vec<T>)_mm_max_pd((__m128d)a, (__m128d)b);
  }
#else
  return a > b ? a : b;
#endif
}

template <class T>
VIDGEN_INLINE IntVec<T> sign_bit() {
  return (IntVec<T>)(-Vec<T>{});
}

template <class T>
VIDGEN_INLINE Vec<T> absolute(Vec<T> x) {
  return (Vec<T>)((IntVec<T>)x & ~sign_bit<T>());
}

template <class T>
VIDGEN_INLINE Vec<T> with_sign_of(Vec<T> magnitude, Vec<T> x) {
  return (Vec<T>)((IntVec<T>)magnitude | ((IntVec<T>)x & sign_bit<T>()));
}

// Correctly rounded, on every instruction set.
template <class T>
VIDGEN_INLINE Vec<T> square_root(Vec<T> x) {
  constexpr bool single = sizeof(Acc<T>) == 4;
#if defined(__AVX512F__)
  if constexpr (single) {
    return (Vec<T>)_mm512_maskz_sqrt_ps(0xffff, (__m512)x);
  } else {
    return (Vec<T>)_mm512_maskz_sqrt_pd(0xff, (__m512d)x);
  }
#elif defined(__AVX2__)
  if constexpr (single) {
    return (Vec<T>)_mm256_sqrt_ps((__m256)x);
  } else {
    return (Vec<T>)_mm256_sqrt_pd((__m256d)x);
  }
#elif defined(__SSE2__)
  if constexpr (single) {
    return (Vec<T>)_mm_sqrt_ps((__m128)x);
  } else {
    return (Vec<T>)_mm_sqrt_pd((__m128d)x);
  }
#else
  for (int lane = 0; lane < kLanes<T>; ++lane) x[lane] = single ? __builtin_sqrtf(x[lane]) : __builtin_sqrt(x[lane]);
  return x;
#endif
}

template <class T>
struct Elementary;
template <>
struct Elementary<float> {
  static constexpr int mantissa = 23, bias = 127, odd_terms = 5;
  static constexpr float ln2_high = 0x1.63p-1f, ln2_low = -0x1.bd0106p-13f;
  static constexpr float exp_low = -88, sqrt_half = 0x1.6a09e6p-1f;
  // minimax: within 2^-28 of e^r
  static constexpr float series[] = {0x1.fffffcp-2f, 0x1.555492p-3f, 0x1.5558f2p-5f, 0x1.123a2p-7f, 0x1.6a23dp-10f};
};
template <>
struct Elementary<double> {
  static constexpr int mantissa = 52, bias = 1023, odd_terms = 11;
  static constexpr double ln2_high = 0x1.62ep-1, ln2_low = 0x1.0bfbe8e7bcd5ep-15;
  static constexpr double exp_low = -709, sqrt_half = 0x1.6a09e667f3bcdp-1;
  // Taylor's, up to 1 / 13!
  static constexpr double series[] = {1. / 2,       1. / 6,        1. / 24,        1. / 120,
                                      1. / 720,     1. / 5040,     1. / 40320,     1. / 362880,
                                      1. / 3628800, 1. / 39916800, 1. / 479001600, 1. / 6227020800};
};

// (expm1(r) - r) / r^2 for |r| <= ln 2 / 2.
template <class T>
VIDGEN_INLINE Vec<T> expm1_series(Vec<T> r) {
  constexpr auto& series = Elementary<T>::series;
  constexpr int terms = sizeof(series) / sizeof(series[0]);
  Vec<T> sum = splat<T>(series[terms - 1]);
#pragma GCC unroll 16
  for (int i = terms - 2; i >= 0; --i) sum = fused<T>(sum, r, splat<T>(series[i]));
  return sum;
}

// e^x in the parts from which e^x, expm1(x) and, where power is 1, expm1(x) / x take a step at most.
template <class T>
struct Exponential {
  Vec<T> power, rest, quotient;  // 2^n, expm1(r), expm1(r) / r
  VIDGEN_INLINE Vec<T> exp() const { return fused<T>(power, rest, power); }
  VIDGEN_INLINE Vec<T> expm1() const { return fused<T>(power, rest, power - 1); }
};

// For x up to 88, or 709 in doubles; nothing larger is looked for. Below 2^-126.5, or 2^-1022.5, exp() is exactly zero.
template <class T>
VIDGEN_INLINE Exponential<T> exponential(Vec<T> x) {
  using E = Elementary<T>;
  // 1.5 * 2^mantissa leaves no bits for a fraction; with the bias n stands in the last bits as an exponent does
  constexpr Acc<T> wholes = Acc<T>(3) * Acc<T>(int64_t{1} << (E::mantissa - 1)) + E::bias;
  // the exponent of the least x is all zeros, and so is the number that it makes
  x = at_least<T>(x, E::exp_low);
  const Vec<T> shifted = fused<T>(x, splat<T>(Acc<T>(0x1.71547652b82fep+0)), splat<T>(wholes)), n = shifted - wholes;
  const Vec<T> r = fused<T>(n, splat<T>(-E::ln2_low), fused<T>(n, splat<T>(-E::ln2_high), x));
  const Vec<T> quotient = fused<T>(expm1_series<T>(r), r, splat<T>(1));
  return {(Vec<T>)((IntVec<T>)shifted << E::mantissa), r * quotient, quotient};
}

template <class T>
VIDGEN_INLINE Vec<T> log(Vec<T> x) {
  using E = Elementary<T>;
  constexpr Acc<T> smallest = std::numeric_limits<Acc<T>>::min();
  constexpr Acc<T> infinity = std::numeric_limits<Acc<T>>::infinity();
  // a denormal number is first multiplied by 2^mantissa
  const Vec<T> normal = x < smallest ? x * Acc<T>(int64_t{1} << E::mantissa) : x;
  const Vec<T> shift = x < smallest ? splat<T>(Acc<T>(E::mantissa)) : Vec<T>{};
  // subtracting the bits of sqrt(1/2) makes the exponent field count from there
  const IntVec<T> origin = (IntVec<T>)splat<T>(E::sqrt_half);
  const IntVec<T> above = (IntVec<T>)normal - origin;
  const IntVec<T> fraction = ((IntVec<T>{} + 1) << E::mantissa) - 1;
  const Vec<T> m = (Vec<T>)((above & fraction) + origin);
  const Vec<T> e = __builtin_convertvector(above >> E::mantissa, Vec<T>) - shift;
  const Vec<T> f = m - 1;
  const Vec<T> s = f / (f + 2), square = s * s;
  Vec<T> sum = splat<T>(Acc<T>(2) / (2 * E::odd_terms - 1));
#pragma GCC unroll 16
  for (int i = E::odd_terms - 2; i >= 1; --i) sum = fused<T>(sum, square, splat<T>(Acc<T>(2) / (2 * i + 1)));
  // 2s = f - s f
  const Vec<T> tail = fused<T>(e, splat<T>(E::ln2_low), s * (square * sum - f));
  const Vec<T> y = fused<T>(e, splat<T>(E::ln2_high), f + tail);
  const Vec<T> not_positive = x == 0 ? splat<T>(-infinity) : splat<T>(std::numeric_limits<Acc<T>>::quiet_NaN());
  return x > 0 ? (x == infinity ? x : y) : (x == x ? not_positive : x);
}

// 1 / (1 + e^-x)
template <class T>
VIDGEN_INLINE Vec<T> sigmoid(Vec<T> x) {
  const Vec<T> t = exponential<T>(-absolute<T>(x)).exp();
  return (x < 0 ? t : splat<T>(1)) / (t + 1);
}

template <class T>
VIDGEN_INLINE Vec<T> tanh(Vec<T> x) {
  const Vec<T> minus = exponential<T>(-2 * absolute<T>(x)).expm1();
  return with_sign_of<T>(absolute<T>(minus / (minus + 2)), x);
}

}  // namespace vidgen::VIDGEN_ISA
