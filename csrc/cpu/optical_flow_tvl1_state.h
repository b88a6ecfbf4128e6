// What an iteration of TV-L1 reads and writes: ten numbers for each pixel.
#pragma once

#include "cpu/optical_flow_planes.h"

namespace vidgen::VIDGEN_ISA {

// The flow (u, v), the dual variables of its two components along both axes, and the linearised data term: the residual
// is rho + gx u + gy v, and `inverse` is 1 / |g|^2.
enum Part { kU, kV, kPux, kPuy, kPvx, kPvy, kRho, kGx, kGy, kInverse, kParts };

// A row's ten parts lie side by side, so that a row is one piece of memory: 26 kB for 640 pixels of float. Each part
// has a line before its first number and at least one number after its last; all of it is written once, with zeros, so
// that whole vectors may be read and computed anywhere in a row.
template <class T>
struct State {
  T* data;
  int64_t height, width, pitch;

  T* row(int64_t y) const { return data + (y + 1) * kParts * pitch; }
  T* part(int64_t y, Part which) const { return row(y) + which * pitch; }
};

// The row above the first is zero: no dual variable points in from there.
template <class T>
int64_t state_size(int64_t height, int64_t width) {
  return (height + 1) * kParts * pitch_of<T>(width) + 2 * kLine<T>;
}

template <class T>
State<T> state_in(T* memory, int64_t height, int64_t width) {
  return {memory + kLine<T>, height, width, pitch_of<T>(width)};
}

}  // namespace vidgen::VIDGEN_ISA
