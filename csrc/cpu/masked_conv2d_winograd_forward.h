// One task of the Winograd form; masked_conv2d_winograd.h explains the algorithm and its tiling.
#pragma once

#include "masked_conv2d_winograd.h"

namespace vidgen::VIDGEN_ISA {

constexpr int64_t kWinogradChunk = 256;  // rows of B per visit of M, see gemm.h

// A part's geometry within a task.
template <class S>
struct PartTask {
  int64_t lines, tiles;
  S* v;                           // [segment][coefficient][vertical][line * tile][channel]
  int64_t segment[kMaxSegments];  // where each segment's V begins

  int64_t rows() const { return lines * tiles; }

  void place(const WinogradPart& part, int64_t block_rows, int64_t width, int64_t pitch, Arena& arena) {
    lines = part.lines_per(block_rows);
    tiles = part.outputs == 0 ? 0 : divide_up(width, part.outputs);
    int64_t size = 0;
    for (int s = 0; s < part.segments; ++s) {
      segment[s] = size;
      size += (part.outputs + part.segment[s].taps - 1) * part.vertical * rows() * pitch;
    }
    v = arena.take<S>(size);
  }
};

template <class E>
struct WinogradTask {
  using S = Staged<E>;
  WinogradForm<S> form;
  PartTask<S> above, current;
  StagedBlock block;
  int64_t out_columns;
  S* staged;
  Acc<S>*products, *sums;

