// Runs KERNEL_SOURCE on the CPU: a CUDA thread is a thread, __syncthreads is a barrier, blocks take turns.
//
// Compiled by g++ under AddressSanitizer it finds accesses outside of the tensors and of the shared memory asked for,
// under ThreadSanitizer missing barriers. What it cannot show is anything about a GPU's speed or its compiler.
//
// Every kernel of a file takes one argument, of the type KERNEL_LAUNCH (`Launch` unless told otherwise). Blocks of a
// launch without shared memory have nothing to say to each other, and no barrier: a few threads play all of theirs.
#pragma once

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

#ifndef KERNEL_LAUNCH
#define KERNEL_LAUNCH Launch
#endif
#include KERNEL_SOURCE

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
  const auto entry = reinterpret_cast<void (*)(const KERNEL_LAUNCH)>(const_cast<void*>(kernel));
  const KERNEL_LAUNCH launch = *static_cast<const KERNEL_LAUNCH*>(arguments[0]);
  const unsigned players = shared_bytes > 0 ? block.x : 2;
  std::vector<std::thread> threads;
  for (unsigned player = 0; player < players; ++player)
    threads.emplace_back([=] {
      for (unsigned by = 0; by < grid.y; ++by)
        for (unsigned bx = 0; bx < grid.x; ++bx) {
          blockIdx = {bx, by, 0};
          if (player == 0) std::memset(static_cast<void*>(shared), 0xff, shared_bytes);  // NaN: uninitialised
          if (shared_bytes > 0) __syncthreads();
          for (unsigned i = player; i < block.x; i += players) {
            threadIdx = {i, 0, 0};
            entry(launch);
          }
          if (shared_bytes > 0) __syncthreads();
        }
    });
  for (std::thread& thread : threads) thread.join();
  ASAN_UNPOISON_MEMORY_REGION(shared, sizeof(shared));
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t) {
  std::memset(data, value, bytes);
  return cudaSuccess;
}

}  // extern "C"

static std::vector<char> read_values(size_t bytes) {
  std::vector<char> values(bytes);
  if (std::fread(values.data(), 1, bytes, stdin) != bytes) std::exit(2);
  return values;
}
