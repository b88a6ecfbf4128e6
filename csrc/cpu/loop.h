// How a kernel that has many steps, one after the other, spreads each of them over threads that it knows nothing about.
#pragma once

#include <cstdint>

namespace vidgen {

// run calls task(context, i) once for every i in [0, tasks), in any order, and returns when all are done. No result may
// depend on `threads`, which says how many tasks there should be to keep all of them busy.
struct Loop {
  int64_t threads;
  void* crew;
  void (*run)(void* crew, int64_t tasks, void (*task)(void* context, int64_t index), void* context);
};

}  // namespace vidgen
