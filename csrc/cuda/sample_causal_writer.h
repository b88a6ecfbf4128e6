// Writing scripts for the persistent kernel: on the host, from a program that has been checked.
//
// Which blocks write what. A stage is cut into tiles of one place, some images and four channels, tile t belongs to a
// block and in it to a warp, and each number of a tile to a lane: for every operation of the stage the same one. So an
// elementwise function that reads just what an operation before it has written at its own places joins that operation's
// stage and waits for nobody. Whatever else touches the same buffer has a stage of its own, and blocks meet before it
// if one of them has written that buffer since they last met, or read what is now written: what this account cannot
// tell apart (places of one buffer) it takes to be the same.
//
// A gate reads both halves of a sum. The blocks that made a tile of the one have then made that of the other, too, and
// wait for their own threads alone. PixelCNN++ meets twice for each residual block.
#pragma once

#include <cstring>
#include <vector>

#include "cuda/sample_causal_script.h"
#include "sampling_times.h"

namespace vidgen::cuda {

class ScriptWriter {
 public:
  explicit ScriptWriter(const SamplingProgram& program) : p_(program), times_(program) {
    int64_t next = 0;
    for (int64_t b = 0; b < p_.buffer_count; ++b) {
      base_.push_back(next);
      next += int64_t(p_.buffers[b].rows) * p_.buffers[b].columns * p_.buffers[b].channels;
    }
    first_slice_.assign(p_.instruction_count, -1);
    slice_count_.assign(p_.instruction_count, 0);
    forget();
  }

  // Moments first ... last - 1, as the op `sample_causal` runs them.
  void write(int64_t first, int64_t last, bool whole_rows, int64_t top) {
    if (first == 0)
      for (int64_t row = times_.first_row; row < 0; ++row) {
        whole_lines(row, true);
        whole_lines(row, false);
      }
    for (int64_t moment = first; moment < last; ++moment) {
      if (whole_rows) {
        known_row(moment);
      } else if (p_.wave > 0) {
        time_of_wave(moment, top);
      } else {
        raster_row(moment);
      }
    }
  }

  std::vector<char> bytes() const {
    std::vector<char> memory(sizeof(ScriptHeader));
    ScriptHeader header{};
    auto put = [&](const auto& items) {
      const size_t at = (memory.size() + 15) / 16 * 16, count = items.size() * sizeof(items[0]);
      memory.resize(at + count);
      if (count > 0) std::memcpy(memory.data() + at, items.data(), count);
      return int64_t(at);
    };
    header.stage_count = int64_t(stages_.size());
    header.stages = put(stages_);
    header.operations = put(operations_);
    header.pixels = put(pixels_);
    header.sites = put(sites_);
    header.slices = put(slices_);
    std::memcpy(memory.data(), &header, sizeof header);
    return memory;
  }

 private:
  struct Place {
    int32_t line, column;
  };

  // What an operation of the present stage does to a buffer.
  struct Access {
    int32_t buffer, start, count;
    bool writes;
    bool alone;           // each lane at its own channel only
    int64_t first, step;  // its sites
  };

  // Places.

  static int32_t at(const SamplingIndex& index, int32_t n) { return (n * index.step + index.offset) / index.divisor; }

  ScriptSite site(int32_t number, int32_t start, int32_t line, int32_t column) const {
    const SamplingBuffer& b = p_.buffers[number];
    const int64_t slot = line % b.rows;
    return {base_[number] + (slot * b.columns + b.left + column) * b.channels, start, b.channels};
  }

  ScriptSite found(const SamplingRead& read, Place place) const {
    const SamplingBuffer& b = p_.buffers[read.source];
    if (b.everywhere) return site(read.source, read.start, 0, 0);
    const int32_t scaled = place.line * read.row.step + read.row.offset;
    const int32_t line = scaled < 0 ? -1 : scaled / read.row.divisor;
    if (line < 0 || line >= b.height) return {-1, read.start, b.channels};
    return site(read.source, read.start, line, at(read.column, place.column));
  }

  // Stages.

  void forget() {
    written_.assign(p_.buffer_count, false);
    read_.assign(p_.buffer_count, false);
  }

