// Peak arithmetic of one core. Twelve independent accumulators cover the latency of an FMA (4 cycles at two per
// cycle needs 8), and nothing touches memory. The accumulators converge to a fixed point, so no denormal or
// infinity slows the loop down.
#include "cpu/probe.h"

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace vidgen::VIDGEN_ISA {
namespace {

// Unrolled, the chains are registers; otherwise an array on the stack, and a load and a store per product.
#define VIDGEN_UNROLL _Pragma("GCC unroll 16")
constexpr int kChains = 12;

#if defined(__AVX512F__)
using Vector = __m512;
constexpr int kLanes = 16;
Vector splat(float v) { return _mm512_set1_ps(v); }
Vector fma(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
float first(Vector v) { return _mm512_cvtss_f32(v); }
#elif defined(__AVX2__)
using Vector = __m256;
constexpr int kLanes = 8;
Vector splat(float v) { return _mm256_set1_ps(v); }
Vector fma(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
float first(Vector v) { return _mm256_cvtss_f32(v); }
#else
typedef float Vector __attribute__((vector_size(16)));
constexpr int kLanes = 4;
Vector splat(float v) { return Vector{v, v, v, v}; }
Vector fma(Vector a, Vector b, Vector c) { return a * b + c; }
float first(Vector v) { return v[0]; }
#endif

// Tells the compiler that the value may have changed, so that rounds cannot be merged.
void keep(Vector& v) {
#if defined(__x86_64__)
  asm volatile("" : "+x"(v));
#else
  asm volatile("" : "+w"(v));
#endif
}

double flops_fp32(int64_t rounds, float* sink) {
  Vector sum[kChains];
  VIDGEN_UNROLL
  for (int i = 0; i < kChains; ++i) sum[i] = splat(0.5f + static_cast<float>(i));
  const Vector a = splat(0.999f), b = splat(0.001f);
  for (int64_t round = 0; round < rounds; ++round) {
    VIDGEN_UNROLL
    for (int i = 0; i < kChains; ++i) sum[i] = fma(sum[i], a, b);
    VIDGEN_UNROLL
    for (int i = 0; i < kChains; ++i) keep(sum[i]);
  }
  VIDGEN_UNROLL
  for (int i = 0; i < kChains; ++i) *sink += first(sum[i]);
  return 2.0 * kLanes * kChains * static_cast<double>(rounds);
}

#if defined(__AVX512BF16__)
double flops_bf16(int64_t rounds, float* sink) {
  __m512 sum[kChains];
  VIDGEN_UNROLL
  for (int i = 0; i < kChains; ++i) sum[i] = _mm512_setzero_ps();
  const __m512bh a = _mm512_cvtne2ps_pbh(_mm512_set1_ps(1e-3f), _mm512_set1_ps(-1e-3f));
  const __m512bh b = _mm512_cvtne2ps_pbh(_mm512_set1_ps(1e-3f), _mm512_set1_ps(1e-3f));
  for (int64_t round = 0; round < rounds; ++round) {
    VIDGEN_UNROLL
    for (int i = 0; i < kChains; ++i) sum[i] = _mm512_dpbf16_ps(sum[i], a, b);
    VIDGEN_UNROLL
    for (int i = 0; i < kChains; ++i) keep(sum[i]);
  }
  VIDGEN_UNROLL
  for (int i = 0; i < kChains; ++i) *sink += _mm512_cvtss_f32(sum[i]);
  return 2.0 * 32 * kChains * static_cast<double>(rounds);
}
constexpr auto* kFlopsBf16 = &flops_bf16;
#else
constexpr double (*kFlopsBf16)(int64_t, float*) = nullptr;
#endif

}  // namespace

extern const ProbeTable probe;
const ProbeTable probe = {flops_fp32, kFlopsBf16};

}  // namespace vidgen::VIDGEN_ISA
