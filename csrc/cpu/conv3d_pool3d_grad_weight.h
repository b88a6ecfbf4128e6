// The gradients of the weight and the bias: every gradient of z times what its taps saw of x.
//
// Behind max-pooling and ReLU one gradient in eight, or in sixteen, is not zero, and those of two output channels are
// not zero at different places. So an output channel's gradients are listed, zeros left out, and multiplied in the
// register tiles of listed_products.h; where few are zero, dense tiles take all.
//
// Both want x in the first cache, hence the blocking. A block is a box of outputs whose input, staged with zeros around
// it, is at most 24 KiB for a group of input channels: a vector of them (more for kernels of few taps, which would not
// fill the registers). A row of taps is one run of kw * channels values, as in the direct form of the convolution; with
// less than a vector of channels every column's run is written out, so that it begins with a line of the cache.
//
// A task takes some output channels, some groups and a contiguous range of blocks, all cut by the shapes alone; its
// sums are kept in memory of its own, and in the end those of all ranges are added in order. So bits depend on no
// thread.
//
// 0 * NaN is NaN, and x may hold one. Staging notices whatever is not finite, and a block in which something was lists
// its zeros too.
#pragma once

#include "convert.h"
#include "listed_products.h"
#include "stage.h"

namespace vidgen::VIDGEN_ISA {

constexpr int64_t kGroupBytes = 24 << 10;               // of a block's input, for one group of channels
constexpr int64_t kBlockOutputs = 512;                  // of a block
constexpr int64_t kListedChannels = 64;                 // output channels of a task
constexpr int64_t kGradWeightTasks = 32;                // at least, where outputs suffice
constexpr int64_t kLeastOutputs = 1024;                 // of a task
constexpr double kDenseShare = .75;                     // of gradients that are not zero: no lists
constexpr double kVisitCycles = 100, kStageCycles = 3;  // of a list; of a vector of x

// The sizes that cut an axis into even pieces, and their number, the longest first: calls f(size, number).
template <class F>
VIDGEN_INLINE void for_each_cut(int64_t size, F f) {
  for (int64_t last = 0, pieces = 1; pieces <= size; ++pieces) {
    int64_t piece = divide_up(size, pieces);
    if (piece != last) f(piece, pieces);
    last = piece;
  }
}

// The box with the fewest cycles beside the products: those of visiting a list, and of staging.
template <class T>
void choose_block(const Conv3dPool3d& p, int64_t batch, Conv3dGradWeightPlan& plan) {
  int64_t largest = kGroupBytes / (plan.pixel_pitch * int64_t(sizeof(T)));
  double best = 0;
  int64_t beside = plan.unrolled ? 0 : p.kernel[2] - 1;
  int64_t pixels = p.kernel[0] * p.kernel[1] * (1 + beside), outputs = 1, boxes = 1;  // of the best
  for (int axis = 0; axis < 3; ++axis) plan.block[1 + axis] = 1, boxes *= p.out_size[axis];
  for_each_cut(p.out_size[0], [&](int64_t depth, int64_t deep) {
    int64_t planes = depth + p.kernel[0] - 1;
    for_each_cut(p.out_size[1], [&](int64_t height, int64_t high) {
      int64_t lines = planes * (height + p.kernel[1] - 1);
      if (lines > largest) return;
      for_each_cut(p.out_size[2], [&](int64_t width, int64_t wide) {
        int64_t staged = lines * (width + beside), size = depth * height * width;
        if (staged > largest || size > kBlockOutputs) return;
        double around = double(p.out_channels) * kVisitCycles +
                        double(staged * (plan.unrolled ? plan.row_pitch / kLanes<T> : 1)) * kStageCycles;
        double cycles = double(deep * high * wide) * around;
        if (best > 0 && cycles >= best) return;
        best = cycles, pixels = staged, outputs = size, boxes = deep * high * wide;
        plan.block[1] = depth, plan.block[2] = height, plan.block[3] = width;
      });
    });
  });
  // small clips share a block
  plan.block[0] = 1;
  if (boxes == 1) plan.block[0] = larger(1, smaller(batch, smaller(largest / pixels, kBlockOutputs / outputs)));
  plan.blocks[0] = divide_up(batch, plan.block[0]);
  for (int axis = 0; axis < 3; ++axis) plan.blocks[1 + axis] = divide_up(p.out_size[axis], plan.block[1 + axis]);
  plan.all_blocks = plan.blocks[0] * boxes;
}

template <class T>
int64_t vectors_of(const Conv3dPool3d& p, int64_t channels) {
  return divide_up(p.kernel[2] * channels, kLanes<T>);
}

VIDGEN_INLINE int64_t channels_of(const Conv3dPool3d& p, const Conv3dGradWeightPlan& plan, int64_t group) {
  return smaller(plan.group_channels, p.in_channels - group * plan.group_channels);
}

// Reads whole vectors.
template <class T>
bool all_finite(const T* values, int64_t count) {
  Vec<T> zeros[4] = {};
  for (int64_t i = 0; i < count; i += 4 * kLanes<T>) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) zeros[j] = multiply_add<T>(T(0), load(values + i + j * kLanes<T>), zeros[j]);
  }
  Vec<T> all = (zeros[0] + zeros[1]) + (zeros[2] + zeros[3]);
  bool finite = true;
  for (int i = 0; i < kLanes<T>; ++i) finite = finite && all[i] == 0;
  return finite;
}

