// Elementwise functions of a sampling program on a run of channels.
#pragma once

#include "cpu/elementary.h"
#include "cpu/sample_causal_places.h"

namespace vidgen::VIDGEN_ISA {

// out[c] = f(a[c], b[c]); a whole vector at a time, then the rest.
template <class T, class F>
VIDGEN_INLINE void for_channels(const T* a, const T* b, T* out, int64_t count, F f) {
  constexpr int64_t lanes = kLanes<T>;
  int64_t c = 0;
  for (; c + lanes <= count; c += lanes) store(out + c, f(load(a + c), load(b + c)));
  if (c < count) store(out + c, f(load(a + c, count - c), load(b + c, count - c)), count - c);
}

// e^x by way of e^(x/2), whose argument may be as large as that of a result that overflows.
template <class T>
VIDGEN_INLINE Vec<T> whole_exp(Vec<T> x) {
  constexpr Acc<T> most = sizeof(Acc<T>) == 4 ? 88 : 709;
  const Vec<T> root = exponential<T>(at_most<T>(x * Acc<T>(0.5), most)).exp();
  return root * root;
}

// The comparisons are written so that a NaN comes through, as it does in PyTorch.
template <class T>
void apply(SamplingFunction function, const double* constants, const T* a, const T* b, T* out, int64_t count) {
  using V = Vec<T>;
  using F = SamplingFunction;
  const T first = T(constants[0]), second = T(constants[1]);
  const V zero{};
  switch (function) {
    case F::copy:
      return for_channels(a, a, out, count, [](V x, V) { return x; });
    case F::neg:
      return for_channels(a, a, out, count, [](V x, V) { return -x; });
    case F::relu:
      return for_channels(a, a, out, count, [=](V x, V) { return x < 0 ? zero : x; });
    case F::elu:
      return for_channels(a, a, out, count,
                          [=](V x, V) { return x > 0 ? x : first * exponential<T>(at_most<T>(x, 0)).expm1(); });
    case F::tanh:
      return for_channels(a, a, out, count, [](V x, V) { return tanh<T>(x); });
    case F::sigmoid:
      return for_channels(a, a, out, count, [](V x, V) { return sigmoid<T>(x); });
    case F::silu:
      return for_channels(a, a, out, count, [](V x, V) { return x * sigmoid<T>(x); });
    case F::leaky_relu:
      return for_channels(a, a, out, count, [=](V x, V) { return x < 0 ? x * first : x; });
    case F::exp:
      return for_channels(a, a, out, count, [](V x, V) { return whole_exp<T>(x); });
    case F::abs:
      return for_channels(a, a, out, count, [](V x, V) { return absolute<T>(x); });
    case F::clamp:
      return for_channels(a, a, out, count, [=](V x, V) { return at_most<T>(at_least<T>(x, first), second); });
    case F::scale:
      return for_channels(a, a, out, count, [=](V x, V) { return x * first + second; });
    case F::add:
      return for_channels(a, b, out, count, [](V x, V y) { return x + y; });
    case F::sub:
      return for_channels(a, b, out, count, [](V x, V y) { return x - y; });
    case F::mul:
      return for_channels(a, b, out, count, [](V x, V y) { return x * y; });
    case F::div:
      return for_channels(a, b, out, count, [](V x, V y) { return x / y; });
    case F::maximum:
      return for_channels(a, b, out, count, [](V x, V y) { return (x != x) | (x > y) ? x : y; });
    case F::minimum:
      return for_channels(a, b, out, count, [](V x, V y) { return (x != x) | (x < y) ? x : y; });
    case F::count:
      return;
  }
}

}  // namespace vidgen::VIDGEN_ISA
