// The CPU kernel of masked_conv2d: its problem, its plan and the table that each instruction set fills.
//
// Nothing here knows torch. The caller (csrc/bind/masked_conv2d.cpp) owns memory and threads: it asks for a
// plan, packs the weights, then runs the plan's tasks in any order on any threads. Which task a piece of
// work belongs to, and in what order a task adds things up, depends on the problem alone. So the bits of a
// sample depend neither on the thread count nor on the batch around it.
#pragma once

#include "cpu/views.h"

namespace vidgen {

// One masked convolution. The batch is absent on purpose: no choice may depend on it.
struct MaskedConv2d {
  int64_t in_channels, out_channels;  // of the tensor that is read and of the one that is written
  int64_t height, width;
  int64_t kernel_height, kernel_width;  // both odd; 'same' zero padding
  int64_t dilation;
  int64_t colors;    // 1: no channel groups
  bool mask_b;       // type B keeps the centre tap of a channel's own colour, type A does not
  bool interleaved;  // colour of channel c among C: c % colors, else c * colors / C (contiguous)
  // The adjoint: reads the gradient of the output, writes that of the input. The caller mirrors both images
  // (negative strides), which turns the adjoint into a causal convolution again; what remains is that the
  // weight's two channel axes change places, and with them the roles in the colour mask.
  bool adjoint;
  Dtype dtype;
};

enum class Form : int { direct, winograd };

struct MaskedConv2dPlan {
  Form form;
  int64_t block_rows;       // output rows that one task computes
  int64_t tasks_per_image;  // a batch of N has N * tasks_per_image tasks
  size_t scratch_bytes;     // of one task; 64-byte aligned
  size_t packed_bytes;      // of the weights that `form` reads
  double multiply_adds;     // scalar ones, of one image; transforms apart, what tiles compute beyond the edge included
};

// What one instruction set offers; chosen once, when the library is loaded.
struct MaskedConv2dTable {
  // The cost model: bytes over bandwidth plus FLOPs over peak, from committed constants.
  MaskedConv2dPlan (*plan)(const MaskedConv2d&, bool direct_only);

  // Packing of an (O, I, kh, kw) contiguous weight for `form`. Tasks may run concurrently.
  int64_t (*pack_tasks)(const MaskedConv2d&, Form);
  size_t (*packed_bytes)(const MaskedConv2d&, Form);
  void (*pack)(const MaskedConv2d&, Form, const void* weight, void* packed, int64_t task);

  // Computes task `task` of [0, N * tasks_per_image). `bias` may be null; it has the dtype of the images.
  void (*forward)(const MaskedConv2d&, const MaskedConv2dPlan&, ImageView x, const void* packed, const void* bias,
                  ImageView y, int64_t task, void* scratch);

  // Gradient of the weight, an (O, I, kh, kw) contiguous tensor of the images' dtype; masked taps get exact
  // zeros. Each task owns a part of the weight and walks the whole batch in a fixed order.
  int64_t (*grad_weight_tasks)(const MaskedConv2d&);
  size_t (*grad_weight_scratch_bytes)(const MaskedConv2d&);
  void (*grad_weight)(const MaskedConv2d&, int64_t batch, ImageView x, ImageView grad_output, void* grad_weight,
                      int64_t task, void* scratch);
};

// One per instruction set that the build could compile; each lives in a namespace named after the level.
namespace baseline { extern const MaskedConv2dTable masked_conv2d; }
namespace avx2 { extern const MaskedConv2dTable masked_conv2d; }
namespace avx512 { extern const MaskedConv2dTable masked_conv2d; }
namespace avx512_bf16 { extern const MaskedConv2dTable masked_conv2d; }

}  // namespace vidgen
