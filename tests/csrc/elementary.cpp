// csrc/cpu/elementary.h as a library for Python: each function over an array whose length is a multiple of the lanes.
#define VIDGEN_ISA under_test
#include "cpu/elementary.h"

namespace isa = vidgen::under_test;

#define FUNCTION(name, type)                                                                                 \
  extern "C" void name##_##type(const type* x, type* y, int64_t n) {                                         \
    for (int64_t i = 0; i < n; i += isa::kLanes<type>) isa::store(y + i, isa::name<type>(isa::load(x + i))); \
  }
#define BOTH(name) FUNCTION(name, float) FUNCTION(name, double)

BOTH(exp)
BOTH(expm1)
BOTH(log)
BOTH(log1p)
BOTH(sigmoid)
BOTH(tanh)
