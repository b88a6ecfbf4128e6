// Running a sampling program: what one member of a team does.
//
// Where each member has several images, it draws those as if it were alone, and meets nobody.
//
// Otherwise every member walks through the same instructions at the same places. Of those at whole lines it has its own
// images, if there are some for everybody: the numbers it reads are those that it wrote. Of all others it computes its
// share of the channels: weights are read once by the team, and a member finds its own in its cache again at the next
// pixel. Members meet where one reads what another has written since they last met, or writes what another may still be
// reading: before the products, which read all channels, not between an elementwise function and what it is applied to;
// twice for each residual block. All members keep the same account of what has been written and read since, so all come
// to the same meetings.
//
// The floor for one image at a time: all pixel-rate weights pass through the processor once per pixel (PixelCNN++ of 5
// resnets and 160 filters: 20 GB for 32 x 32), for many images: the multiply-adds over the peak.
#include "cpu/sample_causal.h"

#include <utility>

#include "cpu/sample_causal_draw.h"
#include "cpu/sample_causal_linear.h"
#include "cpu/sample_causal_pointwise.h"
#include "cpu/sample_causal_room.h"
#include "sampling_times.h"

namespace vidgen::VIDGEN_ISA {
namespace {

// Images a member has at least, if members share the images, not the channels, of whole lines.
constexpr int64_t kImagesOfMember = 4;

// Which member of how many the channels are shared among, and the images that these compute.
struct Part {
  int member, members;
  int64_t first_image, images;
};

template <class T, class W>
class Member {
 public:
  Member(const SamplingCall& call, Team& team, int member, void* scratch)
      : call_(call), p_(call.program), times_(call.program), team_(team) {
    const Share own(call.images, member, team.members());
    const Part alone{0, 1, own.begin, own.end - own.begin}, shared{member, team.members(), 0, call.images};
    part_ = call.by_images ? alone : shared;
    part_of_lines_ = call.by_images || call.images >= kImagesOfMember * team.members() ? alone : shared;
    room_.lay_out(call, static_cast<char*>(scratch));
    for (int64_t c = 0; c < room_.zero_count; ++c) room_.zeros[c] = T(0);
    T* next = static_cast<T*>(call.state);
    for (int64_t b = 0; b < p_.buffer_count; ++b) {
      room_.base[b] = next;
      room_.written[b] = room_.seen[b] = {-1, 0, 0};
      next += int64_t(p_.buffers[b].rows) * p_.buffers[b].columns * call.images * p_.buffers[b].channels;
    }
  }

  void run() {
    if (call_.first == 0)
      for (int64_t row = times_.first_row; row < 0; ++row) {
        whole_lines(row, true);
        together();
        whole_lines(row, false);
        together();
      }
    for (int64_t moment = call_.first; moment < call_.last; ++moment) {
      if (call_.whole_rows || (p_.wave == 0 && row_is_known(moment))) {
        known_row(moment);
      } else if (p_.wave > 0) {
        time_of_wave(moment);
      } else {
        raster_row(moment);
      }
    }
  }

 private:
  // Meetings.

  void together() {
    meet(team_, part_.members);
    ++meeting_;
  }

  // Whether an instruction reads what others have written since the last meeting, or writes where others may still
  // read.
  bool has_to_wait(const SamplingInstruction& i) const {
    if (room_.seen[i.destination].by_others(meeting_, i.start, i.channels)) return true;
    for (int32_t r = 0; r < i.reads; ++r) {
      const SamplingRead& read = p_.reads[i.first_read + r];
      const Used& written = room_.written[read.source];
      if (i.linear ? written.meeting == meeting_ : written.by_others(meeting_, read.start, read.count)) return true;
    }
    return i.initial >= 0 && room_.written[i.initial].by_others(meeting_, 0, i.channels);
  }

