// What the kernels of all methods of optical flow are told about pixels, and what they answer.
#pragma once

#include "cpu/loop.h"
#include "cpu/views.h"

namespace vidgen {

enum class Pixels : int { u8, f32, f64 };

enum class FlowStatus : int { done, bad_prev, bad_next, bad_init };

}  // namespace vidgen
