// Optical flow by dense inverse search (vidgen/ops/optical_flow_dis.py has the mathematics).
#pragma once

#include "cpu/optical_flow.h"

namespace vidgen {

// The batch is absent on purpose: no choice may depend on it.
struct OpticalFlowDis {
  int64_t height, width, channels;  // of the images; 1 or 3 channels
  Pixels pixels;                    // f64 makes all arithmetic and the flow double, else they are float
  int64_t finest_scale;
  int64_t patch_size;  // 4, 8 or 16
  int64_t patch_stride, descent_iterations, refinement_iterations;
  double alpha, delta, gamma;
};

struct OpticalFlowDisTable {
  size_t (*workspace_bytes)(const OpticalFlowDis&);

  // One pair of images, in views whose data is that of the pair; init.data may be null, else it is a flow of the
  // kernel's arithmetic. flow is dense, (2, height, width). The workspace is 64-byte aligned.
  FlowStatus (*run)(const OpticalFlowDis&, ImageView prev, ImageView next, ImageView init, void* flow, void* workspace,
                    const Loop& loop);
};

// One per instruction set that the build could compile; each lives in a namespace named after the level.
namespace baseline { extern const OpticalFlowDisTable optical_flow_dis; }
namespace avx2 { extern const OpticalFlowDisTable optical_flow_dis; }
namespace avx512 { extern const OpticalFlowDisTable optical_flow_dis; }

}  // namespace vidgen
