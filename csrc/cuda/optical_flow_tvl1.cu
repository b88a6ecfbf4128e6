// optical_flow_tvl1 on the GPU: pyramid, warps and iterations of a batch of pairs, from coarse to fine.
//
// Everything is enqueued at once and the host waits for nothing. Where a tolerance ends a warp, a flag of each pair
// says so on the device, and the launches that were enqueued for more iterations return at once for that pair. Ten
// iterations, after which the change is looked at, are always two launches, from planes A to planes B and back, so that
// whatever pair comes to rest finds its flow in A.
//
// Memory, for H x W pixels of float: two pyramids (each 2.8 HW at a scale factor of 0.8), flow and dual variables twice
// (12 HW), the data term (3 HW) and the median's result (2 HW): about 90 bytes per pixel, 28 MB for 640 x 480. Nearly
// all time goes into the iterations (optical_flow_tvl1_iterate.cuh).
#include "cuda/optical_flow_tvl1.h"

#include "cuda/optical_flow_tvl1_iterate.cuh"
#include "cuda/optical_flow_tvl1_launch.cuh"
#include "cuda/optical_flow_tvl1_median.cuh"
#include "cuda/optical_flow_tvl1_warp.cuh"

#include <algorithm>
#include <type_traits>
#include <utility>

namespace vidgen::cuda {
namespace {

// As in vidgen/ops/optical_flow_tvl1.py, of which this file is the fast form.
constexpr int kMinSide = 16;
constexpr int kCheckEvery = 2 * kDepth;
constexpr int kMostLevels = 64;

template <typename S, typename T>
__global__ void __launch_bounds__(kTileThreads) grey_kernel(const Launch<T> launch) {
  const Place place = place_in(launch.level);
  if (!place.exists) return;
  launch.image[place.pair * launch.level.plane() + launch.level.at(place.y, place.x)] =
      grey_at<S, T>(launch.pixels, launch.channels, place.pair, place.y, place.x);
}

template <typename T>
__global__ void __launch_bounds__(kTileThreads) resize_kernel(const Launch<T> launch) {
  const Level& level = launch.level;
  const Place place = place_in(level);
  if (!place.exists) return;
  for (int component = 0; component < launch.components; ++component) {
    const T* const from = launch.from + place.pair * launch.from_pair + component * launch.from_component;
    launch.image[(place.pair * launch.components + component) * level.plane() + level.at(place.y, place.x)] =
        launch.factor[component].value * resized(from, launch.from_height, launch.from_width, launch.from_row,
                                                 launch.from_column, level, place.y, place.x);
  }
}

// The flow without the room at the end of a plane's rows.
template <typename T>
__global__ void __launch_bounds__(kTileThreads) pack_kernel(const Launch<T> launch) {
  const Level& level = launch.level;
  const Place place = place_in(level);
  if (!place.exists) return;
  for (int component = 0; component < 2; ++component) {
    const int64_t plane = place.pair * 2 + component;
    launch.new_flow[(plane * level.height + place.y) * level.width + place.x] =
        launch.flow[plane * level.plane() + level.at(place.y, place.x)];
  }
}

struct Levels {
  int count;
  Level at[kMostLevels];
};

Levels levels_of(const OpticalFlowTvl1& p) {
  Levels levels{1, {level_of(p.height, p.width)}};
  double scale = 1;
  while (levels.count < std::min(p.levels, kMostLevels)) {
    scale *= p.scale_factor;
    const int height = static_cast<int>(p.height * scale + 0.5), width = static_cast<int>(p.width * scale + 0.5);
    const Level& last = levels.at[levels.count - 1];
    if (std::min(height, width) < kMinSide || (height == last.height && width == last.width)) break;
    levels.at[levels.count++] = level_of(height, width);
  }
  return levels;
}

template <typename T>
struct Workspace {
  T *prev[kMostLevels], *next[kMostLevels];
  T *flow, *dual;          // A
  T *new_flow, *new_dual;  // B
  T *term, *filtered;
  double* changes;
  int* moving;
};

// With a null base it only counts.
template <typename T>
size_t lay_out(const OpticalFlowTvl1& p, const Levels& levels, char* base, Workspace<T>* w) {
  size_t used = 0;
  const auto take = [&](auto*& piece, int64_t count) {
    piece = reinterpret_cast<std::remove_reference_t<decltype(piece)>>(base + used);
    used += (static_cast<size_t>(p.pairs * count) * sizeof(*piece) + 255) / 256 * 256;
  };
  int64_t windows = 0;
  for (int l = 0; l < levels.count; ++l) {
    take(w->prev[l], levels.at[l].plane());
    take(w->next[l], levels.at[l].plane());
    const Windows here = windows_of<T>(levels.at[l]);
    windows = std::max(windows, static_cast<int64_t>(here.across) * here.down);
  }
  const int64_t plane = levels.at[0].plane();
  take(w->flow, 2 * plane);
  take(w->dual, 4 * plane);
  take(w->new_flow, 2 * plane);
  take(w->new_dual, 4 * plane);
  take(w->term, 3 * plane);
  take(w->filtered, p.median > 0 ? 2 * plane : 0);
  take(w->changes, windows);
  take(w->moving, 1);
  return used;
}

// Enqueues kernels until one does not start.
template <typename T>
class Queue {
 public:
  explicit Queue(cudaStream_t stream) : stream_(stream) {}

