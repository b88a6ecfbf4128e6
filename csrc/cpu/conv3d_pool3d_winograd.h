// The Winograd forms: kernels whose planes are 3 x 3, or 5 x 5, with fewer products than taps.
//
// F(2,3) along depth times F(m,3) along height and width, m = 4 or 2 (toom_cook.h has the transforms). An output tile
// of 2 x m x m takes 4 (m+2)^2 products instead of 54 m^2: 6 times fewer for m = 4, 3.4 times for m = 2. Kernels of
// depth 1 have tiles of 1 x m x m and (m+2)^2 products: 4 and 2.25 times fewer.
//
// Tiles are numbered through the whole batch; a task computes some tens of them for some panels of output channels, one
// depth product ("slice") after the other. Per slice:
//   1. V[point][tile][channel], the (m+2)^2 points of the transformed input. The depth transform costs one addition
//      while loading: each of its rows is a plane plus or minus another. A tile's pixels are reached through a table of
//      pointers, those outside the clip point to a line of zeros, so borders are no special case.
//   2. M[point][tile][output channel] = V U: one matrix product per point, weights U streaming from memory once.
//   3. the inverse transform in the plane, added to the sums of the depth planes that the slice belongs to.
// Then bias, activation and pooling window, from the sums (2 m m vectors per tile, next to each other) to memory.
// In float32 with m = 4, a slice of a tile with 64 channels in and 128 out is 9 KiB of V and 18 KiB of M, and its sums
// are 16 KiB: 48 tiles stay in an L2 cache of 2 MiB. Doing all four slices at once would need 2.5 times as much.
// bf16 clips are transformed and multiplied in float32: rounding transformed values to bf16 would err more than three
// times as much as eager bf16, and by count of products the small tiles that bf16 would ask for (3.4 times fewer, each
// at half the price where bf16 is fast) save hardly more than the large ones (6 times fewer).
// The packed weight is [panel][slice][point][input channel][output channel].
//
// With few input channels the transforms cost more than the products, and along depth they save little. The form by
// planes leaves depth alone: a tile is some planes of m x m outputs, V[point][tile][plane][channel] is transformed once
// for all of them, and a slice is one plane of outputs, whose taps along depth and channels are one run of V. It takes
// 36 kd products for 16 outputs of a 3 x 3 plane, F(4,3), or for 4 of a 5 x 5 plane, F(2,5): 4 and 2.8 times fewer than
// taps; and half the M of the form above. Kernels may have any depth.
#pragma once

#include "conv3d_pool3d_finish.h"
#include "toom_cook.h"

namespace vidgen::VIDGEN_ISA {

constexpr int64_t kSliceChunk = 128;  // rows of B per visit of M, see gemm.h
constexpr int64_t kTilePlanes = 4;    // of outputs, in a tile of the form by planes

// The numbers of a form: outputs per axis of a tile, and its products.
struct TileShape {
  int64_t outputs[3];
  int slices, points;  // products along depth, or planes of outputs; products in the plane
  int taps = 1;        // of depth, in every product
  int held = 1;        // planes of a tile that V holds at once
  bool by_planes;

  TileShape(const Conv3dPool3d& p, Conv3dForm form) : by_planes(form == Conv3dForm::planes) {
    bool deep = p.kernel[0] == 3;
    outputs[0] = deep ? 2 : 1;
    outputs[1] = outputs[2] = tile_side(p, form);
    slices = deep ? 4 : 1;
    points = int((outputs[1] + p.kernel[1] - 1) * (outputs[2] + p.kernel[2] - 1));
    if (by_planes) {
      outputs[0] = round_up(smaller(kTilePlanes, p.out_size[0]), p.pool[0]);
      slices = int(outputs[0]);
      taps = int(p.kernel[0]);
      held = slices + taps - 1;
    }
  }
  // Planes of a tile that are transformed to V, all in all.
  int transforms() const { return by_planes ? held : slices; }
  int64_t along(const Conv3dPool3d& p, int axis) const { return divide_up(p.out_size[axis], outputs[axis]); }
  int64_t per_clip(const Conv3dPool3d& p) const { return along(p, 0) * along(p, 1) * along(p, 2); }
  int64_t volume() const { return outputs[0] * outputs[1] * outputs[2]; }
  // Every window lies inside one tile.
  bool holds_windows(const Conv3dPool3d& p) const {
    for (int axis = 0; axis < 3; ++axis)
      if (outputs[axis] % p.pool[axis] != 0) return false;
    return true;
  }
};

template <class S>
struct SliceWeights {
  int64_t depth;  // rows of U for one product: input channels, by planes those of all taps of depth
  int products;   // slices * points, by planes points

  SliceWeights(const Conv3dPool3d& p, const TileShape& shape)
      : depth(shape.taps * p.in_channels), products((shape.by_planes ? 1 : shape.slices) * shape.points) {}

