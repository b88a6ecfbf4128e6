// The products of some gradients with what their taps see of x: the two loops in which the time of grad_weight goes.
//
// An output channel's gradients that are not zero come as a list of values and pixels of x. A register tile holds the
// sums of some rows of taps, a few vectors each (9 x 3 with AVX-512), and every entry adds its product with as many
// vectors of x, loaded as the operand of the multiply-add: two loads and two multiply-adds a cycle while x comes from
// the first cache.
//
// Where few gradients are zero, a tile has a third of the vectors for three output channels (or half of fewer for two)
// and runs over all pixels: 9 loads and 3 broadcasts serve 27 multiply-adds.
//
// Both add in the order of the pixels, and with finite x a zero changes no sum: they give the same bits.
#pragma once

#include "simd.h"

namespace vidgen::VIDGEN_ISA {

constexpr int kMostVectors = 9;  // of a row of taps
constexpr int kMostTapRows = 9;
constexpr int kListedVectors = kVectorBytes == 64 ? 28 : 12;  // registers of a tile
constexpr int kDenseChannels = kVectorBytes == 64 ? 3 : 2;
constexpr int kDenseVectors = kVectorBytes == 64 ? 9 : 6;  // of one of its channels

// sums[row][vector] += value[k] * x[pixel[k]][row][vector]
template <class T, int rows, int vectors>
void add_listed(const T* x, const int64_t* row_offset, int64_t pitch, const int32_t* pixel, const T* value,
                int64_t count, T* sums, int64_t row_pitch) {
  constexpr int lanes = kLanes<T>;
  Vec<T> sum[rows][vectors];
  const T* row[rows];
#pragma GCC unroll 9
  for (int i = 0; i < rows; ++i) {
    row[i] = x + row_offset[i];
#pragma GCC unroll 9
    for (int j = 0; j < vectors; ++j) sum[i][j] = Vec<T>{};
  }
  for (int64_t k = 0; k < count; ++k) {
    int64_t at = pixel[k] * pitch;
    T factor = value[k];
#pragma GCC unroll 9
    for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 9
      for (int j = 0; j < vectors; ++j) sum[i][j] = multiply_add<T>(factor, load(row[i] + at + j * lanes), sum[i][j]);
    }
  }
#pragma GCC unroll 9
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 9
    for (int j = 0; j < vectors; ++j) {
      T* out = sums + i * row_pitch + j * lanes;
      store(out, load(out) + sum[i][j]);
    }
  }
}

// A loaded value that several products will read: without this each of them reads memory again, as its operand.
template <class T>
VIDGEN_INLINE Vec<T> in_register(Vec<T> v) {
#if defined(__AVX512F__)
  __asm__("" : "+v"(v));
#elif defined(__x86_64__)
  __asm__("" : "+x"(v));
#endif
  return v;
}

// sums[o][row][vector] += value[k][o] * x[pixel[k]][row][vector], for the first `used` of kDenseChannels.
template <class T, int rows, int vectors>
void add_dense(const T* x, const int64_t* row_offset, int64_t pitch, const int32_t* pixel, const T* value,
               int64_t value_pitch, int64_t count, T* sums, int64_t row_pitch, int64_t channel_pitch, int64_t used) {
  constexpr int lanes = kLanes<T>;
  Vec<T> sum[kDenseChannels][rows][vectors];
  const T* row[rows];
#pragma GCC unroll 9
  for (int i = 0; i < rows; ++i) {
    row[i] = x + row_offset[i];
#pragma GCC unroll 9
    for (int j = 0; j < vectors; ++j) {
#pragma GCC unroll 3
      for (int o = 0; o < kDenseChannels; ++o) sum[o][i][j] = Vec<T>{};
    }
  }
  for (int64_t k = 0; k < count; ++k, value += value_pitch) {
    int64_t at = pixel[k] * pitch;
#pragma GCC unroll 9
    for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 9
      for (int j = 0; j < vectors; ++j) {
        Vec<T> v = in_register<T>(load(row[i] + at + j * lanes));
#pragma GCC unroll 3
        for (int o = 0; o < kDenseChannels; ++o) sum[o][i][j] = multiply_add<T>(value[o], v, sum[o][i][j]);
      }
    }
  }
#pragma GCC unroll 3
  for (int o = 0; o < kDenseChannels; ++o) {
    if (o >= used) break;
#pragma GCC unroll 9
    for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 9
      for (int j = 0; j < vectors; ++j) {
        T* out = sums + o * channel_pitch + i * row_pitch + j * lanes;
        store(out, load(out) + sum[o][i][j]);
      }
    }
  }
}

// One instantiation per height and width of a tile, null where one would need more registers than there are.
template <class T, int rows, int vectors>
constexpr decltype(&add_listed<T, 1, 1>) listed_or_null() {
  if constexpr (rows * vectors <= kListedVectors) return &add_listed<T, rows, vectors>;
  return nullptr;
}
template <class T, int rows, int vectors>
constexpr decltype(&add_dense<T, 1, 1>) dense_or_null() {
  if constexpr (rows * vectors <= kDenseVectors) return &add_dense<T, rows, vectors>;
  return nullptr;
}

template <class T, class Index>
struct ProductTable;
template <class T, size_t... i>
struct ProductTable<T, std::index_sequence<i...>> {
  static constexpr decltype(&add_listed<T, 1, 1>) listed[] = {
      listed_or_null<T, i / kMostVectors + 1, i % kMostVectors + 1>()...};
  static constexpr decltype(&add_dense<T, 1, 1>) dense[] = {
      dense_or_null<T, i / kMostVectors + 1, i % kMostVectors + 1>()...};
};
template <class T>
using Products = ProductTable<T, std::make_index_sequence<kMostTapRows * kMostVectors>>;

// Appends the lanes of v that are not zero (or all of the `used` first ones) with their pixels; returns how many. Whole
// vectors are written.
template <class T>
VIDGEN_INLINE int64_t append(Vec<T> v, const int32_t* pixel, int64_t used, bool zeros_too, int32_t* to_pixel,
                             T* to_value) {
#if defined(__AVX512F__)
  uint32_t keep;
  if constexpr (sizeof(T) == 4) {
    keep = _mm512_cmp_ps_mask((__m512)v, _mm512_setzero_ps(), _CMP_NEQ_UQ);
  } else {
    keep = _mm512_cmp_pd_mask((__m512d)v, _mm512_setzero_pd(), _CMP_NEQ_UQ);
  }
  keep = (keep | -uint32_t(zeros_too)) & ((1u << used) - 1);
  if constexpr (sizeof(T) == 4) {
    _mm512_storeu_ps(to_value, _mm512_maskz_compress_ps(__mmask16(keep), (__m512)v));
    _mm512_storeu_si512(to_pixel, _mm512_maskz_compress_epi32(__mmask16(keep), _mm512_loadu_si512(pixel)));
  } else {
    _mm512_storeu_pd(to_value, _mm512_maskz_compress_pd(__mmask8(keep), (__m512d)v));
    __m256i at = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(pixel));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to_pixel), _mm256_maskz_compress_epi32(__mmask8(keep), at));
  }
  return __builtin_popcount(keep);
#else
  int64_t count = 0;
  for (int64_t i = 0; i < used; ++i) {
    to_pixel[count] = pixel[i];
    to_value[count] = v[i];
    count += zeros_too || !(v[i] == 0);
  }
  return count;
#endif
}

}  // namespace vidgen::VIDGEN_ISA