  void note(const SamplingInstruction& i) {
    for (int32_t r = 0; r < i.reads; ++r) {
      const SamplingRead& read = p_.reads[i.first_read + r];
      room_.seen[read.source].add(meeting_, read.start, i.linear ? -1 : read.count);
    }
    if (i.initial >= 0) room_.seen[i.initial].add(meeting_, 0, i.channels);
    room_.written[i.destination].add(meeting_, i.start, i.channels);
  }

  // Instructions.

  // The member's first image at a place; the next ones follow at buffer.channels.
  T* at_place(int32_t number, int32_t line, int32_t column) const {
    const SamplingBuffer& b = p_.buffers[number];
    const int64_t slot = b.rows == b.height ? line : line % b.rows;
    return room_.base[number] + ((slot * b.columns + b.left + column) * call_.images + part_.first_image) * b.channels;
  }

  // What a read finds for a reader at a place: null where the line does not exist.
  const T* found(const SamplingRead& read, int32_t line, int32_t column) const {
    const SamplingBuffer& b = p_.buffers[read.source];
    if (b.everywhere)
      return room_.base[read.source] + (b.left * call_.images + part_.first_image) * b.channels + read.start;
    const int32_t source_line = at(read.row, line);
    if (source_line < 0 || source_line >= b.height) return nullptr;
    return at_place(read.source, source_line, at(read.column, column)) + read.start;
  }

  void run(const SamplingInstruction& i, const Places& places) {
    if (part_.members > 1) {
      if (has_to_wait(i)) together();
      note(i);
    }
    const Panels<T> panels(i.channels);
    const Share share(panels.count, part_.member, part_.members);
    if (share.begin == share.end) return;
    if (i.linear) {
      linear(i, places, panels, share);
    } else {
      const int64_t begin = panels.begin(share.begin) * kLanes<T>, end = panels.begin(share.end) * kLanes<T>;
      pointwise(i, places, begin, (end < i.channels ? end : i.channels) - begin);
    }
  }

  void pointwise(const SamplingInstruction& i, const Places& places, int64_t begin, int64_t count) {
    const SamplingRead& first = p_.reads[i.first_read];
    const SamplingRead& second = p_.reads[i.first_read + (i.reads > 1)];
    for (int64_t place = 0; place < places.count; ++place) {
      const int32_t line = places.line[place], column = places.column[place];
      const T *a = found(first, line, column), *b = i.reads > 1 ? found(second, line, column) : a;
      const int64_t a_pitch = a == nullptr ? 0 : p_.buffers[first.source].channels;
      const int64_t b_pitch = b == nullptr ? 0 : p_.buffers[second.source].channels;
      if (a == nullptr) a = room_.zeros;
      if (b == nullptr) b = room_.zeros;
      const int64_t pitch = p_.buffers[i.destination].channels;
      T* out = at_place(i.destination, line, column) + i.start;
      if (count == pitch && a_pitch == pitch && b_pitch == pitch) {
        apply(i.function, i.constants, a, b, out, part_.images * count);
        continue;
      }
      for (int64_t image = 0; image < part_.images; ++image)
        apply(i.function, i.constants, a + image * a_pitch + begin, b + image * b_pitch + begin,
              out + image * pitch + begin, count);
    }
  }

