// Windows of correlations that nobody has stored: products of one query's features with those of a window's pixels.
//
// Neighbouring queries look at nearly the same pixels: of 4 in a row whose flow is smooth the windows together are 13
// pixels wide and not 40 (radius 4, level 0; fewer on coarser levels). So 4 queries meet the pixels of that common
// window, 2 pixels at a time (with 8 lanes): 8 sums in registers, and 6 reads for 8 multiply-adds where a query alone
// takes 9. Where the windows lie too far apart for that each query gets its own. A product's sum has the same order in
// both, so its bits do not depend on its neighbours.
#pragma once

#include <algorithm>

#include "cpu/corr_lookup_window.h"
#include "cpu/elementary.h"

namespace vidgen::VIDGEN_ISA {

// Queries that are looked up together.
constexpr int kTogether = 4;

template <class E>
constexpr int kDots = kLanes<E> > 8 ? kLanes<E> : 8;  // sums in registers

// Channels of one pixel next to each other, gathered into `room` where they lie apart.
template <class E>
VIDGEN_INLINE const E* gathered(const E* pixel, int64_t stride, int64_t channels, E* room) {
  if (stride == 1) return pixel;
  for (int64_t c = 0; c < channels; ++c) room[c] = pixel[c * stride];
  return room;
}

// sums[q * (kDots / queries) + j] = scale * <features[q], pixels[j]>. Features end with zeros up to whole vectors.
template <class E, int queries>
VIDGEN_INLINE void dots(const Acc<E>* const* features, const E* const* pixels, int64_t channels, Acc<E> scale,
                        Acc<E>* sums) {
  constexpr int lanes = kLanes<E>, columns = kDots<E> / queries;
  Vec<E> sum[kDots<E>] = {};
  auto add = [&](int64_t c, auto read) {
    Vec<E> f[queries];
#pragma GCC unroll 16
    for (int q = 0; q < queries; ++q) f[q] = load(features[q] + c);
#pragma GCC unroll 16
    for (int j = 0; j < columns; ++j) {
      const Vec<E> pixel = read(pixels[j] + c);
#pragma GCC unroll 16
      for (int q = 0; q < queries; ++q) sum[q * columns + j] = fused<E>(f[q], pixel, sum[q * columns + j]);
    }
  };
  int64_t c = 0;
  for (; c + lanes <= channels; c += lanes) add(c, [](const E* from) { return load(from); });
  if (c < channels) add(c, [&](const E* from) { return load(from, channels - c); });
#pragma GCC unroll 4
  for (int k = 0; k < kDots<E>; k += lanes) {
    transpose<E>(sum + k);
    Vec<E> total = sum[k];
#pragma GCC unroll 16
    for (int i = 1; i < lanes; ++i) total += sum[k + i];
    store(sums + k, total * scale);
  }
}

// A rectangle of pixels, and for each of `queries` a tile of their products; what is outside the image is zero.
template <class T>
struct Rectangle {
  int64_t column, row, columns, rows, pitch;
  VIDGEN_INLINE int64_t area() const { return rows * columns; }
};

template <class E, int queries>
void fill_tiles(const CorrLookup& p, const CorrLevel& level, const E* image, const Acc<E>* const* features,
                const Rectangle<Acc<E>>& over, Acc<E>* const* tiles, E* room) {
  using T = Acc<E>;
  constexpr int together = kDots<E> / queries;
  const T scale = T(1 / __builtin_sqrt(double(p.channels)));
  const int64_t first = over.column < 0 ? -over.column : 0;
  const int64_t last = level.width - over.column < over.columns ? level.width - over.column : over.columns;
  for (int64_t r = 0; r < over.rows; ++r) {
    const int64_t row = over.row + r;
    const bool in_image = row >= 0 && row < level.height;
    for (int q = 0; q < queries && (!in_image || first > 0 || last < over.columns); ++q)
      std::fill_n(tiles[q] + r * over.pitch, over.columns, T(0));
    if (!in_image) continue;
    const E* line = image + row * level.row_stride + over.column * level.column_stride;
    for (int64_t c = first; c < last; c += together) {
      const E* pixels[together];
      for (int j = 0; j < together; ++j) {
        const int64_t column = std::min<int64_t>(c + j, last - 1);
        pixels[j] =
            gathered(line + column * level.column_stride, level.channel_stride, p.channels, room + j * p.channels);
      }
      T sums[kDots<E>];
      dots<E, queries>(features, pixels, p.channels, scale, sums);
      for (int q = 0; q < queries; ++q)
        for (int j = 0; j < together && c + j < last; ++j) tiles[q][r * over.pitch + c + j] = sums[q * together + j];
    }
  }
}

// The windows of up to kTogether queries with these features, in tiles of their own, `sizes.shared` apart.
template <class E>
void compute_windows(const CorrLookup& p, const CorrLevel& level, const E* image, const Acc<E>* features,
                     const Place<Acc<E>>* at, int64_t count, const CorrSizes<Acc<E>>& sizes, Acc<E>* tiles, E* room,
                     Window<Acc<E>>* windows) {
  using T = Acc<E>;
  const int64_t side = sizes.side;
  const T* of[kTogether];
  T* tile[kTogether];
  int64_t left = level.width, top = level.height, right = -side, bottom = -side;
  for (int64_t q = 0; q < kTogether; ++q) {
    const int64_t existing = std::min(q, count - 1);
    of[q] = features + existing * sizes.channels;
    tile[q] = tiles + q * sizes.shared;
    // what sees nothing of the image does not matter
    if (q >= count || !meets(level, at[q], side)) continue;
    left = std::min(left, at[q].column);
    top = std::min(top, at[q].row);
    right = std::max(right, at[q].column + side);
    bottom = std::max(bottom, at[q].row + side);
  }
  const Rectangle<T> all = {left, top, right - left, bottom - top, right - left + kLanes<T>};
  const bool together = count > 1 && all.columns > 0 && all.area() <= 2 * side * side;
  if (together) fill_tiles<E, kTogether>(p, level, image, of, all, tile, room);
  for (int64_t q = 0; q < count; ++q) {
    const Rectangle<T> own = {at[q].column, at[q].row, side, side, sizes.pitch};
    if (!meets(level, at[q], side)) {
      std::fill_n(tile[q], sizes.pitch, T(0));
      windows[q] = {tile[q], 0};
    } else if (together) {
      windows[q] = {tile[q] + (own.row - top) * all.pitch + own.column - left, all.pitch};
    } else {
      fill_tiles<E, 1>(p, level, image, of + q, own, tile + q, room);
      windows[q] = {tile[q], sizes.pitch};
    }
  }
}

}  // namespace vidgen::VIDGEN_ISA
