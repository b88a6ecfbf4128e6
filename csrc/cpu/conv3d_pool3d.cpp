// The table of conv3d_pool3d for one instruction set. Compiled once per level, in a namespace named after it.
#include "conv3d_pool3d.h"

#include "conv3d_pool3d_grad_weight.h"
#include "conv3d_pool3d_plan.h"

namespace vidgen::VIDGEN_ISA {
namespace {

Conv3dForm choose(const Conv3dPool3d& p, bool direct_only) {
  return by_dtype(p.dtype, [&]<class E>(E*) { return choose_form<E>(p, direct_only); });
}

bool supports(const Conv3dPool3d& p, Conv3dForm form) {
  if (form == Conv3dForm::direct) return true;
  return by_dtype(p.dtype, [&]<class E>(E*) { return winograd_supports<E>(p, form); });
}

bool pools_within(const Conv3dPool3d& p, Conv3dForm form) {
  return form == Conv3dForm::direct || TileShape(p, form).holds_windows(p);
}

double multiply_adds(const Conv3dPool3d& p, Conv3dForm form) {
  double pairs = double(p.in_channels) * double(p.out_channels);
  if (form == Conv3dForm::direct) {
    for (int axis = 1; axis < 3; ++axis) pairs *= double(p.out_size[axis] * p.kernel[axis]);
    return pairs * planes_multiplied(p);
  }
  TileShape shape(p, form);
  return pairs * double(shape.per_clip(p)) * shape.slices * shape.points * shape.taps;
}

int64_t pack_tasks(const Conv3dPool3d& p, Conv3dForm form) {
  return by_dtype(p.dtype, [&]<class E>(E*) {
    if (form == Conv3dForm::direct) return pack_task_count(p.in_channels, p.out_channels, kLanes<E>);
    return slice_pack_tasks<Acc<E>>(p);
  });
}

size_t pack_scratch_bytes(const Conv3dPool3d& p, Conv3dForm form) {
  if (form == Conv3dForm::direct) return 0;
  return by_dtype(p.dtype, [&]<class E>(E*) { return slice_pack_scratch<Acc<E>>(p, TileShape(p, form)); });
}

size_t packed_bytes(const Conv3dPool3d& p, Conv3dForm form) {
  return by_dtype(p.dtype, [&]<class E>(E*) {
    if (form == Conv3dForm::direct) return Conv3dDirectWeights<Staged<E>>(p).bytes(p);
    return SliceWeights<Acc<E>>(p, TileShape(p, form)).bytes(p);
  });
}

void pack(const Conv3dPool3d& p, Conv3dForm form, const void* weight, void* packed, int64_t task, void* scratch) {
  by_dtype(p.dtype, [&]<class E>(E*) {
    if (form == Conv3dForm::direct) {
      pack_conv3d_direct<E>(p, weight, packed, task);
    } else if constexpr (sizeof(E) < 8) {
      pack_slices<E>(p, form, weight, packed, task, scratch);
    }
  });
}

int64_t packed_at_once(const Conv3dPool3d& p, Conv3dForm form, int64_t batch, int64_t threads, int64_t cache_bytes) {
  return by_dtype(p.dtype, [&]<class E>(E*) {
    return channels_at_once<E>(p, form, double(packed_bytes(p, form)), batch, threads, cache_bytes);
  });
}

Conv3dSchedule schedule(const Conv3dPool3d& p, Conv3dForm form, int64_t batch, int64_t threads, int64_t cache_bytes) {
  return by_dtype(p.dtype, [&]<class E>(E*) {
    if (form == Conv3dForm::direct) return schedule_conv3d_direct<E>(p, batch, threads);
    return schedule_slices<E>(p, form, batch, threads, cache_bytes);
  });
}

void run(const Conv3dPool3d& p, Conv3dForm form, const Conv3dSchedule& s, int64_t batch, const ClipView& x,
         const void* packed, const void* bias, const Conv3dTarget& target, int64_t task, void* scratch) {
  by_dtype(p.dtype, [&]<class E>(E*) {
    if (form == Conv3dForm::direct) {
      run_conv3d_direct<E>(p, s, x, packed, bias, target, task, scratch);
    } else if constexpr (sizeof(E) < 8) {
      by_tile(p, form, [&]<int m, int r>() {
        run_winograd<E, m, r>(p, form, s, batch, x, packed, bias, target, task, scratch);
      });
    }
  });
}

void finish(const Conv3dPool3d& p, const ClipView& z, const Conv3dTarget& target, int64_t task) {
  by_dtype(p.dtype, [&]<class E>(E*) { finish_plane<E>(p, z, target, task); });
}

void convert(Dtype dtype, const ClipView& from, const ClipView& to, int64_t channels, const int64_t (&size)[3],
             int64_t task) {
  by_dtype(dtype, [&]<class E>(E*) { convert_plane<E>(from, to, channels, size, task); });
}

Conv3dGradWeightPlan plan_weight(const Conv3dPool3d& p, int64_t batch) {
  return by_dtype(p.dtype, [&]<class E>(E*) { return plan_grad_weight<E>(p, batch); });
}

void gradient_of_weight(const Conv3dPool3d& p, const Conv3dGradWeightPlan& plan, int64_t batch, const ClipView& x,
                        const ClipView& grad, void* sums, int64_t task, void* scratch) {
  by_dtype(p.dtype, [&]<class E>(E*) { grad_weight<E>(p, plan, batch, x, grad, sums, task, scratch); });
}

void combine(const Conv3dPool3d& p, const Conv3dGradWeightPlan& plan, const void* sums, void* weight, void* bias,
             int64_t task, void* scratch) {
  by_dtype(p.dtype, [&]<class E>(E*) { combine_grad_weight<E>(p, plan, sums, weight, bias, task, scratch); });
}

}  // namespace

const Conv3dPool3dTable conv3d_pool3d = {
    choose,         supports, pools_within, multiply_adds, pack_tasks, pack_scratch_bytes, packed_bytes,       pack,
    packed_at_once, schedule, run,          finish,        convert,    plan_weight,        gradient_of_weight, combine};

}  // namespace vidgen::VIDGEN_ISA
