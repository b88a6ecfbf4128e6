// Optical flow by dense inverse search on the GPU. Nothing here knows torch: pointers, sizes and strides in elements.
// The mathematics is in vidgen/ops/optical_flow_dis.py.
#pragma once

#include "cuda/optical_flow_planes.h"

#include <cstddef>
#include <cstdint>

namespace vidgen::cuda {

// An axis of a grid has 65535 blocks, of 8 rows.
inline constexpr int kMostRows = 65535 * 8;

struct OpticalFlowDis {
  PixelView prev, next;
  PixelView init;  // (N, 2, H, W) of the arithmetic's type; data is null for a start from zero
  void* flow;      // (N, 2, H, W), dense
  int64_t pairs;
  int height, width, channels;  // 1 or 3 channels
  Pixels pixels;                // f64 makes all arithmetic and the flow double, else they are float
  int finest_scale;
  int patch_size;  // 4, 8 or 16
  int patch_stride, descent_iterations, refinement_iterations;
  double alpha, delta, gamma;
};

// Memory for one pair, a multiple of 256 bytes.
size_t optical_flow_dis_workspace(const OpticalFlowDis& problem);

// Enqueues the flow of all pairs on `stream`, which belongs to the current device, `together` of them at a time in a
// workspace of that many pairs. Nothing waits for the device. No bit of a pair depends on those around it.
cudaError_t optical_flow_dis(const OpticalFlowDis& problem, int64_t together, void* workspace, cudaStream_t stream);

}  // namespace vidgen::cuda
