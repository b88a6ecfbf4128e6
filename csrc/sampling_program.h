// A sampling program (vidgen/sampling/program.py says what each of its words means) and a head, as the kernels of every
// room read them. Nothing here knows torch, a processor or a GPU.
#pragma once

#include <cstdint>

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

}  // namespace vidgen
