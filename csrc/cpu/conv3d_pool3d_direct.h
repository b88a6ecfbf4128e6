// The direct form: every tap is multiplied; any dtype, kernel size and padding.
//
// A task computes a block of outputs (whole pooling windows, some 512 pixels) for all output channels. It stages what
// the block reads, zero-padded, pixels of channels next to each other; the taps of a kernel row are then one contiguous
// run of kw * channels values, so a kernel is kd * kh runs and needs no im2col. Kernels of kd x 1 x 1 read clips whose
// channels are next to each other where they lie. Per panel of output channels (64 with AVX-512) all pixels pass
// through the register tile of gemm.h into a buffer of 128 KiB that stays in L2, and from there through bias,
// activation and pooling to memory: what is not pooled never leaves the cache.
#pragma once

#include "conv3d_pool3d_finish.h"
#include "conv3d_pool3d_pointwise.h"
#include "stage.h"

namespace vidgen::VIDGEN_ISA {

constexpr int64_t kBlockPixels = 512;        // of one task, about
constexpr int64_t kStagedBytes = 512 << 10;  // of one task's input, at most if a window allows it

// Packed weights: [panel][tap][input channel][output channel].
template <class S>
struct Conv3dDirectWeights {
  int64_t channel_pitch;  // even for bf16 pairs
  int64_t depth;          // rows of B

  explicit Conv3dDirectWeights(const Conv3dPool3d& p)
      : channel_pitch(round_up(p.in_channels, kDepthStep<S>)),
        depth(p.kernel[0] * p.kernel[1] * p.kernel[2] * channel_pitch) {}

  size_t bytes(const Conv3dPool3d& p) const { return depth * Panels<S>(p.out_channels).padded_channels() * sizeof(S); }
  const S* panel(const void* packed, int64_t i) const { return static_cast<const S*>(packed) + i * kPanel<S> * depth; }
};

template <class E>
void pack_conv3d_direct(const Conv3dPool3d& p, const void* weight, void* packed, int64_t task) {
  using S = Staged<E>;
  int64_t taps = p.kernel[0] * p.kernel[1] * p.kernel[2];
  Conv3dDirectWeights<S> layout(p);
  PackTask<E> part(p.in_channels, p.out_channels, p.row_channels, taps, p.adjoint, weight, task);
  int64_t width = Panels<S>(p.out_channels).vectors(part.panel) * kLanes<S>;
  S* b = const_cast<S*>(layout.panel(packed, part.panel));
  auto put = [&](int64_t in, int64_t tap, Vec<E> v) {
    store_depth(b, width, tap * layout.channel_pitch + in, part.column, v);
  };
  if (!p.adjoint) {
    // the taps of all input channels are one run
    int64_t in = part.first, tap = 0;
    for_each_weight(part.weight + in * taps, part.lane_stride, part.lanes_used, (part.last - in) * taps, part.end,
                    [&](int64_t, Vec<E> v) {
                      put(in, tap, v);
                      if (++tap == taps) tap = 0, ++in;
                    });
    return;
  }
  for (int64_t in = part.first; in < part.last; ++in) {
    if (taps == 1) {
      const E* from = part.weight + in * part.in_stride;
      put(in, 0, part.lanes_used == kLanes<E> ? load(from) : load(from, part.lanes_used));
    } else {
      part.for_each_tap(in, taps, [&](int64_t tap, Vec<E> v) { put(in, taps - 1 - tap, v); });
    }
  }
}

template <class E>
struct Conv3dDirectTask {
  using S = Staged<E>;
  int64_t columns, rows, pitch;  // of the staged input: its pixels per row, rows per plane, channels per pixel
  S* staged;
  Run* run;
  Acc<S>* sums;

  Conv3dDirectTask(const Conv3dPool3d& p, const int64_t (&block)[3], Arena& arena) {
    pitch = round_up(p.in_channels, kDepthStep<S>);
    columns = block[2] + p.kernel[2] - 1;
    rows = block[1] + p.kernel[1] - 1;
    int64_t pixels = (block[0] + p.kernel[0] - 1) * rows * columns, outputs = block[0] * block[1] * block[2];
    if (is_pointwise(p)) pixels = outputs = larger(outputs, kSlabPixels);
    staged = arena.take<S>(pixels * pitch);
    run = arena.take<Run>(p.kernel[0] * p.kernel[1]);
    sums = arena.take<Acc<S>>(outputs * smaller(kPanel<S>, Panels<S>(p.out_channels).padded_channels()));
  }

  void list_runs(const Conv3dPool3d& p, int64_t plane, int64_t line) {
    for (int64_t d = 0, i = 0; d < p.kernel[0]; ++d) {
      for (int64_t h = 0; h < p.kernel[1]; ++h, ++i) run[i] = {d * plane + h * line, p.kernel[2] * pitch};
    }
  }

