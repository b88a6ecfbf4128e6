// One task of the Winograd form; masked_conv2d_winograd.h explains the algorithm and its tiling.
#pragma once

#include "masked_conv2d_winograd.h"

namespace vidgen::VIDGEN_ISA {

constexpr int64_t kWinogradChunk = 256;  // rows of B per visit of M, see gemm.h

// A part's geometry within a task.
template <class S>
struct PartTask {
  int64_t lines, tiles;
  S* v;                           // [segment][coefficient][slice][line * tile][channel]
  int64_t segment[kMaxSegments];  // where each segment's V begins

  int64_t rows() const { return lines * tiles; }

  void place(const WinogradPart& part, int64_t block_rows, int64_t width, int64_t pitch, Arena& arena) {
    lines = part.lines_per(block_rows);
    tiles = divide_up(width, part.outputs);
    int64_t size = 0;
    for (int s = 0; s < part.segments; ++s) {
      segment[s] = size;
      size += (part.outputs + part.segment[s].taps - 1) * part.slices(s) * rows() * pitch;
    }
    v = arena.take<S>(size);
  }
};

template <class E>
struct WinogradTask {
  using S = Staged<E>;
  WinogradForm<S> form;
  PartTask<S> part[kMaxParts];
  StagedBlock block;
  int64_t out_columns = 0;
  S* staged;
  Acc<S>*products, *sums;

  WinogradTask(const MaskedConv2d& p, int64_t block_rows, Arena& arena) : form(p) {
    Taps taps(p);
    block.pitch = round_up(p.in_channels, kLanes<S>);
    int64_t most_products = 0;
    for (int i = 0; i < form.parts; ++i) {
      part[i].place(form.part[i], block_rows, p.width, block.pitch, arena);
      out_columns = larger(out_columns, part[i].tiles * form.part[i].outputs);
      most_products = larger(most_products, part[i].rows() * form.part[i].points * form.part[i].vertical);
    }
    block.rows = taps.above + block_rows;
    block.left = taps.left;
    block.columns = out_columns + p.kernel_width - 1;
    block.first_channel = 0;
    block.channels = p.in_channels;
    staged = arena.take<S>(block.rows * block.columns * block.pitch);
    int64_t panel = smaller(kPanel<S>, Panels<S>(p.out_channels).padded_channels());
    products = arena.take<Acc<S>>(panel * most_products);
    sums = arena.take<Acc<S>>(round_up(block_rows, 2) * out_columns * panel);
  }
};

// V of one part. `above` is the staged row that output row 0 reads first, `current` its own, one of `rows`.
template <class S>
void transform_part(const WinogradPart& part, const PartTask<S>& task, const StagedBlock& block, const S* above,
                    const S* current, int64_t rows) {
  int64_t line = block.columns * block.pitch;
  auto transform = [&](int first, int last, auto source) {
    if (first == last) return;
    auto transform_line = line_transform<S>(part, first, last);
    int slices = part.slices(first);
    for (int slice = 0; slice < slices; ++slice) {
      S* out[kMaxSegments];
      for (int s = first; s < last; ++s) out[s - first] = task.v + task.segment[s] + slice * task.rows() * block.pitch;
      for (int64_t l = 0; l < task.lines; ++l) {
        transform_line(source(l, slice), block.pitch, task.tiles, out, slices * task.rows() * block.pitch);
        for (int s = first; s < last; ++s) out[s - first] += task.tiles * block.pitch;
      }
    }
  };
  int of_above = 0;
  while (of_above < part.segments && part.segment[of_above].above) ++of_above;
  transform(0, of_above, [&](int64_t l, int v) {
    if (part.vertical == 1) return LineSource<S>{above + l * line, nullptr, false};
    VerticalTerms terms = vertical_terms(part.rows, v);
    const S* pair = above + 2 * l * line;
    return LineSource<S>{pair + terms.row * line, terms.other < 0 ? nullptr : pair + terms.other * line,
                         terms.subtract};
  });
  transform(of_above, part.segments, [&](int64_t l, int slice) {
    // the last pair may lack its lower row: what is computed there is not stored
    int64_t row = part.vertical == 1 ? l : smaller(2 * l + slice, rows - 1);
    return LineSource<S>{current + row * line, nullptr, false};
  });
}

// M = V U for every product of a part. A function of its own: inside a task its loops would lack registers.
template <class S>
__attribute__((noinline)) void multiply_part(const WinogradPart& part, const PartTask<S>& task, int64_t pitch,
                                             int64_t channel_pitch, const S* u, int vectors, Acc<S>* products,
                                             Prefetch& ahead) {
  int64_t width = vectors * kLanes<S>;
  RowMap<S> rows{task.v, task.rows(), 0, pitch};
  for (int point = 0; point < part.points; ++point) {
    for (int v = 0; v < part.vertical; ++v) {
      Run run[kMaxSegments];
      int runs = 0;
      for (int s = 0; s < part.segments; ++s) {
        int i = part.index(s, point), slice = part.slice(s, v);
        if (i < 0 || slice < 0) continue;
        run[runs++] = {task.segment[s] + (i * part.slices(s) + slice) * task.rows() * pitch, channel_pitch};
      }
      multiply(rows, task.rows(), run, runs, u, vectors, products, width, kWinogradChunk, ahead);
      u += runs * channel_pitch * width;
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
    VIDGEN_CASE(2, 5, 2)
    VIDGEN_CASE(2, 5, 3)
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
  StagedBlock block = work.block;
  block.first_row = first_row - taps.above;
  int64_t line = block.columns * block.pitch;
  stage_block<E>(x, n, p.width, block, work.staged);
  const S* row = work.staged + taps.above * line;

  Panels<S> panels(p.out_channels);
  int64_t visits = 0;
  for (int i = 0; i < form.parts; ++i) {
    const WinogradPart& part = form.part[i];
    transform_part(part, work.part[i], block, work.staged, row, rows);
    visits += panels.count * part.points * part.vertical * divide_up(work.part[i].rows(), kTileRows);
  }
  Prefetch ahead = prefetch_task<E>(p, x, y, n, first_row, rows, visits);
  for (int64_t panel = 0; panel < panels.count; ++panel) {
    int vectors = panels.vectors(panel);
    int64_t width = vectors * kLanes<S>, out_line = work.out_columns * width;
    const S* u = form.panel(p, const_cast<void*>(packed), panel);
    for (int i = 0; i < form.parts; ++i) {
      const WinogradPart& part = form.part[i];
      multiply_part(part, work.part[i], block.pitch, form.channel_pitch, u, vectors, work.products, ahead);
      back_transform<Acc<S>>(part)(work.products, work.part[i].lines, work.part[i].tiles, vectors, rows, i > 0,
                                   work.sums, out_line);
      u += part.total_depth(form.channel_pitch) * width;
    }
    if (taps.coloured) {
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
