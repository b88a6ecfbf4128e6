// The CPU kernel of conv3d_pool3d: its problem, its forms and the table that each instruction set fills.
//
// Nothing here knows torch. The caller (csrc/bind/conv3d_pool3d.cpp) owns memory and threads: it chooses a form, packs
// the weights for it, asks for a schedule and runs its tasks in any order on any threads. The form depends on the
// problem alone. The schedule also knows batch and threads, but says only which outputs a task computes: how an output
// is added up never depends on it, so neither do its bits.
//
// Kernels write channels next to each other (NDHWC), and Winograd forms read them so. The direct form reads clips of
// any strides, and where nothing is pooled and sums have the clip's type writes columns next to each other (NCDHW) as
// well. `convert` brings other layouts in and out.
#pragma once

#include "cpu/views.h"

namespace vidgen {

// One convolution with what follows it. The batch is absent on purpose: no choice of form may depend on it. Axes are
// depth, height, width.
struct Conv3dPool3d {
  int64_t in_channels, out_channels;  // of the tensor that is read and of the one that is written
  int64_t in_size[3];
  int64_t kernel[3];
  int64_t before[3];    // zeros in front of each axis; those behind follow from out_size
  int64_t out_size[3];  // of the convolution
  int64_t pool[3];      // windows, also their stride; 1: none
  int64_t pooled_size[3];
  bool relu;
  bool adjoint;          // the weight's channel axes change places and its taps run backwards
  int64_t row_channels;  // of the weight's second axis: more than used where a part of an adjoint is computed
  Dtype dtype;

  bool pools() const { return pool[0] * pool[1] * pool[2] > 1; }
};

// winograd2: F(2,3) along every axis with three taps. winograd4: F(4,3) along height and width, F(2,3) along depth.
// planes: F(4,3), or F(2,5), along height and width; every tap of depth multiplied.
enum class Conv3dForm : int { direct, winograd2, winograd4, planes };

// Outputs of a Winograd form's tile along height, and along width.
inline int tile_side(const Conv3dPool3d& p, Conv3dForm form) {
  return form == Conv3dForm::winograd2 || p.kernel[1] == 5 ? 2 : 4;
}

struct Conv3dSchedule {
  int64_t tiles;           // Winograd: tiles of one task
  int64_t block[3];        // direct: outputs of one task
  int64_t panels, groups;  // Winograd: panels of output channels of one task; how many tasks share its tiles
  int64_t tasks;
  size_t scratch_bytes;  // of one task; 64-byte aligned
};

// How the gradients of weight and bias are cut into tasks: by the shapes alone, so their bits do not depend on threads.
struct Conv3dGradWeightPlan {
  int64_t tap_rows;                             // kd * kh
  int64_t group_channels, groups;               // of the input
  int64_t block[4], blocks[4], all_blocks;      // of outputs: clips, depth, height, width
  int64_t out_range, group_range, part_blocks;  // of one task
  int64_t out_ranges, group_ranges, parts, tasks;
  bool unrolled;  // a column's run of taps is written out in whole vectors
  // Sums: [part][output channel][group][row of taps][tap and channel], and a vector for the bias behind the groups.
  int64_t row_pitch, group_pitch, channel_pitch, pixel_pitch;
  size_t sums_bytes, scratch_bytes;  // of all tasks; of one, 64-byte aligned
};

// Where results go. With `grad` the kernel writes, instead of pooled activations, the gradient of what the activation
// reads: `grad` (of the pooled size) where a window has its maximum, zeros elsewhere.
struct Conv3dTarget {
  ClipView out;
  const ClipView* grad;
};

struct Conv3dPool3dTable {
  // The cost model: bytes over bandwidth plus FLOPs over peak, from committed constants.
  Conv3dForm (*choose)(const Conv3dPool3d&, bool direct_only);
  bool (*supports)(const Conv3dPool3d&, Conv3dForm);
  // Pooling happens in the task that convolves; false: windows straddle tiles, and `finish` does it in a second pass.
  bool (*pools_within)(const Conv3dPool3d&, Conv3dForm);
  double (*multiply_adds)(const Conv3dPool3d&, Conv3dForm);  // scalar ones, of one clip, transforms apart

  // Packing of an (O, I, kd, kh, kw) contiguous weight. Tasks may run concurrently.
  int64_t (*pack_tasks)(const Conv3dPool3d&, Conv3dForm);
  size_t (*pack_scratch_bytes)(const Conv3dPool3d&, Conv3dForm);
  size_t (*packed_bytes)(const Conv3dPool3d&, Conv3dForm);
  void (*pack)(const Conv3dPool3d&, Conv3dForm, const void* weight, void* packed, int64_t task, void* scratch);
  // For a weight that one call packs: the output channels that a thread packs into memory of its own and computes
  // before it packs the next. All of them: the weight is better packed as a whole, by all threads for all.
  int64_t (*packed_at_once)(const Conv3dPool3d&, Conv3dForm, int64_t batch, int64_t threads, int64_t cache_bytes);

  Conv3dSchedule (*schedule)(const Conv3dPool3d&, Conv3dForm, int64_t batch, int64_t threads, int64_t cache_bytes);
  // Computes one task. `bias` may be null; it has the dtype of the clips.
  void (*run)(const Conv3dPool3d&, Conv3dForm, const Conv3dSchedule&, int64_t batch, const ClipView& x,
              const void* packed, const void* bias, const Conv3dTarget&, int64_t task, void* scratch);
  // Activation and pooling (or its gradient) of a finished convolution z; as many tasks as z has planes of windows.
  void (*finish)(const Conv3dPool3d&, const ClipView& z, const Conv3dTarget&, int64_t task);
  // Copies plane `task` of N * depth between layouts; fast where one of them has channels next to each other.
  void (*convert)(Dtype, const ClipView& from, const ClipView& to, int64_t channels, const int64_t (&size)[3],
                  int64_t task);

  Conv3dGradWeightPlan (*plan_grad_weight)(const Conv3dPool3d&, int64_t batch);
  // One of the plan's tasks fills its part of `sums`. `grad` is that of z.
  void (*grad_weight)(const Conv3dPool3d&, const Conv3dGradWeightPlan&, int64_t batch, const ClipView& x,
                      const ClipView& grad, void* sums, int64_t task, void* scratch);
  // Adds the parts of output channel `task` up, to a contiguous weight and a bias.
  void (*combine_grad_weight)(const Conv3dPool3d&, const Conv3dGradWeightPlan&, const void* sums, void* weight,
                              void* bias, int64_t task, void* scratch);
};

// One per instruction set that the build could compile; each lives in a namespace named after the level.
namespace baseline { extern const Conv3dPool3dTable conv3d_pool3d; }
namespace avx2 { extern const Conv3dPool3dTable conv3d_pool3d; }
namespace avx512 { extern const Conv3dPool3dTable conv3d_pool3d; }
namespace avx512_bf16 { extern const Conv3dPool3dTable conv3d_pool3d; }

}  // namespace vidgen
