// One task of a Winograd form; conv3d_pool3d_winograd.h explains the algorithm and its tiling.
#pragma once

#include "conv3d_pool3d_winograd.h"

namespace vidgen::VIDGEN_ISA {

// Of a pixel's channels, in whole vectors.
inline int64_t zeros_bytes(const Conv3dPool3d& p) {
  return round_up(p.in_channels, kLanes<float>) * int64_t(sizeof(float));
}

// A task's memory. A point's rows begin one cache line further than their length asks for, so that the points of a
// tile, which the transforms touch together, lie in different sets of the cache.
template <class S>
struct SliceTask {
  int64_t pitch;               // of V, from tile to tile
  int64_t width;               // output channels of this task, whole vectors
  int64_t v_stride, m_stride;  // from point to point
  S* v;
  Acc<S>*m, *sums;
  const void** pixels;  // of one tile: a table of its plane and one of the plane that is added to it
  const char* zeros;    // a pixel outside the clip

  SliceTask(const Conv3dPool3d& p, const TileShape& shape, int64_t tiles, int64_t panels, Arena& arena) {
    // by planes, what a vector writes beyond its channels is overwritten by the next: by the last, it is the gap
    pitch = shape.by_planes ? shape.held * p.in_channels : round_up(p.in_channels, kLanes<S>);
    width = smaller(panels * kPanel<S>, Panels<S>(p.out_channels).padded_channels());
    v_stride = tiles * pitch + 64 / int64_t(sizeof(S));
    m_stride = tiles * width + 64 / int64_t(sizeof(Acc<S>));
    v = arena.take<S>(shape.points * v_stride);
    m = arena.take<Acc<S>>(shape.points * m_stride);
    sums = arena.take<Acc<S>>(tiles * width * shape.volume());
    pixels = arena.take<const void*>(2 * shape.points);
    zeros = arena.take<char>(zeros_bytes(p));
  }
};

// Where a tile lies: its clip and its first output.
struct TilePlace {
  int64_t n, first[3];

