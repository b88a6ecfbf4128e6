// Where the members of a team work: places of a grid, and panels of channels.
#pragma once

#include <cstring>

#include "cpu/gemm.h"
#include "cpu/sample_causal.h"

namespace vidgen::VIDGEN_ISA {

// Positions (line, column) at which an instruction is run, all with one call.
struct Places {
  const int32_t* line;
  const int32_t* column;
  int64_t count;
};

VIDGEN_INLINE int32_t at(const SamplingIndex& index, int32_t n) {
  const int32_t scaled = n * index.step + index.offset;
  return index.divisor == 1 ? scaled : scaled / index.divisor;
}

// Channels come in panels of at most kTileVectors vectors; their number is even if there are several, so that two
// members have equal shares.
template <class T>
struct Panels {
  int64_t vectors, count;
  VIDGEN_INLINE explicit Panels(int64_t channels) {
    vectors = (channels + kLanes<T> - 1) / kLanes<T>;
    count = (vectors + kTileVectors - 1) / kTileVectors;
    if (count > 1) count += count % 2;
  }
  VIDGEN_INLINE int64_t begin(int64_t panel) const { return vectors * panel / count; }  // in vectors
  VIDGEN_INLINE int64_t vectors_of(int64_t panel) const { return begin(panel + 1) - begin(panel); }
};

// What a member has of `count` things.
struct Share {
  int64_t begin, end;
  VIDGEN_INLINE Share(int64_t count, int member, int members)
      : begin(count * member / members), end(count * (member + 1) / members) {}
};

}  // namespace vidgen::VIDGEN_ISA
