// optical_flow_dis on the CPU: pyramid, search, flow of pixels and refinement of one pair of images, from coarse to
// fine.
//
// Memory, for H x W pixels of float and a finest level of 1: the images of a level and gradients (4 numbers for each of
// its pixels), the flow and its weights (3), patches (8 for every stride^2 pixels), and the refinement (24), all of
// HW / 4 pixels, and the coarser images. Pixels of the full size are read once, two rows at a time, as level 1 is made,
// unless level 0 is asked for.
//
// Every step spreads rows, or stripes of patches, over threads, and no number depends on how.
#include "cpu/optical_flow_dis.h"

#include <atomic>

#include "cpu/optical_flow_dis_refine.h"

namespace vidgen::VIDGEN_ISA {
namespace {

// As in vidgen/ops/optical_flow_dis.py, of which this file is the fast form.
constexpr double kLargestInit = 1e6;
constexpr double kFullSmoothness = 100, kLeastSmoothness = 0.5;
constexpr int64_t kMostLevels = 40;
constexpr int64_t kStripeRows = 8;

// Levels of fewer pixels are left to one thread.
constexpr int64_t kWorthThreads = 4096;

struct Sizes {
  int64_t finest, coarsest, height[kMostLevels], width[kMostLevels];
};

int64_t floor_log2(double ratio) { return int64_t(std::floor(std::log2(ratio))); }

Sizes level_sizes(const OpticalFlowDis& p) {
  Sizes sizes;
  const double patch = double(p.patch_size);
  const double longer = double(std::max(p.height, p.width)), shorter = double(std::min(p.height, p.width));
  const int64_t most =
      std::min(int64_t(std::floor(std::log2(longer / (4 * patch)) + 0.5)), floor_log2(shorter / patch));
  sizes.coarsest = std::max<int64_t>(most, 0);
  sizes.finest = p.finest_scale <= sizes.coarsest ? p.finest_scale : std::max<int64_t>(0, sizes.coarsest - 1);
  sizes.height[0] = std::max(p.height, p.patch_size);
  sizes.width[0] = std::max(p.width, p.patch_size);
  for (int64_t l = 1; l <= sizes.coarsest; ++l) {
    sizes.height[l] = (sizes.height[l - 1] + 1) / 2;
    sizes.width[l] = (sizes.width[l - 1] + 1) / 2;
  }
  return sizes;
}

// The share of alpha that images of this size get.
double smoothness_share(const Sizes& sizes) {
  const double pixels = double(sizes.height[sizes.finest]) * double(sizes.width[sizes.finest]);
  return std::clamp(std::sqrt(pixels) / kFullSmoothness, kLeastSmoothness, 1.0);
}

// Everything that a pair needs, taken from one piece of memory.
template <class T>
struct Workspace {
  Level<T> level[kMostLevels];
  Flow<T> flow[kMostLevels];
  Flow<T> init;
  Plane<T> weight[kMostLevels];
  Refinement<T> refinement[kMostLevels];
  PatchState<T>*states[kMostLevels], *below[kMostLevels];
  T* scratch;
  int64_t scratch_row;
};

template <class T>
size_t lay_out(const OpticalFlowDis& p, const Sizes& sizes, char* base, Workspace<T>* w) {
  Arena arena{base};
  for (int64_t l = sizes.finest == 0 ? 0 : 1; l <= sizes.coarsest; ++l) {
    const int64_t height = sizes.height[l], width = sizes.width[l], border = search_border(p.patch_size);
    w->level[l].prev = take_plane<T>(arena, height, width, border);
    w->level[l].next = take_plane<T>(arena, height, width, border);
    if (l < sizes.finest) continue;
    w->level[l].gx = take_plane<T>(arena, height, width);
    w->level[l].gy = take_plane<T>(arena, height, width);
    w->flow[l] = {take_plane<T>(arena, height, width), take_plane<T>(arena, height, width)};
  }
  const int64_t height = sizes.height[sizes.coarsest], width = sizes.width[sizes.coarsest];
  w->init = {take_plane<T>(arena, height, width), take_plane<T>(arena, height, width)};
  // a row of the images, read by twice a vector, and a line before it
  w->scratch_row = pitch_of<T>(sizes.width[0] + kLine<T>);
  w->scratch = arena.take<T>(2 * row_tasks(sizes.height[0]) * w->scratch_row);
  // each level begins where the one before began
  const size_t shared = arena.used;
  size_t most = shared;
  for (int64_t l = sizes.finest; l <= sizes.coarsest; ++l) {
    arena.used = shared;
    w->weight[l] = take_plane<T>(arena, sizes.height[l], sizes.width[l]);
    const auto patches = [&](int64_t side) { return 2 + side / p.patch_stride; };
    const int64_t columns = patches(sizes.width[l]), rows = patches(sizes.height[l]);
    w->states[l] = arena.take<PatchState<T>>(rows * columns);
    w->below[l] = arena.take<PatchState<T>>((rows / kStripeRows + 1) * columns);
    if (p.refinement_iterations > 0) take_refinement(arena, sizes.height[l], sizes.width[l], &w->refinement[l]);
    most = std::max(most, arena.used);
  }
  return most;
}

// One row of grey levels, continued to `width`.
template <class T>
bool read_row(const OpticalFlowDis& p, const ImageView& image, int64_t y, int64_t width, T* to) {
  y = std::min(y, p.height - 1);
  const bool good = p.pixels == Pixels::u8    ? grey_row<uint8_t>(image, p.channels, y, p.width, to)
                    : p.pixels == Pixels::f32 ? grey_row<float>(image, p.channels, y, p.width, to)
                                              : grey_row<double>(image, p.channels, y, p.width, to);
  std::fill(to + p.width, to + width + 1, to[p.width - 1]);
  return good;
}

template <class T, size_t... lane>
VIDGEN_INLINE Vec<T> pair_sums(Vec<T> a, Vec<T> b, std::index_sequence<lane...>) {
  return (Vec<T>)__builtin_shufflevector(a, b, (2 * lane)...) +
         (Vec<T>)__builtin_shufflevector(a, b, (2 * lane + 1)...);
}

// The means of squares of four pixels. Rows may be read by whole vectors beyond their end.
template <class T>
VIDGEN_INLINE void halve_row(const T* upper, const T* lower, int64_t outputs, T* to) {
  constexpr int64_t lanes = kLanes<T>;
  for (int64_t x = 0; x < outputs; x += lanes) {
    const Vec<T> a = load(upper + 2 * x) + load(lower + 2 * x);
    const Vec<T> b = load(upper + 2 * x + lanes) + load(lower + 2 * x + lanes);
    store(to + x, T(0.25) * pair_sums<T>(a, b, std::make_index_sequence<lanes>()));
  }
}

// Level 0 where it is asked for, and levels 1 ... of one image.
template <class T>
bool make_pyramid(const OpticalFlowDis& p, const Sizes& sizes, const ImageView& image, const Workspace<T>& w,
                  Plane<T> Level<T>::* which, const Loop& loop) {
  const int64_t border = search_border(p.patch_size);
  std::atomic<bool> good{true};
  const auto plane = [&](int64_t l) -> const Plane<T>& { return w.level[l].*which; };
  const auto extend = [&](const Plane<T>& of, int64_t y) { extend_row(of, y, border, border + kLine<T>); };
  const auto finish = [&](const Plane<T>& of) { extend_columns(of, border, border, border + kLine<T>); };
  if (sizes.finest == 0) {
    each_row(loop, sizes.height[0], [&](int64_t y, int64_t) {
      if (!read_row(p, image, y, sizes.width[0], plane(0).row(y))) good.store(false, std::memory_order_relaxed);
      extend(plane(0), y);
    });
    finish(plane(0));
  } else {
    each_row(loop, sizes.height[1], [&](int64_t y, int64_t task) {
      T *const upper = w.scratch + 2 * task * w.scratch_row, *const lower = upper + w.scratch_row;
      const bool read = read_row(p, image, 2 * y, sizes.width[0], upper) &
                        read_row(p, image, std::min(2 * y + 1, sizes.height[0] - 1), sizes.width[0], lower);
      if (!read) good.store(false, std::memory_order_relaxed);
      halve_row(upper, lower, sizes.width[1], plane(1).row(y));
      extend(plane(1), y);
    });
    finish(plane(1));
  }
  for (int64_t l = sizes.finest == 0 ? 1 : 2; l <= sizes.coarsest; ++l) {
    each_row(loop, sizes.height[l], [&](int64_t y, int64_t) {
      halve_row(plane(l - 1).row(2 * y), plane(l - 1).row(2 * y + 1), sizes.width[l], plane(l).row(y));
      extend(plane(l), y);
    });
    finish(plane(l));
  }
  return good;
}

// The gradient of I0 stands for that of an I1 between whose pixels interpolation smooths, and is smoothed like it:
// Sobel's operator, central differences by 1/4 (1 2 1) across.
template <class T>
void make_gradients(const Level<T>& level, const Loop& loop) {
  const Plane<T>& from = level.prev;
  each_row(loop, from.height, [&](int64_t y, int64_t) {
    for (int64_t x = 0; x < from.width; x += kLanes<T>) {
      const Vec<T> gx = slope_x(from, y, x), gy = slope_y(from, y, x);
      const Vec<T> beside_x = slope_x(from, y - 1, x) + slope_x(from, y + 1, x);
      const Vec<T> beside_y = slope_y(from, y, x - 1) + slope_y(from, y, x + 1);
      store(level.gx.row(y) + x, T(0.25) * (beside_x + T(2) * gx));
      store(level.gy.row(y) + x, T(0.25) * (beside_y + T(2) * gy));
    }
  });
}

// `init` on the coarsest level: means over squares of 2^coarsest pixels, in pixels of that level.
template <class T>
bool read_init(const OpticalFlowDis& p, int64_t level, const ImageView& init, const Flow<T>& flow, const Loop& loop) {
  std::atomic<bool> good{true};
  const int64_t side = int64_t{1} << level;
  each_row(loop, flow.u.height, [&](int64_t y, int64_t) {
    for (int component = 0; component < 2; ++component) {
      T* const to = (component == 0 ? flow.u : flow.v).row(y);
      for (int64_t x = 0; x < flow.u.width; ++x) {
        T sum = 0;
        for (int64_t j = 0; j < side; ++j) {
          const T* const row = static_cast<const T*>(init.data) + component * init.channel_stride +
                               std::min(y * side + j, p.height - 1) * init.row_stride;
          for (int64_t i = 0; i < side; ++i) {
            const T value = row[std::min(x * side + i, p.width - 1) * init.column_stride];
            if (!(value >= T(-kLargestInit) && value <= T(kLargestInit))) good.store(false, std::memory_order_relaxed);
            sum += value;
          }
        }
        to[x] = sum / T(side * side * side);
      }
    }
  });
  return good;
}

// The search on one level, into its flow. `start` is the flow of the level before, with a `zoom` of 2, or a flow of
// this level's size, with 1; null begins with zero.
template <class T, int P>
void search(const OpticalFlowDis& p, const Workspace<T>& w, int64_t l, const Flow<T>* start, T zoom, const Loop& loop) {
  const Level<T>& level = w.level[l];
  make_gradients(level, loop);
  using Grid = Patches<T, P>;
  const Grid patches{level,
                     p.patch_stride,
                     Grid::count(level.prev.height, p.patch_stride),
                     Grid::count(level.prev.width, p.patch_stride),
                     p.descent_iterations,
                     w.states[l]};
  const int64_t stripes = (patches.rows + kStripeRows - 1) / kStripeRows;
  const auto end_of = [&](int64_t stripe) { return std::min(patches.rows, (stripe + 1) * kStripeRows); };
  each(loop, stripes, [&](int64_t stripe) {
    patches.forward(stripe * kStripeRows, end_of(stripe), [&](int64_t x, int64_t y, T* u, T* v) {
      *u = *v = 0;
      if (start == nullptr) return;
      sample(*start, (T(x) + T(P / 2)) / zoom - T(0.5), (T(y) + T(P / 2)) / zoom - T(0.5), u, v);
      *u *= zoom;
      *v *= zoom;
    });
  });
  const auto below = [&](int64_t stripe) { return w.below[l] + stripe * patches.columns; };
  for (int64_t stripe = 0; stripe + 1 < stripes; ++stripe)
    std::copy_n(&patches.state(end_of(stripe), 0), patches.columns, below(stripe));
  each(loop, stripes, [&](int64_t stripe) {
    patches.backward(stripe * kStripeRows, end_of(stripe), stripe + 1 < stripes ? below(stripe) : nullptr);
  });
  const int64_t height = level.prev.height;
  each(loop, row_tasks(height), [&](int64_t task) {
    densify_rows(patches, w.flow[l], w.weight[l], task * kRowsPerTask, std::min(height, (task + 1) * kRowsPerTask));
  });
}

// Zeros wherever a neighbour across the edge is read.
template <class T>
void clear_edges(const Refinement<T>& r) {
  const System<T>& s = r.system;
  for (const Halves<T>* half : {&s.u, &s.v, &s.down, &r.smooth, &s.across}) {
    const int64_t whole = 2 * (s.height + 2) * half->pitch;
    std::fill_n(half->row(-1, 0) - kLine<T>, whole, T(0));
  }
}

// `iterations` of the refinement of a flow, linearised once.
template <class T>
void refine(const Level<T>& level, const Flow<T>& flow, const Refinement<T>& r, int64_t iterations, T alpha, T delta,
            T gamma, const Loop& loop) {
  const int64_t height = r.system.height, width = r.system.width;
  clear_edges(r);
  each_row(loop, height, [&](int64_t y, int64_t) { warp_row(level, flow, r, y); });
  extend_columns(r.mean);
  extend_columns(r.change);
  each_row(loop, height, [&](int64_t y, int64_t) {
    for (int64_t x = 0; x < width; x += kLanes<T>) {
      store(r.mean_x.row(y) + x, slope_x(r.mean, y, x));
      store(r.mean_y.row(y) + x, slope_y(r.mean, y, x));
    }
    extend_row(r.mean_x, y);
    extend_row(r.mean_y, y);
  });
  extend_columns(r.mean_x);
  extend_columns(r.mean_y);
  each_row(loop, height, [&](int64_t y, int64_t) { linearise_row(flow, r, y); });
  for (int64_t i = 0; i < iterations; ++i) {
    each_row(loop, height, [&](int64_t y, int64_t) { weigh_smoothness_row(r, alpha, y); });
    each_row(loop, height, [&](int64_t y, int64_t) { weigh_row(r, delta, gamma, y); });
    relax(r.system, T(kOmega), kSweeps, loop);
  }
  each_row(loop, height, [&](int64_t y, int64_t) {
    for (int64_t x = 0; x < width; ++x) {
      flow.u.row(y)[x] = r.system.u.row(y, x & 1)[x / 2];
      flow.v.row(y)[x] = r.system.v.row(y, x & 1)[x / 2];
    }
  });
}

// `to` is `from` by 1/4 (1 2 1) along both axes.
template <class T>
void smooth(const Plane<T>& from, const Plane<T>& to, const Workspace<T>& w, const Loop& loop) {
  each_row(loop, from.height, [&](int64_t y, int64_t task) {
    const T *const above = from.row(std::max<int64_t>(y - 1, 0)), *const row = from.row(y);
    const T* const below = from.row(std::min(y + 1, from.height - 1));
    T* const sums = w.scratch + 2 * task * w.scratch_row + kLine<T>;
    for (int64_t x = 0; x < from.width; x += kLanes<T>)
      store(sums + x, load(above + x) + T(2) * load(row + x) + load(below + x));
    sums[-1] = sums[0];
    sums[from.width] = sums[from.width - 1];
    for (int64_t x = 0; x < from.width; x += kLanes<T>)
      store(to.row(y) + x, T(1. / 16) * (load(sums + x - 1) + T(2) * load(sums + x) + load(sums + x + 1)));
  });
}

// Bilinear magnification by 2^level, cut to the image.
template <class T>
void magnify(const OpticalFlowDis& p, int64_t level, const Flow<T>& flow, const Workspace<T>& w, T* result,
             const Loop& loop) {
  const int64_t side = int64_t{1} << level;
  each_row(loop, p.height, [&](int64_t y, int64_t task) {
    for (int component = 0; component < 2; ++component) {
      const Plane<T>& from = component == 0 ? flow.u : flow.v;
      T* const to = result + (component * p.height + y) * p.width;
      if (side == 1) {
        std::copy_n(from.row(y), p.width, to);
        continue;
      }
      const int64_t twice = 2 * y + 1 - side;  // in units of 1 / 2 side
      const int64_t top = twice < 0 ? -1 : twice / (2 * side);
      const T lower = T(twice - top * 2 * side) / T(2 * side);
      const T *const a = from.row(std::max<int64_t>(top, 0)), *const b = from.row(std::min(top + 1, from.height - 1));
      T* const row = w.scratch + 2 * task * w.scratch_row + kLine<T>;
      for (int64_t x = 0; x < from.width; ++x) row[x] = T(side) * (a[x] + lower * (b[x] - a[x]));
      row[-1] = row[0];
      row[from.width] = row[from.width - 1];
      int64_t k = 0;
      if (side == 2) k = spread<T, 2>(row, from.width, p.width, to);
      if (side == 4) k = spread<T, 4>(row, from.width, p.width, to);
      spread_rest(row, k, from.width, side, p.width, to);
    }
  });
}

template <class T>
FlowStatus solve(const OpticalFlowDis& p, const ImageView& prev, const ImageView& next, const ImageView& init,
                 T* result, void* memory, const Loop& loop) {
  const Sizes sizes = level_sizes(p);
  Workspace<T> w;
  lay_out(p, sizes, static_cast<char*>(memory), &w);
  if (!make_pyramid(p, sizes, prev, w, &Level<T>::prev, loop)) return FlowStatus::bad_prev;
  if (!make_pyramid(p, sizes, next, w, &Level<T>::next, loop)) return FlowStatus::bad_next;
  if (init.data != nullptr && !read_init(p, sizes.coarsest, init, w.init, loop)) return FlowStatus::bad_init;
  const T alpha = T(p.alpha * smoothness_share(sizes));
  const auto step = p.patch_size == 4 ? search<T, 4> : p.patch_size == 8 ? search<T, 8> : search<T, 16>;
  for (int64_t l = sizes.coarsest; l >= sizes.finest; --l) {
    const Loop here = sizes.height[l] * sizes.width[l] < kWorthThreads ? Loop{1, nullptr, in_turn} : loop;
    if (l < sizes.coarsest) {
      step(p, w, l, &w.flow[l + 1], T(2), here);
    } else {
      step(p, w, l, init.data == nullptr ? nullptr : &w.init, T(1), here);
    }
    // linearised anew half-way
    const int64_t second = p.refinement_iterations / 2;
    for (int64_t iterations : {p.refinement_iterations - second, second}) {
      if (iterations == 0) continue;
      refine(w.level[l], w.flow[l], w.refinement[l], iterations, alpha, T(p.delta), T(p.gamma), here);
    }
  }
  Flow<T> flow = w.flow[sizes.finest];
  if (p.refinement_iterations == 0) {
    // nothing else has smoothed it; the gradients are no longer needed
    const Level<T>& level = w.level[sizes.finest];
    smooth(flow.u, level.gx, w, loop);
    smooth(flow.v, level.gy, w, loop);
    flow = {level.gx, level.gy};
  }
  magnify(p, sizes.finest, flow, w, result, loop);
  return FlowStatus::done;
}

size_t workspace_bytes(const OpticalFlowDis& p) {
  const Sizes sizes = level_sizes(p);
  Workspace<float> single;
  Workspace<double> twice;
  return p.pixels == Pixels::f64 ? lay_out(p, sizes, nullptr, &twice) : lay_out(p, sizes, nullptr, &single);
}

FlowStatus run(const OpticalFlowDis& p, ImageView prev, ImageView next, ImageView init, void* flow, void* workspace,
               const Loop& loop) {
  if (p.pixels == Pixels::f64) return solve(p, prev, next, init, static_cast<double*>(flow), workspace, loop);
  return solve(p, prev, next, init, static_cast<float*>(flow), workspace, loop);
}

}  // namespace

extern const OpticalFlowDisTable optical_flow_dis;
const OpticalFlowDisTable optical_flow_dis = {workspace_bytes, run};

}  // namespace vidgen::VIDGEN_ISA
