// What the convolutions share: the type that is multiplied, scratch memory, panels of output channels and their
// packing.
#pragma once

#include "gemm.h"
#include "views.h"

namespace vidgen::VIDGEN_ISA {

// The type in which pixels and weights are multiplied.
template <class E>
struct StagedType {
  using type = E;
};
#if !defined(__AVX512BF16__)
template <>
struct StagedType<bf16> {
  using type = float;
};
#endif
template <class E>
using Staged = typename StagedType<E>::type;

VIDGEN_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
VIDGEN_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
VIDGEN_INLINE int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
VIDGEN_INLINE int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

// Hands out aligned pieces of scratch; from a null base it measures how much is needed.
struct Arena {
  char* base;
  size_t used = 0;
  template <class T>
  T* take(int64_t count) {
    char* piece = base == nullptr ? nullptr : base + used;
    used += round_up(count * int64_t(sizeof(T)), 64);
    return reinterpret_cast<T*>(piece);
  }
};

// Output channels are cut into panels; the last is as many vectors wide as it needs.
template <class S>
struct Panels {
  int64_t channels, count;
  explicit Panels(int64_t out_channels) : channels(out_channels), count(divide_up(out_channels, kPanel<S>)) {}
  int64_t first(int64_t panel) const { return panel * kPanel<S>; }
  int64_t width(int64_t panel) const { return smaller(channels - first(panel), kPanel<S>); }
  int vectors(int64_t panel) const { return int(divide_up(width(panel), kLanes<S>)); }
  int64_t padded_channels() const { return round_up(channels, kLanes<S>); }
};

constexpr int64_t kPackChannels = 32;  // input channels of one task

// Calls f(i, vector) for i < count, lane l of the vector being weight[l * lane_stride + i]. Lanes from `used` on are
// zero. Vectors are read whole, into the neighbouring lane if need be, unless they would pass `end`.
template <class E, class F>
VIDGEN_INLINE void for_each_weight(const E* weight, int64_t lane_stride, int64_t used, int64_t count, const E* end,
                                   F f) {
  constexpr int lanes = kLanes<E>;
  for (int64_t first = 0; first < count; first += lanes) {
    int64_t wanted = smaller(lanes, count - first);
    Vec<E> tile[lanes];
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) {
      const E* from = weight + i * lane_stride + first;
      tile[i] = i >= used ? Vec<E>{} : end - from >= lanes ? load(from) : load(from, wanted);
    }
    transpose<E>(tile);
    for (int64_t i = 0; i < wanted; ++i) f(first + i, tile[i]);
  }
}

// Stores a vector as row k of B, `width` columns; two rows of bf16 interleave. Even k comes before odd k, or the pair
// has been `blanked` with zeros before either.
template <class S>
VIDGEN_INLINE void store_depth(S* b, int64_t width, int64_t k, int64_t column, Vec<S> v, bool blanked = false) {
  if constexpr (sizeof(S) == 2) {
    uint32_t* words = reinterpret_cast<uint32_t*>(b) + k / 2 * width + column;
    Words pair = __builtin_convertvector(narrow(v), Words) << (k % 2 * 16);
    if (blanked || k % 2) {
      Words other;
      __builtin_memcpy(&other, words, sizeof other);
      pair |= other;
    }
    __builtin_memcpy(words, &pair, sizeof pair);
  } else {
    store(b + k * width + column, v);
  }
}

// What a packing task works on: a vector of output channels and a range of input channels of an (O, I, taps) weight;
// the adjoint reads `out` and writes `in`, so what it packs has the two exchanged. `row_channels` is the tensor's I,
// which is more than an adjoint packs of it where it packs a part.
template <class E>
struct PackTask {
  int64_t panel, column;  // of the output channels
  int64_t first, last;    // input channels
  int64_t lanes_used;
  int64_t lane_stride, in_stride;  // of the weight tensor
  const E* weight;                 // at the first output channel
  const E* end;                    // of the tensor

  PackTask(int64_t in_channels, int64_t out_channels, int64_t row_channels, int64_t taps, bool adjoint,
           const void* tensor, int64_t task) {
    int64_t ranges = divide_up(in_channels, kPackChannels);
    int64_t out = task / ranges * kLanes<E>;
    panel = out / kPanel<E>;
    column = out % kPanel<E>;
    first = task % ranges * kPackChannels;
    last = smaller(in_channels, first + kPackChannels);
    lanes_used = smaller(kLanes<E>, out_channels - out);
    lane_stride = adjoint ? taps : taps * in_channels;
    in_stride = adjoint ? taps * row_channels : taps;
    const E* base = static_cast<const E*>(tensor);
    weight = base + out * lane_stride;
    end = base + (out_channels - 1) * lane_stride + (in_channels - 1) * in_stride + taps;
  }
  // The taps of one input channel, one vector per tap: calls f(tap, vector) in order.
  template <class F>
  VIDGEN_INLINE void for_each_tap(int64_t in, int64_t taps, F f) const {
    for_each_weight(weight + in * in_stride, lane_stride, lanes_used, taps, end, f);
  }
};

VIDGEN_INLINE int64_t pack_task_count(int64_t in_channels, int64_t out_channels, int lanes) {
  return divide_up(out_channels, lanes) * divide_up(in_channels, kPackChannels);
}

// Calls f with a null pointer of the images' element type.
template <class F>
auto by_dtype(Dtype dtype, F f) {
  switch (dtype) {
    case Dtype::bf16:
      return f(static_cast<bf16*>(nullptr));
    case Dtype::f64:
      return f(static_cast<double*>(nullptr));
    default:
      return f(static_cast<float*>(nullptr));
  }
}

}  // namespace vidgen::VIDGEN_ISA