  ScriptStage& open(StageKind kind) {
    for (const Access& a : inside_) (a.writes ? written_ : read_)[a.buffer] = true;
    inside_.clear();
    places_.clear();
    gated_ = -1;
    stages_.push_back({kind, Wait::nobody, 0, 0, 0, 1, 0});
    if (meet_next_) meet();
    meet_next_ = false;
    return stages_.back();
  }

  void meet() {
    stages_.back().wait = Wait::all;
    forget();
  }

  // Notes what the present stage does; it waits for others where it has to.
  void note(const Access& a) {
    if (written_[a.buffer] && reads_half(a)) {
      stages_.back().wait = Wait::block;
      stages_[stages_.size() - 2].halves = 2;
    } else if (written_[a.buffer] || (a.writes && read_[a.buffer])) {
      meet();
    }
    inside_.push_back(a);
  }

  // Whether a stage after a sum's, at the same places, reads a half of that sum's channels with half of them.
  bool reads_half(const Access& a) const {
    if (gated_ < 0 || a.writes || !a.alone) return false;
    const ScriptOperation& sum = operations_[gated_];
    for (size_t place = 0; place < places_.size(); ++place) {
      const ScriptSite& made = sites_[sum.first_site + int64_t(place) * sum.sites];
      const ScriptSite& read = sites_[a.first + int64_t(place) * a.step];
      if (read.at != made.at || (read.start != 0 && read.start != a.count)) return false;
    }
    return true;
  }

  // The operation of the sum that a stage of such places and channels would gate, if it follows now; -1: none.
  int64_t gate_of(const SamplingInstruction& i, const std::vector<Place>& places) const {
    if (i.linear || stages_.empty() || meet_next_ || i.channels % kPanel != 0) return -1;
    const ScriptStage& stage = stages_.back();
    if (stage.kind != StageKind::tiles || stage.channels != 2 * i.channels || !same_places(places)) return -1;
    return operations_[stage.first].function == kSum ? stage.first : -1;
  }

  bool same_places(const std::vector<Place>& places) const {
    if (places.size() != places_.size()) return false;
    for (size_t k = 0; k < places.size(); ++k)
      if (places[k].line != places_[k].line || places[k].column != places_[k].column) return false;
    return true;
  }

  bool same_sites(const Access& a, const Access& b) const {
    if (a.start != b.start || a.count != b.count) return false;
    for (size_t place = 0; place < places_.size(); ++place)
      if (sites_[a.first + int64_t(place) * a.step].at != sites_[b.first + int64_t(place) * b.step].at) return false;
    return true;
  }

  // Whether an access of a further operation meets those of the present stage in its own lane only.
  bool stays_in_lane(const Access& a) const {
    for (const Access& b : inside_) {
      if (a.buffer != b.buffer || !(a.writes || b.writes)) continue;
      if (!b.alone || !same_sites(a, b)) return false;
    }
    return true;
  }

  std::vector<Access> accesses(const SamplingInstruction& i, int64_t first_site, int64_t step) const {
    std::vector<Access> all;
    for (int32_t r = 0; r < i.reads; ++r) {
      const SamplingRead& read = p_.reads[i.first_read + r];
      all.push_back({read.source, read.start, read.count, false, !i.linear, first_site + (i.linear ? 2 : 1) + r, step});
    }
    if (i.initial >= 0) all.push_back({i.initial, 0, i.channels, false, true, first_site + 1, step});
    all.push_back({i.destination, i.start, i.channels, true, true, first_site, step});
    return all;
  }