  size_t bytes(const Conv3dPool3d& p) const {
    return products * depth * Panels<S>(p.out_channels).padded_channels() * sizeof(S);
  }
  const S* at(const void* packed, int64_t panel, int64_t width, int product) const {
    return static_cast<const S*>(packed) + panel * kPanel<S> * depth * products + product * depth * width;
  }
};

template <class E>
bool winograd_supports(const Conv3dPool3d& p, Conv3dForm form) {
  int64_t depth = p.kernel[0], plane = p.kernel[1];
  if (sizeof(E) == 8 || plane != p.kernel[2]) return false;
  if (form == Conv3dForm::planes) return plane == 5 || (plane == 3 && depth > 1);
  return plane == 3 && (depth == 3 || depth == 1);
}

// Calls f<m, r>() for the F(m, r) of a form's planes.
template <class F>
auto by_tile(const Conv3dPool3d& p, Conv3dForm form, F f) {
  if (p.kernel[1] == 5) return f.template operator()<2, 5>();
  return tile_side(p, form) == 2 ? f.template operator()<2, 3>() : f.template operator()<4, 3>();
}

constexpr int kMaxDepth = 7;  // taps of a kernel

// U of one input channel and a vector of output channels, from its taps in order: [slice][point], by planes
// [tap of depth][point].
template <int m, int r, class S>
void transform_taps(const Vec<S>* taps, int kernel_depth, bool by_planes, Vec<S>* u) {
  constexpr int n = m + r - 1;
  Vec<S> plane[kMaxDepth][n * n];
  for (int d = 0; d < kernel_depth; ++d) {
    Vec<S> rows[n][r];  // [column point][kernel row]
    for (int h = 0; h < r; ++h) {
      Vec<S> line[n];
      transform_filter<m, r, S>(taps + (d * r + h) * r, line);
      for (int i = 0; i < n; ++i) rows[i][h] = line[i];
    }
    for (int i = 0; i < n; ++i) {
      Vec<S> column[n];
      transform_filter<m, r, S>(rows[i], column);
      for (int j = 0; j < n; ++j) plane[d][j * n + i] = column[j];
    }
  }
  for (int i = 0; i < n * n; ++i) {
    if (by_planes || kernel_depth == 1) {
      for (int d = 0; d < kernel_depth; ++d) u[d * n * n + i] = plane[d][i];
    } else {
      Vec<S> along[3] = {plane[0][i], plane[1][i], plane[2][i]}, slice[4];
      transform_filter<2, 3, S>(along, slice);
      for (int k = 0; k < 4; ++k) u[k * n * n + i] = slice[k];
    }
  }
}

// A task packs a whole panel for a few input channels. The products of a weight lie a whole matrix apart, in pages of
// their own: what is written there is gathered in scratch first, so that it goes out some KiB at a time.
constexpr int64_t kGatheredChannels = 16;

template <class S>
VIDGEN_INLINE int64_t slice_pack_tasks(const Conv3dPool3d& p) {
  return Panels<S>(p.out_channels).count * divide_up(p.in_channels, kGatheredChannels);
}

template <class S>
size_t slice_pack_scratch(const Conv3dPool3d& p, const TileShape& shape) {
  return size_t(SliceWeights<S>(p, shape).products * shape.taps) * kGatheredChannels * kPanel<S> * sizeof(S);
}

template <class E>
void pack_slices(const Conv3dPool3d& p, Conv3dForm form, const void* weight, void* packed, int64_t task,
                 void* scratch) {
  using S = Acc<E>;
  TileShape shape(p, form);
  SliceWeights<S> layout(p, shape);
  Panels<S> panels(p.out_channels);
  int64_t taps = p.kernel[0] * p.kernel[1] * p.kernel[2], ranges = divide_up(p.in_channels, kGatheredChannels);
  int64_t panel = task / ranges, first = task % ranges * kGatheredChannels;
  int64_t count = smaller(kGatheredChannels, p.in_channels - first);
  int64_t width = panels.vectors(panel) * kLanes<S>, gathered = count * width;
  int64_t out_stride = p.adjoint ? taps : taps * p.in_channels, in_stride = p.adjoint ? taps * p.row_channels : taps;
  const E* base = static_cast<const E*>(weight);
  const E* end = base + (p.out_channels - 1) * out_stride + (p.in_channels - 1) * in_stride + taps;
  S* block = static_cast<S*>(scratch);
  for (int64_t column = 0; column < width; column += kLanes<S>) {
    int64_t out = panels.first(panel) + column;
    for (int64_t in = 0; in < count; ++in) {
      Vec<S> filter[kMaxDepth * 25], u[kMaxDepth * 36];
      for_each_weight(base + out * out_stride + (first + in) * in_stride, out_stride,
                      smaller(kLanes<S>, p.out_channels - out), taps, end,
                      [&](int64_t tap, Vec<E> v) { filter[p.adjoint ? taps - 1 - tap : tap] = v; });
      by_tile(p, form, [&]<int m, int r>() { transform_taps<m, r, S>(filter, int(p.kernel[0]), shape.by_planes, u); });
      for (int i = 0; i < layout.products * shape.taps; ++i) store(block + i * gathered + in * width + column, u[i]);
    }
  }
  for (int tap = 0; tap < shape.taps; ++tap) {
    for (int i = 0; i < layout.products; ++i, block += gathered) {
      S* to = const_cast<S*>(layout.at(packed, panel, width, i)) + (tap * p.in_channels + first) * width;
      __builtin_memcpy(to, block, gathered * sizeof(S));
    }
  }
}

}  // namespace vidgen::VIDGEN_ISA
