// What the persistent kernel is launched with, and how its blocks meet.
#pragma once

#include <cuda_runtime.h>

#include "cuda/sample_causal.h"
#include "cuda/sample_causal_script.h"

// What a thread does between two looks at a number that others change.
#ifndef VIDGEN_LOOK_AGAIN
#define VIDGEN_LOOK_AGAIN()
#endif

namespace vidgen::cuda {
namespace {

// Of a block: threads may have 128 registers each, 255 where numbers are double.
template <typename T>
constexpr int kWarps = sizeof(T) == 8 ? 8 : 16;
template <typename T>
constexpr int kThreads = 32 * kWarps<T>;
constexpr int kTileImages = 8;
constexpr unsigned kAll = 0xffffffffu;

template <typename T>
struct Launch {
  const char* script;
  const T* packed;
  T *state, *canvas, *recorded;
  const bool* known;
  const double* noise;
  int64_t images, channels, height, width, steps, parameters;
  SamplingHead head;
  unsigned* meetings;
};

__host__ __device__ inline int64_t panel_count(int64_t channels) { return (channels + kPanel - 1) / kPanel; }

// Where an image's first channel of a site lies; not to be asked where there are only zeros.
template <typename T>
__device__ T* address(const Launch<T>& launch, const ScriptSite& site, int64_t image) {
  return launch.state + site.at * launch.images + site.start + image * site.pitch;
}

// What this block remembers of meetings: arrivals of all blocks that make the next one.
struct Meetings {
  unsigned* arrived;
  unsigned awaited;
};

// Returns when all blocks have come; what they wrote before is then seen by all.
//
// One number counts the arrivals at all meetings of a launch, so nothing has to be reset, and a block pays for one
// atomic addition and for looking until the last has come (cooperative_groups' grid.sync() does more). The barrier of
// the block before the fence hands its threads' writes over to the thread that publishes them, the one after it what
// that thread has seen to all of them. State is read past L1, weights and script are never written.
__device__ inline void meet(Meetings& meetings) {
  meetings.awaited += gridDim.x;
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    atomicAdd(meetings.arrived, 1u);
    // the count may pass 2^32
    while (int(*static_cast<volatile unsigned*>(meetings.arrived) - meetings.awaited) < 0) VIDGEN_LOOK_AGAIN();
    __threadfence();
  }
  __syncthreads();
}

}  // namespace
}  // namespace vidgen::cuda
