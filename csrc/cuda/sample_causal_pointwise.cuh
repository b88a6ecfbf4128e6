// Elementwise functions of a sampling program.
#pragma once

#include "cuda/sample_causal_launch.cuh"

namespace vidgen::cuda {
namespace {

// The comparisons are written so that a NaN comes through, as it does in PyTorch.
template <typename T>
__device__ T applied(SamplingFunction function, T first, T second, T a, T b) {
  using F = SamplingFunction;
  switch (function) {
    case F::copy:
      return a;
    case F::neg:
      return -a;
    case F::relu:
      return a < 0 ? T(0) : a;
    case F::elu:
      return a > 0 ? a : first * expm1(a);
    case F::tanh:
      return tanh(a);
    case F::sigmoid:
      return 1 / (1 + exp(-a));
    case F::silu:
      return a / (1 + exp(-a));
    case F::leaky_relu:
      return a < 0 ? a * first : a;
    case F::exp:
      return exp(a);
    case F::abs:
      return fabs(a);
    case F::clamp:
      a = a < first ? first : a;
      return a > second ? second : a;
    case F::scale:
      return a * first + second;
    case F::add:
      return a + b;
    case F::sub:
      return a - b;
    case F::mul:
      return a * b;
    case F::div:
      return a / b;
    case F::maximum:
      return a != a || a > b ? a : b;
    case F::minimum:
      return a != a || a < b ? a : b;
    default:
      return a;
  }
}

// The operations of a stage from `next` on at one number of a tile. `slots` are the lane's own, kThreads<T> apart.
template <typename T>
__device__ void apply_chain(const Launch<T>& launch, const ScriptOperation* operations, const ScriptSite* sites,
                            const ScriptStage& stage, int next, int64_t place, int64_t image, int channel, T* slots) {
  for (int k = next; k < stage.count; ++k) {
    const ScriptOperation& o = operations[stage.first + k];
    const ScriptSite* const at = sites + o.first_site + place * o.sites;
    T value[2];
    for (int r = 0; r < 2; ++r) {
      const int slot = o.operand[r];
      value[r] = T(0);
      if (r >= o.reads) continue;
      if (slot >= 0) {
        value[r] = slots[slot * kThreads<T>];
      } else if (at[1 + r].at >= 0) {
        value[r] = __ldcg(address(launch, at[1 + r], image) + channel);
      }
    }
    const T result =
        applied(static_cast<SamplingFunction>(o.function), T(o.constants[0]), T(o.constants[1]), value[0], value[1]);
    slots[k % kSlots * kThreads<T>] = result;
    address(launch, at[0], image)[channel] = result;
  }
}

}  // namespace
}  // namespace vidgen::cuda
