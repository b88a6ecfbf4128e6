// Tensors as kernels see them: an element type, a base pointer, strides.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vidgen {

enum class Dtype : int { f32, bf16, f64 };

// An image batch by base pointer and element strides; strides may be negative or zero.
struct ImageView {
  void* data;
  int64_t batch_stride, channel_stride, row_stride, column_stride;
};

// A batch of clips; stride is that of depth, height and width.
struct ClipView {
  void* data;
  int64_t batch_stride, channel_stride, stride[3];
};

}  // namespace vidgen
