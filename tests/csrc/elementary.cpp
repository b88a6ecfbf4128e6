// csrc/cpu/elementary.h as a library for Python: each function over an array whose length is a multiple of the lanes.
#define VIDGEN_ISA under_test
#include "cpu/elementary.h"

namespace isa = vidgen::under_test;

#define FUNCTION(name, type)                                                                                 \
  extern "C" void name##_##type(const type* x, type* y, int64_t n) {                                         \
    for (int64_t i = 0; i < n; i += isa::kLanes<type>) isa::store(y + i, isa::name<type>(isa::load(x + i))); \
  }
#define BOTH(name) FUNCTION(name, float) FUNCTION(name, double)

// the parts of the exponential under names of their own
namespace vidgen::under_test {
template <class T>
Vec<T> exp(Vec<T> x) {
  return exponential<T>(x).exp();
}
template <class T>
Vec<T> expm1(Vec<T> x) {
  return exponential<T>(x).expm1();
}
template <class T>
Vec<T> quotient(Vec<T> x) {
  return exponential<T>(x).quotient;
}
}  // namespace vidgen::under_test

BOTH(exp)
BOTH(expm1)
BOTH(quotient)
BOTH(log)
BOTH(sigmoid)
BOTH(tanh)
