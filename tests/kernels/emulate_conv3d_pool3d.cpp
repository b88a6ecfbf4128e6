// Runs csrc/cuda/conv3d_pool3d.cu on the CPU (see emulation.h).
//
//   emulation N CIN COUT D H W KD KH KW PADDING{6} POOL{3} CEIL RELU DTYPE CHANNELS_LAST BIAS < tensors > y
//
// reads x (N, CIN, D, H, W; in memory N, D, H, W, CIN if CHANNELS_LAST), weight (COUT, CIN, KD, KH, KW) and, if BIAS,
// bias (COUT) as raw values of DTYPE (0: fp32, 1: fp16, 2: bf16) and writes y in the layout of x. PADDING is before and
// after, for depth, height and width.
#define KERNEL_SOURCE "cuda/conv3d_pool3d.cu"
#include "emulation.h"

static vidgen::cuda::Strides clip_strides(int64_t channels, const int64_t (&size)[3], bool channels_last) {
  const int64_t row = size[2], plane = size[1] * row, all = size[0] * plane;
  if (channels_last) return {channels * all, 1, plane * channels, row * channels, channels};
  return {channels * all, all, plane, row, 1};
}

static vidgen::cuda::Size size_of(const int64_t (&size)[3]) {
  return {static_cast<int>(size[0]), static_cast<int>(size[1]), static_cast<int>(size[2])};
}

int main(int argc, char** argv) {
  if (argc != 24) return 2;
  int a[23];
  for (int i = 0; i < 23; ++i) a[i] = std::atoi(argv[i + 1]);
  const int n = a[0], cin = a[1], cout = a[2], ceil_mode = a[18], dtype = a[20], channels_last = a[21], bias = a[22];
  int64_t x_size[3], kernel[3], padding[3], pool[3], z_size[3], y_size[3];
  for (int i = 0; i < 3; ++i) {
    x_size[i] = a[3 + i];
    kernel[i] = a[6 + i];
    padding[i] = a[9 + 2 * i];
    pool[i] = a[15 + i];
    z_size[i] = x_size[i] + padding[i] + a[10 + 2 * i] - kernel[i] + 1;
    y_size[i] = (z_size[i] + (ceil_mode ? pool[i] - 1 : 0)) / pool[i];
  }
  const size_t item = dtype == 0 ? 4 : 2, taps = kernel[0] * kernel[1] * kernel[2];
  const std::vector<char> x = read_values(item * n * cin * x_size[0] * x_size[1] * x_size[2]);
  const std::vector<char> weight = read_values(item * cout * cin * taps);
  const std::vector<char> bias_values = read_values(bias ? item * cout : 0);
  std::vector<char> y(item * n * cout * y_size[0] * y_size[1] * y_size[2], '\xff');

  vidgen::cuda::Conv3dPool3dForward p{};
  p.x = x.data();
  p.weight = weight.data();
  p.bias = bias ? bias_values.data() : nullptr;
  p.y = y.data();
  p.x_strides = clip_strides(cin, x_size, channels_last);
  p.weight_strides = clip_strides(cin, kernel, false);
  p.y_strides = clip_strides(cout, y_size, channels_last);
  p.batch = n;
  p.in_channels = cin;
  p.out_channels = cout;
  p.x_size = size_of(x_size);
  p.z_size = size_of(z_size);
  p.y_size = size_of(y_size);
  p.kernel = size_of(kernel);
  p.padding = size_of(padding);
  p.pool = size_of(pool);
  p.relu = a[19];
  p.dtype = static_cast<vidgen::cuda::Dtype>(dtype);
  if (vidgen::cuda::conv3d_pool3d_forward(p, nullptr) != cudaSuccess) return 3;
  return std::fwrite(y.data(), 1, y.size(), stdout) == y.size() ? 0 : 4;
}
