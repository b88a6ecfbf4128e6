// Packing of weights: an (O, I, kh, kw) tensor to panels of output channels.
//
// A vector of output channels at a time: the kh * kw taps of one input channel, contiguous in memory for each
// output channel, pass through register transposes and come out as one vector per tap. The adjoint differs in
// nothing but the two strides. Masked taps are never stored, so nothing that stands in them can matter.
#pragma once

#include "masked_conv2d_layout.h"

namespace vidgen::VIDGEN_ISA {

constexpr int64_t kPackChannels = 32;  // input channels of one task

// The taps of (16 output channels, one input channel), one vector per tap: calls f(tap, vector) in order.
template <class E, class F>
VIDGEN_INLINE void for_each_tap(const E* weight, int64_t lane_stride, int64_t lanes_used, int64_t taps, F f) {
  constexpr int lanes = kLanes<E>;
  for (int64_t first = 0; first < taps; first += lanes) {
    int64_t count = smaller(lanes, taps - first);
    Vec<E> tile[lanes];
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) {
      const E* from = weight + i * lane_stride + first;
      tile[i] = i >= lanes_used ? Vec<E>{} : count == lanes ? load(from) : load(from, count);
    }
    transpose<E>(tile);
    for (int64_t i = 0; i < count; ++i) f(first + i, tile[i]);
  }
}

// Stores a vector as row k of B, `width` columns; two rows of bf16 interleave. Even k comes before odd k.
template <class S>
VIDGEN_INLINE void store_depth(S* b, int64_t width, int64_t k, int64_t column, Vec<S> v) {
  if constexpr (sizeof(S) == 2) {
    uint32_t* words = reinterpret_cast<uint32_t*>(b) + k / 2 * width + column;
    Words pair = __builtin_convertvector(narrow(v), Words);
    if (k % 2) {
      Words even;
      __builtin_memcpy(&even, words, sizeof even);
      pair = even | pair << 16;
    }
    __builtin_memcpy(words, &pair, sizeof pair);
  } else {
    store(b + k * width + column, v);
  }
}

// What a packing task works on: a vector of output channels and a range of input channels.
template <class E>
struct PackTask {
  int64_t panel, column;  // of the output channels
  int64_t first, last;    // input channels
  int64_t lanes_used;
  int64_t lane_stride, in_stride;  // of the weight tensor
  const E* weight;                 // at the first output channel

  PackTask(const MaskedConv2d& p, const void* tensor, int64_t task) {
    int64_t ranges = divide_up(p.in_channels, kPackChannels);
    int64_t out = task / ranges * kLanes<E>;
    panel = out / kPanel<E>;
    column = out % kPanel<E>;
    first = task % ranges * kPackChannels;
    last = smaller(p.in_channels, first + kPackChannels);
    lanes_used = smaller(kLanes<E>, p.out_channels - out);
    int64_t taps = p.kernel_height * p.kernel_width;
    lane_stride = p.adjoint ? taps : taps * p.in_channels;
    in_stride = p.adjoint ? taps * p.out_channels : taps;
    weight = static_cast<const E*>(tensor) + out * lane_stride;
  }
};

VIDGEN_INLINE int64_t pack_task_count(const MaskedConv2d& p, int lanes) {
  return divide_up(p.out_channels, lanes) * divide_up(p.in_channels, kPackChannels);
}

template <class E>
void pack_direct(const MaskedConv2d& p, const void* weight, void* packed, int64_t task) {
  using S = Staged<E>;
  Taps taps(p);
  DirectLayout<S> layout(p);
  PackTask<E> part(p, weight, task);
  int vectors = Panels<S>(p.out_channels).vectors(part.panel);
  int64_t width = vectors * kLanes<S>;
  S* dense = layout.dense(packed, part.panel);
  Acc<S>* centre = layout.centre(packed, part.panel, vectors);
  int64_t kept = taps.dense + taps.coloured;
  for (int64_t in = part.first; in < part.last; ++in) {
    for_each_tap(part.weight + in * part.in_stride, part.lane_stride, part.lanes_used, kept,
                 [&](int64_t tap, Vec<E> v) {
                   if (tap < taps.dense) {
                     store_depth(dense, width, tap * layout.channel_pitch + in, part.column, v);
                   } else {
                     store(centre + in * width + part.column, v);
                   }
                 });
  }
}

}  // namespace vidgen::VIDGEN_ISA