  // The block of input that outputs from `first` on read, zeros around it.
  void stage(const Conv3dPool3d& p, const ClipView& x, int64_t n, const int64_t (&first)[3],
             const int64_t (&block)[3]) {
    int64_t line = columns * pitch, left = first[2] - p.before[2];
    int64_t skipped = larger(0, -left), begin = larger(0, left);
    int64_t width = larger(0, smaller(p.in_size[2] - begin, columns - skipped));
    for (int64_t d = 0; d < block[0] + p.kernel[0] - 1; ++d) {
      int64_t depth = first[0] - p.before[0] + d;
      for (int64_t h = 0; h < rows; ++h) {
        S* out = staged + (d * rows + h) * line;
        int64_t row = first[1] - p.before[1] + h;
        if (depth < 0 || depth >= p.in_size[0]) break;  // no tap reads there, see below
        if (row < 0 || row >= p.in_size[1] || width == 0) {
          zero(out, line);
          continue;
        }
        zero(out, skipped * pitch);
        stage_row(element_at<E>(x, n, depth, row, begin, 0), x.channel_stride, x.stride[2], width, p.in_channels,
                  out + skipped * pitch, pitch);
        zero(out + (skipped + width) * pitch, (columns - skipped - width) * pitch);
      }
    }
  }

