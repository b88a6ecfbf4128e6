// What a member of a team remembers while it runs a sampling program, and the memory for it.
#pragma once

#include "cpu/sample_causal_linear.h"

namespace vidgen::VIDGEN_ISA {

// What has been written to, or read from, a buffer since the last meeting: a range of channels, dealt to members as its
// own panels. channels = -1: several ranges, or all of them by every member.
struct Used {
  int64_t meeting;
  int32_t start, channels;

  // By others than the member whose share of this range it is?
  bool by_others(int64_t now, int32_t at, int32_t count) const {
    return meeting == now && (start != at || channels != count);
  }
  void add(int64_t now, int32_t at, int32_t count) {
    if (meeting == now && (start != at || channels != count)) {
      channels = -1;
    } else {
      *this = {now, at, count};
    }
  }
};

// A member's memory, in the order in which it lies.
template <class T>
struct Room {
  const T **found, **above;
  T *zeros, **into, **base;
  double* weights;
  Piece* pieces;
  Used *written, *seen;
  int32_t *lines, *columns, *active, *active_line;

  // Returns the bytes that all of it takes; `memory` may be null.
  size_t lay_out(const SamplingCall& call, char* memory) {
    const SamplingProgram& p = call.program;
    int64_t rows = 0, pointers = 0, most_pieces = 0, widest = p.parameters;
    auto raise = [](int64_t& most, int64_t to) { most = to > most ? to : most; };
    for (int64_t i = 0; i < p.instruction_count; ++i) {
      const SamplingInstruction& instruction = p.instructions[i];
      raise(widest, instruction.channels);
      if (!instruction.linear) continue;
      const int64_t block = rows_of_block<T>(instruction.depth);
      raise(rows, block);
      raise(pointers, block * instruction.reads);
      raise(most_pieces, instruction.reads + instruction.depth / kDepthOfChain);
    }
    int64_t places = p.height;
    for (int64_t b = 0; b < p.buffer_count; ++b) {
      raise(widest, p.buffers[b].channels);
      raise(places, p.buffers[b].width);
    }
    size_t bytes = 0;
    auto take = [&]<class E>(E*& pointer, int64_t count) {
      pointer = reinterpret_cast<E*>(memory + bytes);
      bytes += (size_t(count) * sizeof(E) + 63) / 64 * 64;
    };
    take(found, pointers);
    take(above, rows);
    take(into, rows);
    take(zeros, widest);
    take(base, p.buffer_count);
    take(weights, p.parameters + kLanes<double>);
    take(pieces, most_pieces);
    take(written, p.buffer_count);
    take(seen, p.buffer_count);
    take(lines, places);
    take(columns, places);
    take(active, p.instruction_count);
    take(active_line, p.instruction_count);
    zero_count = widest;
    return bytes;
  }
  int64_t zero_count;
};

}  // namespace vidgen::VIDGEN_ISA
