// TV-L1 optical flow on the GPU (vidgen/ops/optical_flow_tvl1.py has the energy and the iteration).
//
// Nothing here knows torch: pointers, sizes and strides in elements.
#pragma once

#include "cuda/optical_flow_planes.h"

#include <cstddef>

namespace vidgen::cuda {

struct OpticalFlowTvl1 {
  PixelView prev, next;
  PixelView init;  // a flow of the kernel's arithmetic; data null: none
  void* flow;      // (pairs, 2, height, width), contiguous
  int64_t pairs;
  int height, width, channels;  // of the images; 1 or 3 channels
  Pixels pixels;                // f64 makes all arithmetic and the flow double, else they are float
  double tau, lambda, theta;
  int levels;  // at most 64
  double scale_factor;
  int warps, outer_iterations, inner_iterations;
  int median;  // 0, 3 or 5
  double epsilon;
};

// Of as many pairs as the problem has.
size_t optical_flow_tvl1_workspace_bytes(const OpticalFlowTvl1& problem);

// Enqueues the whole op on `stream`, which belongs to the current device, and waits for nothing. `workspace` is
// 256-byte aligned. No two runs differ in a bit, and no pair's flow depends on the pairs beside it.
cudaError_t optical_flow_tvl1(const OpticalFlowTvl1& problem, void* workspace, cudaStream_t stream);

}  // namespace vidgen::cuda
