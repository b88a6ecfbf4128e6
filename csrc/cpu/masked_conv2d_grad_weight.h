// The gradient of the weight: for each kept tap, the products of shifted input pixels with gradient pixels.
//
// It is a matrix product whose inner dimension is the pixels: rows are (kept tap, input channel), columns are
// output channels. A task owns a panel of columns (64 with AVX-512) and a range of rows, and walks the whole
// batch in order, so that the sum's order is fixed. Per block of some 256 pixels it stages the padded input
// (64 channels, about 100 KiB) and the gradient (64 KiB), which stay in L2; a register tile of 6 rows by 4
// vectors then runs over the pixels: 4 lines of gradient and 6 scalars for 24 multiply-adds. Partial sums of a
// block are added to the task's own accumulators, which also keeps fp32 rounding that of short sums.
#pragma once

#include "masked_conv2d_layout.h"
#include "stage.h"

namespace vidgen::VIDGEN_ISA {

constexpr int64_t kGradChannels = 64;
constexpr int64_t kGradPixels = 256;
constexpr int64_t kGradTasks = 4;  // rows are dealt to several tasks where channels alone give fewer

template <class T, int rows, int vectors>
void correlate_tile(const T* const* a, int64_t a_line, int64_t a_pitch, const T* b, int64_t lines, int64_t width,
                    T* c) {
  constexpr int lanes = kLanes<T>;
  Vec<T> sum[rows][vectors] = {};
  for (int64_t line = 0; line < lines; ++line) {
    const T* row[rows];
#pragma GCC unroll 6
    for (int i = 0; i < rows; ++i) row[i] = a[i] + line * a_line;
    for (int64_t w = 0, k = 0; w < width; ++w, k += a_pitch) {
      Vec<T> panel[vectors];
#pragma GCC unroll 4
      for (int j = 0; j < vectors; ++j) panel[j] = load(b + j * lanes);
#pragma GCC unroll 6
      for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j < vectors; ++j) sum[i][j] = multiply_add<T>(row[i][k], panel[j], sum[i][j]);
      }
      b += vectors * lanes;
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) {
      T* out = c + (i * vectors + j) * lanes;
      store(out, load(out) + sum[i][j]);
    }
  }
}

template <class T, class Index>
struct CorrelateTable;
template <class T, size_t... i>
struct CorrelateTable<T, std::index_sequence<i...>> {
  static constexpr decltype(&correlate_tile<T, 1, 1>) tile[] = {
      &correlate_tile<T, i / kTileVectors + 1, i % kTileVectors + 1>...};
};
template <class T>
using CorrelateTiles = CorrelateTable<T, std::make_index_sequence<kTileRows * kTileVectors>>;

// How the weight is cut into tasks: panels of output channels, ranges of input channels, and where those are few,
// even ranges of the rows (kept tap, channel).
template <class E>
struct GradPartition {
  using T = Acc<E>;
  int64_t panels, channel_ranges, row_ranges, channels, rows;

  explicit GradPartition(const MaskedConv2d& p) {
    Taps taps(p);
    panels = Panels<T>(p.out_channels).count;
    channel_ranges = larger(1, divide_up(p.in_channels, kGradChannels));
    channels = divide_up(p.in_channels, channel_ranges);
    int64_t all = (taps.dense + taps.coloured) * channels;
    row_ranges = larger(1, smaller(all, divide_up(kGradTasks, larger(1, panels * channel_ranges))));
    rows = divide_up(all, row_ranges);
  }
  int64_t tasks() const { return panels * channel_ranges * row_ranges; }
};

template <class E>
struct GradTask {
  using T = Acc<E>;
  StagedBlock input, gradient;
  int64_t panel, first_row, last_row, block_rows;  // row: tap * input.channels + channel
  bool writes_masked;
  int vectors;
  T *staged_input, *staged_gradient, *sums;
  const T** row;

