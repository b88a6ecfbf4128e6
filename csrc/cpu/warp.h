// Backward warping of images by a flow field, and its gradients (vidgen/ops/warp.py has the formula).
#pragma once

#include "cpu/views.h"

namespace vidgen {

// The batch is absent on purpose: no choice may depend on it.
struct Warp {
  int64_t channels, height, width;
  bool border;  // positions are clamped to the image; else what lies outside is zero
  Dtype dtype;  // of the images; the flow is float, double for double
};

struct WarpTable {
  // A task is a row of one image: N * height of them.
  void (*forward)(const Warp&, ImageView x, ImageView flow, ImageView out, int64_t task);
  void (*grad_flow)(const Warp&, ImageView grad_output, ImageView x, ImageView flow, ImageView grad, int64_t task);

  // A task is some channels of one image, whole planes: the sums of a plane are made by one thread in raster order.
  // grad has the channels next to each other (channels_last), or planes without gaps.
  int64_t (*grad_x_tasks_per_image)(const Warp&, bool channels_last);
  size_t (*grad_x_scratch_bytes)(const Warp&, bool channels_last);
  void (*grad_x)(const Warp&, ImageView grad_output, ImageView flow, ImageView grad, bool channels_last, int64_t task,
                 void* scratch);
};

// One per instruction set that the build could compile; each lives in a namespace named after the level.
namespace baseline { extern const WarpTable warp; }
namespace avx2 { extern const WarpTable warp; }
namespace avx512 { extern const WarpTable warp; }

}  // namespace vidgen
