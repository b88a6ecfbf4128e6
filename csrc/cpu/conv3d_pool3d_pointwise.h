// The direct form of a kernel of one tap where columns lie next to each other on both sides (NCDHW).
//
// Y = W X is then a matrix product as it stands: pixels run along the vectors, a weight is the broadcast operand, and
// neither x nor y is transposed. A task copies its pixels, 128 at a time, to panels of two vectors of pixels (four with
// AVX-512) for all input channels: read from where they lie, every channel's pixels would be in a page of their own. A
// panel of 16 output channels (64) then visits all panels of pixels, so that its weights stay close, and stores a run
// of 128 pixels per channel. A tile of 6 output channels by two vectors loads 2 vectors and 6 scalars for 12 products.
// Sums are added up in the order of gemm.h, so both layouts give the same bits.
#pragma once

#include "conv3d_pool3d_finish.h"

namespace vidgen::VIDGEN_ISA {

constexpr int64_t kSlabPixels = 128;  // that are copied at once; a multiple of every panel

// c[row][pixel] (+)= sum over k of w[k][row] * x[k][pixel]
template <class E, int rows, int vectors>
void multiply_columns(const E* w, int64_t w_pitch, const E* x, int64_t depth, E* c, int64_t c_pitch, bool accumulate) {
  constexpr int lanes = kLanes<E>, width = vectors * lanes;
  Vec<E> sum[rows][vectors];
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) sum[i][j] = Vec<E>{};
  }
  for (int64_t k = 0; k < depth; ++k, w += w_pitch, x += width) {
    Vec<E> pixels[vectors];
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) pixels[j] = load(x + j * lanes);
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < vectors; ++j) sum[i][j] = multiply_add<E>(w[i], pixels[j], sum[i][j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) {
      E* out = c + i * c_pitch + j * lanes;
      store(out, accumulate ? load(out) + sum[i][j] : sum[i][j]);
    }
  }
}

template <class E, int rows, int vectors>
constexpr decltype(&multiply_columns<E, 1, 1>) columns_or_null() {
  if constexpr (rows <= tile_rows(vectors)) return &multiply_columns<E, rows, vectors>;
  return nullptr;
}

template <class E, class Index>
struct ColumnTileTable;
template <class E, size_t... i>
struct ColumnTileTable<E, std::index_sequence<i...>> {
  static constexpr decltype(&multiply_columns<E, 1, 1>) tile[] = {
      columns_or_null<E, i / kTileVectors + 1, i % kTileVectors + 1>()...};
};
template <class E>
using ColumnTiles = ColumnTileTable<E, std::make_index_sequence<kTallestTile * kTileVectors>>;

VIDGEN_INLINE bool is_pointwise(const Conv3dPool3d& p) { return p.kernel[0] * p.kernel[1] * p.kernel[2] == 1; }

// Whether the kernel below computes it: nothing but bias and activation follows, and no type changes on the way.
template <class E>
bool stays_in_columns(const Conv3dPool3d& p, const ClipView& x, const Conv3dTarget& target) {
  return sizeof(E) == sizeof(Acc<E>) && is_pointwise(p) && !p.pools() && target.grad == nullptr && x.stride[2] == 1 &&
         target.out.stride[2] == 1;
}

// Copies `count` pixels from `from` on, channel by channel, to [panel][channel][pixel].
template <class E>
void copy_columns(const E* from, int64_t channel_stride, int64_t channels, int64_t count, E* slab) {
  constexpr int lanes = kLanes<E>;
  Panels<E> panels(count);
  for (int64_t c = 0; c < channels; ++c, from += channel_stride) {
    for (int64_t panel = 0; panel < panels.count; ++panel) {
      int64_t first = panels.first(panel), width = panels.vectors(panel) * lanes;
      E* to = slab + first * channels + c * width;
      for (int64_t i = 0; i < width; i += lanes)
        store(to + i, load_lanes<E, E>(from + first + i, smaller(lanes, count - first - i)));
    }
  }
}

// A run of `count` pixels, kSlabPixels at most, of clip n from (d, h, w) on. `slab` takes so many pixels, `sums` as
// many for a panel of output channels.
template <class E>
void run_pointwise(const Conv3dPool3d& p, const ClipView& x, const E* packed, const E* bias, const ClipView& y,
                   int64_t n, const int64_t (&at)[3], int64_t count, E* slab, E* sums) {
  constexpr int lanes = kLanes<E>;
  copy_columns(element_at<E>(x, n, at[0], at[1], at[2], 0), x.channel_stride, p.in_channels, count, slab);
  Panels<E> pixels(count), outs(p.out_channels);
  for (int64_t o = 0; o < outs.count; ++o) {
    int64_t pitch = outs.vectors(o) * lanes;
    const E* weights = packed + outs.first(o) * p.in_channels;
    for (int64_t panel = 0; panel < pixels.count; ++panel) {
      int vectors = pixels.vectors(panel);
      int64_t first = pixels.first(panel);
      for (int64_t k = 0; k < p.in_channels; k += kConvChunk) {
        int64_t depth = smaller(kConvChunk, p.in_channels - k);
        const E* from = slab + first * p.in_channels + k * vectors * lanes;
        for_each_tile(outs.width(o), tile_rows(vectors), [&](int64_t row, int64_t height) {
          ColumnTiles<E>::tile[(height - 1) * kTileVectors + vectors - 1](
              weights + k * pitch + row, pitch, from, depth, sums + row * kSlabPixels + first, kSlabPixels, k > 0);
        });
      }
    }
    for (int64_t row = 0; row < outs.width(o); ++row) {
      int64_t channel = outs.first(o) + row;
      E add = bias == nullptr ? E(0) : bias[channel];
      E* to = element_at<E>(y, n, at[0], at[1], at[2], channel);
      for (int64_t i = 0; i < count; i += lanes) {
        Vec<E> v = load(sums + row * kSlabPixels + i) + add;
        store_lanes(to + i, p.relu ? rectified<E>(v) : v, smaller(lanes, count - i));
      }
    }
  }
}

}  // namespace vidgen::VIDGEN_ISA
