// The direct form: every kept tap is multiplied, any dtype, kernel and dilation.
//
// A task stages its rows (see stage.h). With dilation 1 the kept taps of a kernel row are one contiguous run of
// taps * channels values, so k x k is k/2 + 1 runs; with dilation every tap is a run. Per panel of output
// channels (64 with AVX-512) all pixels of the block pass through the register tile into a buffer that stays in
// L2, the coloured centre tap is added there, and the buffer is stored with the bias.
#pragma once

#include "masked_conv2d_layout.h"
#include "stage.h"

namespace vidgen::VIDGEN_ISA {

constexpr int64_t kDirectChunk = 128;  // see gemm.h: keeps the error below twice that of an eager convolution

template <class E>
struct DirectTask {
  using S = Staged<E>;
  StagedBlock block;
  int64_t runs;
  S* staged;
  Run* run;
  Acc<S>* sums;

  DirectTask(const MaskedConv2d& p, int64_t block_rows, Arena& arena) {
    Taps taps(p);
    block.left = taps.left * p.dilation;
    block.columns = p.width + 2 * block.left;
    block.rows = block_rows + taps.above * p.dilation;
    block.first_channel = 0;
    block.channels = p.in_channels;
    block.pitch = DirectLayout<S>(p).channel_pitch;
    runs = p.dilation == 1 ? taps.above + 1 : taps.dense;
    staged = arena.take<S>(block.rows * block.columns * block.pitch);
    run = arena.take<Run>(runs);
    sums = arena.take<Acc<S>>(block_rows * p.width * smaller(kPanel<S>, Panels<S>(p.out_channels).padded_channels()));
  }

  // A 1 x 1 kernel needs no padding.
  bool reads_in_place(const MaskedConv2d& p, const ImageView& x) const {
    return sizeof(E) == sizeof(S) && p.kernel_height == 1 && p.kernel_width == 1 && x.channel_stride == 1 &&
           p.in_channels == block.pitch;
  }

  void list_runs(const MaskedConv2d& p) {
    Taps taps(p);
    int64_t tap_pitch = p.dilation * block.pitch, line = block.columns * p.dilation * block.pitch;
    Run* next = run;
    for (int64_t row = 0; row <= taps.above; ++row) {
      int64_t kept = row < taps.above ? p.kernel_width : taps.in_row;
      if (p.dilation == 1) {
        *next++ = {row * line, kept * block.pitch};
      } else {
        for (int64_t tap = 0; tap < kept; ++tap) *next++ = {row * line + tap * tap_pitch, block.pitch};
      }
    }
  }
};

template <class E>
void forward_direct(const MaskedConv2d& p, const MaskedConv2dPlan& plan, const ImageView& x, const void* packed,
                    const void* bias, const ImageView& y, int64_t task, void* scratch) {
  using S = Staged<E>;
  int64_t n = task / plan.tasks_per_image, first_row = task % plan.tasks_per_image * plan.block_rows;
  int64_t rows = smaller(plan.block_rows, p.height - first_row);
  Taps taps(p);
  Arena arena{static_cast<char*>(scratch)};
  DirectTask<E> work(p, plan.block_rows, arena);
  work.block.first_row = first_row - taps.above * p.dilation;
  work.block.rows = rows + taps.above * p.dilation;
  work.list_runs(p);

  int64_t line = work.block.columns * work.block.pitch;
  RowMap<S> pixels{work.staged, p.width, line, work.block.pitch};
  if (work.reads_in_place(p, x)) {
    pixels = {pixel_at<S>(x, n, first_row), p.width, x.row_stride, x.column_stride};
  } else {
    stage_block<E>(x, n, p.width, work.block, work.staged);
  }
  RowMap<S> centres = pixels;
  centres.base += taps.above * p.dilation * line + work.block.left * work.block.pitch;
  Panels<S> panels(p.out_channels);
  DirectLayout<S> layout(p);
  // a shallow product is over before memory could answer
  int64_t visits = divide_up(rows * p.width, kTileRows) * panels.count * (layout.depth / kDirectChunk);
  Prefetch ahead = prefetch_task<E>(p, x, y, n, first_row, rows, visits);
  for (int64_t panel = 0; panel < panels.count; ++panel) {
    int vectors = panels.vectors(panel);
    int64_t width = vectors * kLanes<S>;
    void* b = const_cast<void*>(packed);
    multiply(pixels, rows * p.width, work.run, work.runs, layout.dense(b, panel), vectors, work.sums, width,
             kDirectChunk, ahead);
    if (taps.coloured) {
      Acc<S> keys[kPanel<S>];
      colour_keys<S>(p, panels.first(panel), vectors, keys);
      multiply_masked(centres, rows * p.width, colour_rule(p), keys, layout.centre(b, panel, vectors), vectors,
                      work.sums, width);
    }
    store_block<E>(work.sums, p.width * width, width, static_cast<const E*>(bias), y, n, first_row, rows, p.width,
                   panels.first(panel), panels.width(panel));
  }
}

}  // namespace vidgen::VIDGEN_ISA
