// Drawing from a causal network: a sampling program's numbers in the layout of this machine's kernel, and one call,
// which runs some rows of it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/team.h"
#include "cpu/views.h"
#include "sampling_program.h"

namespace vidgen {

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

}  // namespace vidgen
