// sample_causal on the GPU: one launch draws rows for a whole batch. Blocks stay where they are, walk through the same
// script (sample_causal_script.h, written by sample_causal_writer.h) and meet where one needs what others have made.
//
// Tiling at pixels. A stage works on tiles of one place, 8 images and 4 channels: 32 numbers, a warp's lanes. Tile t is
// that of block t mod blocks. A sum's tile takes a whole block: its depth is cut into slices of at most 32, slice s is
// that of warp s mod 16 (of double: 8), a lane has one depth, 4 weights (16 bytes of float) and 8 values; the lanes of
// a warp exchange halves until each has one number, and one warp adds up those of the others in their order. Then its
// lanes hold the tile, and apply the elementwise functions that follow to it, with what they have just made in shared
// memory. A sum of 640 for 160 channels and 16 images is 80 tiles; a block reads 10 KB of weights and 20 KB of values
// for each, 2.4 MB for all, all of it from L2. So time goes into latencies: a meeting of blocks (37 a pixel for
// PixelCNN++ of 5 resnets), the way to the script, that to the values, one barrier of the block.
//
// Tiling of lines. What needs no pixel of its own row is made for a whole line before the row begins: tiles of 32 rows
// ([place][image]) and 32 channels (sample_causal_sums.cuh), for 16 images of 32 pixels and 160 channels 80 tiles. A
// value that may be asked for at a pixel is added up as at pixels everywhere, so that an image's bits do not depend on
// which of its rows are known in all images of its batch.
//
// A block has 512 threads (of double 256) and 43 KB of shared memory at most, and there is one on each multiprocessor.
#include "cuda/sample_causal.h"

#include "cuda/sample_causal_draw.cuh"
#include "cuda/sample_causal_launch.cuh"
#include "cuda/sample_causal_pointwise.cuh"
#include "cuda/sample_causal_sums.cuh"