  void linear(const SamplingInstruction& i, const Places& places, const Panels<T>& panels, const Share& share) {
    const PackedLinear<T, W> layout(i);
    const char* packed = call_.packed + i.weight_at;
    const W* weight = reinterpret_cast<const W*>(packed);
    const T* bias = reinterpret_cast<const T*>(packed + layout.weight_bytes());
    const int64_t pieces = cut(i), rows = places.count * part_.images, block = rows_of_block<T>(i.depth);
    TileOperands<T, W> o{};
    for (int64_t first = 0; first < rows; first += block) {
      const int64_t count = block < rows - first ? block : rows - first;
      find_rows(i, places, first, count);
      o.a_pitch = count;
      for (int64_t panel = share.begin; panel < share.end;) {
        const int vectors = int(panels.vectors_of(panel));
        int64_t together = 1;
        while (together < panels_for(count) && panel + together < share.end &&
               panels.vectors_of(panel + together) == vectors)
          ++together;
        o.first = panels.begin(panel) * kLanes<T>;
        o.channels = i.channels - o.first;
        o.panel_pitch = i.depth * vectors * kLanes<T>;
        o.b = weight + o.first * i.depth;
        o.bias = bias + o.first;
        // a sum of nothing is its bias
        for (int64_t p = 0; p < pieces || o.bias != nullptr; p += o.pieces) {
          o.piece = room_.pieces + p;
          o.pieces = 0;
          int64_t depth = 0;
          while (p + o.pieces < pieces && depth < kDepthOfChain) depth += o.piece[o.pieces++].length;
          // the weights behind these are fetched meanwhile, a part by every tile
          const int64_t chain_bytes = depth * vectors * kLanes<T> * int64_t(sizeof(W));
          const char* ahead = reinterpret_cast<const char*>(o.b) + chain_bytes;
          const char* const end_ahead = ahead + chain_bytes;
          for_each_tile(count, rows_of_tile(int(together), vectors), [&](int64_t row, int64_t height) {
            o.a = room_.found + row;
            o.b_ahead = ahead;
            if (ahead + depth * 64 < end_ahead) ahead += depth * 64;
            o.ahead = height < count - row - height ? height : count - row - height;
            o.c = room_.into + row;
            o.initial = i.initial < 0 ? nullptr : room_.above + row;
            find_linear_tile<T, W>(height, together, vectors)(o);
          });
          o.b += depth * vectors * kLanes<T>;
          o.bias = nullptr;
        }
        panel += together;
      }
    }
  }

  // Cuts what an instruction reads into pieces that end where reads and chains do; returns how many there are.
  int64_t cut(const SamplingInstruction& i) {
    int64_t pieces = 0, left = kDepthOfChain;
    for (int32_t r = 0; r < i.reads; ++r) {
      const int32_t count = p_.reads[i.first_read + r].count;
      for (int32_t at = 0; at < count;) {
        const int32_t length = int32_t(count - at < left ? count - at : left);
        room_.pieces[pieces++] = {r, at, length};
        at += length;
        left = left == length ? kDepthOfChain : left - length;
      }
    }
    return pieces;
  }

  // Where rows first ... first + count - 1 of [place][image] find what they read and what their sums begin with, and
  // where these go.
  void find_rows(const SamplingInstruction& i, const Places& places, int64_t first, int64_t count) {
    const SamplingRead whole{i.initial, 0, i.channels, {1, 0, 1}, {1, 0, 1}};
    for (int64_t row = 0; row < count;) {
      const int64_t place = (first + row) / part_.images, image = first + row - place * part_.images;
      const int64_t images = part_.images - image < count - row ? part_.images - image : count - row;
      const int32_t line = places.line[place], column = places.column[place];
      auto list = [&](const T** to, const SamplingRead& read) {
        const T* from = found(read, line, column);
        const int64_t pitch = from == nullptr ? 0 : p_.buffers[read.source].channels;
        from = from == nullptr ? room_.zeros : from + image * pitch;
        for (int64_t k = 0; k < images; ++k) to[row + k] = from + k * pitch;
      };
      for (int32_t r = 0; r < i.reads; ++r) list(room_.found + r * count, p_.reads[i.first_read + r]);
      if (i.initial >= 0) list(room_.above, whole);
      T* to = at_place(i.destination, line, column) + image * i.channels;
      for (int64_t k = 0; k < images; ++k) room_.into[row + k] = to + k * i.channels;
      row += images;
    }
  }

  // When.