template <class E>
struct GradWeightTask {
  using T = Acc<E>;
  const Conv3dPool3d& p;
  const Conv3dGradWeightPlan& plan;
  int64_t first_out, outs, first_group, last_group;
  int64_t columns, rows, planes;  // of a clip's staged input
  int64_t outputs, capacity;      // of the block at hand; of a list
  int64_t dense_pitch;
  T* staged;
  int64_t *row_offset, *count, *source;  // where an output's gradient lies
  int32_t *pixel, *listed_pixel;         // where in the staged input its taps begin
  T *listed_value, *dense_value;
  T* line;         // a row of x, before it is unrolled
  bool* adjacent;  // a vector of outputs from here on lies in a row of memory

  GradWeightTask(const Conv3dPool3d& problem, const Conv3dGradWeightPlan& of, int64_t task, Arena& arena)
      : p(problem), plan(of) {
    first_out = task % plan.out_ranges * plan.out_range;
    outs = smaller(plan.out_range, p.out_channels - first_out);
    first_group = task / plan.out_ranges % plan.group_ranges * plan.group_range;
    last_group = smaller(plan.groups, first_group + plan.group_range);
    columns = plan.block[3] + (plan.unrolled ? 0 : p.kernel[2] - 1);
    rows = plan.block[2] + p.kernel[1] - 1;
    planes = plan.block[1] + p.kernel[0] - 1;
    int64_t most = plan.block[0] * plan.block[1] * plan.block[2] * plan.block[3];
    capacity = round_up(most, kLanes<T>) + kLanes<T>;
    // the last run ends in a whole vector
    staged = arena.take<T>(plan.block[0] * planes * rows * columns * plan.pixel_pitch +
                           larger(plan.row_pitch, 4 * kLanes<T>));
    line = arena.take<T>((plan.block[3] + p.kernel[2] - 1) * plan.group_channels + plan.row_pitch);
    row_offset = arena.take<int64_t>(plan.tap_rows);
    count = arena.take<int64_t>(plan.out_range);
    source = arena.take<int64_t>(capacity);
    pixel = arena.take<int32_t>(capacity);
    listed_pixel = arena.take<int32_t>(plan.out_range * capacity);
    listed_value = arena.take<T>(plan.out_range * capacity);
    dense_pitch = round_up(plan.out_range, kLanes<T>);
    dense_value = arena.take<T>(capacity * dense_pitch);
    adjacent = arena.take<bool>(capacity / kLanes<T>);
  }

  // Clips and outputs of a block.
  struct Box {
    int64_t first[4], size[4];
  };
  Box box_of(int64_t index) const {
    Box box;
    for (int axis = 3; axis >= 0; --axis) {
      int64_t all = axis == 0 ? batch : p.out_size[axis - 1];
      box.first[axis] = index % plan.blocks[axis] * plan.block[axis];
      box.size[axis] = smaller(plan.block[axis], all - box.first[axis]);
      index /= plan.blocks[axis];
    }
    return box;
  }
  int64_t batch = 0;