  void run(void (*kernel)(Launch<T>), Launch<T> launch, int64_t blocks, int threads, size_t shared_bytes = 0) {
    if (error_ != cudaSuccess) return;
    void* arguments[] = {&launch};
    error_ = cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(static_cast<unsigned>(blocks)), dim3(threads),
                              arguments, shared_bytes, stream_);
  }

  void clear(T* data, int64_t count) {
    if (error_ == cudaSuccess) error_ = cudaMemsetAsync(data, 0, static_cast<size_t>(count) * sizeof(T), stream_);
  }

  cudaError_t error() const { return error_; }

 private:
  cudaStream_t stream_;
  cudaError_t error_ = cudaSuccess;
};

template <typename T>
class Solver {
 public:
  Solver(const OpticalFlowTvl1& p, void* workspace, cudaStream_t stream)
      : p_(p), levels_(levels_of(p)), queue_(stream) {
    lay_out(p, levels_, static_cast<char*>(workspace), &w_);
  }

  cudaError_t run() {
    make_pyramid(p_.prev, w_.prev);
    make_pyramid(p_.next, w_.next);
    for (int l = levels_.count - 1; l >= 0; --l) {
      enter(l);
      for (int warp = 0; warp < p_.warps; ++warp) solve_warp(l);
    }
    Launch<T> launch = at_level(0);
    launch.new_flow = static_cast<T*>(p_.flow);
    each_pixel(pack_kernel<T>, launch);
    return queue_.error();
  }

 private:
  Launch<T> at_level(int l) const {
    Launch<T> launch{};
    launch.level = levels_.at[l];
    launch.prev = w_.prev[l];
    launch.next = w_.next[l];
    launch.flow = w_.flow;
    launch.dual = w_.dual;
    launch.new_flow = w_.new_flow;
    launch.new_dual = w_.new_dual;
    launch.term = w_.term;
    launch.theta.value = static_cast<T>(p_.theta);
    launch.limit.value = static_cast<T>(p_.lambda * p_.theta);
    launch.ratio.value = static_cast<T>(p_.tau / p_.theta);
    launch.changes = w_.changes;
    launch.moving = w_.moving;
    launch.enough = p_.epsilon * p_.epsilon * launch.level.height * launch.level.width;
    return launch;
  }

  void each_pixel(void (*kernel)(Launch<T>), const Launch<T>& launch) {
    queue_.run(kernel, launch, p_.pairs * tiles_of(launch.level), kTileThreads);
  }

  void make_pyramid(const PixelView& pixels, T* const* images) {
    Launch<T> launch = at_level(0);
    launch.pixels = pixels;
    launch.channels = p_.channels;
    launch.image = images[0];
    if constexpr (sizeof(T) == 8) {
      each_pixel(grey_kernel<double, T>, launch);
    } else {
      each_pixel(p_.pixels == Pixels::u8 ? grey_kernel<uint8_t, T> : grey_kernel<float, T>, launch);
    }
    for (int l = 1; l < levels_.count; ++l) resize(images[l - 1], levels_.at[l - 1], 1, l, images[l]);
  }

