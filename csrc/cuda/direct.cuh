// What the direct convolutions for few input channels have in common on the device: a thread's 8 output channels, and
// blocks that stay and walk over tiles.
#pragma once

#include "cuda/direct.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>

namespace vidgen::cuda {
namespace {

constexpr int kOctet = 8;          // channels of a thread
constexpr int kWarpChannels = 32;  // 4 octets
constexpr int kPixelWarps = 2;     // of a block
constexpr int kMaxThreads = 32 * kPixelWarps * 2;
constexpr int kBlocksPerMultiprocessor = 8;

__device__ inline float to_float(float v) { return v; }
__device__ inline float to_float(__half v) { return __half2float(v); }
__device__ inline float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ inline void from_float(float v, float& to) { to = v; }
__device__ inline void from_float(float v, __half& to) { to = __float2half_rn(v); }
__device__ inline void from_float(float v, __nv_bfloat16& to) { to = __float2bfloat16_rn(v); }

// Writes N neighbouring values in one access, or in several of 16 bytes.
template <typename T, int N>
__device__ inline void store(T* to, const float (&values)[N]) {
  struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Packet {
    T value[N];
  } packet;
#pragma unroll
  for (int i = 0; i < N; ++i) from_float(values[i], packet.value[i]);
  *reinterpret_cast<Packet*>(to) = packet;
}

template <int N>
__device__ inline void multiply_add(float (&sums)[kOctet][N], const float* weights, const float* pixels) {
  const float4 low = *reinterpret_cast<const float4*>(weights), high = *reinterpret_cast<const float4*>(weights + 4);
  const float weight[kOctet] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
  for (int c = 0; c < kOctet; ++c)
#pragma unroll
    for (int j = 0; j < N; ++j) sums[c][j] = fmaf(weight[c], pixels[j], sums[c][j]);
}

inline int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

// Enqueues `kernel`, whose one argument is `launch`, with as many blocks as fill the device and walk over its tiles.
template <typename Launch>
cudaError_t launch_walking(const void* kernel, Launch& launch, int out_channels, size_t shared_floats,
                           cudaStream_t stream) {
  int device = 0, multiprocessors = 0;
  if (cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  if (cudaError_t error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
      error != cudaSuccess)
    return error;
  const int channel_tiles = round_up(out_channels, launch.channel_tile) / launch.channel_tile;
  const int64_t most_blocks = static_cast<int64_t>(multiprocessors) * kBlocksPerMultiprocessor;
  const dim3 grid(static_cast<unsigned>(std::min(launch.tiles, most_blocks)), channel_tiles);
  const dim3 block(32 * kPixelWarps * launch.channel_tile / kWarpChannels);
  void* arguments[] = {&launch};
  return cudaLaunchKernel(kernel, grid, block, arguments, shared_floats * sizeof(float), stream);
}

}  // namespace
}  // namespace vidgen::cuda
