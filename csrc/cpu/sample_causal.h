// Drawing from a causal network: a sampling program (vidgen/sampling/program.py says what each of its words means), its
// numbers in the layout of this machine's kernel, and one call, which runs some rows of it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/team.h"
#include "cpu/views.h"

namespace vidgen {

struct SamplingIndex {
  int32_t step, offset, divisor;
};

struct SamplingRead {
  int32_t source, start, count;
  SamplingIndex row, column;
};

struct SamplingBuffer {
  int32_t channels, height, width, rows, left, columns;
  bool everywhere;  // a constant of one position, which is read at every place
};

// In the order of _FUNCTIONS in vidgen/sampling/native.py.
enum class SamplingFunction : int32_t {
  copy,
  neg,
  relu,
  elu,
  tanh,
  sigmoid,
  silu,
  leaky_relu,
  exp,
  abs,
  clamp,
  scale,
  add,
  sub,
  mul,
  div,
  maximum,
  minimum,
  count
};

struct SamplingInstruction {
  bool linear, by_row;
  int32_t stride[2], lag[2], step, period[2], phase[2];
  int32_t destination, start, channels;  // writes `channels` channels from `start` of buffer `destination`
  int32_t first_read, reads;
  SamplingFunction function;
  double constants[2];
  int32_t depth;    // channels of all reads together
  int32_t initial;  // buffer that a sum begins with; -1: none
  bool has_bias;
  int64_t weight_at;  // bytes from the beginning of the packed numbers; the bias stands behind the weight
};

struct SamplingProgram {
  int64_t channels, height, width, steps, parameters, wave;
  const SamplingBuffer* buffers;
  int64_t buffer_count;
  const SamplingInstruction* instructions;
  int64_t instruction_count;
  const SamplingRead* reads;
  const int32_t* inputs;   // by step
  const int32_t* outputs;  // by step: buffer, first channel
};

struct SamplingHead {
  bool mixture;      // of discretised logistics, all channels in one step; else a softmax over the levels
  int64_t mixtures;  // logistics of the mixture
  int64_t levels;
  double temperature;
  bool quantize;
};

// Numbers are float, or double; weights may be bfloat16 where numbers are float.
struct SamplingNumbers {
  Dtype dtype;
  bool narrow_weights;
};

struct SamplingCall {
  SamplingProgram program;
  SamplingHead head;
  SamplingNumbers numbers;
  const char* packed;
  void* state;          // the buffers, one after the other: [rows][columns][images][channels]
  void* canvas;         // [images][channels][height][width]
  const bool* known;    // as the canvas
  const double* noise;  // as the canvas, two numbers each
  void* parameters;     // [images][parameters][steps][height][width], or null
  int64_t images, first, last, top;
  bool whole_rows;
  bool by_images;  // members share the images, not the channels
};

struct SampleCausalTable {
  // Memory of a linear instruction's numbers, a multiple of 64.
  int64_t (*packed_bytes)(const SamplingInstruction&, SamplingNumbers);
  // numbers: the weight [depth][channels], then the bias if there is one.
  void (*pack)(const SamplingInstruction&, SamplingNumbers, const void* numbers, char* packed);
  size_t (*scratch_bytes)(const SamplingCall&);  // of one member; 64-byte aligned
  // What one member of a team does of a call; all of them together do all of it.
  void (*run)(const SamplingCall&, Team&, int member, void* scratch);
};

// One per instruction set that the build could compile; each lives in a namespace named after the level.
namespace baseline { extern const SampleCausalTable sample_causal; }
namespace avx2 { extern const SampleCausalTable sample_causal; }
namespace avx512 { extern const SampleCausalTable sample_causal; }
namespace avx512_bf16 { extern const SampleCausalTable sample_causal; }

}  // namespace vidgen
