// What every CUDA binding asks of its tensors.
#pragma once

#include "bind/tensors.h"
#include "cuda/direct.h"

namespace vidgen {

inline cuda::Dtype kernel_dtype(ScalarType dtype) {
  check(dtype == ScalarType::Float || dtype == ScalarType::Half || dtype == ScalarType::BFloat16,
        "the CUDA kernel computes float32, float16 and bfloat16 only");
  return dtype == ScalarType::Float  ? cuda::Dtype::f32
         : dtype == ScalarType::Half ? cuda::Dtype::f16
                                     : cuda::Dtype::bf16;
}

inline void check_like(const char* name, const Tensor& t, const Tensor& x) {
  check(t.is_cuda() && t.get_device_index() == x.get_device_index(), name, " must be on the CUDA device of x");
  check(t.scalar_type() == x.scalar_type(), name, " must have the dtype of x");
}

// The bias as kernels read it, null where there is none. Call it with x's device current.
inline std::optional<Tensor> dense_bias(const std::optional<Tensor>& bias, const Tensor& weight, const Tensor& x) {
  if (!bias.has_value()) return std::nullopt;
  check_like("bias", *bias, x);
  check(bias->dim() == 1 && bias->size(0) == weight.size(0), "bias must have shape (", weight.size(0), "), got ",
        sizes_of(*bias));
  return torch::stable::contiguous(*bias);
}

inline int extent(const char* name, int64_t size) {
  check(size <= 1 << 30, name, " must be at most 2^30, got ", size);
  return static_cast<int>(size);
}

inline cudaStream_t stream_of(const Tensor& x) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

}  // namespace vidgen
