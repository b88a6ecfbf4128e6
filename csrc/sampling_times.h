// When an instruction of a sampling program runs, and what it makes then: its line in an image row, its column at an
// image column. Without symbols of its own, for it is compiled for several processors.
#pragma once

#include <cstdint>

#include "sampling_program.h"

#define VIDGEN_SAMPLING_INLINE inline __attribute__((always_inline))

namespace vidgen {

class SamplingTimes {
 public:
  // Rows run from first_row, columns from first_column to before width + last_lag.
  int64_t first_row = 0, first_column = 0, last_lag = 0;

  VIDGEN_SAMPLING_INLINE explicit SamplingTimes(const SamplingProgram& program) : p_(program) {
    for (int64_t k = 0; k < p_.instruction_count; ++k) {
      const SamplingInstruction& i = p_.instructions[k];
      if (i.lag[0] < first_row) first_row = i.lag[0];
      if (i.by_row) continue;
      if (i.lag[1] < first_column) first_column = i.lag[1];
      if (i.lag[1] > last_lag) last_lag = i.lag[1];
    }
  }

  // -1: none.
  VIDGEN_SAMPLING_INLINE int32_t line_of(const SamplingInstruction& i, int64_t row) const {
    return position(row - i.lag[0], i.stride[0], p_.buffers[i.destination].height, i.period[0], i.phase[0]);
  }
  VIDGEN_SAMPLING_INLINE int32_t column_of(const SamplingInstruction& i, int64_t column) const {
    return position(column - i.lag[1], i.stride[1], p_.buffers[i.destination].width, i.period[1], i.phase[1]);
  }

 private:
  static VIDGEN_SAMPLING_INLINE int32_t position(int64_t shifted, int32_t stride, int32_t size, int32_t period,
                                                 int32_t phase) {
    if (shifted < 0) return -1;
    // asked for at every pixel, and most strides are 1
    const int32_t there = int32_t(shifted), found = stride == 1 ? there : there / stride;
    if (found * stride != there || found >= size) return -1;
    return period == 1 || found % period == phase ? found : -1;
  }

  const SamplingProgram& p_;
};

}  // namespace vidgen