  void whole_line(const SamplingInstruction& i, int64_t row) {
    const int32_t line = times_.line_of(i, row);
    if (line < 0) return;
    int64_t count = 0;
    for (int32_t column = i.phase[1]; column < p_.buffers[i.destination].width; column += i.period[1]) {
      room_.lines[count] = line;
      room_.columns[count++] = column;
    }
    if (count > 0) run(i, {room_.lines, room_.columns, count});
  }

  void whole_lines(int64_t row, bool by_row) {
    const Part part = std::exchange(part_, part_of_lines_);
    for (int64_t i = 0; i < p_.instruction_count; ++i)
      if (p_.instructions[i].by_row == by_row) whole_line(p_.instructions[i], row);
    part_ = part;
  }

  bool row_is_known(int64_t row) const {
    for (int64_t plane = part_.first_image * p_.channels; plane < (part_.first_image + part_.images) * p_.channels;
         ++plane)
      for (int64_t column = 0; column < p_.width; ++column)
        if (!call_.known[(plane * p_.height + row) * p_.width + column]) return false;
    return true;
  }

  void known_row(int64_t row) {
    whole_lines(row, true);
    together();
    const Share share(part_.images, part_.member, part_.members);
    for (int64_t image = share.begin; image < share.end; ++image)
      for (int64_t step = 0; step < p_.steps; ++step)
        for (int64_t column = 0; column < p_.width; ++column) enter(image, step, row, column);
    together();
    whole_lines(row, false);
    together();
    if (call_.parameters == nullptr) return;
    for (int64_t image = share.begin; image < share.end; ++image)
      for (int64_t step = 0; step < p_.steps; ++step)
        for (int64_t column = 0; column < p_.width; ++column) record(image, step, row, column);
    together();
  }

  void raster_row(int64_t row) {
    whole_lines(row, true);
    // a pixel's value may take the place of one of the row above, which had to be kept for these lines only
    together();
    int64_t active = 0;
    for (int64_t i = 0; i < p_.instruction_count; ++i) {
      const SamplingInstruction& instruction = p_.instructions[i];
      const int32_t line = instruction.by_row ? -1 : times_.line_of(instruction, row);
      if (line < 0) continue;
      room_.active[active] = int32_t(i);
      room_.active_line[active++] = line;
    }
    const Share share(part_.images, part_.member, part_.members);
    for (int64_t column = times_.first_column; column < p_.width + times_.last_lag; ++column) {
      for (int64_t step = 0; step < p_.steps; ++step) {
        for (int64_t k = 0; k < active; ++k) {
          const SamplingInstruction& i = p_.instructions[room_.active[k]];
          if (i.step != step) continue;
          const int32_t there = times_.column_of(i, column);
          if (there >= 0) run(i, {room_.active_line + k, &there, 1});
        }
        if (column < 0 || column >= p_.width) continue;
        together();
        for (int64_t image = share.begin; image < share.end; ++image) settle(image, step, row, column);
        together();
      }
    }
    together();
  }

  void time_of_wave(int64_t time) {
    // rows whose pixel of this time exists
    int64_t top = (time - p_.width) / p_.wave + 1, bottom = time / p_.wave + 1;
    if (time < p_.width) top = 0;
    if (top < call_.top) top = call_.top;
    if (bottom > p_.height) bottom = p_.height;
    for (int64_t step = 0; step < p_.steps; ++step) {
      for (int64_t k = 0; k < p_.instruction_count; ++k) {
        const SamplingInstruction& i = p_.instructions[k];
        if (i.by_row || i.step != step) continue;
        int64_t count = 0;
        for (int64_t row = call_.top; row < p_.height; ++row) {
          const int32_t column = times_.column_of(i, time - p_.wave * row);
          const int32_t line = column < 0 ? -1 : times_.line_of(i, row);
          if (line < 0) continue;
          room_.lines[count] = line;
          room_.columns[count++] = column;
        }
        if (count > 0) run(i, {room_.lines, room_.columns, count});
      }
      together();
      const Share share(top < bottom ? (bottom - top) * part_.images : 0, part_.member, part_.members);
      for (int64_t k = share.begin; k < share.end; ++k) {
        const int64_t row = top + k / part_.images;
        settle(k % part_.images, step, row, time - p_.wave * row);
      }
      together();
    }
  }

