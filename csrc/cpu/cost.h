// What cost models are made of: cycles of one core, from constants measured once on Zen 4 (64-byte vectors: one
// multiply-add a cycle; 32 bytes: two).
#pragma once

#include "panels.h"

namespace vidgen::VIDGEN_ISA {

constexpr double kProduct = kVectorBytes == 64 ? 1 : .5;  // a vector multiply-add
constexpr double kLatency = 4;                            // of one; a tile's sums take turns
constexpr double kTileVisit = 20;                         // entering a register tile
constexpr double kMove = 2.5;                             // a vector through staging or storing
constexpr double kTransform = 3;                          // a vector of V or M through its transform
constexpr double kStreamBytes = 8;                        // from the last cache, per cycle

// Cycles of multiplying `rows` rows by a panel set of `out_channels`, `depth` steps deep.
template <class S>
double multiply_cycles(double rows, double depth, int64_t out_channels) {
  Panels<S> panels(out_channels);
  double tiles = double(divide_up(int64_t(rows), kTileRows)), height = rows / tiles, cycles = 0;
  if (rows == 0) return 0;
  auto panel = [&](double vectors) {
    double step = height * vectors * kProduct, loads = (height + vectors) / 2;
    step = step > loads ? step : loads;
    step = step > kLatency ? step : kLatency;
    double compute = tiles * (depth * step + kTileVisit + height * vectors);
    double stream = depth * vectors * kVectorBytes / kStreamBytes;
    return compute > stream ? compute : stream;
  };
  cycles += double(panels.count - 1) * panel(kTileVectors);
  return cycles + panel(panels.vectors(panels.count - 1));
}

template <class E>
double vectors_of(double pixels, int64_t channels) {
  return pixels * double(divide_up(channels, kLanes<E>));
}

}  // namespace vidgen::VIDGEN_ISA
