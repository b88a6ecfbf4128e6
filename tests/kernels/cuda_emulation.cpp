// Runs csrc/cuda/masked_conv2d.cu on the CPU: a CUDA thread is a thread, __syncthreads is a barrier, blocks take turns.
//
// Compiled by g++ under AddressSanitizer it finds accesses outside of the tensors and of the shared memory asked for,
// under ThreadSanitizer missing barriers. What it cannot show is anything about a GPU's speed or its compiler.
//
//   emulation N CIN COUT H W KH KW DILATION COLORS MASK_B INTERLEAVED DTYPE CHANNELS_LAST BIAS < tensors > y
//
// reads x (N, CIN, H, W; in memory N, H, W, CIN if CHANNELS_LAST), weight (COUT, CIN, KH, KW) and, if BIAS, bias (COUT)
// as raw values of DTYPE (0: fp32, 1: fp16, 2: bf16) and writes y in the layout of x.
#include <cuda_runtime.h>

#include <barrier>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size)
#define ASAN_UNPOISON_MEMORY_REGION(address, size)
#endif

static thread_local uint3 threadIdx, blockIdx;
static dim3 blockDim, gridDim;
static std::unique_ptr<std::barrier<>> all_threads;
static void __syncthreads() { all_threads->arrive_and_wait(); }

#ifndef __launch_bounds__
#define __launch_bounds__(...)
#endif

#include "cuda/masked_conv2d.cu"

namespace vidgen::cuda {
namespace {
alignas(16) float shared[12 * 1024];  // 48 KB, what a block may have without asking
}  // namespace
}  // namespace vidgen::cuda

extern "C" {

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

// one multiprocessor, so that blocks have to walk over several tiles
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = 1;
  return cudaSuccess;
}

cudaError_t cudaLaunchKernel(const void* kernel, dim3 grid, dim3 block, void** arguments, size_t shared_bytes,
                             cudaStream_t) {
  using namespace vidgen::cuda;
  if (shared_bytes > sizeof(shared) || block.x > 1024) return cudaErrorInvalidConfiguration;
  blockDim = block;
  gridDim = grid;
  all_threads = std::make_unique<std::barrier<>>(block.x);
  ASAN_POISON_MEMORY_REGION(shared, sizeof(shared));
  ASAN_UNPOISON_MEMORY_REGION(shared, shared_bytes);
  const auto entry = reinterpret_cast<void (*)(const Launch)>(const_cast<void*>(kernel));
  const Launch launch = *static_cast<const Launch*>(arguments[0]);
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < block.x; ++i)
    threads.emplace_back([=] {
      threadIdx = {i, 0, 0};
      for (unsigned by = 0; by < grid.y; ++by)
        for (unsigned bx = 0; bx < grid.x; ++bx) {
          blockIdx = {bx, by, 0};
          if (i == 0) std::memset(static_cast<void*>(shared), 0xff, shared_bytes);  // NaN: uninitialised
          __syncthreads();
          entry(launch);
          __syncthreads();
        }
    });
  for (std::thread& thread : threads) thread.join();
  ASAN_UNPOISON_MEMORY_REGION(shared, sizeof(shared));
  return cudaSuccess;
}

}  // extern "C"

static std::vector<char> read_values(size_t bytes) {
  std::vector<char> values(bytes);
  if (std::fread(values.data(), 1, bytes, stdin) != bytes) std::exit(2);
  return values;
}

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
