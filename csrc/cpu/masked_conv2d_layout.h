// What the forms of masked_conv2d share: which taps are kept, and how much memory a task will want.
//
// Kept taps, in the order of packing: kernel rows above the centre, all columns; then the centre row, left of
// the centre; then the centre itself (type B without channel groups). With colors > 1 the centre tap stands
// apart, after the dense part of each panel, in fp32 (fp64), because its channel pairs are masked lane by lane.
#pragma once

#include "masked_conv2d.h"
#include "panels.h"
#include "stage.h"

namespace vidgen::VIDGEN_ISA {

struct Taps {
  int64_t above, left;  // kernel rows above the centre, columns left of it
  bool coloured;        // the centre tap is masked by channel pairs
  bool centre;          // the centre tap is dense
  int64_t in_row;       // dense taps of the centre row
  int64_t dense;        // dense taps in all

  explicit Taps(const MaskedConv2d& p)
      : above(p.kernel_height / 2),
        left(p.kernel_width / 2),
        coloured(p.colors > 1),
        centre(p.colors == 1 && p.mask_b),
        in_row(left + centre),
        dense(above * p.kernel_width + in_row) {}
};

VIDGEN_INLINE int64_t colour_of(int64_t channel, int64_t channels, const MaskedConv2d& p) {
  return p.interleaved ? channel % p.colors : channel * p.colors / channels;
}

// The pair is kept iff colour(in) < colour(out), or <= for type B; the adjoint reads `out` and writes `in`.
VIDGEN_INLINE ColourRule colour_rule(const MaskedConv2d& p) {
  return {p.in_channels, p.colors, p.interleaved, p.adjoint ? -1 : 1, p.mask_b ? 1 : 0};
}

// The colour keys of a panel's output channels, see ColourRule.
template <class S>
void colour_keys(const MaskedConv2d& p, int64_t first, int vectors, Acc<S>* keys) {
  for (int64_t i = 0; i < vectors * kLanes<S>; ++i) {
    int64_t channel = smaller(first + i, p.out_channels - 1);
    keys[i] = Acc<S>(colour_of(channel, p.out_channels, p) * (p.adjoint ? -1 : 1));
  }
}

// Packed weights of the direct form: [panel]{[run][tap][input channel][output channel], centre if coloured}. The taps
// of a kernel row are one run, with dilation each is its own.
//
// bf16 multiplies pairs. Pixels of an odd number of channels are padded, but few channels would pay for that (3: a
// third): their pairs straddle pixels, and only the run is padded.
template <class S>
struct DirectLayout {
  int64_t channel_pitch;        // from tap to tap, and from pixel to pixel
  int64_t run_taps, run_depth;  // of a run above the current row; its rows of B
  int64_t depth;                // dense rows of B
  int64_t centre_depth;         // rows of the coloured centre

  explicit DirectLayout(const MaskedConv2d& p) {
    constexpr int64_t kFewChannels = 16;  // one task packs them all, see kPackChannels
    Taps taps(p);
    channel_pitch = p.in_channels < kFewChannels ? p.in_channels : round_up(p.in_channels, kDepthStep<S>);
    run_taps = p.dilation == 1 ? p.kernel_width : 1;
    run_depth = rows_of(run_taps);
    depth = p.dilation == 1 ? taps.above * run_depth + rows_of(taps.in_row) : taps.dense * run_depth;
    centre_depth = p.colors > 1 ? p.in_channels : 0;
  }

  bool straddles() const { return channel_pitch % kDepthStep<S> != 0; }
  // The row of B of an input channel of a kept tap.
  int64_t row(int64_t tap, int64_t channel) const {
    return tap / run_taps * run_depth + tap % run_taps * channel_pitch + channel;
  }
  int64_t rows_of(int64_t taps) const { return round_up(taps * channel_pitch, kDepthStep<S>); }

  int64_t bytes_per_channel() const { return depth * sizeof(S) + centre_depth * sizeof(Acc<S>); }
  size_t bytes(const MaskedConv2d& p) const {
    return bytes_per_channel() * Panels<S>(p.out_channels).padded_channels();
  }
  S* dense(void* packed, int64_t panel) const {
    return reinterpret_cast<S*>(static_cast<char*>(packed) + panel * kPanel<S> * bytes_per_channel());
  }
  Acc<S>* centre(void* packed, int64_t panel, int vectors) const {
    return reinterpret_cast<Acc<S>*>(dense(packed, panel) + depth * vectors * kLanes<S>);
  }
};

// What a task that computes rows [row, row + rows) will want: the memory of its output, then the input rows of the
// task after it; `visits` register tiles are to come.
template <class E>
Prefetch prefetch_task(const MaskedConv2d& p, const ImageView& x, const ImageView& y, int64_t n, int64_t row,
                       int64_t rows, int64_t visits) {
  int64_t following = p.height - row - rows < rows ? p.height - row - rows : rows;
  Prefetch ahead{{region_of<E>(y, n, row, rows, p.width, p.out_channels),
                  region_of<E>(x, n, row + rows, following, p.width, p.in_channels)}};
  int64_t lines = Prefetch::lines(ahead.region[0]) + Prefetch::lines(ahead.region[1]);
  ahead.per_step = visits > 0 ? 2 * lines / visits + 1 : 0;
  return ahead;
}

}  // namespace vidgen::VIDGEN_ISA
