// exp, expm1, log, log1p, sigmoid and tanh of a vector of floats or doubles.
//
// Argument reduction and Taylor series, without tables and without branches: a lane's result depends on that lane
// alone, so it is the same bits wherever in a vector a number stands. Errors are below 2 units in the last place for
// exp and log, below 4 for the others (tests/csrc/test_elementary.py); limits at infinity and NaN are those of the C
// library.
//
//     exp    x = n ln 2 + r, |r| <= ln 2 / 2: 2^n (1 + expm1(r)); ln 2 in two parts, the first times any n exact
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

// Comparisons are false of a NaN, which therefore passes through both.
template <class T>
VIDGEN_INLINE Vec<T> at_least(Vec<T> x, Acc<T> low) {
  return x < low ? splat<T>(low) : x;
}
template <class T>
VIDGEN_INLINE Vec<T> at_most(Vec<T> x, Acc<T> high) {
  return x > high ? splat<T>(high) : x;
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
  static constexpr int mantissa = 23, bias = 127, series = 7, odd_terms = 5;
  static constexpr float ln2_high = 0x1.63p-1f, ln2_low = -0x1.bd0106p-13f;
  static constexpr float exp_low = -104, exp_high = 89, expm1_low = -18, sqrt_half = 0x1.6a09e6p-1f;
};
template <>
struct Elementary<double> {
  static constexpr int mantissa = 52, bias = 1023, series = 13, odd_terms = 11;
  static constexpr double ln2_high = 0x1.62ep-1, ln2_low = 0x1.0bfbe8e7bcd5ep-15;
  static constexpr double exp_low = -746, exp_high = 710, expm1_low = -38, sqrt_half = 0x1.6a09e667f3bcdp-1;
};

// 2^n as a number; n is a whole number within the range of normal exponents.
template <class T>
VIDGEN_INLINE Vec<T> power_of_two(IntVec<T> n) {
  using E = Elementary<T>;
  return (Vec<T>)((n + E::bias) << E::mantissa);
}

// x = n ln 2 + r; returns expm1(r).
template <class T>
VIDGEN_INLINE Vec<T> reduced_expm1(Vec<T> x, Vec<T>& n) {
  using E = Elementary<T>;
  // adding 1.5 * 2^mantissa leaves no bits for a fraction
  constexpr Acc<T> magic = Acc<T>(3) * Acc<T>(int64_t{1} << (E::mantissa - 1));
  n = (x * Acc<T>(0x1.71547652b82fep+0) + magic) - magic;
  Vec<T> r = fused<T>(n, splat<T>(-E::ln2_high), x);
  r = fused<T>(n, splat<T>(-E::ln2_low), r);
  Acc<T> factorial = 1;
#pragma GCC unroll 16
  for (int i = 2; i <= E::series; ++i) factorial *= i;
  Vec<T> sum = splat<T>(1 / factorial);
#pragma GCC unroll 16
  for (int i = E::series - 1; i >= 2; --i) {
    factorial /= i + 1;
    sum = fused<T>(sum, r, splat<T>(1 / factorial));
  }
  return fused<T>(r * r, sum, r);
}

template <class T>
VIDGEN_INLINE IntVec<T> whole(Vec<T> n) {
  return __builtin_convertvector(n, IntVec<T>);
}

template <class T>
VIDGEN_INLINE Vec<T> exp(Vec<T> x) {
  using E = Elementary<T>;
  Vec<T> n;
  x = at_most<T>(at_least<T>(x, E::exp_low), E::exp_high);
  const Vec<T> y = reduced_expm1<T>(x, n) + 1;
#if defined(__AVX512F__)
  if constexpr (sizeof(Acc<T>) == 4) {
    return (Vec<T>)_mm512_maskz_scalef_ps(0xffff, (__m512)y, (__m512)n);
  } else {
    return (Vec<T>)_mm512_maskz_scalef_pd(0xff, (__m512d)y, (__m512d)n);
  }
#else
  // in two steps, for 2^n need not be a normal number
  const IntVec<T> exponent = whole<T>(n), half = exponent >> 1;
  return y * power_of_two<T>(half) * power_of_two<T>(exponent - half);
#endif
}

template <class T>
VIDGEN_INLINE Vec<T> expm1(Vec<T> x) {
  using E = Elementary<T>;
  Vec<T> n;
  const Vec<T> small = at_most<T>(at_least<T>(x, E::expm1_low), E::exp_high);
  const Vec<T> y = reduced_expm1<T>(small, n);
  // half of the result, for 2^n itself may overflow where the result does not; -0 stays -0
  const Vec<T> half_power = power_of_two<T>(whole<T>(n) - 1);
  const Vec<T> scaled = 2 * (half_power * y + (half_power - Acc<T>(0.5)));
  return n == 0 ? with_sign_of<T>(absolute<T>(y), small) : scaled;
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

template <class T>
VIDGEN_INLINE Vec<T> log1p(Vec<T> x) {
  constexpr Acc<T> infinity = std::numeric_limits<Acc<T>>::infinity();
  const Vec<T> u = x + 1;
  // what was lost when 1 was added, to first order
  const Vec<T> lost = x > 1 ? 1 - (u - x) : x - (u - 1);
  const Vec<T> y = log<T>(u) + lost / u;
  return (x == infinity) | (x == -1) ? log<T>(u) : x == 0 ? x : y;
}

// 1 / (1 + e^-x)
template <class T>
VIDGEN_INLINE Vec<T> sigmoid(Vec<T> x) {
  const Vec<T> t = exp<T>(-absolute<T>(x));
  return (x < 0 ? t : splat<T>(1)) / (t + 1);
}

template <class T>
VIDGEN_INLINE Vec<T> tanh(Vec<T> x) {
  const Vec<T> minus = expm1<T>(-2 * absolute<T>(x));
  return with_sign_of<T>(-minus / (minus + 2), x);
}

}  // namespace vidgen::VIDGEN_ISA
