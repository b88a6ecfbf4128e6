// Drawing from a causal network on the GPU: one launch runs some rows of a sampling program for a batch.
//
// Nothing here knows torch: pointers and sizes. Numbers are float or double, all of them alike.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "sampling_program.h"

namespace vidgen::cuda {

struct SampleCausal {
  const char* script;   // on the device, 16-byte aligned; sample_causal_script.h
  const void* packed;   // weights
  void* state;          // the buffers, one after the other: [rows][columns][images][channels]
  void* canvas;         // [images][channels][height][width]
  const bool* known;    // as the canvas
  const double* noise;  // as the canvas, two numbers each
  void* recorded;       // [images][parameters][steps][height][width], or null
  int64_t images, channels, height, width, steps, parameters;
  SamplingHead head;
  bool doubles;
};

// Enqueues it on `stream`, which belongs to the current device, and waits for nothing. `meetings` is 4 bytes on the
// device. No two runs differ in a bit, and no image depends on those beside it. cudaErrorNotSupported: the device has
// no cooperative launches.
cudaError_t sample_causal(const SampleCausal& problem, unsigned* meetings, cudaStream_t stream);

}  // namespace vidgen::cuda
