// optical_flow_dis on the GPU: pyramid, search, flow of pixels and refinement of a batch of pairs, from coarse to fine.
// Every kernel's tiling is explained at the head of its file; this one lays out memory and launches.
//
// Memory for a pair of H x W grey pixels, finest level 1, patches of 8 every 3, in floats for each of that level's HW /
// 4 pixels: images 2, flows 4, residuals 9, patches 15 / 9, and for the coarser images 2 / 3: 17.3, or 36 MB for 1920 x
// 1080. Launches: 5 for every level and 2 + iterations more for its refinement, 73 for 1920 x 1080 with the preset
// "medium". None waits for the host.
#include "cuda/optical_flow_dis.h"

#include <algorithm>
#include <cmath>

#include "cuda/optical_flow_dis_dense.cuh"
#include "cuda/optical_flow_dis_pyramid.cuh"
#include "cuda/optical_flow_dis_refine.cuh"
#include "cuda/optical_flow_dis_search.cuh"

namespace vidgen::cuda {
namespace {

constexpr int kMostLevels = 40;
constexpr double kFullSmoothness = 100, kLeastSmoothness = 0.5;

struct Levels {
  int finest, coarsest;
  Size size[kMostLevels];

  // the first one that is kept: the images themselves are, only if they are searched
  int first() const { return finest == 0 ? 0 : 1; }
};

Levels levels_of(const OpticalFlowDis& p) {
  Levels levels;
  const double patch = p.patch_size, longer = std::max(p.height, p.width), shorter = std::min(p.height, p.width);
  const double most =
      std::min(std::floor(std::log2(longer / (4 * patch)) + 0.5), std::floor(std::log2(shorter / patch)));
  levels.coarsest = std::max(0, static_cast<int>(most));
  levels.finest = p.finest_scale <= levels.coarsest ? p.finest_scale : std::max(0, levels.coarsest - 1);
  levels.size[0] = {std::max(p.height, p.patch_size), std::max(p.width, p.patch_size)};
  for (int l = 1; l <= levels.coarsest; ++l)
    levels.size[l] = {(levels.size[l - 1].height + 1) / 2, (levels.size[l - 1].width + 1) / 2};
  return levels;
}

// alpha, of which small images get a share.
double smoothness(const OpticalFlowDis& p, const Levels& levels) {
  const double side = std::sqrt(static_cast<double>(levels.size[levels.finest].pixels()));
  return p.alpha * std::min(1.0, std::max(kLeastSmoothness, side / kFullSmoothness));
}

int patches_along(int side, const OpticalFlowDis& p) {
  return 1 + (side - p.patch_size + p.patch_stride - 1) / p.patch_stride;
}

// Hands out a workspace piece by piece; with a null base it only counts.
struct Pieces {
  char* base;
  int64_t pairs;
  size_t used = 0;

  // `count` numbers for each pair
  template <typename T>
  T* take(int64_t count) {
    char* const piece = base == nullptr ? nullptr : base + used * pairs;
    used += (static_cast<size_t>(count) * sizeof(T) + 255) / 256 * 256;
    return reinterpret_cast<T*>(piece);
  }
};

template <typename T>
struct Workspace {
  T* images[kMostLevels];
  T* flow[2];
  T* residuals;
  PatchTensor<T>* tensors;
  PatchState<T>* states[2];
  size_t bytes;  // of a pair

  Workspace(const OpticalFlowDis& p, const Levels& levels, void* base, int64_t pairs) {
    Pieces pieces{static_cast<char*>(base), pairs};
    for (int l = levels.first(); l <= levels.coarsest; ++l) images[l] = pieces.take<T>(2 * levels.size[l].pixels());
    // the finest level of those searched has the most of all that follows
    const Size size = levels.size[levels.finest];
    const int64_t patches = static_cast<int64_t>(patches_along(size.height, p)) * patches_along(size.width, p);
    for (auto& one : flow) one = pieces.take<T>(2 * size.pixels());
    residuals = p.refinement_iterations > 0 ? pieces.take<T>(9 * size.pixels()) : nullptr;
    tensors = pieces.take<PatchTensor<T>>(patches);
    for (auto& one : states) one = pieces.take<PatchState<T>>(patches);
    bytes = pieces.used;
  }
};

// A batch that goes through all kernels together.
template <typename T>
struct Batch {
  const OpticalFlowDis& p;
  const Levels& levels;
  const Workspace<T>& w;
  unsigned pairs;
  Queue& queue;

  void make_pyramid() const {
    const int first = levels.first();
    const Size size{p.height, p.width};
    const ReadLevel<T> read{p.prev, p.next, size, w.images[first], levels.size[first], p.channels, first == 1};
    const auto kernel = p.pixels == Pixels::u8    ? read_level_kernel<uint8_t, T>
                        : p.pixels == Pixels::f32 ? read_level_kernel<float, T>
                                                  : read_level_kernel<double, T>;
    queue.run(kernel, pixel_grid(read.to, 2 * pairs), kBlockThreads, read);
    for (int l = first + 1; l <= levels.coarsest; ++l)
      queue.run(halve_kernel<T>, pixel_grid(levels.size[l], 2 * pairs), kBlockThreads,
                Halve<T>{w.images[l - 1], levels.size[l - 1], w.images[l], levels.size[l]});
  }

