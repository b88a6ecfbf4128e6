// The table of masked_conv2d for one instruction set. Compiled once per level, in a namespace named after it.
#include "masked_conv2d.h"

#include "masked_conv2d_direct.h"
#include "masked_conv2d_grad_weight.h"
#include "masked_conv2d_pack.h"
#include "masked_conv2d_plan.h"
#include "masked_conv2d_winograd_forward.h"

namespace vidgen::VIDGEN_ISA {
namespace {

size_t packed_bytes(const MaskedConv2d& p, Form form) {
  return by_dtype(p.dtype, [&]<class E>(E*) { return packed_size<E>(p, form); });
}

MaskedConv2dPlan plan(const MaskedConv2d& p, bool direct_only) {
  return by_dtype(p.dtype, [&]<class E>(E*) { return cheapest_plan<E>(p, direct_only); });
}

int64_t pack_tasks(const MaskedConv2d& p, Form) {
  return by_dtype(p.dtype, [&]<class E>(E*) { return pack_task_count(p.in_channels, p.out_channels, kLanes<E>); });
}

void pack(const MaskedConv2d& p, Form form, const void* weight, void* packed, int64_t task) {
  by_dtype(p.dtype,
           [&]<class E>(E*) { (form == Form::winograd ? pack_winograd<E> : pack_direct<E>)(p, weight, packed, task); });
}

void forward(const MaskedConv2d& p, const MaskedConv2dPlan& plan, ImageView x, const void* packed, const void* bias,
             ImageView y, int64_t task, void* scratch) {
  by_dtype(p.dtype, [&]<class E>(E*) {
    auto form = plan.form == Form::winograd ? forward_winograd<E> : forward_direct<E>;
    form(p, plan, x, packed, bias, y, task, scratch);
  });
}

int64_t grad_weight_tasks(const MaskedConv2d& p) {
  return by_dtype(p.dtype, [&]<class E>(E*) { return GradPartition<E>(p).tasks(); });
}

size_t grad_weight_scratch_bytes(const MaskedConv2d& p) {
  return by_dtype(p.dtype, [&]<class E>(E*) { return grad_weight_scratch<E>(p); });
}

void grad_weight_task(const MaskedConv2d& p, int64_t batch, ImageView x, ImageView grad_output, void* out, int64_t task,
                      void* scratch) {
  by_dtype(p.dtype, [&]<class E>(E*) { grad_weight<E>(p, batch, x, grad_output, out, task, scratch); });
}

}  // namespace

const MaskedConv2dTable masked_conv2d = {
    plan, pack_tasks, packed_bytes, pack, forward, grad_weight_tasks, grad_weight_scratch_bytes, grad_weight_task};

}  // namespace vidgen::VIDGEN_ISA
