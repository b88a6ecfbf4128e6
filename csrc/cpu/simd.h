// One small vector type for every instruction set: as many lanes as the widest register holds.
//
// Built on the compiler's vector extensions (+, *, comparison, ?: work lane by lane, a scalar operand is
// broadcast), so the same source is the portable build too. Everything lives in a namespace named after the level: no
// symbol compiled for one instruction set can be merged by the linker with that of another.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define VIDGEN_INLINE inline __attribute__((always_inline))

namespace vidgen::VIDGEN_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

struct bf16 {
  uint16_t bits;
};

// Sums are kept in float, in double for double.
template <class T>
struct Traits;
template <>
struct Traits<float> {
  using Accumulator = float;
  typedef float Vector __attribute__((vector_size(kVectorBytes)));
  typedef int32_t Integers __attribute__((vector_size(kVectorBytes)));
};
template <>
struct Traits<double> {
  using Accumulator = double;
  typedef double Vector __attribute__((vector_size(kVectorBytes)));
  typedef int64_t Integers __attribute__((vector_size(kVectorBytes)));
};
template <>
struct Traits<bf16> : Traits<float> {};

template <class T>
using Acc = typename Traits<T>::Accumulator;
template <class T>
using Vec = typename Traits<T>::Vector;
template <class T>
using IntVec = typename Traits<T>::Integers;
template <class T>
constexpr int kLanes = kVectorBytes / sizeof(Acc<T>);

typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));
typedef uint16_t HalfWords __attribute__((vector_size(kVectorBytes / 2)));

VIDGEN_INLINE Vec<float> widen(HalfWords h) { return (Vec<float>)(__builtin_convertvector(h, Words) << 16); }

// Rounds to nearest, ties to even; a NaN stays a NaN.
VIDGEN_INLINE HalfWords narrow(Vec<float> v) {
#if defined(__AVX512BF16__)
  return (HalfWords)_mm512_cvtneps_pbh((__m512)v);
#else
  Words w = (Words)v;
  Words rounded = (w + 0x7fff + ((w >> 16) & 1)) >> 16;
  Words quiet = (w >> 16) | 0x40;
  return __builtin_convertvector((v == v) ? rounded : quiet, HalfWords);
#endif
}

VIDGEN_INLINE float to_scalar(float v) { return v; }
VIDGEN_INLINE double to_scalar(double v) { return v; }
VIDGEN_INLINE float to_scalar(bf16 v) { return __builtin_bit_cast(float, uint32_t(v.bits) << 16); }

template <class T>
VIDGEN_INLINE T from_scalar(Acc<T> v) {
  if constexpr (sizeof(T) == sizeof(v)) {
    return v;
  } else {
    uint32_t w = __builtin_bit_cast(uint32_t, v);
    return {uint16_t(v == v ? (w + 0x7fff + ((w >> 16) & 1)) >> 16 : (w >> 16) | 0x40)};
  }
}

template <class T>
VIDGEN_INLINE Vec<T> load(const T* p) {
  if constexpr (sizeof(T) == 2) {
    HalfWords h;
    __builtin_memcpy(&h, p, sizeof h);
    return widen(h);
  } else {
    Vec<T> v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
  }
}

template <class T>
VIDGEN_INLINE void store(T* p, Vec<T> v) {
  if constexpr (sizeof(T) == 2) {
    HalfWords h = narrow(v);
    __builtin_memcpy(p, &h, sizeof h);
  } else {
    __builtin_memcpy(p, &v, sizeof v);
  }
}

