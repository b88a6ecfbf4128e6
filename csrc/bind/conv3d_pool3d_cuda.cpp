// conv3d_pool3d_cuda: the CUDA C++ kernel as an op of its own, which the selector in vidgen/ops/conv3d_pool3d.py calls.
// Checks, allocation, stream; built even where torch has no CUDA, loaded only where it has.
#include "bind/cuda_tensors.h"
#include "cuda/conv3d_pool3d.h"

namespace vidgen {
namespace {

cuda::Strides strides_of(const Tensor& t) { return {t.stride(0), t.stride(1), t.stride(2), t.stride(3), t.stride(4)}; }

Tensor forward(Tensor x, Tensor weight, std::optional<Tensor> bias, std::vector<int64_t> padding,
               std::string activation, std::vector<int64_t> pool, bool ceil_mode) {
  check(x.is_cuda(), "x must be a CUDA tensor");
  check(x.dim() == 5, "x must be 5-d (N, C, D, H, W), got shape ", sizes_of(x));
  check(weight.dim() == 5, "weight must be 5-d (out, in, depth, height, width), got shape ", sizes_of(weight));
  check(x.size(1) == weight.size(1), "x must have ", weight.size(1), " channels (weight's in-channels), got shape ",
        sizes_of(x));
  check(padding.size() == 6, "padding must be six numbers, before and after each axis, got ", padding.size());
  check(pool.size() == 3, "pool must be three numbers, got ", pool.size());
  check(activation == "relu" || activation == "identity", "activation must be 'relu' or 'identity', got '", activation,
        "'");
  check_like("weight", weight, x);

  int x_size[3], z_size[3], kernel[3], before[3], window[3];
  int64_t y_size[3], weights = weight.size(1);
  for (int i = 0; i < 3; ++i) {
    const int64_t taps = weight.size(2 + i), behind = padding[2 * i + 1];
    check(taps >= 1 && padding[2 * i] >= 0 && padding[2 * i] < taps && behind >= 0 && behind < taps,
          "padding must be from 0 to kernel size - 1, got ", padding[2 * i], " and ", behind, " for ", taps, " taps");
    check(pool[i] >= 1 && pool[i] <= cuda::kMaxPool, "pool must be windows of 1 to ", cuda::kMaxPool, " per axis, got ",
          pool[i]);
    weights *= taps;
    x_size[i] = extent("x's size along an axis", x.size(2 + i));
    kernel[i] = extent("weight's size along an axis", taps);
    before[i] = static_cast<int>(padding[2 * i]);
    window[i] = static_cast<int>(pool[i]);
    z_size[i] = x_size[i] + before[i] + static_cast<int>(behind) - kernel[i] + 1;
    check(z_size[i] > 0, "x must be at least as large as the kernel, got ", x_size[i], " for ", taps, " taps");
    y_size[i] = (z_size[i] + (ceil_mode ? window[i] - 1 : 0)) / window[i];
    check(y_size[i] > 0, "pool must fit into the convolution's output, got ", window[i], " for ", z_size[i]);
  }
  check(weight.size(1) <= cuda::kMaxInChannels && weights <= cuda::kMaxWeights, "the CUDA kernel is for 1 to ",
        cuda::kMaxInChannels, " input channels and at most ", cuda::kMaxWeights, " weights per output channel, got ",
        "weight ", sizes_of(weight));

  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const std::optional<Tensor> dense = dense_bias(bias, weight, x);
  Tensor y = empty_clip(x.size(0), weight.size(0), y_size, x, is_channels_last(x));
  if (y.numel() == 0) return y;

  const auto size_of = [](const auto(&size)[3]) {
    return cuda::Size{static_cast<int>(size[0]), static_cast<int>(size[1]), static_cast<int>(size[2])};
  };
  cuda::Conv3dPool3dForward p{};
  p.x = x.const_data_ptr();
  p.weight = weight.const_data_ptr();
  p.bias = dense ? dense->const_data_ptr() : nullptr;
  p.y = y.mutable_data_ptr();
  p.x_strides = strides_of(x);
  p.weight_strides = strides_of(weight);
  p.y_strides = strides_of(y);
  p.batch = x.size(0);
  p.in_channels = static_cast<int>(weight.size(1));
  p.out_channels = extent("weight's out-channels", weight.size(0));
  p.x_size = size_of(x_size);
  p.z_size = size_of(z_size);
  p.y_size = size_of(y_size);
  p.kernel = size_of(kernel);
  p.padding = size_of(before);
  p.pool = size_of(window);
  p.relu = activation == "relu";
  p.dtype = kernel_dtype(x.scalar_type());
  const cudaError_t error = cuda::conv3d_pool3d_forward(p, stream_of(x));
  check(error == cudaSuccess, "the CUDA kernel of conv3d_pool3d did not start: ", cudaGetErrorString(error));
  return y;
}

}  // namespace
}  // namespace vidgen

STABLE_TORCH_LIBRARY_FRAGMENT(vidgen, m) {
  m.def(
      "conv3d_pool3d_cuda(Tensor x, Tensor weight, Tensor? bias, int[] padding, str activation, int[] pool, "
      "bool ceil_mode) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(vidgen, CUDA, m) { m.impl("conv3d_pool3d_cuda", TORCH_BOX(&vidgen::forward)); }