  WinogradTask(const MaskedConv2d& p, int64_t block_rows, Arena& arena) : form(p) {
    Taps taps(p);
    block.pitch = round_up(p.in_channels, kLanes<S>);
    above.place(form.above, block_rows, p.width, block.pitch, arena);
    current.place(form.current, block_rows, p.width, block.pitch, arena);
    out_columns = larger(above.tiles * form.above.outputs, current.tiles * form.current.outputs);
    block.rows = taps.above + round_up(block_rows, 2);
    block.left = taps.left;
    block.columns = out_columns + p.kernel_width - 1;
    block.first_channel = 0;
    block.channels = p.in_channels;
    staged = arena.take<S>(block.rows * block.columns * block.pitch);
    int64_t panel = smaller(kPanel<S>, Panels<S>(p.out_channels).padded_channels());
    products = arena.take<Acc<S>>(
        panel * larger(above.rows() * form.above.points * form.above.vertical, current.rows() * form.current.points));
    sums = arena.take<Acc<S>>(round_up(block_rows, 2) * out_columns * panel);
  }
};

// V of one part; `first` is the staged row that output row 0 reads first.
template <class S>
void transform_part(const WinogradPart& part, const PartTask<S>& task, const StagedBlock& block, const S* first) {
  int64_t line = block.columns * block.pitch, stride = part.vertical * task.rows() * block.pitch;
  for (int s = 0; s < part.segments; ++s) {
    auto transform = horizontal_transform<S>(part.outputs, part.segment[s].taps);
    const S* from = first + part.segment[s].first * block.pitch;
    for (int v = 0; v < part.vertical; ++v) {
      S* out = task.v + task.segment[s] + v * task.rows() * block.pitch;
      for (int64_t l = 0; l < task.lines; ++l, out += task.tiles * block.pitch) {
        LineSource<S> source{from + l * line, nullptr, false};
        if (part.vertical > 1) {
          VerticalTerms terms = vertical_terms(part.rows, v);
          source.row = from + (2 * l + terms.row) * line;
          if (terms.other >= 0) source.other = from + (2 * l + terms.other) * line;
          source.subtract = terms.subtract;
        }
        transform.line(source, block.pitch, task.tiles, out, stride);
      }
    }
  }
}

// M = V U for every product of a part.
template <class S>
void multiply_part(const WinogradPart& part, const PartTask<S>& task, int64_t pitch, int64_t channel_pitch, const S* u,
                   int vectors, Acc<S>* products, Prefetch& ahead) {
  int64_t width = vectors * kLanes<S>;
  RowMap<S> rows{task.v, task.rows(), 0, pitch};
  for (int point = 0; point < part.points; ++point) {
    int64_t depth = part.depth(point, channel_pitch);
    for (int v = 0; v < part.vertical; ++v) {
      Run run[kMaxSegments];
      int runs = 0;
      for (int s = 0; s < part.segments; ++s) {
        int i = part.index(s, point);
        if (i >= 0) run[runs++] = {task.segment[s] + (i * part.vertical + v) * task.rows() * pitch, channel_pitch};
      }
      multiply(rows, task.rows(), run, runs, u, vectors, products, width, kWinogradChunk, ahead);
      u += depth * width;
      products += task.rows() * width;
    }
  }
}

// Back to the output domain: n products along the width, those of F(2, a) down the height if a > 1.
template <class T, int m, int n, int a>
void transform_back(const T* products, int64_t lines, int64_t tiles, int vectors, int64_t rows, bool accumulate, T* out,
                    int64_t out_line) {
  constexpr int vertical = a == 1 ? 1 : a + 1, out_rows = a == 1 ? 1 : 2, lanes = kLanes<T>;
  int64_t width = vectors * lanes, stride = lines * tiles * width;
  for (int64_t l = 0; l < lines; ++l) {
    for (int64_t t = 0; t < tiles; ++t) {
      for (int j = 0; j < vectors; ++j) {
        const T* from = products + (l * tiles + t) * width + j * lanes;
        Vec<T> y[out_rows][m] = {};
        static_for<out_rows>([&](auto row) __attribute__((always_inline)) {
          constexpr int o = decltype(row)::value;
          auto product = [&](int i) __attribute__((always_inline)) {
            Vec<T> q[vertical];
#pragma GCC unroll 4
            for (int v = 0; v < vertical; ++v) q[v] = load(from + (i * vertical + v) * stride);
            if constexpr (a == 1) {
              return q[0];
            } else {
              return weighted_sum<vertical>(q, [](int v) constexpr { return kToomCook<2, a>.output[o][v]; });
            }
          };
          transform_output<m, n - m + 1>(product, y[o]);
        });
#pragma GCC unroll 2
        for (int o = 0; o < out_rows; ++o) {
          int64_t row = out_rows * l + o;
          if (row >= rows) continue;
          T* to = out + row * out_line + t * m * width + j * lanes;
#pragma GCC unroll 4
          for (int k = 0; k < m; ++k) store(to + k * width, accumulate ? load(to + k * width) + y[o][k] : y[o][k]);
        }
      }
    }
  }
}

template <class T>
decltype(&transform_back<T, 2, 2, 1>) back_transform(const WinogradPart& part) {
  switch (part.outputs * 100 + part.points * 10 + (part.vertical == 1 ? 1 : part.rows)) {
#define VIDGEN_CASE(m, n, a) \
  case m * 100 + n * 10 + a: \
    return transform_back<T, m, n, a>;
    VIDGEN_CASE(2, 2, 1)
    VIDGEN_CASE(2, 3, 1)
    VIDGEN_CASE(2, 4, 1)
    VIDGEN_CASE(2, 4, 2)
    VIDGEN_CASE(2, 4, 3)
    VIDGEN_CASE(2, 5, 1)
    VIDGEN_CASE(4, 6, 1)
    VIDGEN_CASE(4, 6, 2)
    VIDGEN_CASE(4, 6, 3)
    VIDGEN_CASE(4, 7, 1)
    VIDGEN_CASE(4, 7, 2)
    VIDGEN_CASE(4, 7, 3)
    VIDGEN_CASE(4, 8, 1)
    VIDGEN_CASE(4, 8, 2)
    VIDGEN_CASE(4, 8, 3)
#undef VIDGEN_CASE
    default:
      return nullptr;
  }
}

template <class E>
void forward_winograd(const MaskedConv2d& p, const MaskedConv2dPlan& plan, const ImageView& x, const void* packed,
                      const void* bias, const ImageView& y, int64_t task, void* scratch) {
  using S = Staged<E>;
  int64_t n = task / plan.tasks_per_image, first_row = task % plan.tasks_per_image * plan.block_rows;
  int64_t rows = smaller(plan.block_rows, p.height - first_row);
  Taps taps(p);
  Arena arena{static_cast<char*>(scratch)};
  WinogradTask<E> work(p, rows, arena);
  const WinogradForm<S>& form = work.form;
  const StagedBlock block{first_row - taps.above, taps.above + rows, work.block.left, work.block.columns, 0,
                          work.block.channels,    work.block.pitch};
  int64_t line = block.columns * block.pitch;
  stage_block<E>(x, n, p.width, block, work.staged);
  const S* row = work.staged + taps.above * line;
  transform_part(form.above, work.above, block, work.staged);
  transform_part(form.current, work.current, block, row);

  Panels<S> panels(p.out_channels);
  int64_t visits = panels.count * (form.above.points * form.above.vertical * divide_up(work.above.rows(), kTileRows) +
                                   form.current.points * divide_up(work.current.rows(), kTileRows));
  Prefetch ahead = prefetch_task<E>(p, x, y, n, first_row, rows, visits);
  for (int64_t panel = 0; panel < panels.count; ++panel) {
    int vectors = panels.vectors(panel);
    int64_t width = vectors * kLanes<S>, out_line = work.out_columns * width;
    const S* u = form.panel(p, const_cast<void*>(packed), panel);
    if (form.above.outputs > 0) {
      multiply_part(form.above, work.above, block.pitch, form.channel_pitch, u, vectors, work.products, ahead);
      back_transform<Acc<S>>(form.above)(work.products, work.above.lines, work.above.tiles, vectors, rows, false,
                                         work.sums, out_line);
    }
    u += form.above.total_depth(form.channel_pitch) * width;
    multiply_part(form.current, work.current, block.pitch, form.channel_pitch, u, vectors, work.products, ahead);
    back_transform<Acc<S>>(form.current)(work.products, work.current.lines, work.current.tiles, vectors, rows,
                                         form.above.outputs > 0, work.sums, out_line);
    if (taps.coloured) {
      u += form.current.total_depth(form.channel_pitch) * width;
      Acc<S> keys[kPanel<S>];
      colour_keys<S>(p, panels.first(panel), vectors, keys);
      RowMap<S> centres{row + taps.left * block.pitch, work.out_columns, line, block.pitch};
      multiply_masked(centres, rows * work.out_columns, colour_rule(p), keys, reinterpret_cast<const Acc<S>*>(u),
                      vectors, work.sums, width);
    }
    store_block<E>(work.sums, out_line, width, static_cast<const E*>(bias), y, n, first_row, rows, p.width,
                   panels.first(panel), panels.width(panel));
  }
}

}  // namespace vidgen::VIDGEN_ISA