  void locate(const Box& box, const ClipView& grad) {
    outputs = 0;
    for (int64_t n = 0; n < box.size[0]; ++n) {
      for (int64_t d = 0; d < box.size[1]; ++d) {
        for (int64_t h = 0; h < box.size[2]; ++h) {
          int64_t from = (box.first[0] + n) * grad.batch_stride + (box.first[1] + d) * grad.stride[0] +
                         (box.first[2] + h) * grad.stride[1] + box.first[3] * grad.stride[2];
          int64_t to = ((n * planes + d) * rows + h) * columns;
          for (int64_t w = 0; w < box.size[3]; ++w, ++outputs) {
            source[outputs] = from + w * grad.stride[2];
            pixel[outputs] = int32_t(to + w);
          }
        }
      }
    }
    for (int64_t first = 0; first < outputs; first += kLanes<T>) {
      bool together = true;
      int64_t end = smaller(outputs, first + kLanes<T>);
      for (int64_t m = first; m + 1 < end; ++m) together = together && source[m + 1] == source[m] + 1;
      adjacent[first / kLanes<T>] = together;
    }
  }

  // A square of gradients, a vector of outputs for each of as many channels.
  VIDGEN_INLINE void load_gradients(const ClipView& grad, int64_t o, int64_t m, Vec<T>* tile) const {
    constexpr int lanes = kLanes<T>;
    int64_t wide = smaller(lanes, outs - o), high = smaller(lanes, outputs - m);
    const E* base = static_cast<const E*>(grad.data) + (first_out + o) * grad.channel_stride;
    const int64_t* from = source + m;
    if (grad.channel_stride == 1) {
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i)
        tile[i] = i >= high ? Vec<T>{} : wide == lanes ? load(base + from[i]) : load(base + from[i], wide);
      transpose<T>(tile);
      return;
    }
    for (int64_t j = 0; j < lanes; ++j) {
      const E* plane = base + j * grad.channel_stride;
      if (j >= wide) {
        tile[j] = Vec<T>{};
      } else if (adjacent[m / lanes]) {
        tile[j] = high == lanes ? load(plane + from[0]) : load(plane + from[0], high);
      } else {
        T value[lanes] = {};
        for (int64_t i = 0; i < high; ++i) value[i] = to_scalar(plane[from[i]]);
        tile[j] = load(value);
      }
    }
  }

  // Lists the gradients of all of the task's channels; `bias_sums` (or null) takes their sums. Returns how many.
  int64_t list(const ClipView& grad, bool zeros_too, T* bias_sums) {
    constexpr int lanes = kLanes<T>;
    int64_t all = 0;
    for (int64_t o = 0; o < outs; o += lanes) {
      int64_t wide = smaller(lanes, outs - o), listed[lanes] = {};
      Vec<T> total[lanes] = {};
      for (int64_t m = 0; m < outputs; m += lanes) {
        Vec<T> tile[lanes];
        load_gradients(grad, o, m, tile);
        int64_t high = smaller(lanes, outputs - m);
        for (int64_t j = 0; j < wide; ++j) {
          int64_t to = (o + j) * capacity + listed[j];
          total[j] += tile[j];
          listed[j] += append<T>(tile[j], pixel + m, high, zeros_too, listed_pixel + to, listed_value + to);
        }
      }
      for (int64_t j = 0; j < wide; ++j) {
        all += count[o + j] = listed[j];
        if (bias_sums == nullptr) continue;
        T* sums = bias_sums + (o + j) * plan.channel_pitch;
        store(sums, load(sums) + total[j]);
      }
    }
    return all;
  }

  // Copies them instead, channels next to each other.
  void copy_dense(const ClipView& grad) {
    constexpr int lanes = kLanes<T>;
    for (int64_t o = 0; o < outs; o += lanes) {
      for (int64_t m = 0; m < outputs; m += lanes) {
        Vec<T> tile[lanes];
        load_gradients(grad, o, m, tile);
        transpose<T>(tile);
        for (int64_t i = 0; i < smaller(lanes, outputs - m); ++i)
          store(dense_value + (m + i) * dense_pitch + o, tile[i]);
      }
    }
  }

  // What the taps of a row see from every column, in whole vectors.
  VIDGEN_INLINE void unroll(int64_t channels, T* out) const {
    for (int64_t w = 0; w < columns; ++w) {
      for (int64_t i = 0; i < plan.row_pitch; i += kLanes<T>, out += kLanes<T>)
        store(out, load(line + w * channels + i));
    }
  }

  // The input of a block, `channels` of it from `first_channel` on; false if it is not finite.
  bool stage(const Box& box, const ClipView& x, int64_t first_channel, int64_t channels) {
    int64_t pitch = plan.unrolled ? plan.pixel_pitch : channels, read = plan.block[3] + p.kernel[2] - 1;
    int64_t left = box.first[3] - p.before[2], skipped = larger(0, -left), begin = larger(0, left);
    int64_t width = larger(0, smaller(p.in_size[2] - begin, read - skipped));
    T* out = staged;
    if (plan.unrolled) zero(line + read * channels, plan.row_pitch);
    for (int64_t n = 0; n < box.size[0]; ++n) {
      for (int64_t d = 0; d < planes; ++d) {
        int64_t depth = box.first[1] - p.before[0] + d;
        for (int64_t h = 0; h < rows; ++h, out += columns * pitch) {
          int64_t row = box.first[2] - p.before[1] + h;
          if (depth < 0 || depth >= p.in_size[0] || row < 0 || row >= p.in_size[1] || width == 0) {
            zero(out, columns * pitch);
            continue;
          }
          T* to = plan.unrolled ? line : out;
          zero(to, skipped * channels);
          stage_row(element_at<E>(x, box.first[0] + n, depth, row, begin, first_channel), x.channel_stride, x.stride[2],
                    width, channels, to + skipped * channels, channels);
          zero(to + (skipped + width) * channels, (read - skipped - width) * channels);
          if (plan.unrolled) unroll(channels, out);
        }
      }
    }
    zero(out, larger(plan.row_pitch, 4 * kLanes<T>));
    return all_finite(staged, out - staged);
  }

  // Adds to the sums of a group what the gradients, listed or dense, and the staged input give.
  void multiply(int64_t group, bool dense, T* sums) {
    int64_t channels = channels_of(p, plan, group), vectors = vectors_of<T>(p, channels);
    int64_t pitch = plan.unrolled ? plan.pixel_pitch : channels, step = dense ? kDenseChannels : 1;
    for (int64_t i = 0; i < plan.tap_rows; ++i)
      row_offset[i] = (i / p.kernel[1] * rows + i % p.kernel[1]) * columns * pitch;
    int tallest = int(smaller(kMostTapRows, (dense ? kDenseVectors : kListedVectors) / vectors));
    for (int64_t o = 0; o < outs; o += step) {
      if (!dense && count[o] == 0) continue;
      T* to = sums + o * plan.channel_pitch + group * plan.group_pitch;
      for_each_tile(plan.tap_rows, tallest, [&](int64_t first, int64_t height) {
        int64_t tile = (height - 1) * kMostVectors + vectors - 1;
        T* tile_sums = to + first * plan.row_pitch;
        if (dense) {
          Products<T>::dense[tile](staged, row_offset + first, pitch, pixel, dense_value + o, dense_pitch, outputs,
                                   tile_sums, plan.row_pitch, plan.channel_pitch, smaller(step, outs - o));
        } else {
          Products<T>::listed[tile](staged, row_offset + first, pitch, listed_pixel + o * capacity,
                                    listed_value + o * capacity, count[o], tile_sums, plan.row_pitch);
        }
      });
    }
  }
};

