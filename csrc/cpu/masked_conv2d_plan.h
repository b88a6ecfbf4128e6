// The cost model: which form, and how many rows a task computes. It knows the problem and the instruction set,
// never the batch, the thread count or a clock, so that the bits of a sample are always the same.
//
// The constants of cost.h matter for thin layers and tiny images, where transforms cost more than the products
// they save; from 16 channels up, the Winograd form is ahead whatever they are.
#pragma once

#include "cost.h"
#include "masked_conv2d_direct.h"
#include "masked_conv2d_winograd_forward.h"

namespace vidgen::VIDGEN_ISA {

constexpr double kLargeScratch = .0125;  // what a MiB of scratch adds, relatively
constexpr double kImbalance = .0625;     // what one task per image wastes: cores that wait, relatively

template <class E>
double direct_cycles(const MaskedConv2d& p, const DirectTask<E>& task, int64_t block_rows) {
  using S = Staged<E>;
  DirectLayout<S> layout(p);
  double pixels = double(block_rows * p.width);
  double cycles = multiply_cycles<S>(pixels, double(layout.depth / kDepthStep<S>), p.out_channels);
  if (p.colors > 1) cycles += multiply_cycles<S>(pixels, double(layout.centre_depth), p.out_channels);
  return cycles + kMove * (vectors_of<E>(double(task.block.rows * task.block.columns), p.in_channels) +
                           vectors_of<E>(pixels, p.out_channels));
}

template <class E>
double winograd_cycles(const MaskedConv2d& p, const WinogradTask<E>& task, int64_t block_rows) {
  using S = Staged<E>;
  double cycles = 0;
  for (int i = 0; i < task.form.parts; ++i) {
    const WinogradPart& part = task.form.part[i];
    double rows = double(task.part[i].rows());
    for (int point = 0; point < part.points; ++point) {
      for (int v = 0; v < part.vertical; ++v) {
        double depth = double(part.depth(point, v, task.form.channel_pitch));
        cycles += multiply_cycles<S>(rows, depth / kDepthStep<S>, p.out_channels);
      }
    }
    cycles += kTransform * (vectors_of<E>(rows * part.coefficients(), p.in_channels) +
                            vectors_of<E>(rows * part.points * part.vertical, p.out_channels));
  }
  double pixels = double(block_rows * task.out_columns);
  if (p.colors > 1) cycles += multiply_cycles<S>(pixels, double(p.in_channels), p.out_channels);
  return cycles + kMove * (vectors_of<E>(double(task.block.rows * task.block.columns), p.in_channels) +
                           vectors_of<E>(pixels, p.out_channels));
}

// Scalar multiply-adds of one task's register tiles.
template <class E>
double multiply_adds(const MaskedConv2d& p, const DirectTask<E>&, int64_t block_rows) {
  DirectLayout<Staged<E>> layout(p);
  return double(block_rows * p.width) * double(layout.depth + layout.centre_depth) * double(p.out_channels);
}

template <class E>
double multiply_adds(const MaskedConv2d& p, const WinogradTask<E>& task, int64_t block_rows) {
  int64_t products = 0;
  for (int i = 0; i < task.form.parts; ++i)
    products += task.part[i].rows() * task.form.part[i].total_depth(task.form.channel_pitch);
  if (p.colors > 1) products += block_rows * task.out_columns * p.in_channels;
  return double(products) * double(p.out_channels);
}

template <class E>
size_t packed_size(const MaskedConv2d& p, Form form) {
  using S = Staged<E>;
  return form == Form::winograd ? WinogradForm<S>(p).bytes(p) : DirectLayout<S>(p).bytes(p);
}

template <class E>
MaskedConv2dPlan cheapest_plan(const MaskedConv2d& p, bool direct_only) {
  MaskedConv2dPlan best{Form::direct, 1, 0, 0, 0, 0};
  if (p.height == 0 || p.width == 0 || p.out_channels == 0) return best;
  double best_cycles = 0;
  auto consider = [&](Form form, int64_t block_rows) {
    Arena arena{nullptr};
    double cycles, work;
    if (form == Form::direct) {
      DirectTask<E> task(p, block_rows, arena);
      cycles = direct_cycles<E>(p, task, block_rows), work = multiply_adds<E>(p, task, block_rows);
    } else {
      WinogradTask<E> task(p, block_rows, arena);
      cycles = winograd_cycles<E>(p, task, block_rows), work = multiply_adds<E>(p, task, block_rows);
    }
    int64_t tasks = divide_up(p.height, block_rows);
    cycles *= double(tasks) * (1 + kImbalance / double(tasks)) * (1 + kLargeScratch * double(arena.used >> 20));
    if (best.tasks_per_image == 0 || cycles < best_cycles) {
      best_cycles = cycles;
      best = {form, block_rows, tasks, arena.used, 0, work * double(tasks)};
    }
  };
  bool winograd = !direct_only && WinogradForm<Staged<E>>::supports(p);
  for (int64_t tasks = 1; tasks <= p.height; tasks = tasks < 4 ? tasks + 1 : tasks + tasks / 2) {
    int64_t rows = divide_up(p.height, tasks);
    consider(Form::direct, rows);
    if (winograd) consider(Form::winograd, smaller(p.height, round_up(rows, 2)));
  }
  best.packed_bytes = packed_size<E>(p, best.form);
  return best;
}

}  // namespace vidgen::VIDGEN_ISA
