// The Winograd form (dilation 1): fewer products than kept taps, and still causal to the bit.
//
// Two filters are transformed and their results are added.
//   above: the rows above the current one; all their pixels are past. Along the width F(4, kw), for kw = 7 cut
//     into F(4, 4) + F(4, 3), whose products add up (bf16, whose rounding asks for small tiles: F(2, .) of pieces
//     of at most 3 taps). With two or three rows above, pairs of output rows share an outer F(2, kh/2) down the
//     height: its last input is the upper row of the pair, and reaches the lower one alone.
//   current: the row itself, left of the centre (and the centre, type B): F(2, taps), causal as toom_cook.h shows.
// A coloured centre tap is added directly, masked. Products per output, type B, against k * k taps of an eager
// convolution: k = 3: 1.5 + 1.5 of 9; k = 5: 3 + 2 of 25; k = 7: 6.5 + 2.5 of 49 (bf16: 2 + 1.5, 5.25 + 2, 10 + 2.5).
//
// Filters of the same m are one part: their products are summed before anything is transformed back. So are both of
// bf16; there the current row of a pair's upper row is added to the first product down the height, which the upper row
// alone receives, and that of the lower row to the last, which the lower alone receives. fp32 has a part for each.
//
// A task transforms its block of rows to V[segment][coefficient][slice][line * tile][channel] (L2), then for each
// panel of output channels multiplies every coefficient, V (lines * tiles x channels) by U (channels x panel) into
// M[coefficient][line * tile][panel] (L2), and transforms back into a buffer that store_block adds the bias to.
// U streams once per task; 24 or more lines * tiles make that at most 3 bytes a cycle.
#pragma once

#include "masked_conv2d_pack.h"
#include "stage.h"
#include "toom_cook.h"

namespace vidgen::VIDGEN_ISA {

constexpr int kMaxSegments = 4, kMaxParts = 2;

// F(m, taps) of the kernel columns [first, first + taps), of the rows above or of the current one.
struct Segment {
  int taps, first;
  bool above;
};

// Segments whose products add up: those above come first.
struct WinogradPart {
  int outputs = 0;  // m, along the width
  int segments = 0;
  Segment segment[kMaxSegments] = {};
  int points = 0;    // products along the width: those of the longest segment
  int rows = 0;      // kernel rows above
  int vertical = 1;  // products down the height; 1: none shared, a line is an output row, else a pair

  void add(int taps, int first, bool above) {
    segment[segments++] = {taps, first, above};
    points = int(larger(points, outputs + taps - 1));
  }
  int64_t lines_per(int64_t block_rows) const { return vertical == 1 ? block_rows : (block_rows + 1) / 2; }
  // The index of product `point` within segment s, or -1: infinity comes last in every segment.
  int index(int s, int point) const {
    int last = outputs + segment[s].taps - 2;
    return point == points - 1 ? last : point < last ? point : -1;
  }
  // Down the height a segment has a V for each product, or for each row of a pair.
  int slices(int s) const { return vertical == 1 || segment[s].above ? vertical : 2; }
  // The one that product v reads, or -1.
  int slice(int s, int v) const {
    if (vertical == 1 || segment[s].above) return v;
    return v == 0 ? 0 : v == vertical - 1 ? 1 : -1;
  }
  // V's coefficients of a tile, those of all segments and slices.
  int coefficients() const {
    int sum = 0;
    for (int s = 0; s < segments; ++s) sum += (outputs + segment[s].taps - 1) * slices(s);
    return sum;
  }
  // Rows of U for one (point, vertical product).
  int64_t depth(int point, int v, int64_t channel_pitch) const {
    int64_t count = 0;
    for (int s = 0; s < segments; ++s) count += index(s, point) >= 0 && slice(s, v) >= 0;
    return count * channel_pitch;
  }
  int64_t total_depth(int64_t channel_pitch) const { return coefficients() * channel_pitch; }
};

template <class S>
struct WinogradForm {
  int parts = 0;
  WinogradPart part[kMaxParts];
  int64_t channel_pitch;  // rows of U per input channel block: even for bf16

  // bf16 with very few channels: the rounding of transformed weights does not average out over the few products.
  static bool supports(const MaskedConv2d& p) {
    bool enough = sizeof(S) == 4 || (sizeof(S) == 2 && p.in_channels >= 16 && p.out_channels >= 8);
    return enough && p.dilation == 1 && p.kernel_height <= 7 && p.kernel_width <= 7 && p.kernel_width >= 3;
  }

  explicit WinogradForm(const MaskedConv2d& p) : channel_pitch(round_up(p.in_channels, kDepthStep<S>)) {
    Taps taps(p);
    constexpr bool small = sizeof(S) == 2;
    if (taps.above > 0) add_above(int(taps.above), int(p.kernel_width), small ? 2 : 4);
    if (parts == 0 || !small) part[parts++].outputs = 2;
    part[parts - 1].add(int(taps.in_row), 0, false);
  }

