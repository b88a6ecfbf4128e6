// Runs csrc/cuda/masked_conv2d.cu on the CPU (see emulation.h).
//
//   emulation N CIN COUT H W KH KW DILATION COLORS MASK_B INTERLEAVED DTYPE CHANNELS_LAST BIAS < tensors > y
//
// reads x (N, CIN, H, W; in memory N, H, W, CIN if CHANNELS_LAST), weight (COUT, CIN, KH, KW) and, if BIAS, bias (COUT)
// as raw values of DTYPE (0: fp32, 1: fp16, 2: bf16) and writes y in the layout of x.
#define KERNEL_SOURCE "cuda/masked_conv2d.cu"
#include "emulation.h"

static vidgen::cuda::Strides image_strides(int64_t channels, int64_t height, int64_t width, bool channels_last) {
  if (channels_last) return {channels * height * width, 1, width * channels, channels};
  return {channels * height * width, height * width, width, 1};
}

int main(int argc, char** argv) {
  if (argc != 15) return 2;
  int a[14];
  for (int i = 0; i < 14; ++i) a[i] = std::atoi(argv[i + 1]);
  const auto [n, cin, cout, h, w, kh, kw, dilation, colors, mask_b, interleaved, dtype, channels_last, bias] = a;
  const size_t item = dtype == 0 ? 4 : 2;
  const std::vector<char> x = read_values(item * n * cin * h * w), weight = read_values(item * cout * cin * kh * kw);
  const std::vector<char> bias_values = read_values(bias ? item * cout : 0);
  std::vector<char> y(item * n * cout * h * w, '\xff');

  vidgen::cuda::MaskedConv2dForward p{};
  p.x = x.data();
  p.weight = weight.data();
  p.bias = bias ? bias_values.data() : nullptr;
  p.y = y.data();
  p.x_strides = image_strides(cin, h, w, channels_last);
  p.weight_strides = {static_cast<int64_t>(cin) * kh * kw, static_cast<int64_t>(kh) * kw, kw, 1};
  p.y_strides = image_strides(cout, h, w, channels_last);
  p.batch = n;
  p.height = h;
  p.width = w;
  p.in_channels = cin;
  p.out_channels = cout;
  p.kernel_height = kh;
  p.kernel_width = kw;
  p.dilation = dilation;
  p.colors = colors;
  p.mask_b = mask_b;
  p.interleaved = interleaved;
  p.dtype = static_cast<vidgen::cuda::Dtype>(dtype);
  if (vidgen::cuda::masked_conv2d_forward(p, nullptr) != cudaSuccess) return 3;
  return std::fwrite(y.data(), 1, y.size(), stdout) == y.size() ? 0 : 4;
}
