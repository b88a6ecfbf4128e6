// The Winograd form (dilation 1): fewer products than kept taps, and still causal to the bit.
//
// Two parts are transformed apart and added in the output domain.
//   above: the rows above the current one; all their pixels are past. Along the width F(4, kw), for kw = 7 cut
//     into F(4, 4) + F(4, 3), whose products add up (bf16, whose rounding asks for small tiles: F(2, .) of pieces
//     of at most 3 taps). With two or three rows above, pairs of output rows share an outer F(2, kh/2) down the
//     height: its last input is the upper row of the pair, and reaches the lower one alone.
//   current: the row itself, left of the centre (and the centre, type B): F(2, taps), causal as toom_cook.h shows.
// A coloured centre tap is added directly, masked. Products per output, type B, against k * k taps of an eager
// convolution: k = 3: 1.5 + 1.5 of 9; k = 5: 3 + 2 of 25; k = 7: 6.5 + 2.5 of 49.
//
// A task transforms its block of rows to V[coefficient][line * tile][channel] (L2), then for each panel of output
// channels multiplies every coefficient, V (lines * tiles x channels) by U (channels x panel) into
// M[coefficient][line * tile][panel] (L2), and transforms back into a buffer that store_block adds the bias to.
// U streams once per task; 24 or more lines * tiles make that at most 3 bytes a cycle.
#pragma once

#include "masked_conv2d_pack.h"
#include "stage.h"
#include "toom_cook.h"

namespace vidgen::VIDGEN_ISA {

constexpr int kMaxSegments = 3;

// F(m, taps) of the kernel columns [first, first + taps).
struct Segment {
  int taps, first;
};

// One transformed part of the filter.
struct WinogradPart {
  int outputs = 0;  // m, along the width; 0: the part is empty
  int segments = 0;
  Segment segment[kMaxSegments];
  int points = 0;    // products along the width: those of the longest segment
  int rows = 0;      // kernel rows
  int vertical = 1;  // products down the height; 1: none shared, a line is an output row, else a pair

  void add(int taps, int first) {
    segment[segments++] = {taps, first};
    points = int(larger(points, outputs + taps - 1));
  }
  int lines_per(int64_t block_rows) const { return int(vertical == 1 ? block_rows : (block_rows + 1) / 2); }
  // The index of product `point` within segment s, or -1: infinity comes last in every segment.
  int index(int s, int point) const {
    int last = outputs + segment[s].taps - 2;
    return point == points - 1 ? last : point < last ? point : -1;
  }
  // Rows of U for one (point, vertical product).
  int64_t depth(int point, int64_t channel_pitch) const {
    int64_t count = 0;
    for (int s = 0; s < segments; ++s) count += index(s, point) >= 0;
    return count * channel_pitch;
  }
  int64_t total_depth(int64_t channel_pitch) const {
    int64_t sum = 0;
    for (int i = 0; i < points; ++i) sum += depth(i, channel_pitch) * vertical;
    return sum;
  }
};

template <class S>
struct WinogradForm {
  WinogradPart above, current;
  int64_t channel_pitch;  // rows of U per input channel block: even for bf16

  // bf16 with very few channels: the rounding of transformed weights does not average out over the few products.
  static bool supports(const MaskedConv2d& p) {
    bool enough = sizeof(S) == 4 || (sizeof(S) == 2 && p.in_channels >= 16 && p.out_channels >= 8);
    return enough && p.dilation == 1 && p.kernel_height <= 7 && p.kernel_width <= 7 && p.kernel_width >= 3;
  }

  explicit WinogradForm(const MaskedConv2d& p) : channel_pitch(round_up(p.in_channels, kDepthStep<S>)) {
    Taps taps(p);
    int kw = int(p.kernel_width);
    if (taps.above > 0) {
      above.rows = int(taps.above);
      above.vertical = taps.above == 1 ? 1 : above.rows + 1;
      above.outputs = sizeof(S) == 2 ? 2 : 4;
      if (sizeof(S) == 2) {
        for (int first = 0; first < kw; first += above.segment[above.segments - 1].taps)
          above.add(kw - first > 4 ? 3 : kw - first == 4 ? 2 : kw - first, first);
      } else if (kw == 7) {
        above.add(4, 0);
        above.add(3, 4);
      } else {
        above.add(kw, 0);
      }
    }
    if (taps.in_row > 0) {
      current.rows = 1;
      current.outputs = 2;
      current.add(int(taps.in_row), 0);
    }
  }

