// A sampling program as the persistent kernel reads it: what is done, one stage after the other, with every place
// looked up beforehand. It is the same for every batch, so that one script serves all: places count in elements of one
// image.
#pragma once

#include <cstdint>

namespace vidgen::cuda {

// Channel c of an image is element at * images + image * pitch + start + c of the state; at = -1: zeros are read.
struct ScriptSite {
  int64_t at;
  int32_t start, pitch;
};

enum class StageKind : int32_t { tiles, line, pixels, branch, jump };

// Who waits for whom before a stage.
enum class Wait : int32_t { nobody, block, all };

struct ScriptStage {
  StageKind kind;
  Wait wait;
  int32_t count;     // operations; what is done to pixels
  int32_t places;    // or pixels; the row whose pixels a branch looks at
  int32_t channels;  // of all operations
  int32_t halves;    // 2: the tiles of both halves of the channels that lie half of them apart are one block's
  int64_t first;     // operation or pixel; the stage to go on with: after a jump, or a branch where the row is known
};

// What is done to pixels, all that apply, in this order.
enum : int32_t { kRecord = 1, kDraw = 2, kEnter = 4 };

struct ScriptPixel {
  int32_t row, column, step, unused;
  ScriptSite parameters, input;
};

// Operations of a stage are applied to a tile one after the other. Those after the first are elementwise.
constexpr int32_t kSum = -1;
constexpr int kSlots = 8;

struct ScriptOperation {
  int32_t function;    // SamplingFunction, or kSum
  int32_t operand[2];  // which of the tile's last kSlots results it reads; -1: its site
  int32_t reads, depth, slices;
  int32_t has_bias, has_initial;
  double constants[2];
  int64_t weight_at, first_slice;
  int64_t first_site;     // [place][destination, initial, reads], or [place][destination, first, second operand]
  int32_t sites, unused;  // of a place
};

// A run of depth inside one read.
struct ScriptSlice {
  int32_t read, from, length, depth;
};

// Lengths of slices: at pixels a lane each, in lines two.
constexpr int kSlice = 32;
constexpr int kLineSlice = 64;

// The beginning of a script's memory; what else it has begins at these bytes.
struct ScriptHeader {
  int64_t stages, stage_count, operations, pixels, sites, slices;
};

// Weights of a linear instruction: panels of [depth][kPanel], then the bias; channels that are missing are zeros.
constexpr int kPanel = 4;

inline int64_t panels_of(int64_t channels) { return (channels + kPanel - 1) / kPanel; }
inline int64_t packed_numel(int64_t depth, int64_t channels) { return panels_of(channels) * kPanel * (depth + 1); }

}  // namespace vidgen::cuda