  void run(int64_t number, const std::vector<Place>& places) {
    const SamplingInstruction& i = p_.instructions[number];
    ScriptOperation o{};
    o.function = i.linear ? kSum : int32_t(i.function);
    o.operand[0] = o.operand[1] = -1;
    o.reads = i.reads;
    o.constants[0] = i.constants[0];
    o.constants[1] = i.constants[1];
    o.first_site = int64_t(sites_.size());
    o.sites = i.linear ? i.reads + 2 : 3;
    if (i.linear) describe_sum(number, o);
    for (const Place& place : places) write_sites(i, place);
    const std::vector<Access> all = accesses(i, o.first_site, o.sites);
    if (!joins(i, places, all)) {
      const int64_t gated = gate_of(i, places);
      ScriptStage& stage = open(i.linear && i.by_row ? StageKind::line : StageKind::tiles);
      stage.places = int32_t(places.size());
      stage.channels = i.channels;
      stage.first = int64_t(operations_.size());
      places_ = places;
      gated_ = gated;
    }
    if (!i.linear)
      for (int32_t r = 0; r < i.reads; ++r) o.operand[r] = slot_of(all[r]);
    for (const Access& a : all) note(a);
    ++stages_.back().count;
    operations_.push_back(o);
  }

  bool joins(const SamplingInstruction& i, const std::vector<Place>& places, const std::vector<Access>& all) const {
    if (i.linear || stages_.empty() || stages_.back().kind != StageKind::tiles || meet_next_) return false;
    if (stages_.back().channels != i.channels || !same_places(places)) return false;
    for (const Access& a : all)
      if (!stays_in_lane(a)) return false;
    return true;
  }

  // Which of the last results of this stage an operand is; -1: none of them.
  int32_t slot_of(const Access& a) const {
    const ScriptStage& stage = stages_.back();
    for (int32_t k = stage.count - 1; k >= 0 && k >= stage.count - kSlots; --k) {
      const ScriptOperation& o = operations_[stage.first + k];
      const ScriptSite &to = sites_[o.first_site], &from = sites_[a.first];
      // all places are those of `to` if the first one is: this stage has been let read it
      if (to.at == from.at && to.start == from.start && to.pitch == from.pitch) return k % kSlots;
    }
    return -1;
  }

  void describe_sum(int64_t number, ScriptOperation& o) {
    const SamplingInstruction& i = p_.instructions[number];
    if (first_slice_[number] < 0) {
      first_slice_[number] = int64_t(slices_.size());
      const int32_t longest = i.by_row ? kLineSlice : kSlice;
      int32_t depth = 0;
      for (int32_t r = 0; r < i.reads; ++r) {
        const int32_t count = p_.reads[i.first_read + r].count;
        for (int32_t from = 0; from < count; from += longest) {
          const int32_t length = count - from < longest ? count - from : longest;
          slices_.push_back({r, from, length, depth + from});
        }
        depth += count;
      }
      slice_count_[number] = int32_t(int64_t(slices_.size()) - first_slice_[number]);
    }
    o.depth = i.depth;
    o.has_bias = i.has_bias;
    o.has_initial = i.initial >= 0;
    o.weight_at = i.weight_at;
    o.first_slice = first_slice_[number];
    o.slices = slice_count_[number];
  }

  void write_sites(const SamplingInstruction& i, Place place) {
    sites_.push_back(site(i.destination, i.start, place.line, place.column));
    if (i.linear) {
      const SamplingRead whole{i.initial, 0, i.channels, {1, 0, 1}, {1, 0, 1}};
      sites_.push_back(i.initial < 0 ? ScriptSite{-1, 0, 0} : found(whole, place));
    }
    for (int32_t r = 0; r < i.reads; ++r) sites_.push_back(found(p_.reads[i.first_read + r], place));
    if (!i.linear && i.reads < 2) sites_.push_back(sites_.back());
  }

  // When.

  void whole_lines(int64_t row, bool by_row) {
    for (int64_t k = 0; k < p_.instruction_count; ++k) {
      const SamplingInstruction& i = p_.instructions[k];
      const int32_t line = i.by_row == by_row ? times_.line_of(i, row) : -1;
      if (line < 0) continue;
      std::vector<Place> places;
      for (int32_t c = i.phase[1]; c < p_.buffers[i.destination].width; c += i.period[1]) places.push_back({line, c});
      if (!places.empty()) run(k, places);
    }
  }

