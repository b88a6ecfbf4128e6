// Weights of a sampling program in the layout of the persistent kernel, on the host.
#pragma once

#include <vector>

#include "cuda/sample_causal_script.h"
#include "sampling_program.h"

namespace vidgen::cuda {

// Sets where each instruction's numbers lie; returns how many there are in all.
inline int64_t place_weights(std::vector<SamplingInstruction>& instructions) {
  int64_t numbers = 0;
  for (SamplingInstruction& i : instructions) {
    if (!i.linear) continue;
    i.weight_at = numbers;
    numbers += packed_numel(i.depth, i.channels);
  }
  return numbers;
}

// numbers: of one instruction after the other the weight [depth][channels], then the bias if there is one.
template <typename T>
void pack_weights(const std::vector<SamplingInstruction>& instructions, const T* numbers, T* packed) {
  for (const SamplingInstruction& i : instructions) {
    if (!i.linear) continue;
    T* const to = packed + i.weight_at;
    const int64_t lanes = panels_of(i.channels) * kPanel;
    for (int64_t channel = 0; channel < lanes; ++channel) {
      const bool exists = channel < i.channels;
      for (int64_t depth = 0; depth < i.depth; ++depth)
        to[(channel / kPanel * i.depth + depth) * kPanel + channel % kPanel] =
            exists ? numbers[depth * i.channels + channel] : T(0);
      to[lanes * i.depth + channel] = exists && i.has_bias ? numbers[i.depth * i.channels + channel] : T(0);
    }
    numbers += (int64_t(i.depth) + i.has_bias) * i.channels;
  }
}

}  // namespace vidgen::cuda
