// masked_conv2d_cuda: the CUDA C++ kernel as an op of its own, which the selector in vidgen/ops/masked_conv2d.py calls.
// Checks, allocation, stream; built even where torch has no CUDA, loaded only where it has.
#include "bind/cuda_tensors.h"
#include "cuda/masked_conv2d.h"

namespace vidgen {
namespace {

cuda::Strides strides_of(const Tensor& t) { return {t.stride(0), t.stride(1), t.stride(2), t.stride(3)}; }

Tensor forward(Tensor x, Tensor weight, std::optional<Tensor> bias, std::string mask, int64_t colors,
               std::string color_layout, int64_t dilation) {
  check(x.is_cuda(), "x must be a CUDA tensor");
  check(x.dim() == 4, "x must be 4-d (N, C, H, W), got shape ", sizes_of(x));
  check(weight.dim() == 4, "weight must be 4-d (out, in, height, width), got shape ", sizes_of(weight));
  check(x.size(1) == weight.size(1), "x must have ", weight.size(1), " channels (weight's in-channels), got shape ",
        sizes_of(x));
  check(mask == "A" || mask == "B", "mask must be 'A' or 'B', got '", mask, "'");
  check(color_layout == "interleaved" || color_layout == "blocked",
        "color_layout must be 'interleaved' or 'blocked', got '", color_layout, "'");
  check(weight.size(2) % 2 == 1 && weight.size(3) % 2 == 1, "weight must have odd kernel sizes, got ", weight.size(2),
        " x ", weight.size(3));
  check(weight.size(1) <= cuda::kMaxInChannels && weight.size(2) <= cuda::kMaxKernel &&
            weight.size(3) <= cuda::kMaxKernel,
        "the CUDA kernel is for 1 to ", cuda::kMaxInChannels, " input channels and kernels up to ", cuda::kMaxKernel,
        ", got weight ", sizes_of(weight));
  check(dilation >= 1, "dilation must be at least 1, got ", dilation);
  check(colors >= 1 && weight.size(0) % colors == 0 && weight.size(1) % colors == 0, "colors (", colors,
        ") must divide the weight's channels, got ", weight.size(0), " and ", weight.size(1));
  check_like("weight", weight, x);
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const std::optional<Tensor> dense = dense_bias(bias, weight, x);
  Tensor y = empty_image(x.size(0), weight.size(0), x.size(2), x.size(3), x, is_channels_last(x));
  if (y.numel() == 0) return y;

  cuda::MaskedConv2dForward p{};
  p.x = x.const_data_ptr();
  p.weight = weight.const_data_ptr();
  p.bias = dense ? dense->const_data_ptr() : nullptr;
  p.y = y.mutable_data_ptr();
  p.x_strides = strides_of(x);
  p.weight_strides = strides_of(weight);
  p.y_strides = strides_of(y);
  p.batch = x.size(0);
  p.height = extent("x's height", x.size(2));
  p.width = extent("x's width", x.size(3));
  p.in_channels = static_cast<int>(weight.size(1));
  p.out_channels = extent("weight's out-channels", weight.size(0));
  p.kernel_height = static_cast<int>(weight.size(2));
  p.kernel_width = static_cast<int>(weight.size(3));
  p.dilation = extent("dilation", dilation);
  p.colors = static_cast<int>(colors);
  p.mask_b = mask == "B";
  p.interleaved = color_layout == "interleaved";
  p.dtype = kernel_dtype(x.scalar_type());
  const cudaError_t error = cuda::masked_conv2d_forward(p, stream_of(x));
  check(error == cudaSuccess, "the CUDA kernel of masked_conv2d did not start: ", cudaGetErrorString(error));
  return y;
}

}  // namespace
}  // namespace vidgen

STABLE_TORCH_LIBRARY_FRAGMENT(vidgen, m) {
  m.def(
      "masked_conv2d_cuda(Tensor x, Tensor weight, Tensor? bias, str mask, int colors, str color_layout, "
      "int dilation) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(vidgen, CUDA, m) { m.impl("masked_conv2d_cuda", TORCH_BOX(&vidgen::forward)); }