  void pixels(const std::vector<Place>& places, int64_t first_step, int64_t last_step, int32_t what) {
    ScriptStage& stage = open(StageKind::pixels);
    stage.count = what;
    stage.places = int32_t(places.size() * (last_step - first_step + 1));
    stage.first = int64_t(pixels_.size());
    for (int64_t step = first_step; step <= last_step; ++step) {
      const int32_t input = p_.inputs[step], output = p_.outputs[2 * step];
      for (const Place& place : places)
        pixels_.push_back({place.line, place.column, int32_t(step), 0,
                           site(output, p_.outputs[2 * step + 1], place.line, place.column),
                           site(input, 0, place.line, place.column)});
      if (what & (kRecord | kDraw)) note({output, 0, p_.buffers[output].channels, false, false, 0, 0});
      if (what & kEnter) note({input, 0, p_.buffers[input].channels, true, false, 0, 0});
    }
  }

  std::vector<Place> pixels_of(int64_t row) const {
    std::vector<Place> places;
    for (int32_t column = 0; column < p_.width; ++column) places.push_back({int32_t(row), column});
    return places;
  }

  void known_row(int64_t row) {
    whole_lines(row, true);
    pixels(pixels_of(row), 0, p_.steps - 1, kEnter);
    whole_lines(row, false);
    pixels(pixels_of(row), 0, p_.steps - 1, kRecord);
  }

  // Both ways to run a row begin with a meeting: the account of one cannot be carried on into the other's.
  void raster_row(int64_t row) {
    open(StageKind::branch).places = int32_t(row);
    const size_t branch = stages_.size() - 1;
    meet_next_ = true;
    row_by_pixels(row);
    open(StageKind::jump);
    const size_t jump = stages_.size() - 1;
    meet_next_ = true;
    stages_[branch].first = int64_t(stages_.size());
    known_row(row);
    stages_[jump].first = int64_t(stages_.size());
    meet_next_ = true;
  }

  void row_by_pixels(int64_t row) {
    whole_lines(row, true);
    for (int64_t column = times_.first_column; column < p_.width + times_.last_lag; ++column)
      for (int64_t step = 0; step < p_.steps; ++step) {
        for (int64_t k = 0; k < p_.instruction_count; ++k) {
          const SamplingInstruction& i = p_.instructions[k];
          if (i.by_row || i.step != step) continue;
          const int32_t line = times_.line_of(i, row), there = times_.column_of(i, column);
          if (line >= 0 && there >= 0) run(k, {{line, there}});
        }
        if (column >= 0 && column < p_.width)
          pixels({{int32_t(row), int32_t(column)}}, step, step, kRecord | kDraw | kEnter);
      }
  }

  void time_of_wave(int64_t time, int64_t top) {
    for (int64_t step = 0; step < p_.steps; ++step) {
      for (int64_t k = 0; k < p_.instruction_count; ++k) {
        const SamplingInstruction& i = p_.instructions[k];
        if (i.by_row || i.step != step) continue;
        std::vector<Place> places;
        for (int64_t row = top; row < p_.height; ++row) {
          const int32_t line = times_.line_of(i, row), there = times_.column_of(i, time - p_.wave * row);
          if (line >= 0 && there >= 0) places.push_back({line, there});
        }
        if (!places.empty()) run(k, places);
      }
      std::vector<Place> drawn;
      for (int64_t row = top; row < p_.height; ++row) {
        const int64_t column = time - p_.wave * row;
        if (column >= 0 && column < p_.width) drawn.push_back({int32_t(row), int32_t(column)});
      }
      if (!drawn.empty()) pixels(drawn, step, step, kRecord | kDraw | kEnter);
    }
  }

  const SamplingProgram& p_;
  const SamplingTimes times_;
  std::vector<int64_t> base_, first_slice_;
  std::vector<int32_t> slice_count_;
  std::vector<ScriptStage> stages_;
  std::vector<ScriptOperation> operations_;
  std::vector<ScriptPixel> pixels_;
  std::vector<ScriptSite> sites_;
  std::vector<ScriptSlice> slices_;
  // since blocks last met, before the present stage
  std::vector<bool> written_, read_;
  std::vector<Access> inside_;  // the present stage
  std::vector<Place> places_;
  bool meet_next_ = false;
  int64_t gated_ = -1;  // the operation of the sum whose halves the present stage may read
};

}  // namespace vidgen::cuda
