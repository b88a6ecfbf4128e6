// What the direct convolutions for few input channels have in common, as far as the host sees it. Nothing here knows
// torch.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace vidgen::cuda {

enum class Dtype : int { f32, f16, bf16 };

// What the kernels' shared memory and registers are laid out for.
inline constexpr int kMaxInChannels = 4;

}  // namespace vidgen::cuda