  TilePlace(const Conv3dPool3d& p, const TileShape& shape, int64_t index) {
    for (int axis = 2; axis >= 0; --axis) {
      int64_t along = shape.along(p, axis);
      first[axis] = index % along * shape.outputs[axis];
      index /= along;
    }
    n = index;
  }
};

// Fills a table with the addresses of a tile's pixels in one plane.
template <class E>
void point_at_pixels(const Conv3dPool3d& p, const ClipView& x, const TilePlace& at, int64_t depth, int n,
                     const char* zeros, const void** pixel) {
  bool inside = depth >= 0 && depth < p.in_size[0];
  int64_t row = at.first[1] - p.before[1], column = at.first[2] - p.before[2];
  const E* plane = element_at<E>(x, at.n, inside ? depth : 0, 0, 0, 0);
  for (int h = 0; h < n; ++h, ++row) {
    bool row_inside = inside && row >= 0 && row < p.in_size[1];
    const E* line = plane + (row_inside ? row * x.stride[1] : 0);
    for (int w = 0; w < n; ++w) {
      int64_t c = column + w;
      *pixel++ = row_inside && c >= 0 && c < p.in_size[2] ? static_cast<const void*>(line + c * x.stride[2]) : zeros;
    }
  }
}

// One vector of channels of a tile to V: rows, then columns. With `sign`, the other plane is added or subtracted first.
template <class E, int m, int r>
VIDGEN_INLINE void transform_tile(const void* const* pixel, const void* const* other, Acc<E> sign, int64_t channel,
                                  int64_t used, Acc<E>* out, int64_t v_stride) {
  constexpr int n = m + r - 1;
  auto at = [&](const void* p)
                __attribute__((always_inline)) { return load_lanes<E, E>(static_cast<const E*>(p) + channel, used); };
  Vec<E> rows[n][n];
#pragma GCC unroll 6
  for (int h = 0; h < n; ++h) {
    Vec<E> d[n];
    if (sign == 0) {
#pragma GCC unroll 6
      for (int w = 0; w < n; ++w) d[w] = at(pixel[h * n + w]);
    } else {
#pragma GCC unroll 6
      for (int w = 0; w < n; ++w) d[w] = multiply_add<Acc<E>>(sign, at(other[h * n + w]), at(pixel[h * n + w]));
    }
    transform_input<m, r>(d, [&](auto i, Vec<E> v) __attribute__((always_inline)) { rows[i][h] = v; });
  }
#pragma GCC unroll 6
  for (int i = 0; i < n; ++i) {
    transform_input<m, r>(
        rows[i], [&](auto j, Vec<E> v) __attribute__((always_inline)) { store(out + (j * n + i) * v_stride, v); });
  }
}

// A slice's products of one tile and a vector of output channels, back to m x m sums per depth plane.
template <class T, int m, int r>
VIDGEN_INLINE void transform_back(const T* products, int64_t m_stride, const double* output, const bool* fresh,
                                  int planes, T* sums) {
  constexpr int n = m + r - 1, lanes = kLanes<T>;
  Vec<T> rows[m][n];  // [output column][row point]
#pragma GCC unroll 6
  for (int j = 0; j < n; ++j) {
    Vec<T> y[m] = {};
    transform_output<m, r>(
        [&](int i) __attribute__((always_inline)) { return load(products + (j * n + i) * m_stride); }, y);
#pragma GCC unroll 4
    for (int k = 0; k < m; ++k) rows[k][j] = y[k];
  }
#pragma GCC unroll 4
  for (int k = 0; k < m; ++k) {
    Vec<T> y[m] = {};
    transform_output<m, r>([&](int i) __attribute__((always_inline)) { return rows[k][i]; }, y);
    for (int d = 0; d < planes; ++d) {
      if (output[d] == 0) continue;
      T sign = T(output[d]);
#pragma GCC unroll 4
      for (int h = 0; h < m; ++h) {
        T* to = sums + ((d * m + h) * m + k) * lanes;
        store(to, fresh[d] ? y[h] * sign : multiply_add<T>(sign, y[h], load(to)));
      }
    }
  }
}

template <class E, int m, int r>
void run_winograd(const Conv3dPool3d& p, Conv3dForm form, const Conv3dSchedule& s, int64_t batch, const ClipView& x,
                  const void* packed, const void* bias, const Conv3dTarget& target, int64_t task, void* scratch) {
  using S = Acc<E>;
  using T = Acc<S>;
  constexpr int n = m + r - 1, points = n * n, lanes = kLanes<S>;
  TileShape shape(p, form);
  Panels<S> panels(p.out_channels);
  SliceWeights<S> weights(p, shape);
  int64_t blocks = s.tasks / s.groups, first = task % blocks * s.tiles, group = task / blocks * s.panels;
  int64_t tiles = smaller(s.tiles, batch * shape.per_clip(p) - first);
  int64_t last_panel = smaller(panels.count, group + s.panels);
  Arena arena{static_cast<char*>(scratch)};
  SliceTask<S> work(p, shape, s.tiles, s.panels, arena);
  zero(const_cast<char*>(work.zeros), zeros_bytes(p));
  int64_t out_channels = smaller(p.out_channels, panels.first(last_panel)) - panels.first(group);
  int64_t box = shape.volume() * lanes, tile_sums = divide_up(out_channels, lanes) * box;

  // a tile's plane, or the sum or difference of two, to `out`
  auto transform = [&](const TilePlace& at, const VerticalTerms& terms, S* out) {
    int64_t depth = at.first[0] - p.before[0];
    Acc<E> sign = terms.other < 0 ? 0 : terms.subtract ? -1 : 1;
    point_at_pixels<E>(p, x, at, depth + terms.row, n, work.zeros, work.pixels);
    if (sign != 0) point_at_pixels<E>(p, x, at, depth + terms.other, n, work.zeros, work.pixels + points);
    for (int64_t c = 0; c < p.in_channels; c += lanes)
      transform_tile<E, m, r>(work.pixels, work.pixels + points, sign, c, smaller(lanes, p.in_channels - c), out + c,
                              work.v_stride);
  };
  const bool deep = shape.slices == 4 && !shape.by_planes;  // transformed along depth, too
  bool fresh[2] = {true, true};
  for (int slice = 0; slice < shape.slices; ++slice) {
    for (int64_t t = 0; t < tiles && (slice == 0 || deep); ++t) {
      TilePlace at(p, shape, first + t);
      S* out = work.v + t * work.pitch;
      if (deep) {
        transform(at, vertical_terms(3, slice), out);
      } else {
        for (int plane = 0; plane < shape.held; ++plane) transform(at, {plane, -1, false}, out + plane * p.in_channels);
      }
    }
    for (int point = 0; point < points; ++point) {
      const S* rows = work.v + point * work.v_stride + (deep ? 0 : slice * p.in_channels);
      int product = (deep ? slice * points : 0) + point;
      for (int64_t panel = group; panel < last_panel; ++panel) {
        int vectors = panels.vectors(panel);
        multiply_streaming(rows, work.pitch, tiles, weights.depth, weights.at(packed, panel, vectors * lanes, product),
                           vectors, work.m + point * work.m_stride + panels.first(panel - group), work.width,
                           kSliceChunk);
      }
    }
    auto add_to_sums = [&](const double* output, const bool* fresh, int planes,
                           int64_t plane) __attribute__((always_inline)) {
      for (int64_t t = 0; t < tiles; ++t) {
        T* sums = work.sums + t * tile_sums + plane * m * m * lanes;
        for (int64_t c = 0; c < out_channels; c += lanes, sums += box)
          transform_back<T, m, r>(work.m + t * work.width + c, work.m_stride, output, fresh, planes, sums);
      }
    };
    if (deep) {
      double output[2];
      for (int d = 0; d < 2; ++d) output[d] = kToomCook<2, 3>.output[d][slice];
      add_to_sums(output, fresh, 2, 0);
      for (int d = 0; d < 2; ++d) fresh[d] = fresh[d] && output[d] == 0;
    } else {
      // a slice is one plane of its own, and all of it
      const double whole = 1;
      const bool first_time = true;
      add_to_sums(&whole, &first_time, 1, slice);
    }
  }

  for (int64_t t = 0; t < tiles; ++t) {
    TilePlace at(p, shape, first + t);
    Box<T> z{work.sums + t * tile_sums, {m * m * lanes, m * lanes, lanes}, {}, {}};
    for (int axis = 0; axis < 3; ++axis) {
      z.origin[axis] = at.first[axis];
      z.size[axis] = smaller(shape.outputs[axis], p.out_size[axis] - at.first[axis]);
    }
    for (int64_t c = 0; c < out_channels; c += lanes, z.values += box) {
      int64_t channel = panels.first(group) + c;
      finish_box<E, T>(p, z, static_cast<const E*>(bias), {channel, smaller(lanes, p.out_channels - channel)}, target,
                       at.n);
    }
  }
}

}  // namespace vidgen::VIDGEN_ISA