  // A kernel of one tap a plane needs neither zeros nor a copy: taps before and after the clip are left out.
  bool reads_in_place(const Conv3dPool3d& p, const ClipView& x) const {
    bool in_place = sizeof(E) == sizeof(S) && x.channel_stride == 1 && p.in_channels == pitch;
    for (int axis : {1, 2})
      in_place &= p.kernel[axis] == 1 && p.before[axis] == 0 && p.in_size[axis] == p.out_size[axis];
    return in_place;
  }
};

template <class E>
Conv3dSchedule schedule_conv3d_direct(const Conv3dPool3d& p, int64_t batch, int64_t threads) {
  Conv3dSchedule s{};
  for (int axis = 0; axis < 3; ++axis) s.block[axis] = p.pool[axis];
  auto staged = [&] {
    int64_t pixels = 1;
    for (int axis = 0; axis < 3; ++axis) pixels *= s.block[axis] + p.kernel[axis] - 1;
    return pixels * p.in_channels * int64_t(sizeof(Staged<E>));
  };
  // pixels of a kernel of one tap that are stored as they are summed are staged a slab at a time
  const bool in_columns = is_pointwise(p) && sizeof(E) == sizeof(Acc<E>) && !p.pools();
  // the longest runs of pixels first: along the width, then the height, then the depth
  for (int axis = 2; axis >= 0; --axis) {
    int64_t limit = round_up(p.out_size[axis], p.pool[axis]);
    while (s.block[axis] < limit) {
      int64_t before = s.block[axis];
      s.block[axis] = smaller(limit, before + p.pool[axis]);
      bool fits = in_columns || staged() <= kStagedBytes;
      if (s.block[0] * s.block[1] * s.block[2] <= kBlockPixels && fits) continue;
      s.block[axis] = before;
      break;
    }
    // even blocks: 56 rows in steps of 10 are six tasks of 10, better 9.3
    int64_t count = divide_up(limit, s.block[axis]);
    s.block[axis] = round_up(divide_up(limit, count), p.pool[axis]);
  }
  auto tasks = [&] {
    int64_t count = batch;
    for (int axis = 0; axis < 3; ++axis) count *= divide_up(p.out_size[axis], s.block[axis]);
    return count;
  };
  // a few tasks per thread, so that none waits long for another; but every task reads all weights, and rows are cut
  // only where they are the whole map
  for (int axis = 0; axis < (is_pointwise(p) ? 3 : 2); ++axis) {
    while (threads > 1 && s.block[axis] > p.pool[axis]) {
      if (axis == 2 && s.block[axis] < 2 * kTallestTile * p.pool[axis]) break;
      bool small = s.block[0] * s.block[1] * s.block[2] < kBlockPixels / 2;
      if (tasks() >= (small ? threads : 4 * threads)) break;
      s.block[axis] = round_up(divide_up(s.block[axis], 2), p.pool[axis]);
    }
  }
  s.tasks = tasks();
  Arena arena{nullptr};
  Conv3dDirectTask<E>(p, s.block, arena);
  s.scratch_bytes = arena.used;
  return s;
}

// A panel of unpooled sums to a clip whose channels lie apart and whose columns are next to each other: bias and
// activation are applied in place, then rows are transposed on their way out.
template <class E>
void store_transposed(const Conv3dPool3d& p, Acc<E>* sums, const E* bias, int64_t first_channel, int vectors,
                      const int64_t (&first)[3], const int64_t (&size)[3], const ClipView& out, int64_t n) {
  if constexpr (sizeof(E) == sizeof(Acc<E>)) {
    int64_t width = vectors * kLanes<E>, row = size[2] * width;
    int64_t channels = smaller(width, p.out_channels - first_channel);
    const Conv3dTarget in_place{{sums, 0, 1, {size[1] * row, row, width}}, nullptr};
    for (int64_t c = 0; c < channels; c += kLanes<E>) {
      Box<E> box{sums + c, {size[1] * row, row, width}, {0, 0, 0}, {size[0], size[1], size[2]}};
      const E* add = bias == nullptr ? nullptr : bias + first_channel;
      finish_box<E, E>(p, box, add, {c, smaller(kLanes<E>, channels - c)}, in_place, 0);
    }
    for (int64_t d = 0; d < size[0]; ++d) {
      for (int64_t h = 0; h < size[1]; ++h) {
        E* to = element_at<E>(out, n, first[0] + d, first[1] + h, first[2], first_channel);
        transposed_copy(sums + (d * size[1] + h) * row, width, to, out.channel_stride, size[2], channels);
      }
    }
  }
}

template <class E>
void run_conv3d_direct(const Conv3dPool3d& p, const Conv3dSchedule& s, const ClipView& x, const void* packed,
                       const void* bias, const Conv3dTarget& target, int64_t task, void* scratch) {
  using S = Staged<E>;
  int64_t first[3], size[3], n = task;
  for (int axis = 2; axis >= 0; --axis) {
    int64_t blocks = divide_up(p.out_size[axis], s.block[axis]);
    first[axis] = n % blocks * s.block[axis];
    size[axis] = smaller(s.block[axis], p.out_size[axis] - first[axis]);
    n /= blocks;
  }
  Arena arena{static_cast<char*>(scratch)};
  Conv3dDirectTask<E> work(p, s.block, arena);
  if constexpr (sizeof(E) == sizeof(Acc<E>)) {
    if (stays_in_columns<E>(p, x, target)) {
      int64_t last = first[2] + size[2], at[3];
      for (at[0] = first[0]; at[0] < first[0] + size[0]; ++at[0]) {
        for (at[1] = first[1]; at[1] < first[1] + size[1]; ++at[1]) {
          for (at[2] = first[2]; at[2] < last; at[2] += kSlabPixels)
            run_pointwise(p, x, static_cast<const E*>(packed), static_cast<const E*>(bias), target.out, n, at,
                          smaller(kSlabPixels, last - at[2]), work.staged, work.sums);
        }
      }
      return;
    }
  }
  int64_t line = work.columns * work.pitch, plane = work.rows * line;
  RowMap<S> pixels{work.staged, size[2], line, work.pitch};
  if (work.reads_in_place(p, x)) {
    plane = x.stride[0];
    pixels = {element_at<S>(x, n, first[0] - p.before[0], first[1], first[2], 0), size[2], x.stride[1], x.stride[2],
              true};
  } else {
    work.stage(p, x, n, first, s.block);
  }
  work.list_runs(p, plane, line);
  Panels<S> panels(p.out_channels);
  Conv3dDirectWeights<S> weights(p);
  Prefetch none{};
  for (int64_t panel = 0; panel < panels.count; ++panel) {
    int vectors = panels.vectors(panel);
    int64_t width = vectors * kLanes<S>, row = size[2] * width;
    for (int64_t d = 0; d < size[0]; ++d) {
      RowMap<S> map = pixels;
      map.base += d * plane;
      map.far &= panel == 0;
      // planes of zeros before and after the clip are left out
      int64_t depth = first[0] + d - p.before[0];
      int64_t begin = larger(0, -depth), end = larger(begin, smaller(p.kernel[0], p.in_size[0] - depth));
      int64_t skipped = begin * p.kernel[1] * p.kernel[2] * work.pitch * width;
      multiply(map, size[1] * size[2], work.run + begin * p.kernel[1], (end - begin) * p.kernel[1],
               weights.panel(packed, panel) + skipped, vectors, work.sums + d * size[1] * row, width, kConvChunk, none);
    }
    int64_t first_channel = panels.first(panel);
    if (target.out.channel_stride != 1) {
      store_transposed<E>(p, work.sums, static_cast<const E*>(bias), first_channel, vectors, first, size, target.out,
                          n);
      continue;
    }
    for (int j = 0; j < vectors; ++j) {
      int64_t channel = first_channel + j * kLanes<S>;
      Box<Acc<S>> box{work.sums + j * kLanes<S>,
                      {size[1] * row, row, width},
                      {first[0], first[1], first[2]},
                      {size[0], size[1], size[2]}};
      finish_box<E, Acc<S>>(p, box, static_cast<const E*>(bias),
                            {channel, smaller(kLanes<E>, p.out_channels - channel)}, target, n);
    }
  }
}

}  // namespace vidgen::VIDGEN_ISA
