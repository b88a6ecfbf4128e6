// Grey levels of pixels, the same for every method of optical flow.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace vidgen::cuda {
namespace {

// Of 0 to 255, from 1 or 3 channels of S; floating-point pixels are in [0, 1].
template <typename S, typename T>
__device__ inline T grey_of(const S* pixel, int64_t channel_stride, int channels) {
  const auto level = [&](int channel) { return static_cast<T>(pixel[channel * channel_stride]); };
  const T grey = channels == 1 ? level(0) : T(0.299) * level(0) + T(0.587) * level(1) + T(0.114) * level(2);
  return sizeof(S) == 1 ? grey : grey * T(255);
}

}  // namespace
}  // namespace vidgen::cuda
