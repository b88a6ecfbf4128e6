// optical_flow_tvl1 on the CPU: pyramid, warps, iterations of one pair of images, from coarse to fine.
//
// Memory, for H x W pixels of float: two pyramids (each 4/3 HW at a scale factor of 0.5, 2 HW at 0.7), the state of the
// level at hand (10 HW, optical_flow_tvl1_state.h) and the flow of the level before (2 HW): about 60 bytes per pixel,
// 20 MB for 640 x 480. Nearly all time goes into the iterations (optical_flow_tvl1_iterate.h). Linearising the data
// term costs as much as three to six of them (optical_flow_tvl1_warp.h), a 5x5 median as much as five.
//
// Every step spreads rows over threads, and no number depends on how.
#include "cpu/optical_flow_tvl1.h"

#include <atomic>

#include "cpu/optical_flow_tvl1_iterate.h"
#include "cpu/optical_flow_tvl1_median.h"
#include "cpu/optical_flow_tvl1_warp.h"

namespace vidgen::VIDGEN_ISA {
namespace {

// As in vidgen/ops/optical_flow_tvl1.py, of which this file is the fast form.
constexpr int64_t kMinSide = 16;
constexpr int64_t kCheckEvery = 10;
constexpr double kGradientFloor = 1e-6;
constexpr double kLargestInit = 1e6;
constexpr int64_t kMostLevels = 64;

// Levels of fewer pixels are left to one thread: ten iterations of 4096 take it 50 us, not worth waking others.
constexpr int64_t kWorthThreads = 4096;

struct Sizes {
  int64_t count, height[kMostLevels], width[kMostLevels];
};

Sizes level_sizes(const OpticalFlowTvl1& p) {
  Sizes sizes{1, {p.height}, {p.width}};
  double scale = 1;
  while (sizes.count < std::min(p.levels, kMostLevels)) {
    scale *= p.scale_factor;
    const int64_t height = int64_t(double(p.height) * scale + 0.5), width = int64_t(double(p.width) * scale + 0.5);
    if (std::min(height, width) < kMinSide) break;
    if (height == sizes.height[sizes.count - 1] && width == sizes.width[sizes.count - 1]) break;
    sizes.height[sizes.count] = height;
    sizes.width[sizes.count++] = width;
  }
  return sizes;
}

// Everything that a pair needs, taken from one piece of memory.
template <class T>
struct Workspace {
  Plane<T> prev[kMostLevels], next[kMostLevels];
  Filter<T> down_rows[kMostLevels], down_columns[kMostLevels];  // from level - 1
  Filter<T> up_rows[kMostLevels], up_columns[kMostLevels];      // from level + 1, or from init at the coarsest
  Plane<T> flow[2];                                             // reshaped for each level
  T *flow_memory[2], *state, *scratch;
  int64_t scratch_row;
  double* row_sums;
};

template <class T>
size_t lay_out(const OpticalFlowTvl1& p, const Sizes& sizes, char* base, Workspace<T>* w) {
  Arena arena{base};
  const int64_t coarsest = sizes.count - 1;
  for (int64_t l = 0; l < sizes.count; ++l) {
    w->prev[l] = take_plane<T>(arena, sizes.height[l], sizes.width[l]);
    w->next[l] = take_plane<T>(arena, sizes.height[l], sizes.width[l]);
    if (l > 0) {
      w->down_rows[l] = take_filter<T>(arena, sizes.height[l - 1], sizes.height[l]);
      w->down_columns[l] = take_filter<T>(arena, sizes.width[l - 1], sizes.width[l]);
    }
    const int64_t from = l < coarsest ? l + 1 : 0;
    w->up_rows[l] = take_filter<T>(arena, sizes.height[from], sizes.height[l]);
    w->up_columns[l] = take_filter<T>(arena, sizes.width[from], sizes.width[l]);
  }
  for (T*& memory : w->flow_memory) memory = arena.take<T>((p.height + 2 * kBorderRows) * pitch_of<T>(p.width));
  w->state = arena.take<T>(state_size<T>(p.height, p.width));
  w->scratch_row = pitch_of<T>(p.width);
  w->scratch = arena.take<T>(row_tasks(p.height) * w->scratch_row);
  w->row_sums = arena.take<double>(p.height);
  return arena.used;
}

template <class T>
Plane<T> plane_in(T* memory, int64_t height, int64_t width) {
  const int64_t pitch = pitch_of<T>(width);
  return {memory + kBorderRows * pitch + kLine<T>, height, width, pitch};
}

template <class T>
bool make_grey(const OpticalFlowTvl1& p, const ImageView& image, const Plane<T>& plane, const Loop& loop) {
  std::atomic<bool> good{true};
  each_row(loop, p.height, [&](int64_t y, int64_t) {
    const bool row_good = p.pixels == Pixels::u8    ? grey_row<uint8_t>(image, p.channels, y, p.width, plane.row(y))
                          : p.pixels == Pixels::f32 ? grey_row<float>(image, p.channels, y, p.width, plane.row(y))
                                                    : grey_row<double>(image, p.channels, y, p.width, plane.row(y));
    if (!row_good) good.store(false, std::memory_order_relaxed);
    extend_row(plane, y);
  });
  extend_columns(plane);
  return good;
}

template <class T>
bool read_init(const OpticalFlowTvl1& p, const ImageView& init, const Plane<T>* flow, const Loop& loop) {
  std::atomic<bool> good{true};
  each_row(loop, p.height, [&](int64_t y, int64_t) {
    bool row_good = true;
    for (int component = 0; component < 2; ++component) {
      const T* const from = static_cast<const T*>(init.data) + component * init.channel_stride + y * init.row_stride;
      T* const to = flow[component].row(y);
      for (int64_t x = 0; x < p.width; ++x) {
        to[x] = from[x * init.column_stride];
        row_good &= (to[x] >= T(-kLargestInit)) & (to[x] <= T(kLargestInit));
      }
    }
    if (!row_good) good.store(false, std::memory_order_relaxed);
  });
  return good;
}

template <class T>
void make_level(const Workspace<T>& w, const Plane<T>* images, int64_t level, const Loop& loop) {
  const Plane<T>& to = images[level];
  each_row(loop, to.height, [&](int64_t y, int64_t task) {
    resize_row(images[level - 1], w.down_rows[level], w.down_columns[level], T(1), y, w.scratch + task * w.scratch_row,
               to.row(y));
    extend_row(to, y);
  });
  extend_columns(to);
}

// Takes the flow over from the level before; dual variables begin at zero on every level. What lies between the parts
// of a row is zero, too. The data term is written when it is linearised.
template <class T>
void enter_level(const Workspace<T>& w, const State<T>& state, bool from_zero, int64_t level, const Loop& loop) {
  const Plane<T>* const flow = w.flow;
  std::fill(state.row(-1) - kLine<T>, state.row(0), T(0));
  each_row(loop, state.height, [&](int64_t y, int64_t task) {
    for (int component = 0; component < 2; ++component) {
      T* const to = state.part(y, Part(kU + component));
      const T factor = component == 0 ? T(double(state.width) / double(flow[0].width))
                                      : T(double(state.height) / double(flow[0].height));
      if (from_zero) {
        std::fill(to, to + state.width, T(0));
      } else {
        resize_row(flow[component], w.up_rows[level], w.up_columns[level], factor, y, w.scratch + task * w.scratch_row,
                   to);
      }
      std::fill(to + state.width, to + state.pitch, T(0));
    }
    std::fill(state.part(y, kPux), state.part(y, kRho), T(0));
  });
}

// Copies the flow out of the state, into planes with borders.
template <class T>
void leave_level(const State<T>& state, Workspace<T>* w, const Loop& loop) {
  for (int component = 0; component < 2; ++component)
    w->flow[component] = plane_in(w->flow_memory[component], state.height, state.width);
  each_row(loop, state.height, [&](int64_t y, int64_t) {
    for (int component = 0; component < 2; ++component) {
      std::copy_n(state.part(y, Part(kU + component)), state.width, w->flow[component].row(y));
      extend_row(w->flow[component], y);
    }
  });
  for (const Plane<T>& plane : w->flow) extend_columns(plane);
}

template <class T>
void median_filter(const OpticalFlowTvl1& p, const State<T>& state, Workspace<T>* w, const Loop& loop) {
  leave_level(state, w, loop);
  each(loop, row_tasks(state.height), [&](int64_t task) {
    const int64_t end = std::min(state.height, (task + 1) * kRowsPerTask);
    for (int64_t y = task * kRowsPerTask; y < end; y += 2) {
      for (int component = 0; component < 2; ++component) {
        const Part part = Part(kU + component);
        T* const first = state.part(y, part);
        T* const second = first + kParts * state.pitch;
        const auto rows = p.median == 3 ? &median_rows<T, 3> : &median_rows<T, 5>;
        rows(w->flow[component], y, y + 1 < end, first, second);
      }
    }
  });
}

template <class T>
void solve_level(const OpticalFlowTvl1& p, const Plane<T>& prev, const Plane<T>& next, const State<T>& state,
                 Workspace<T>* w, const Loop& loop) {
  const Step<T> step{T(p.theta), T(p.lambda * p.theta), T(p.tau / p.theta)};
  const double enough = p.epsilon * p.epsilon * double(state.height * state.width);
  const bool measure = p.epsilon > 0;
  for (int64_t warp = 0; warp < p.warps; ++warp) {
    each_row(loop, state.height, [&](int64_t y, int64_t) { linearise_row(prev, next, state, T(kGradientFloor), y); });
    bool moving = true;
    for (int64_t outer = 0; outer < p.outer_iterations && moving; ++outer) {
      if (p.median > 0) median_filter(p, state, w, loop);
      const int64_t at_once = measure ? kCheckEvery : p.inner_iterations;
      for (int64_t done = 0; done < p.inner_iterations && moving; done += at_once) {
        const int64_t count = std::min(at_once, p.inner_iterations - done);
        const double change = iterate(state, step, count, measure, w->row_sums, loop);
        moving = !measure || change > enough;
      }
    }
  }
}

template <class T>
FlowStatus solve(const OpticalFlowTvl1& p, const ImageView& prev, const ImageView& next, const ImageView& init,
                 T* result, void* memory, const Loop& loop) {
  const Sizes sizes = level_sizes(p);
  Workspace<T> w;
  lay_out(p, sizes, static_cast<char*>(memory), &w);
  if (!make_grey(p, prev, w.prev[0], loop)) return FlowStatus::bad_prev;
  if (!make_grey(p, next, w.next[0], loop)) return FlowStatus::bad_next;
  const int64_t coarsest = sizes.count - 1;
  for (int64_t l = 0; l < sizes.count; ++l) {
    fill_filter(w.up_rows[l]);
    fill_filter(w.up_columns[l]);
    if (l == 0) continue;
    fill_filter(w.down_rows[l]);
    fill_filter(w.down_columns[l]);
    make_level(w, w.prev, l, loop);
    make_level(w, w.next, l, loop);
  }
  for (int component = 0; component < 2; ++component)
    w.flow[component] = plane_in(w.flow_memory[component], p.height, p.width);
  if (init.data != nullptr && !read_init(p, init, w.flow, loop)) return FlowStatus::bad_init;
  for (int64_t l = coarsest; l >= 0; --l) {
    const State<T> state = state_in(w.state, sizes.height[l], sizes.width[l]);
    const Loop here = state.height * state.width < kWorthThreads ? Loop{1, nullptr, in_turn} : loop;
    enter_level(w, state, l == coarsest && init.data == nullptr, l, here);
    solve_level(p, w.prev[l], w.next[l], state, &w, here);
    if (l > 0) {
      leave_level(state, &w, here);
      continue;
    }
    each_row(loop, p.height, [&](int64_t y, int64_t) {
      for (int component = 0; component < 2; ++component)
        std::copy_n(state.part(y, Part(kU + component)), p.width, result + (component * p.height + y) * p.width);
    });
  }
  return FlowStatus::done;
}

size_t workspace_bytes(const OpticalFlowTvl1& p) {
  const Sizes sizes = level_sizes(p);
  Workspace<float> single;
  Workspace<double> twice;
  return p.pixels == Pixels::f64 ? lay_out(p, sizes, nullptr, &twice) : lay_out(p, sizes, nullptr, &single);
}

FlowStatus run(const OpticalFlowTvl1& p, ImageView prev, ImageView next, ImageView init, void* flow, void* workspace,
               const Loop& loop) {
  if (p.pixels == Pixels::f64) return solve(p, prev, next, init, static_cast<double*>(flow), workspace, loop);
  return solve(p, prev, next, init, static_cast<float*>(flow), workspace, loop);
}

}  // namespace

extern const OpticalFlowTvl1Table optical_flow_tvl1;
const OpticalFlowTvl1Table optical_flow_tvl1 = {workspace_bytes, run};

}  // namespace vidgen::VIDGEN_ISA