  GradTask(const MaskedConv2d& p, int64_t task, Arena& arena) {
    Taps taps(p);
    GradPartition<E> parts(p);
    Panels<T> panels(p.out_channels);
    panel = task % parts.panels;
    vectors = panels.vectors(panel);
    int64_t range = task / parts.panels, part = range % parts.row_ranges;
    input.first_channel = smaller(p.in_channels, range / parts.row_ranges * parts.channels);
    input.channels = smaller(p.in_channels - input.first_channel, parts.channels);
    int64_t all = (taps.dense + taps.coloured) * input.channels;
    first_row = smaller(all, part * parts.rows);
    last_row = smaller(all, first_row + parts.rows);
    writes_masked = part == 0;
    // an odd number of vectors between pixels spreads a column of them over all sets of the cache
    input.pitch = parts.channels < kLanes<T> ? parts.channels : (divide_up(parts.channels, kLanes<T>) | 1) * kLanes<T>;
    input.left = taps.left * p.dilation;
    input.columns = p.width + 2 * input.left;
    block_rows = larger(1, smaller(p.height, divide_up(kGradPixels, larger(1, p.width))));
    gradient = {0, block_rows, 0, p.width, panels.first(panel), panels.width(panel), vectors * kLanes<T>};
    staged_input = arena.take<T>((block_rows + taps.above * p.dilation) * input.columns * input.pitch);
    staged_gradient = arena.take<T>(block_rows * p.width * kPanel<T>);
    sums = arena.take<T>(parts.rows * kPanel<T>);
    row = arena.take<const T*>(parts.rows);
  }
};

template <class E>
size_t grad_weight_scratch(const MaskedConv2d& p) {
  Arena arena{nullptr};
  GradTask<E>(p, 0, arena);
  return arena.used;
}

template <class E>
void write_gradient(const MaskedConv2d& p, const GradTask<E>& work, E* out) {
  Taps taps(p);
  int64_t all = p.kernel_height * p.kernel_width, width = work.vectors * kLanes<E>;
  for (int64_t o = 0; o < work.gradient.channels; ++o) {
    int64_t out_channel = work.gradient.first_channel + o;
    for (int64_t c = 0; c < work.input.channels; ++c) {
      int64_t in_channel = work.input.first_channel + c;
      E* weight = out + (out_channel * p.in_channels + in_channel) * all;
      for (int64_t tap = 0; tap < taps.dense + taps.coloured; ++tap) {
        int64_t row = tap * work.input.channels + c;
        if (row < work.first_row || row >= work.last_row) continue;
        bool kept = tap < taps.dense;
        if (!kept) {
          int64_t from = colour_of(in_channel, p.in_channels, p), to = colour_of(out_channel, p.out_channels, p);
          kept = p.mask_b ? from <= to : from < to;
        }
        weight[tap] = from_scalar<E>(kept ? work.sums[(row - work.first_row) * width + o] : Acc<E>(0));
      }
      if (work.writes_masked) {
        int64_t masked = taps.dense + taps.coloured;
        zero(weight + masked, all - masked);
      }
    }
  }
}

template <class E>
void grad_weight(const MaskedConv2d& p, int64_t batch, ImageView x, ImageView grad_output, void* out, int64_t task,
                 void* scratch) {
  using T = Acc<E>;
  Arena arena{static_cast<char*>(scratch)};
  GradTask<E> work(p, task, arena);
  Taps taps(p);
  StagedBlock& input = work.input;
  int64_t line = input.columns * input.pitch, width = work.vectors * kLanes<T>;
  int64_t rows = work.last_row - work.first_row;
  for (int64_t i = 0; i < rows; ++i) {
    int64_t tap = (work.first_row + i) / input.channels, channel = (work.first_row + i) % input.channels;
    work.row[i] =
        work.staged_input + channel + (tap / p.kernel_width * line + tap % p.kernel_width * input.pitch) * p.dilation;
  }
  zero(work.sums, rows * width);
  for (int64_t n = 0; n < batch && rows > 0; ++n) {
    for (int64_t y = 0; y < p.height; y += work.block_rows) {
      work.gradient.first_row = y;
      work.gradient.rows = smaller(work.block_rows, p.height - y);
      input.first_row = y - taps.above * p.dilation;
      input.rows = work.gradient.rows + taps.above * p.dilation;
      stage_block<E>(x, n, p.width, input, work.staged_input);
      stage_block<E>(grad_output, n, p.width, work.gradient, work.staged_gradient);
      for_each_tile(rows, kTileRows, [&](int64_t first, int64_t height) {
        CorrelateTiles<T>::tile[(height - 1) * kTileVectors + work.vectors - 1](
            work.row + first, line, input.pitch, work.staged_gradient, work.gradient.rows, p.width,
            work.sums + first * width);
      });
    }
  }
  write_gradient<E>(p, work, static_cast<E*>(out));
}

}  // namespace vidgen::VIDGEN_ISA