// The first n lanes only; the others read as zero and are not written.
#if defined(__AVX512F__)
VIDGEN_INLINE Vec<float> load(const float* p, int64_t n) {
  return (Vec<float>)_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p);
}
VIDGEN_INLINE Vec<double> load(const double* p, int64_t n) {
  return (Vec<double>)_mm512_maskz_loadu_pd(__mmask8((1u << n) - 1), p);
}
VIDGEN_INLINE Vec<float> load(const bf16* p, int64_t n) {
  return widen((HalfWords)_mm256_maskz_loadu_epi16(__mmask16((1u << n) - 1), p));
}
VIDGEN_INLINE void store(float* p, Vec<float> v, int64_t n) {
  _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), (__m512)v);
}
VIDGEN_INLINE void store(double* p, Vec<double> v, int64_t n) {
  _mm512_mask_storeu_pd(p, __mmask8((1u << n) - 1), (__m512d)v);
}
VIDGEN_INLINE void store(bf16* p, Vec<float> v, int64_t n) {
  _mm256_mask_storeu_epi16(p, __mmask16((1u << n) - 1), (__m256i)narrow(v));
}
#else
template <class T>
VIDGEN_INLINE Vec<T> load(const T* p, int64_t n) {
  T lanes[kLanes<T>] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
}
template <class T>
VIDGEN_INLINE void store(T* p, Vec<T> v, int64_t n) {
  T lanes[kLanes<T>];
  store(lanes, v);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
}
#if defined(__AVX2__)
// Overloads in preference to the templates, through which a value would wait for its lanes to reach memory.
VIDGEN_INLINE __m256i first_words(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(int32_t(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
VIDGEN_INLINE __m256i first_quads(int64_t n) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}
VIDGEN_INLINE Vec<float> load(const float* p, int64_t n) { return (Vec<float>)_mm256_maskload_ps(p, first_words(n)); }
VIDGEN_INLINE Vec<double> load(const double* p, int64_t n) {
  return (Vec<double>)_mm256_maskload_pd(p, first_quads(n));
}
VIDGEN_INLINE void store(float* p, Vec<float> v, int64_t n) { _mm256_maskstore_ps(p, first_words(n), (__m256)v); }
VIDGEN_INLINE void store(double* p, Vec<double> v, int64_t n) { _mm256_maskstore_pd(p, first_quads(n), (__m256d)v); }
#endif
#endif

// Whether a lane is a NaN.
template <class T>
VIDGEN_INLINE bool has_nan(Vec<T> v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(Acc<T>) == 4) {
    return _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q) != 0;
  } else {
    return _mm512_cmp_pd_mask((__m512d)v, (__m512d)v, _CMP_UNORD_Q) != 0;
  }
#else
  const IntVec<T> nan = v != v;
  bool any = false;
  for (int i = 0; i < kLanes<T>; ++i) any |= nan[i] != 0;
  return any;
#endif
}

// c + a * b, fused where the processor can: said outright, so that no compiler flag decides on speed or bits.
template <class T>
VIDGEN_INLINE Vec<T> multiply_add(Acc<T> a, Vec<T> b, Vec<T> c) {
#if defined(__AVX512F__)
  if constexpr (sizeof(a) == 4) {
    return (Vec<T>)_mm512_fmadd_ps(_mm512_set1_ps(a), (__m512)b, (__m512)c);
  } else {
    return (Vec<T>)_mm512_fmadd_pd(_mm512_set1_pd(a), (__m512d)b, (__m512d)c);
  }
#elif defined(__FMA__) && defined(__AVX2__)
  if constexpr (sizeof(a) == 4) {
    return (Vec<T>)_mm256_fmadd_ps(_mm256_set1_ps(a), (__m256)b, (__m256)c);
  } else {
    return (Vec<T>)_mm256_fmadd_pd(_mm256_set1_pd(a), (__m256d)b, (__m256d)c);
  }
#else
  return c + b * a;
#endif
}

// c + a * b in the lanes where `key` exceeds `threshold`; the others keep c to the bit, whatever a and b are.
template <class T>
VIDGEN_INLINE Vec<T> add_product_where(IntVec<T> key, int64_t threshold, T a, Vec<T> b, Vec<T> c) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    __mmask16 keep = _mm512_cmpgt_epi32_mask((__m512i)key, _mm512_set1_epi32(int32_t(threshold)));
    return (Vec<T>)_mm512_mask3_fmadd_ps(_mm512_set1_ps(a), (__m512)b, (__m512)c, keep);
  } else {
    __mmask8 keep = _mm512_cmpgt_epi64_mask((__m512i)key, _mm512_set1_epi64(threshold));
    return (Vec<T>)_mm512_mask3_fmadd_pd(_mm512_set1_pd(a), (__m512d)b, (__m512d)c, keep);
  }
#else
  IntVec<T> limit = IntVec<T>{} + (decltype(key[0] + 0))(threshold);
  return key > limit ? multiply_add<T>(a, b, c) : c;
#endif
}

template <class T, int step, size_t... lane>
VIDGEN_INLINE void exchange_blocks(Vec<T>& a, Vec<T>& b, std::index_sequence<lane...>) {
  constexpr int lanes = kLanes<T>;
  Vec<T> low = __builtin_shufflevector(a, b, (lane & step ? lanes + lane - step : lane)...);
  Vec<T> high = __builtin_shufflevector(a, b, (lane & step ? lanes + lane : lane + step)...);
  a = low;
  b = high;
}

// Transposes a square of vectors: in round s, the off-diagonal s x s blocks of each 2s x 2s block change places.
template <class T, int step = 1>
VIDGEN_INLINE void transpose(Vec<T>* rows) {
  if constexpr (step < kLanes<T>) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<T>; ++i) {
      if (!(i & step)) exchange_blocks<T, step>(rows[i], rows[i + step], std::make_index_sequence<kLanes<T>>());
    }
    transpose<T, 2 * step>(rows);
  }
}

}  // namespace vidgen::VIDGEN_ISA
