// A sampling program from its words (vidgen/sampling/native.py writes them), checked: whatever the words are, a program
// that passes reads and writes inside of its buffers.
#pragma once

#include <cstring>
#include <vector>

#include "bind/check.h"
#include "sampling_program.h"

namespace vidgen {

class DecodedProgram {
 public:
  DecodedProgram(const int64_t* words, int64_t count) : next_(words), end_(words + count) {
    header();
    for (int64_t b = 0; b < p_.buffer_count; ++b) buffer();
    for (int64_t step = 0; step < p_.steps; ++step) draw();
    for (int64_t i = 0; i < p_.instruction_count; ++i) instruction();
    check(next_ == end_, "program has ", end_ - next_, " words too many");
    p_.buffers = buffers_.data();
    p_.instructions = instructions_.data();
    p_.reads = reads_.data();
    p_.inputs = inputs_.data();
    p_.outputs = outputs_.data();
  }

  const SamplingProgram& program() const { return p_; }
  std::vector<SamplingInstruction>& instructions() { return instructions_; }

  // Elements of the buffers for so many images.
  int64_t state_numel(int64_t images) const {
    int64_t sum = 0;
    for (const SamplingBuffer& b : buffers_) sum += int64_t(b.rows) * b.columns * images * b.channels;
    return sum;
  }

  // What a call may run; see the schema.
  void check_moments(int64_t first, int64_t last, bool whole_rows, int64_t top) const {
    int64_t lag = 0;
    for (const SamplingInstruction& i : instructions_) {
      if (i.lag[1] > lag) lag = i.lag[1];
      check(p_.wave == 0 || !i.by_row, "program: a wavefront has an instruction of whole rows");
    }
    const bool by_row = whole_rows || p_.wave == 0;
    const int64_t duration = by_row ? p_.height : p_.width + lag + p_.wave * (p_.height - 1);
    check(first >= 0 && first <= last && last <= duration, "first and last must be within 0 ... ", duration, ", got ",
          first, " and ", last);
    check(top >= 0 && top <= p_.height, "top must be within 0 ... ", p_.height, ", got ", top);
  }

  // Elements of a linear instruction's weight and bias.
  static int64_t numbers(const SamplingInstruction& i) {
    return i.linear ? (int64_t(i.depth) + i.has_bias) * i.channels : 0;
  }

 private:
  static constexpr int64_t kMost = int64_t{1} << 24;

  int64_t word(int64_t least, int64_t most) {
    check(next_ < end_, "program ends too early");
    const int64_t value = *next_++;
    check(value >= least && value <= most, "program: expected a word within ", least, " ... ", most, ", got ", value);
    return value;
  }
  int32_t small(int64_t least, int64_t most = kMost) { return static_cast<int32_t>(word(least, most)); }
  double number() {
    check(next_ < end_, "program ends too early");
    double value;
    std::memcpy(&value, next_++, sizeof value);
    return value;
  }

  void header() {
    p_.channels = word(1, kMost);
    p_.height = word(1, kMost);
    p_.width = word(1, kMost);
    p_.steps = word(1, p_.channels);
    check(p_.channels % p_.steps == 0, "program: ", p_.steps, " steps do not divide ", p_.channels, " channels");
    p_.parameters = word(1, kMost);
    p_.wave = word(0, kMost);
    p_.buffer_count = word(1, kMost);
    p_.instruction_count = word(0, kMost);
  }

  void buffer() {
    SamplingBuffer b{};
    b.channels = small(1);
    b.height = small(1);
    b.width = small(1);
    b.rows = small(1, b.height);
    b.left = small(0);
    b.columns = b.left + b.width + small(0);
    b.everywhere = word(0, 1) == 1 && b.height == 1;
    buffers_.push_back(b);
  }

  void draw() {
    const int32_t input = small(0, p_.buffer_count - 1), output = small(0, p_.buffer_count - 1);
    const SamplingBuffer &to = buffers_[input], &from = buffers_[output];
    for (const SamplingBuffer& b : {to, from})
      check(b.height == p_.height && b.width == p_.width, "program: a buffer of the image's values has another grid");
    check(to.channels == p_.channels / p_.steps, "program: an input buffer has ", to.channels, " channels");
    inputs_.push_back(input);
    outputs_.push_back(output);
    outputs_.push_back(small(0, from.channels - p_.parameters));
  }

  void instruction() {
    SamplingInstruction i{};
    i.linear = word(0, 1) == 0;
    i.by_row = word(0, 1) == 0;
    for (int32_t& stride : i.stride) stride = small(1);
    for (int32_t& lag : i.lag) lag = small(-kMost);
    i.step = small(0, p_.steps - 1);
    for (int32_t& period : i.period) period = small(1);
    for (int axis = 0; axis < 2; ++axis) i.phase[axis] = small(0, i.period[axis] - 1);
    i.destination = small(0, p_.buffer_count - 1);
    const SamplingBuffer& to = buffers_[i.destination];
    i.start = small(0, to.channels - 1);
    i.channels = small(1, to.channels - i.start);
    i.first_read = static_cast<int32_t>(reads_.size());
    i.reads = small(i.linear ? 0 : 1, i.linear ? kMost : 2);
    i.initial = -1;
    if (i.linear) {
      check(i.start == 0 && i.channels == to.channels, "program: a sum must fill all channels of its buffer");
      i.has_bias = word(0, 1) == 1;
      i.initial = small(-1, p_.buffer_count - 1);
      if (i.initial >= 0) {
        const SamplingBuffer& above = buffers_[i.initial];
        check(above.channels == i.channels && above.height == to.height && above.width == to.width,
              "program: a sum begins with a buffer of another size");
      }
    } else {
      i.function = static_cast<SamplingFunction>(small(0, int64_t(SamplingFunction::count) - 1));
      for (double& constant : i.constants) constant = number();
    }
    for (int32_t r = 0; r < i.reads; ++r) {
      reads_.push_back(read(i, to));
      i.depth += reads_.back().count;
      check(i.linear || reads_.back().count == i.channels, "program: a function reads another number of channels");
    }
    check(i.depth <= kMost, "program: a sum of ", i.depth, " terms");
    instructions_.push_back(i);
  }

  SamplingRead read(const SamplingInstruction& i, const SamplingBuffer& reader) {
    SamplingRead r{};
    r.source = small(0, p_.buffer_count - 1);
    const SamplingBuffer& from = buffers_[r.source];
    r.start = small(0, from.channels - 1);
    r.count = small(1, from.channels - r.start);
    for (SamplingIndex* index : {&r.row, &r.column}) {
      index->step = small(0, 64);
      index->offset = small(-kMost);
      index->divisor = small(1, 64);
    }
    if (from.everywhere) return r;
    // columns grow with the reader's, so the first and the last are inside if all are
    const int64_t count = (reader.width - i.phase[1] + i.period[1] - 1) / i.period[1];
    for (int64_t k : {int64_t{0}, count - 1}) {
      const int64_t column = i.phase[1] + k * i.period[1];
      const int64_t at = (column * r.column.step + r.column.offset) / r.column.divisor + from.left;
      check(count <= 0 || (at >= 0 && at < from.columns), "program: a column outside of a buffer is read");
    }
    return r;
  }

  SamplingProgram p_{};
  const int64_t *next_, *end_;
  std::vector<SamplingBuffer> buffers_;
  std::vector<SamplingInstruction> instructions_;
  std::vector<SamplingRead> reads_;
  std::vector<int32_t> inputs_, outputs_;
};

}  // namespace vidgen