  // Draws.

  const T* parameters_at(int64_t image, int64_t step, int64_t row, int64_t column) const {
    const int32_t number = p_.outputs[2 * step];
    return at_place(number, int32_t(row), int32_t(column)) + image * p_.buffers[number].channels +
           p_.outputs[2 * step + 1];
  }

  int64_t pixel(int64_t image, int64_t channel, int64_t row, int64_t column) const {
    return (((part_.first_image + image) * p_.channels + channel) * p_.height + row) * p_.width + column;
  }

  // Draws a step of a pixel, or takes what is known.
  void settle(int64_t image, int64_t step, int64_t row, int64_t column) {
    record(image, step, row, column);
    const int64_t each = p_.channels / p_.steps, plane = p_.height * p_.width;
    const int64_t first = pixel(image, step * each, row, column);
    bool any = false;
    for (int64_t c = 0; c < each; ++c) any |= !call_.known[first + c * plane];
    if (any)
      draw_step(call_.head, parameters_at(image, step, row, column), each, call_.noise + 2 * first, 2 * plane,
                call_.known + first, static_cast<T*>(call_.canvas) + first, plane, room_.weights);
    enter(image, step, row, column);
  }

  void enter(int64_t image, int64_t step, int64_t row, int64_t column) {
    const int64_t each = p_.channels / p_.steps;
    T* to = at_place(p_.inputs[step], int32_t(row), int32_t(column)) + image * p_.buffers[p_.inputs[step]].channels;
    for (int64_t c = 0; c < each; ++c)
      to[c] = static_cast<const T*>(call_.canvas)[pixel(image, step * each + c, row, column)];
  }

  void record(int64_t image, int64_t step, int64_t row, int64_t column) {
    if (call_.parameters == nullptr) return;
    const T* from = parameters_at(image, step, row, column);
    T* to = static_cast<T*>(call_.parameters);
    for (int64_t k = 0; k < p_.parameters; ++k)
      to[((((part_.first_image + image) * p_.parameters + k) * p_.steps + step) * p_.height + row) * p_.width +
         column] = from[k];
  }

  const SamplingCall& call_;
  const SamplingProgram& p_;
  const SamplingTimes times_;
  Team& team_;
  Part part_, part_of_lines_;
  Room<T> room_;
  int64_t meeting_ = 0;
};

// Calls f<T, W>() for the types of the numbers and of the weights.
template <class F>
VIDGEN_INLINE auto with_types(SamplingNumbers numbers, F f) {
  if (numbers.dtype == Dtype::f64) return f.template operator()<double, double>();
  return numbers.narrow_weights ? f.template operator()<float, bf16>() : f.template operator()<float, float>();
}

int64_t packed_bytes(const SamplingInstruction& i, SamplingNumbers numbers) {
  return with_types(numbers, [&]<class T, class W>() { return PackedLinear<T, W>(i).bytes(); });
}

void pack(const SamplingInstruction& i, SamplingNumbers numbers, const void* from, char* packed) {
  with_types(numbers, [&]<class T, class W>() { pack_linear<T, W>(i, static_cast<const T*>(from), packed); });
}

size_t scratch_bytes(const SamplingCall& call) {
  return with_types(call.numbers, [&]<class T, class W>() { return Room<T>().lay_out(call, nullptr); });
}

void run(const SamplingCall& call, Team& team, int member, void* scratch) {
  with_types(call.numbers, [&]<class T, class W>() { Member<T, W>(call, team, member, scratch).run(); });
}

}  // namespace

const SampleCausalTable sample_causal = {packed_bytes, pack, scratch_bytes, run};

}  // namespace vidgen::VIDGEN_ISA