template <class E>
void grad_weight(const Conv3dPool3d& p, const Conv3dGradWeightPlan& plan, int64_t batch, const ClipView& x,
                 const ClipView& grad, void* sums, int64_t task, void* scratch) {
  using T = Acc<E>;
  Arena arena{static_cast<char*>(scratch)};
  GradWeightTask<E> work(p, plan, task, arena);
  work.batch = batch;
  int64_t part = task / (plan.out_ranges * plan.group_ranges);
  T* own = static_cast<T*>(sums) + (part * p.out_channels + work.first_out) * plan.channel_pitch;
  T* bias_sums = work.first_group == 0 ? own + plan.groups * plan.group_pitch : nullptr;
  for (int64_t o = 0; o < work.outs; ++o) {
    T* channel = own + o * plan.channel_pitch;
    zero(channel + work.first_group * plan.group_pitch, (work.last_group - work.first_group) * plan.group_pitch);
    if (bias_sums != nullptr) zero(bias_sums + o * plan.channel_pitch, kLanes<T>);
  }
  for (int64_t b = part * plan.part_blocks; b < smaller(plan.all_blocks, (part + 1) * plan.part_blocks); ++b) {
    auto box = work.box_of(b);
    work.locate(box, grad);
    bool has_zeros = false;
    double share = double(work.list(grad, false, bias_sums)) / double(work.outs * work.outputs);
    bool dense = share > kDenseShare && plan.row_pitch <= kDenseVectors * kLanes<T>;
    if (dense) work.copy_dense(grad);
    for (int64_t group = work.first_group; group < work.last_group; ++group) {
      bool finite = work.stage(box, x, group * plan.group_channels, channels_of(p, plan, group));
      if (!finite && !dense && !has_zeros) {
        work.list(grad, true, nullptr);
        has_zeros = true;
      }
      work.multiply(group, dense, own);
    }
  }
}