  void add_above(int rows, int kw, int outputs) {
    WinogradPart& above = part[parts++];
    above.outputs = outputs;
    above.rows = rows;
    above.vertical = rows == 1 ? 1 : rows + 1;
    // as few pieces as there can be, of nearly equal length
    const int64_t longest = outputs == 2 ? 3 : 5;
    for (int first = 0, taps; first < kw; first += taps) {
      taps = int(divide_up(kw - first, divide_up(kw - first, longest)));
      above.add(taps, first, true);
    }
  }

  int64_t depth() const {
    int64_t sum = 0;
    for (int i = 0; i < parts; ++i) sum += part[i].total_depth(channel_pitch);
    return sum;
  }
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

// The transforms along the width, chosen at run time: digits are m and the taps of segments.
template <class S>
using TransformFilter = void (*)(const Vec<S>* taps, Vec<S>* out);
template <class S>
using TransformLine = void (*)(const LineSource<S>&, int64_t pitch, int64_t tiles, S* const* out, int64_t stride);

template <class S>
TransformFilter<S> filter_transform(int outputs, int taps) {
  switch (outputs * 10 + taps) {
#define VIDGEN_CASE(m, r) \
  case m * 10 + r:        \
    return transform_filter<m, r, S>;
    VIDGEN_CASE(2, 1)
    VIDGEN_CASE(2, 2)
    VIDGEN_CASE(2, 3)
    VIDGEN_CASE(2, 4)
    VIDGEN_CASE(4, 3)
    VIDGEN_CASE(4, 4)
    VIDGEN_CASE(4, 5)
#undef VIDGEN_CASE
    default:
      return nullptr;
  }
}

template <class S>
TransformLine<S> line_transform(const WinogradPart& part, int first, int last) {
  int digits = part.outputs;
  for (int s = first; s < last; ++s) digits = digits * 10 + part.segment[s].taps;
  if constexpr (sizeof(S) == 2) {
    if (digits == 232) return transform_line<S, 2, 3, 2>;
    if (digits == 2322) return transform_line<S, 2, 3, 2, 2>;
  } else {
    if (digits == 43) return transform_line<S, 4, 3>;
    if (digits == 45) return transform_line<S, 4, 5>;
    if (digits == 443) return transform_line<S, 4, 4, 3>;
  }
  switch (digits) {
    case 21:
      return transform_line<S, 2, 1>;
    case 22:
      return transform_line<S, 2, 2>;
    case 23:
      return transform_line<S, 2, 3>;
    case 24:
      return transform_line<S, 2, 4>;
    default:
      return nullptr;
  }
}

// Filters of one input channel and a vector of output channels to U; `above` is [kernel row][tap].
template <class S>
void pack_part(const WinogradPart& part, const Vec<S>* above, const Vec<S>* current, int64_t kernel_width,
               int64_t channel, int64_t channel_pitch, S* b, int64_t width, int64_t column) {
  constexpr int kMaxPoints = 8, kMaxRows = 3;
  int64_t slot[kMaxPoints][kMaxRows + 1];  // the row of U that the next segment of a product fills
  int64_t next = channel;
  for (int i = 0; i < part.points; ++i) {
    for (int v = 0; v < part.vertical; ++v) {
      slot[i][v] = next;
      next += part.depth(i, v, channel_pitch);
    }
  }
  for (int s = 0; s < part.segments; ++s) {
    const Segment& segment = part.segment[s];
    Vec<S> u[kMaxRows][kMaxPoints] = {};
    auto transform = filter_transform<S>(part.outputs, segment.taps);
    if (segment.above) {
      for (int row = 0; row < part.rows; ++row) transform(above + row * kernel_width + segment.first, u[row]);
    } else {
      transform(current + segment.first, u[0]);
    }
    for (int point = 0; point < part.points; ++point) {
      int i = part.index(s, point);
      if (i < 0) continue;
      Vec<S> row[kMaxRows] = {u[0][i], u[1][i], u[2][i]}, sum[kMaxRows + 1] = {row[0], row[0]};
      if (segment.above && part.vertical == 3) transform_filter<2, 2, S>(row, sum);
      if (segment.above && part.vertical == 4) transform_filter<2, 3, S>(row, sum);
      for (int v = 0; v < part.vertical; ++v) {
        int slice = part.slice(s, v);
        if (slice < 0) continue;
        store_depth(b, width, slot[point][v], column, sum[slice]);
        slot[point][v] += channel_pitch;
      }
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
  S* panel = form.panel(p, packed, part.panel);
  Acc<S>* centre = reinterpret_cast<Acc<S>*>(panel + form.depth() * width);
  for (int64_t in = part.first; in < part.last; ++in) {
    Vec<S> filter[kMaxTaps];
    part.for_each_tap(in, taps.dense + taps.coloured, [&](int64_t tap, Vec<E> v) { filter[tap] = v; });
    S* u = panel;
    for (int i = 0; i < form.parts; ++i) {
      pack_part<S>(form.part[i], filter, filter + taps.above * p.kernel_width, p.kernel_width, in, form.channel_pitch,
                   u, width, part.column);
      u += form.part[i].total_depth(form.channel_pitch) * width;
    }
    if (taps.coloured) store(centre + in * width + part.column, filter[taps.dense]);
  }
}

}  // namespace vidgen::VIDGEN_ISA
