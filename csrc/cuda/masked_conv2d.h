// masked_conv2d on the GPU for an image's first layer: few input channels, many output channels.
//
// Nothing here knows torch: pointers, sizes and strides in elements. What a kept tap is, is said in
// vidgen/ops/masked_conv2d.py.
#pragma once

#include "cuda/direct.h"

namespace vidgen::cuda {

// Besides kMaxInChannels, what the kernel's shared memory is laid out for; everything else may be of any size.
inline constexpr int kMaxKernel = 7;

// An image batch or a weight by its strides: (N, C, H, W) or (Cout, Cin, kh, kw).
struct Strides {
  int64_t outer, channel, row, column;
};

struct MaskedConv2dForward {
  const void *x, *weight, *bias;  // bias: contiguous, or null
  void* y;                        // contiguous or channels_last, 16-byte aligned
  Strides x_strides, weight_strides, y_strides;
  int64_t batch;
  int height, width;
  int in_channels, out_channels;
  int kernel_height, kernel_width;  // both odd; 'same' zero padding
  int dilation;
  int colors;        // 1: no channel groups
  bool mask_b;       // type B keeps the centre tap of a channel's own colour, type A does not
  bool interleaved;  // colour of channel c among C: c % colors, else c * colors / C
  Dtype dtype;       // of all four tensors; sums are float
};

// Enqueues y = masked_conv2d(x) on `stream`, which belongs to the current device. No two runs differ in a bit.
cudaError_t masked_conv2d_forward(const MaskedConv2dForward& problem, cudaStream_t stream);

}  // namespace vidgen::cuda
