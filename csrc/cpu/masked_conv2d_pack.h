// Packing of weights: an (O, I, kh, kw) tensor to panels of output channels.
//
// A vector of output channels at a time: the kh * kw taps of one input channel, contiguous in memory for each
// output channel, pass through register transposes and come out as one vector per tap. The adjoint differs in
// nothing but the two strides. Masked taps are never stored, so nothing that stands in them can matter.
#pragma once

#include "masked_conv2d_layout.h"

namespace vidgen::VIDGEN_ISA {

template <class E>
void pack_direct(const MaskedConv2d& p, const void* weight, void* packed, int64_t task) {
  using S = Staged<E>;
  Taps taps(p);
  DirectLayout<S> layout(p);
  int64_t row_channels = p.adjoint ? p.out_channels : p.in_channels;
  PackTask<E> part(p.in_channels, p.out_channels, row_channels, p.kernel_height * p.kernel_width, p.adjoint, weight,
                   task);
  int vectors = Panels<S>(p.out_channels).vectors(part.panel);
  int64_t width = vectors * kLanes<S>;
  S* dense = layout.dense(packed, part.panel);
  Acc<S>* centre = layout.centre(packed, part.panel, vectors);
  int64_t kept = taps.dense + taps.coloured;
  if (layout.straddles()) {
    for (int64_t k = 0; k < layout.depth; k += kDepthStep<S>) store_depth(dense, width, k, part.column, Vec<S>{});
  }
  for (int64_t in = part.first; in < part.last; ++in) {
    part.for_each_tap(in, kept, [&](int64_t tap, Vec<E> v) {
      if (tap < taps.dense) {
        store_depth(dense, width, layout.row(tap, in), part.column, v, layout.straddles());
      } else {
        store(centre + in * width + part.column, v);
      }
    });
  }
}

}  // namespace vidgen::VIDGEN_ISA