  int64_t depth() const { return above.total_depth(channel_pitch) + current.total_depth(channel_pitch); }
  int64_t bytes_per_channel(const MaskedConv2d& p) const {
    return depth() * sizeof(S) + (p.colors > 1 ? p.in_channels * sizeof(Acc<S>) : 0);
  }
  size_t bytes(const MaskedConv2d& p) const {
    return bytes_per_channel(p) * Panels<S>(p.out_channels).padded_channels();
  }
  S* panel(const MaskedConv2d& p, void* packed, int64_t i) const {
    return reinterpret_cast<S*>(static_cast<char*>(packed) + i * kPanel<S> * bytes_per_channel(p));
  }
};

// What a horizontal F(m, r) does, chosen at run time.
template <class S>
struct HorizontalTransform {
  void (*line)(const LineSource<S>&, int64_t pitch, int64_t tiles, S* out, int64_t stride);
  void (*filter)(const Vec<S>* taps, Vec<S>* out);
};

template <class S>
HorizontalTransform<S> horizontal_transform(int m, int r) {
  switch (m * 10 + r) {
#define VIDGEN_CASE(m, r) \
  case m * 10 + r:        \
    return {transform_line<m, r, S>, transform_filter<m, r, S>};
    VIDGEN_CASE(2, 1)
    VIDGEN_CASE(2, 2)
    VIDGEN_CASE(2, 3)
    VIDGEN_CASE(2, 4)
    VIDGEN_CASE(4, 3)
    VIDGEN_CASE(4, 4)
    VIDGEN_CASE(4, 5)
#undef VIDGEN_CASE
    default:
      return {};
  }
}

// Filters of one input channel and a vector of output channels: [kernel row][tap] to U.
template <class S>
void pack_part(const WinogradPart& part, const Vec<S>* taps, int64_t kernel_width, int64_t channel,
               int64_t channel_pitch, S* b, int64_t width, int64_t column) {
  constexpr int kMaxPoints = 8, kMaxRows = 3;
  int64_t slot[kMaxPoints];  // the row of U that the next segment of a point fills
  int64_t depth[kMaxPoints], next = channel;
  for (int i = 0; i < part.points; ++i) {
    slot[i] = next;
    depth[i] = part.depth(i, channel_pitch);
    next += depth[i] * part.vertical;
  }
  for (int s = 0; s < part.segments; ++s) {
    Vec<S> u[kMaxRows + 1][kMaxPoints];
    auto transform = horizontal_transform<S>(part.outputs, part.segment[s].taps);
    for (int row = 0; row < part.rows; ++row)
      transform.filter(taps + row * kernel_width + part.segment[s].first, u[row]);
    for (int point = 0; point < part.points; ++point) {
      int i = part.index(s, point);
      if (i < 0) continue;
      Vec<S> row[kMaxRows] = {u[0][i], u[1][i], u[2][i]}, sum[kMaxRows + 1] = {row[0]};
      if (part.vertical == 3) transform_filter<2, 2, S>(row, sum);
      if (part.vertical == 4) transform_filter<2, 3, S>(row, sum);
      for (int v = 0; v < part.vertical; ++v) store_depth(b, width, slot[point] + v * depth[point], column, sum[v]);
      slot[point] += channel_pitch;
    }
  }
}

template <class E>
void pack_winograd(const MaskedConv2d& p, const void* weight, void* packed, int64_t task) {
  using S = Staged<E>;
  constexpr int64_t kMaxTaps = 7 * 3 + 4;
  Taps taps(p);
  WinogradForm<S> form(p);
  int64_t row_channels = p.adjoint ? p.out_channels : p.in_channels;
  PackTask<E> part(p.in_channels, p.out_channels, row_channels, p.kernel_height * p.kernel_width, p.adjoint, weight,
                   task);
  int64_t width = Panels<S>(p.out_channels).vectors(part.panel) * kLanes<S>;
  S* above = form.panel(p, packed, part.panel);
  S* current = above + form.above.total_depth(form.channel_pitch) * width;
  Acc<S>* centre = reinterpret_cast<Acc<S>*>(above + form.depth() * width);
  for (int64_t in = part.first; in < part.last; ++in) {
    Vec<S> filter[kMaxTaps];
    part.for_each_tap(in, taps.dense + taps.coloured, [&](int64_t tap, Vec<E> v) { filter[tap] = v; });
    pack_part<S>(form.above, filter, p.kernel_width, in, form.channel_pitch, above, width, part.column);
    pack_part<S>(form.current, filter + taps.above * p.kernel_width, p.kernel_width, in, form.channel_pitch, current,
                 width, part.column);
    if (taps.coloured) store(centre + in * width + part.column, filter[taps.dense]);
  }
}

}  // namespace vidgen::VIDGEN_ISA
