// The cost model: which form computes a convolution, and what a task of it takes on.
//
// The form is chosen for one clip, from the problem and the instruction set alone, so that the bits of a clip are
// always the same. It is the form of packed and unpacked weights alike, so that both give the same bits: a Winograd
// form whose weights do not stay close must be worth its packing, 2.4 or 5.3 times the weight in memory. The schedule
// weighs the weights that every task streams against what no longer fits into the cache; it also knows the batch, the
// threads and the cache at hand, since no bit depends on it.
//
// The constants below, unlike those of cost.h, were adjusted on a Xeon (Sapphire Rapids, two cores) until C3D's layers
// got the form and about the tiles that a sweep over both had found fastest there; those of 32-byte vectors and of
// packing on a Zen 3. Elsewhere they are a guess.
#pragma once

#include "conv3d_pool3d_direct.h"
#include "conv3d_pool3d_winograd_run.h"
#include "cost.h"

namespace vidgen::VIDGEN_ISA {

constexpr int64_t kAssumedCache = 1 << 20;  // of a core, where the form is chosen
constexpr double kSliceTransform = 12;      // a vector of V or M through its transform, its cache misses included
constexpr double kPlaneTransform = 8;       // the same in the form by planes, whose values have stayed near (Zen 4)
constexpr double kTilePlace = 150;          // finding a tile's pixels, per slice
constexpr double kNearWeights = 8 << 20;    // weights up to this size stay in the last cache between tasks ...
constexpr double kNearBytes = 4;            // ... and come from there at so many bytes per cycle,
constexpr double kFarBytes = kVectorBytes == 64 ? 4 : 2.5;  // larger ones from memory, which all threads share
// How much faster than the direct form a Winograd form with weights so large must be: packing costs more than the sum
// of a small map (measured on Zen 3, AVX2; AVX-512 stays as it was adjusted).
constexpr double kWorthPacking = kVectorBytes == 64 ? 1 : 1.25;
constexpr double kOwnWeights = 8 << 20;  // packed weights that a thread keeps for itself, at most
constexpr double kFreshByte = 1;         // of a weight in memory that nobody has used yet
constexpr int64_t kTileCounts[] = {1, 2, 4, 6, 8, 12, 18, 24, 30, 36, 48, 60, 72, 96, 120, 144, 192, 240, 288, 384};

// Planes of taps over all planes of outputs: those that see zeros before and after the clip are left out.
VIDGEN_INLINE double planes_multiplied(const Conv3dPool3d& p) {
  int64_t planes = 0;
  for (int64_t d = 0; d < p.out_size[0]; ++d) {
    int64_t first = d - p.before[0];
    planes += smaller(p.kernel[0], p.in_size[0] - first) - larger(0, -first);
  }
  return double(planes);
}

template <class E>
double conv3d_direct_cycles(const Conv3dPool3d& p) {
  using S = Staged<E>;
  Conv3dSchedule s = schedule_conv3d_direct<E>(p, 1, 1);
  double pixels = 1, staged = 1;
  for (int axis = 0; axis < 3; ++axis) {
    double blocks = double(divide_up(p.out_size[axis], s.block[axis]));
    pixels *= double(p.out_size[axis]);
    staged *= blocks * double(s.block[axis] + p.kernel[axis] - 1);
  }
  double tasks = double(s.tasks), depth = double(Conv3dDirectWeights<S>(p).depth / kDepthStep<S>);
  depth *= planes_multiplied(p) / double(p.out_size[0] * p.kernel[0]);
  return tasks * multiply_cycles<S>(pixels / tasks, depth, p.out_channels) +
         kMove * (vectors_of<E>(staged, p.in_channels) + vectors_of<E>(pixels, p.out_channels));
}

// Cycles of one task of `tiles` tiles and `panels` panels of output channels, one of `threads` at a time.
template <class E>
double slice_task_cycles(const Conv3dPool3d& p, const TileShape& shape, int64_t tiles, int64_t panels, int64_t threads,
                         int64_t cache_bytes) {
  using S = Acc<E>;
  SliceWeights<S> weights(p, shape);
  int64_t width = smaller(panels * kPanel<S>, Panels<S>(p.out_channels).padded_channels());
  double products = shape.slices * shape.points, rows = double(tiles), slices = shape.slices;
  double transformed = shape.transforms() * shape.points;
  double compute = products * multiply_cycles<S>(rows, double(weights.depth), width);
  double streamed = products * double(weights.depth * width) * sizeof(S);
  double stream = streamed / (double(weights.bytes(p)) <= kNearWeights ? kNearBytes : kFarBytes / double(threads));
  double cycles = compute > stream ? compute : stream;
  cycles += (shape.by_planes ? kPlaneTransform : kSliceTransform) *
            (transformed * vectors_of<E>(rows, p.in_channels) + products * vectors_of<E>(rows, width));
  cycles += kTilePlace * slices * rows + kMove * vectors_of<E>(rows * double(shape.volume()), width);
  double v = rows * shape.points * double(shape.held * p.in_channels) * sizeof(S);
  double m = rows * shape.points * double(width) * sizeof(Acc<S>);
  double sums = rows * double(shape.volume() * width) * sizeof(Acc<S>);
  double spilled = 1 - double(cache_bytes) / 2 / (v + m + sums);
  if (spilled > 0) cycles += spilled * 2 * slices * (v + m + sums) / kStreamBytes;
  return cycles;
}

template <class E>
Conv3dSchedule schedule_slices(const Conv3dPool3d& p, Conv3dForm form, int64_t batch, int64_t threads,
                               int64_t cache_bytes, double* cycles = nullptr) {
  using S = Acc<E>;
  TileShape shape(p, form);
  int64_t all = larger(1, batch * shape.per_clip(p)), panels = Panels<S>(p.out_channels).count;
  Conv3dSchedule best{};
  double least = 0;
  for (int64_t groups = 1; groups <= panels; ++groups) {
    int64_t share = divide_up(panels, groups);
    if (divide_up(panels, share) != groups) continue;  // the same as with fewer groups
    for (int64_t count : kTileCounts) {
      int64_t blocks = divide_up(all, count), tiles = divide_up(all, blocks);
      int64_t tasks = blocks * groups;
      double task = slice_task_cycles<E>(p, shape, tiles, share, smaller(threads, tasks), cache_bytes);
      double total = double(divide_up(tasks, threads)) * task;
      if (best.tasks == 0 || total < least) {
        least = total;
        best.tiles = tiles, best.panels = share, best.groups = groups, best.tasks = tasks;
      }
    }
  }
  Arena arena{nullptr};
  SliceTask<S>(p, shape, best.tiles, best.panels, arena);
  best.scratch_bytes = arena.used;
  if (cycles != nullptr) *cycles = least;
  return best;
}

template <class E>
Conv3dForm choose_form(const Conv3dPool3d& p, bool direct_only) {
  Conv3dForm best = Conv3dForm::direct;
  if (direct_only) return best;
  double least = conv3d_direct_cycles<E>(p);
  for (Conv3dForm form : {Conv3dForm::winograd2, Conv3dForm::winograd4, Conv3dForm::planes}) {
    if (!winograd_supports<E>(p, form)) continue;
    double cycles;
    schedule_slices<E>(p, form, 1, 1, kAssumedCache, &cycles);
    if (!TileShape(p, form).holds_windows(p)) {
      double outputs = double(p.out_size[0] * p.out_size[1] * p.out_size[2]);
      cycles += 2 * kMove * vectors_of<E>(outputs, p.out_channels);
    }
    if (double(SliceWeights<Acc<E>>(p, TileShape(p, form)).bytes(p)) > kNearWeights) cycles *= kWorthPacking;
    if (cycles < least) {
      least = cycles;
      best = form;
    }
  }
  return best;
}

// Output channels that a thread packs for itself and computes at once, see conv3d_pool3d.h. Fresh memory for a whole
// weight costs a fault of every page and the way to memory and back; parts that stay in the last cache cost a transform
// of the input for each.
template <class E>
int64_t channels_at_once(const Conv3dPool3d& p, Conv3dForm form, double bytes, int64_t batch, int64_t threads,
                         int64_t cache_bytes) {
  using S = Staged<E>;
  if (bytes <= kOwnWeights) return p.out_channels;
  auto forward = [&](const Conv3dPool3d& part, int64_t at_once) {
    double cycles = conv3d_direct_cycles<E>(part) * double(larger(batch, 1)) / double(at_once);
    if (form != Conv3dForm::direct) schedule_slices<E>(part, form, batch, at_once, cache_bytes, &cycles);
    return cycles;
  };
  int64_t panels = Panels<S>(p.out_channels).count;
  int64_t groups = round_up(int64_t(bytes / kOwnWeights) + 1, threads), share = divide_up(panels, groups);
  groups = divide_up(panels, share);
  if (groups == 1) return p.out_channels;
  Conv3dPool3d part = p;
  part.out_channels = smaller(p.out_channels, share * kPanel<S>);
  double whole = bytes * kFreshByte / double(threads) + forward(p, threads);
  double apart = double(divide_up(groups, threads)) * forward(part, 1);
  return apart < whole ? part.out_channels : p.out_channels;
}

}  // namespace vidgen::VIDGEN_ISA