namespace vidgen::cuda {
namespace {

// What a block keeps of tiles: two rounds of the warps' sums, since one warp may still read those of the tile before,
// and the last results of every lane.
template <typename T>
struct TileMemory {
  T sums[2][kWarps<T>][32];
  T slots[kSlots * kThreads<T>];
};

template <typename T>
union Memory {
  TileMemory<T> tiles;
  LineMemory<T> line;
};

template <typename T>
__device__ void run_tiles(const Launch<T>& launch, const ScriptStage& stage, const ScriptOperation* operations,
                          const ScriptSite* sites, const ScriptSlice* slices, TileMemory<T>& memory, unsigned& round) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t groups = (launch.images + kTileImages - 1) / kTileImages,
                panels = panel_count(stage.channels) / stage.halves;
  const int64_t tiles = stage.places * groups * panels * stage.halves;
  const ScriptOperation& first = operations[stage.first];
  const bool sums = first.function == kSum;
  T* const slots = memory.slots + threadIdx.x;
  int turn = 0;  // the warp that a tile falls to
  for (int64_t k = blockIdx.x * int64_t(stage.halves); k < tiles;) {
    const int64_t tile = k / stage.halves, half = k % stage.halves;
    k += half + 1 == stage.halves ? int64_t(gridDim.x) * stage.halves - half : 1;
    turn = (turn + 1) % kWarps<T>;
    if (!sums && turn != warp) continue;
    const int panel = int(tile % panels + half * panels);
    const int64_t group = tile / panels % groups, place = tile / panels / groups;
    const ScriptSite* const at = sites + first.first_site + place * first.sites;
    const int64_t image = group * kTileImages + lane / kPanel;
    const int channel = panel * kPanel + lane % kPanel;
    const bool exists = image < launch.images && channel < stage.channels;
    if (sums) {
      T(&partial)[kWarps<T>][32] = memory.sums[round++ % 2];
      if (warp < first.slices)
        partial[warp][lane] = sum_of_warp(launch, first, at, slices, group * kTileImages, panel, warp, lane);
      __syncthreads();
      if (turn != warp) continue;
      T sum = 0;
      for (int w = 0; w < kWarps<T> && w < first.slices; ++w) sum += partial[w][lane];
      if (exists) {
        sum = with_bias_and_initial(launch, first, at, stage.channels, image, channel, sum);
        slots[0] = sum;
        address(launch, at[0], image)[channel] = sum;
      }
    }
    if (exists) apply_chain(launch, operations, sites, stage, sums ? 1 : 0, place, image, channel, slots);
  }
}

// Whether all pixels of a row are known in all images.
template <typename T>
__device__ bool row_is_known(const Launch<T>& launch, int64_t row) {
  bool unknown = false;
  const int64_t count = launch.images * launch.channels * launch.width;
  for (int64_t k = threadIdx.x; k < count; k += kThreads<T>)
    unknown |= !launch.known[(k / launch.width * launch.height + row) * launch.width + k % launch.width];
  return !__syncthreads_or(unknown);
}

template <typename T>
__global__ void __launch_bounds__(kThreads<T>, 1) sample_causal_kernel(const Launch<T> launch) {
  __shared__ __align__(16) char memory[sizeof(Memory<T>)];
  Memory<T>& shared = *reinterpret_cast<Memory<T>*>(memory);
  const ScriptHeader& header = *reinterpret_cast<const ScriptHeader*>(launch.script);
  const auto* const stages = reinterpret_cast<const ScriptStage*>(launch.script + header.stages);
  const auto* const operations = reinterpret_cast<const ScriptOperation*>(launch.script + header.operations);
  const auto* const pixels = reinterpret_cast<const ScriptPixel*>(launch.script + header.pixels);
  const auto* const sites = reinterpret_cast<const ScriptSite*>(launch.script + header.sites);
  const auto* const slices = reinterpret_cast<const ScriptSlice*>(launch.script + header.slices);
  Meetings meetings{launch.meetings, 0};
  unsigned round = 0;
  for (int64_t s = 0; s < header.stage_count;) {
    const ScriptStage stage = stages[s++];
    if (stage.wait == Wait::all) meet(meetings);
    if (stage.wait == Wait::block) __syncthreads();
    switch (stage.kind) {
      case StageKind::tiles:
        run_tiles(launch, stage, operations, sites, slices, shared.tiles, round);
        break;
      case StageKind::line: {
        const ScriptOperation& o = operations[stage.first];
        const int64_t down = (stage.places * launch.images + kLineRows - 1) / kLineRows;
        const int64_t across = (stage.channels + kLineChannels - 1) / kLineChannels;
        // a warp of the stage before may still be at its tile
        __syncthreads();
        for (int64_t tile = blockIdx.x; tile < down * across; tile += gridDim.x)
          sum_of_line(launch, stage, o, sites + o.first_site, slices, tile, shared.line);
        break;
      }
      case StageKind::pixels: {
        const int64_t count = stage.places * launch.images;
        const int warp = threadIdx.x / 32;
        for (int64_t k = blockIdx.x + int64_t(warp) * gridDim.x; k < count; k += int64_t(kWarps<T>) * gridDim.x)
          settle(launch, pixels[stage.first + k / launch.images], k % launch.images, stage.count);
        break;
      }
      case StageKind::branch:
        if (row_is_known(launch, stage.places)) s = stage.first;
        break;
      case StageKind::jump:
        s = stage.first;
        break;
    }
  }
}

template <typename T>
cudaError_t launch_on(const SampleCausal& p, unsigned* meetings, cudaStream_t stream) {
  int device = 0, cooperative = 0, processors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  int of_one = 0;
  error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&of_one, sample_causal_kernel<T>, kThreads<T>, 0);
  if (error != cudaSuccess) return error;
  if (!cooperative || of_one < 1) return cudaErrorNotSupported;
  error = cudaMemsetAsync(meetings, 0, sizeof *meetings, stream);
  if (error != cudaSuccess) return error;
  Launch<T> launch{p.script,
                   static_cast<const T*>(p.packed),
                   static_cast<T*>(p.state),
                   static_cast<T*>(p.canvas),
                   static_cast<T*>(p.recorded),
                   p.known,
                   p.noise,
                   p.images,
                   p.channels,
                   p.height,
                   p.width,
                   p.steps,
                   p.parameters,
                   p.head,
                   meetings};
  void* arguments[] = {&launch};
  return cudaLaunchCooperativeKernel(sample_causal_kernel<T>, dim3(processors), dim3(kThreads<T>), arguments, 0,
                                     stream);
}

}  // namespace

cudaError_t sample_causal(const SampleCausal& problem, unsigned* meetings, cudaStream_t stream) {
  if (problem.images == 0) return cudaSuccess;
  return problem.doubles ? launch_on<double>(problem, meetings, stream) : launch_on<float>(problem, meetings, stream);
}

}  // namespace vidgen::cuda