// Adds the parts of output channel `task` and writes its weights and its bias.
template <class E>
void combine_grad_weight(const Conv3dPool3d& p, const Conv3dGradWeightPlan& plan, const void* sums, void* weight,
                         void* bias, int64_t task, void* scratch) {
  using T = Acc<E>;
  int64_t pitch = plan.channel_pitch, taps = plan.tap_rows * p.kernel[2];
  const T* from = static_cast<const T*>(sums) + task * pitch;
  T* total = static_cast<T*>(scratch);
  __builtin_memcpy(total, from, pitch * sizeof(T));
  for (int64_t part = 1; part < plan.parts; ++part) {
    from += p.out_channels * pitch;
    for (int64_t i = 0; i < pitch; i += kLanes<T>) store(total + i, load(total + i) + load(from + i));
  }
  E* out = static_cast<E*>(weight) + task * p.in_channels * taps;
  for (int64_t group = 0; group < plan.groups; ++group) {
    int64_t channels = channels_of(p, plan, group);
    for (int64_t row = 0; row < plan.tap_rows; ++row) {
      const T* value = total + group * plan.group_pitch + row * plan.row_pitch;
      for (int64_t column = 0; column < p.kernel[2]; ++column) {
        E* to = out + group * plan.group_channels * taps + row * p.kernel[2] + column;
        for (int64_t c = 0; c < channels; ++c) to[c * taps] = from_scalar<E>(*value++);
      }
    }
  }
  T sum = 0;
  for (int i = 0; i < kLanes<T>; ++i) sum += total[pitch - kLanes<T> + i];
  static_cast<E*>(bias)[task] = from_scalar<E>(sum);
}

template <class E>
Conv3dGradWeightPlan plan_grad_weight(const Conv3dPool3d& p, int64_t batch) {
  using T = Acc<E>;
  constexpr int64_t lanes = kLanes<T>;
  Conv3dGradWeightPlan plan{};
  plan.tap_rows = p.kernel[0] * p.kernel[1];
  // eight sums hide the latency of a multiply-add
  int64_t wanted = divide_up(8, plan.tap_rows * p.kernel[2]), most = larger(1, kMostVectors / p.kernel[2]);
  plan.group_channels = smaller(p.in_channels, lanes * smaller(wanted, most));
  plan.groups = divide_up(p.in_channels, plan.group_channels);
  plan.row_pitch = vectors_of<T>(p, plan.group_channels) * lanes;
  plan.unrolled = p.in_channels < lanes;
  plan.pixel_pitch = plan.unrolled ? plan.row_pitch : plan.group_channels;
  plan.group_pitch = plan.tap_rows * plan.row_pitch;
  plan.channel_pitch = plan.groups * plan.group_pitch + lanes;
  choose_block<T>(p, batch, plan);
  plan.out_ranges = divide_up(p.out_channels, kListedChannels);
  plan.out_range = divide_up(p.out_channels, plan.out_ranges);
  int64_t outputs = batch * p.out_size[0] * p.out_size[1] * p.out_size[2];
  int64_t parts = smaller(divide_up(kGradWeightTasks, plan.out_ranges), divide_up(outputs, kLeastOutputs));
  plan.part_blocks = divide_up(plan.all_blocks, smaller(parts, plan.all_blocks));
  plan.parts = divide_up(plan.all_blocks, plan.part_blocks);
  int64_t ranges = smaller(plan.groups, divide_up(kGradWeightTasks, plan.parts * plan.out_ranges));
  plan.group_range = divide_up(plan.groups, ranges);
  plan.group_ranges = divide_up(plan.groups, plan.group_range);
  plan.tasks = plan.parts * plan.group_ranges * plan.out_ranges;
  plan.sums_bytes = plan.parts * p.out_channels * plan.channel_pitch * sizeof(T);
  Arena arena{nullptr};
  GradWeightTask<E>(p, plan, 0, arena);
  plan.scratch_bytes = larger(arena.used, plan.channel_pitch * sizeof(T));
  return plan;
}

}  // namespace vidgen::VIDGEN_ISA