  void read_init(T* flow) const {
    const Size to = levels.size[levels.coarsest];
    queue.run(coarse_start_kernel<T>, dim3(parts(2 * to.pixels(), kBlockThreads / kWarp), 1, pairs), kBlockThreads,
              CoarseStart<T>{p.init, {p.height, p.width}, flow, to, levels.coarsest});
  }

  // The flow of a level, from that of the level before, or of this one in `start_size`; null begins with zero.
  template <int P>
  void search(int level, const T* start, Size start_size, T* flow) const {
    const Size size = levels.size[level];
    const Patches<T> patches{
        w.images[level], size, P, p.patch_stride, patches_along(size.height, p), patches_along(size.width, p)};
    const T zoom = level == levels.coarsest ? 1 : 2;
    queue.run(prepare_kernel<T, P>, dim3(parts(patches.count(), kBlockThreads / kWarp), 1, pairs), kBlockThreads,
              Prepare<T>{patches, start, start_size, zoom, w.tensors, w.states[0]});
    const dim3 stripes(parts(patches.rows, kStripeRows), 1, pairs);
    // the passes share the iterations, and the first has the odd one
    const int iterations[2] = {(p.descent_iterations + 1) / 2, p.descent_iterations / 2};
    for (int i = 0; i < 2; ++i)
      queue.run(pass_kernel<T, P>, stripes, kStripeRows * kWarp,
                Pass<T>{patches, w.tensors, w.states[i], w.states[1 - i], iterations[i], i == 1});
    queue.run(densify_kernel<T>, pixel_grid(size, pairs), kBlockThreads, Densify<T>{patches, w.states[0], flow});
  }

  // Refines flows[0]; the result is flows[0] again, which may have changed places with flows[1].
  void refine(int level, int iterations, T* (&flows)[2]) const {
    if (iterations == 0) return;
    const Size size = levels.size[level];
    queue.run(linearise_kernel<T>, pixel_grid(size, pairs), kBlockThreads,
              Linearise<T>{w.images[level], flows[0], w.residuals, size});
    const dim3 tiles(parts(size.width, kKeptWidth), parts(size.height, kKeptHeight<T>), pairs);
    for (int i = 0; i < iterations; ++i) {
      queue.run(iterate_kernel<T>, tiles, kRelaxThreads,
                Iterate<T>{flows[0], flows[1], w.residuals, size, static_cast<T>(smoothness(p, levels)),
                           static_cast<T>(p.delta), static_cast<T>(p.gamma)});
      std::swap(flows[0], flows[1]);
    }
  }

  void solve() const {
    make_pyramid();
    T* flows[2] = {w.flow[0], w.flow[1]};
    const T* start = nullptr;
    if (p.init.data != nullptr) {
      read_init(flows[0]);
      start = flows[0];
    }
    const auto step = p.patch_size == 4   ? &Batch::template search<4>
                      : p.patch_size == 8 ? &Batch::template search<8>
                                          : &Batch::template search<16>;
    for (int l = levels.coarsest; l >= levels.finest; --l) {
      (this->*step)(l, start, levels.size[std::min(l + 1, levels.coarsest)], flows[1]);
      std::swap(flows[0], flows[1]);
      // linearised anew half-way
      const int second = p.refinement_iterations / 2;
      refine(l, p.refinement_iterations - second, flows);
      refine(l, second, flows);
      start = flows[0];
    }
    const Size size = levels.size[levels.finest];
    if (p.refinement_iterations == 0) {
      // nothing else has smoothed it
      queue.run(smooth_kernel<T>, pixel_grid(size, 2 * pairs), kBlockThreads, Smooth<T>{flows[0], flows[1], size});
      std::swap(flows[0], flows[1]);
    }
    const Size full{p.height, p.width};
    queue.run(magnify_kernel<T>, pixel_grid(full, 2 * pairs), kBlockThreads,
              Magnify<T>{flows[0], size, static_cast<T*>(p.flow), full, levels.finest});
  }
};

PixelView moved(PixelView images, int64_t pairs, size_t item) {
  if (images.data != nullptr) images.data = static_cast<const char*>(images.data) + pairs * images.pair_stride * item;
  return images;
}

template <typename T>
cudaError_t solve(OpticalFlowDis p, int64_t together, void* workspace, cudaStream_t stream) {
  const Levels levels = levels_of(p);
  const Workspace<T> w(p, levels, workspace, together);
  const int64_t item = p.pixels == Pixels::u8 ? 1 : sizeof(T), full = int64_t{2} * p.height * p.width;
  Queue queue{stream};
  for (int64_t left = p.pairs; left > 0; left -= together) {
    Batch<T>{p, levels, w, static_cast<unsigned>(std::min(left, together)), queue}.solve();
    p.prev = moved(p.prev, together, item);
    p.next = moved(p.next, together, item);
    p.init = moved(p.init, together, sizeof(T));
    p.flow = static_cast<T*>(p.flow) + together * full;
  }
  return queue.error;
}

}  // namespace

size_t optical_flow_dis_workspace(const OpticalFlowDis& p) {
  const Levels levels = levels_of(p);
  return p.pixels == Pixels::f64 ? Workspace<double>(p, levels, nullptr, 1).bytes
                                 : Workspace<float>(p, levels, nullptr, 1).bytes;
}

cudaError_t optical_flow_dis(const OpticalFlowDis& p, int64_t together, void* workspace, cudaStream_t stream) {
  return p.pixels == Pixels::f64 ? solve<double>(p, together, workspace, stream)
                                 : solve<float>(p, together, workspace, stream);
}

}  // namespace vidgen::cuda
