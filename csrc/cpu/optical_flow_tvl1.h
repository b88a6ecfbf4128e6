// TV-L1 optical flow between two images (vidgen/ops/optical_flow_tvl1.py has the energy and the iteration).
#pragma once

#include "cpu/optical_flow.h"

namespace vidgen {

// The batch is absent on purpose: no choice may depend on it.
struct OpticalFlowTvl1 {
  int64_t height, width, channels;  // of the images; 1 or 3 channels
  Pixels pixels;                    // f64 makes all arithmetic and the flow double, else they are float
  double tau, lambda, theta;
  int64_t levels;
  double scale_factor;
  int64_t warps, outer_iterations, inner_iterations;
  int64_t median;  // 0, 3 or 5
  double epsilon;
};

struct OpticalFlowTvl1Table {
  size_t (*workspace_bytes)(const OpticalFlowTvl1&);

  // One pair of images, in views whose data is that of the pair; init.data may be null, else it is a flow of the
  // kernel's arithmetic. flow is dense, (2, height, width). The workspace is 64-byte aligned.
  FlowStatus (*run)(const OpticalFlowTvl1&, ImageView prev, ImageView next, ImageView init, void* flow, void* workspace,
                    const Loop& loop);
};

// One per instruction set that the build could compile; each lives in a namespace named after the level.
namespace baseline { extern const OpticalFlowTvl1Table optical_flow_tvl1; }
namespace avx2 { extern const OpticalFlowTvl1Table optical_flow_tvl1; }
namespace avx512 { extern const OpticalFlowTvl1Table optical_flow_tvl1; }

}  // namespace vidgen