  // `components` planes of each pair, from planes of the level `from`; of a flow the numbers grow with the image.
  void resize(const T* data, const Level& from, int components, int l, T* to) {
    const int64_t plane = from.plane();
    resize(PixelView{data, components * plane, plane, from.pitch, 1}, from, components, l, to);
  }

  void resize(const PixelView& view, const Level& from, int components, int l, T* to) {
    Launch<T> launch = at_level(l);
    launch.from = static_cast<const T*>(view.data);
    launch.from_height = from.height;
    launch.from_width = from.width;
    launch.components = components;
    launch.from_pair = view.pair_stride;
    launch.from_component = view.channel_stride;
    launch.from_row = view.row_stride;
    launch.from_column = view.column_stride;
    launch.factor[0].value = components == 1 ? T(1) : static_cast<T>(double(launch.level.width) / from.width);
    launch.factor[1].value = static_cast<T>(double(launch.level.height) / from.height);
    launch.image = to;
    each_pixel(resize_kernel<T>, launch);
  }

  // Takes the flow over from the level before; dual variables begin at zero on every level.
  void enter(int l) {
    const int64_t plane = levels_.at[l].plane();
    if (l < levels_.count - 1) {
      resize(w_.flow, levels_.at[l + 1], 2, l, w_.new_flow);
      std::swap(w_.flow, w_.new_flow);
    } else if (p_.init.data != nullptr) {
      resize(p_.init, levels_.at[0], 2, l, w_.flow);
    } else {
      queue_.clear(w_.flow, p_.pairs * 2 * plane);
    }
    queue_.clear(w_.dual, p_.pairs * 4 * plane);
  }

  void solve_warp(int l) {
    each_pixel(linearise_kernel<T>, at_level(l));
    for (int outer = 0; outer < p_.outer_iterations; ++outer) {
      const T* flow = w_.flow;
      if (p_.median > 0) {
        Launch<T> launch = at_level(l);
        launch.new_flow = w_.filtered;
        each_pixel(p_.median == 3 ? median_kernel<3, T> : median_kernel<5, T>, launch);
        flow = w_.filtered;
      }
      for (int done = 0; done < p_.inner_iterations; done += kCheckEvery) {
        iterate(l, flow, std::min(kCheckEvery, p_.inner_iterations - done));
        flow = w_.flow;
      }
    }
  }

  // At most ten iterations, from `flow` and the dual variables in A to A.
  void iterate(int l, const T* flow, int count) {
    Launch<T> launch = at_level(l);
    const Windows windows = windows_of<T>(launch.level);
    const int64_t blocks = p_.pairs * windows.across * windows.down;
    const int threads = 32 * windows.warps;
    const size_t shared_bytes = kEdges * sizeof(Quad<T>) * kMostThreads<T>;
    launch.windows_across = windows.across;
    launch.windows_down = windows.down;
    launch.flow = flow;
    // of one iteration the first launch only copies: the second one is that which is measured
    launch.iterations = count / 2;
    queue_.run(iterate_kernel<T>, launch, blocks, threads, shared_bytes);
    launch.flow = w_.new_flow;
    launch.dual = w_.new_dual;
    launch.new_flow = w_.flow;
    launch.new_dual = w_.dual;
    launch.iterations = count - count / 2;
    launch.measure = p_.epsilon > 0;
    queue_.run(iterate_kernel<T>, launch, blocks, threads, shared_bytes);
    if (launch.measure) queue_.run(decide_kernel<T>, launch, p_.pairs, kDecideThreads, kDecideThreads * sizeof(double));
  }

  const OpticalFlowTvl1 p_;
  const Levels levels_;
  Workspace<T> w_;
  Queue<T> queue_;
};

}  // namespace

size_t optical_flow_tvl1_workspace_bytes(const OpticalFlowTvl1& p) {
  Workspace<float> single;
  Workspace<double> twice;
  return p.pixels == Pixels::f64 ? lay_out(p, levels_of(p), nullptr, &twice)
                                 : lay_out(p, levels_of(p), nullptr, &single);
}

cudaError_t optical_flow_tvl1(const OpticalFlowTvl1& p, void* workspace, cudaStream_t stream) {
  if (p.pairs == 0) return cudaSuccess;
  if (p.pixels == Pixels::f64) return Solver<double>(p, workspace, stream).run();
  return Solver<float>(p, workspace, stream).run();
}

}  // namespace vidgen::cuda
