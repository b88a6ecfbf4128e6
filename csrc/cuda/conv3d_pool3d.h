// conv3d_pool3d on the GPU for a network's first layer: few input channels, many output channels.
//
// Nothing here knows torch: pointers, sizes and strides in elements. The formula is in vidgen/ops/conv3d_pool3d.py.
#pragma once

#include "cuda/direct.h"

namespace vidgen::cuda {

// Besides kMaxInChannels: weights of one output channel (input channels x taps), and voxels of a window along an axis.
inline constexpr int kMaxWeights = 196;
inline constexpr int kMaxPool = 4;

// Clips or a weight by their strides: (N, C, D, H, W) or (Cout, Cin, kd, kh, kw).
struct Strides {
  int64_t outer, channel, plane, row, column;
};

struct Size {
  int depth, height, width;
};

struct Conv3dPool3dForward {
  const void *x, *weight, *bias;  // bias: contiguous, or null
  void* y;                        // contiguous or channels_last_3d, 16-byte aligned
  Strides x_strides, weight_strides, y_strides;
  int64_t batch;
  int in_channels, out_channels;
  Size x_size, z_size, y_size;  // of the input, of the convolution, of the pooled output
  Size kernel;
  Size padding;  // zeros before the first voxel; those behind the last follow from z_size
  Size pool;
  bool relu;
  Dtype dtype;  // of all four tensors; sums are float
};

// Enqueues y = conv3d_pool3d(x) on `stream`, which belongs to the current device. No two runs differ in a bit.
cudaError_t conv3d_pool3d_forward(const Conv3dPool3dForward& problem, cudaStream_t stream);

}  // namespace vidgen::cuda
