// Linear instructions: sums over what an instruction reads at some places, for all images.
//
// What the reads find at a place is gathered into one row of `depth` numbers, for as many places and images as make
// some 128 kB; then each panel of channels (one vector to kTileVectors) takes all these rows, 256 of depth at a time
// (16 kB of weights, which the rows after the first find in L1). A number of the result is bias + initial, plus the
// sums over depth 0 ... 255, 256 ... 511 and so on, each a chain of its own: the same additions in the same order for
// a lone pixel, a line, a diagonal, and whatever the batch and the team are.
//
// A lone row has no use for a weight but one, so it runs as fast as weights arrive. For many rows the tile of gemm.h
// does two FMAs a cycle.
#pragma once

#include "cpu/sample_causal_places.h"

namespace vidgen::VIDGEN_ISA {

constexpr int64_t kDepthOfChain = 256;
constexpr int64_t kGathered = 128 * 1024;

template <class T>
VIDGEN_INLINE int64_t rows_gathered(int64_t depth) {
  const int64_t rows = kGathered / int64_t(sizeof(T)) / (depth > 0 ? depth : 1);
  return rows < kTallestTile ? kTallestTile : rows > 512 ? 512 : rows / kTileRows * kTileRows;
}

// Numbers of one instruction in memory: panels of [depth][width] weights, then the bias, in whole vectors.
template <class T, class W>
struct PackedLinear {
  int64_t depth, lanes;
  VIDGEN_INLINE explicit PackedLinear(const SamplingInstruction& i)
      : depth(i.depth), lanes(Panels<T>(i.channels).vectors * kLanes<T>) {}
  VIDGEN_INLINE int64_t weight_bytes() const { return (depth * lanes * int64_t(sizeof(W)) + 63) / 64 * 64; }
  VIDGEN_INLINE int64_t bytes() const { return weight_bytes() + (lanes * int64_t(sizeof(T)) + 63) / 64 * 64; }
};

template <class T, class W>
void pack_linear(const SamplingInstruction& i, const T* numbers, char* packed) {
  const PackedLinear<T, W> layout(i);
  const Panels<T> panels(i.channels);
  W* weight = reinterpret_cast<W*>(packed);
  for (int64_t panel = 0; panel < panels.count; ++panel) {
    const int64_t begin = panels.begin(panel) * kLanes<T>, end = panels.begin(panel + 1) * kLanes<T>;
    for (int64_t k = 0; k < i.depth; ++k)
      for (int64_t c = begin; c < end; ++c)
        *weight++ = from_scalar<W>(c < i.channels ? Acc<W>(numbers[k * i.channels + c]) : Acc<W>(0));
  }
  T* bias = reinterpret_cast<T*>(packed + layout.weight_bytes());
  for (int64_t c = 0; c < layout.lanes; ++c)
    bias[c] = i.has_bias && c < i.channels ? numbers[i.depth * i.channels + c] : T(0);
}

template <class T>
VIDGEN_INLINE void copy_channels(T* to, const T* from, int64_t count) {
  int64_t c = 0;
  for (; c + kLanes<T> <= count; c += kLanes<T>) store(to + c, load(from + c));
  for (; c < count; ++c) to[c] = from[c];
}

// c[r] += a[r] * panel, r < rows; a's rows are `depth` long.
template <class T, class W>
VIDGEN_INLINE void multiply_panel(const T* a, int64_t rows, int64_t depth, const W* panel, int vectors, T* c) {
  const int64_t width = vectors * kLanes<T>;
  for (int64_t k = 0; k < depth; k += kDepthOfChain) {
    const Run run{k, kDepthOfChain < depth - k ? kDepthOfChain : depth - k};
    for_each_tile(rows, tile_rows(vectors), [&](int64_t first, int64_t height) {
      const T* row[kTallestTile];
      for (int64_t i = 0; i < height; ++i) row[i] = a + (first + i) * depth;
      Tiles<T, W>::dense[(height - 1) * kTileVectors + vectors - 1](row, &run, 1, panel, c + first * width, width, true,
                                                                    nullptr);
    });
    panel += run.length * width;
  }
}

}  // namespace vidgen::VIDGEN_ISA
