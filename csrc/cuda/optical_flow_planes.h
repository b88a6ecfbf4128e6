// What the kernels of all methods of optical flow are told about images on a GPU. Nothing here knows torch.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace vidgen::cuda {

enum class Pixels : int { u8, f32, f64 };

// A batch of images, or of flows, by base pointer and element strides.
struct PixelView {
  const void* data;
  int64_t pair_stride, channel_stride, row_stride, column_stride;
};

}  // namespace vidgen::cuda
