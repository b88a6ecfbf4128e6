// Direct convolution for 1 to 4 input channels, with bias, ReLU and max-pooling in registers.
//
// The arithmetic of C3D's conv1 on one clip, 3 to 64 channels, 3x3x3, 16x112x112, window (1, 2, 2), in fp32: 2.08
// GFLOP; 2.4 MB of input and 12.8 MB of pooled output, where storing z and reading it again would add 103 MB.
//
// Tiling. A thread owns 4 pooled voxels x 8 output channels: 32 maxima and, for one place in the window at a time, 32
// fp32 sums in registers. A warp's lanes are 8 neighbouring columns x 4 octets of channels, and the 4 voxels of a lane
// are 8 voxels apart, so that the 8 lanes read 8 different banks for every width of window. A block is 2 warps of
// voxels x 1 or 2 warps of channels: 64 pooled voxels of one depth, as 2 x 32, 4 x 16 or 8 x 8, whichever wastes least,
// x 32 or 64 channels. In shared memory lie, as floats, the weights of these channels ([input channel][tap][channel],
// then the bias; at most 25.2 KB, loaded once) and the part of the clip that the windows' voxels and the taps reach:
// for conv1 and an 8 x 8 tile 20.7 KB and 3 channels x 3 x 18 x 18 floats, 11.7 KB. Blocks stay and walk over tiles.
//
// Per tap a thread reads 8 weights (two 16-byte loads, one wavefront each: lanes of an octet share them) and 4 voxels
// for 32 multiply-adds. The weights are read again for each place in the window, and no sum outlives its place. Where
// windows and kernel reach too far for shared memory, voxels are read from the clip itself.
//
// A sum runs from the bias over input channel, depth, row and column of the tap: an order that depends on nothing.
#include "cuda/conv3d_pool3d.h"

#include "cuda/direct.cuh"

#include <cmath>

namespace vidgen::cuda {
namespace {

constexpr int kVoxels = 4;       // pooled voxels of a thread
constexpr int kLanesAcross = 8;  // lanes of a warp that differ in the column
constexpr int kWarpVoxels = kVoxels * kLanesAcross;
constexpr int kTileVoxels = kPixelWarps * kWarpVoxels;
constexpr int kLeastBlocks = 3;  // of a multiprocessor, that is 168 registers; told nothing, nvcc spills for 128
constexpr int kSharedFloats = 12 * 1024;  // what a block may have without asking

struct Launch {
  Conv3dPool3dForward problem;
  int channel_tile;             // 32 or 64
  int tile_height, tile_width;  // in pooled voxels
  Size part;                    // of the clip in shared memory; depth 0: voxels come from the clip itself
  int tiles_down, tiles_across;
  int64_t tiles;
};

__host__ __device__ inline int weights_of(const Conv3dPool3dForward& p) {
  return p.in_channels * p.kernel.depth * p.kernel.height * p.kernel.width;
}

// Weights of the block's channels as floats, [input channel][tap][channel], and behind them the bias.
template <typename T>
__device__ void load_weights(const Launch& launch, int first_channel, float* weights) {
  const Conv3dPool3dForward& p = launch.problem;
  const int taps_high = p.kernel.height * p.kernel.width, taps = p.kernel.depth * taps_high, count = weights_of(p);
  for (int i = threadIdx.x; i < (count + 1) * launch.channel_tile; i += blockDim.x) {
    const int channel = first_channel + i % launch.channel_tile, k = i / launch.channel_tile;
    const int in = k / taps, tap = k % taps;
    float value = 0.0f;
    if (channel < p.out_channels && k < count) {
      const int64_t at =
          channel * p.weight_strides.outer + in * p.weight_strides.channel + tap / taps_high * p.weight_strides.plane +
          tap % taps_high / p.kernel.width * p.weight_strides.row + tap % p.kernel.width * p.weight_strides.column;
      value = to_float(static_cast<const T*>(p.weight)[at]);
    } else if (channel < p.out_channels && p.bias != nullptr) {
      value = to_float(static_cast<const T*>(p.bias)[channel]);
    }
    weights[i] = value;
  }
}

// A part of a clip as floats, [input channel][plane][row][column], from voxel (front, top, left) on; zeros outside. A
// warp takes a row at a time.
template <typename T>
__device__ void load_part(const Launch& launch, const T* clip, int front, int top, int left, float* part) {
  const Conv3dPool3dForward& p = launch.problem;
  const int lines = p.in_channels * launch.part.depth * launch.part.height;
  for (int line = threadIdx.x / 32; line < lines; line += blockDim.x / 32) {
    const int row = top + line % launch.part.height, plane = line / launch.part.height;
    const int depth = front + plane % launch.part.depth, in = plane / launch.part.depth;
    const bool inside = row >= 0 && row < p.x_size.height && depth >= 0 && depth < p.x_size.depth;
    const T* from = clip + in * p.x_strides.channel + depth * p.x_strides.plane + row * p.x_strides.row;
    for (int c = threadIdx.x % 32; c < launch.part.width; c += 32) {
      const int column = left + c;
      float value = 0.0f;
      if (inside && column >= 0 && column < p.x_size.width) value = to_float(from[column * p.x_strides.column]);
      part[line * launch.part.width + c] = value;
    }
  }
}

// The taps of one row of the kernel, kWidth of them or, where that is 0, `width`; `row` is where the window's first
// voxel would find its first tap, `at` how much further the thread's voxels do.
template <int kWidth>
__device__ inline void row_of_part(float (&sums)[kOctet][kVoxels], const float* weights, int channel_tile,
                                   const float* row, const int (&at)[kVoxels], int width) {
#pragma unroll
  for (int tap = 0; tap < (kWidth > 0 ? kWidth : width); ++tap) {
    float voxels[kVoxels];
#pragma unroll
    for (int j = 0; j < kVoxels; ++j) voxels[j] = row[at[j] + tap];
    multiply_add(sums, weights + tap * channel_tile, voxels);
  }
}

// The same from one plane of the clip, which need not exist. The thread's voxels find the tap's row `down` and its
// first column `across` from the corner of their windows, and these need not exist either.
template <typename T>
__device__ inline void row_of_clip(float (&sums)[kOctet][kVoxels], const float* weights, int channel_tile,
                                   const Conv3dPool3dForward& p, const T* plane, bool exists,
                                   const int (&y_rows)[kVoxels], const int (&y_columns)[kVoxels], int down,
                                   int across) {
#pragma unroll 1  // several taps at a time would not find registers for their addresses
  for (int tap = 0; tap < p.kernel.width; ++tap) {
    float voxels[kVoxels];
#pragma unroll
    for (int j = 0; j < kVoxels; ++j) {
      const int row = y_rows[j] * p.pool.height + down, column = y_columns[j] * p.pool.width + across + tap;
      const bool inside = exists && row >= 0 && row < p.x_size.height && column >= 0 && column < p.x_size.width;
      voxels[j] = inside ? to_float(plane[row * p.x_strides.row + column * p.x_strides.column]) : 0.0f;
    }
    multiply_add(sums, weights + tap * channel_tile, voxels);
  }
}

template <typename T>
__device__ void store_maxima(const Conv3dPool3dForward& p, const float (&best)[kOctet][kVoxels], T* y, int channel,
                             const int (&rows)[kVoxels], const int (&columns)[kVoxels]) {
  y += channel * p.y_strides.channel;
  const bool whole_octets = p.y_strides.channel == 1 && p.out_channels % kOctet == 0;
#pragma unroll
  for (int j = 0; j < kVoxels; ++j) {
    if (rows[j] >= p.y_size.height || columns[j] >= p.y_size.width) continue;
    T* voxel = y + rows[j] * p.y_strides.row + columns[j] * p.y_strides.column;
    if (whole_octets) {
      float values[kOctet];
#pragma unroll
      for (int c = 0; c < kOctet; ++c) values[c] = best[c][j];
      store<T, kOctet>(voxel, values);
    } else {
#pragma unroll
      for (int c = 0; c < kOctet; ++c)
        if (channel + c < p.out_channels) from_float(best[c][j], voxel[c * p.y_strides.channel]);
    }
  }
}

// kWidth: width of the kernel, or 0 for any. kStaged: whether the clip's part comes through shared memory.
template <typename T, int kWidth, bool kStaged>
__global__ void __launch_bounds__(kMaxThreads, kLeastBlocks) conv3d_pool3d_kernel(const Launch launch) {
  extern __shared__ __align__(16) float shared[];
  const Conv3dPool3dForward& p = launch.problem;
  float* const weights = shared;
  float* const part = shared + (weights_of(p) + 1) * launch.channel_tile;

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int octet = warp / kPixelWarps * kWarpChannels + lane / kLanesAcross * kOctet;  // within the block's channels
  const int first_channel = blockIdx.y * launch.channel_tile, channel = first_channel + octet;
  const int first_voxel = warp % kPixelWarps * kWarpVoxels + lane % kLanesAcross;  // of the tile

  load_weights<T>(launch, first_channel, weights);
  if constexpr (!kStaged) __syncthreads();

  for (int64_t t = blockIdx.x; t < launch.tiles; t += gridDim.x) {
    const int64_t plane = t / launch.tiles_across / launch.tiles_down, sample = plane / p.y_size.depth;
    const int y_depth = static_cast<int>(plane % p.y_size.depth);
    const int top = static_cast<int>(t / launch.tiles_across % launch.tiles_down) * launch.tile_height;
    const int left = static_cast<int>(t % launch.tiles_across) * launch.tile_width;
    const T* clip = static_cast<const T*>(p.x) + sample * p.x_strides.outer;
    if constexpr (kStaged) {
      __syncthreads();  // the previous part has been read
      load_part<T>(launch, clip, y_depth * p.pool.depth - p.padding.depth, top * p.pool.height - p.padding.height,
                   left * p.pool.width - p.padding.width, part);
      __syncthreads();
    }
    int y_rows[kVoxels], y_columns[kVoxels], at[kVoxels];
#pragma unroll
    for (int j = 0; j < kVoxels; ++j) {
      const int voxel = first_voxel + j * kLanesAcross;
      const int row = voxel / launch.tile_width, column = voxel % launch.tile_width;
      y_rows[j] = top + row;
      y_columns[j] = left + column;
      at[j] = row * p.pool.height * launch.part.width + column * p.pool.width;
    }

    float best[kOctet][kVoxels];
#pragma unroll
    for (int c = 0; c < kOctet; ++c)
#pragma unroll
      for (int j = 0; j < kVoxels; ++j) best[c][j] = -INFINITY;

    for (int place = 0; place < p.pool.depth * p.pool.height * p.pool.width; ++place) {
      const int down = place / p.pool.width % p.pool.height, across = place % p.pool.width;
      const int deep = place / p.pool.width / p.pool.height;
      if (y_depth * p.pool.depth + deep >= p.z_size.depth) break;
      const float* bias = weights + weights_of(p) * launch.channel_tile + octet;
      float sums[kOctet][kVoxels];
#pragma unroll
      for (int c = 0; c < kOctet; ++c)
#pragma unroll
        for (int j = 0; j < kVoxels; ++j) sums[c][j] = bias[c];

      const float* weight = weights + octet;
      for (int in = 0; in < p.in_channels; ++in)
        for (int tap_depth = 0; tap_depth < p.kernel.depth; ++tap_depth) {
          const float* line =
              part + ((in * launch.part.depth + deep + tap_depth) * launch.part.height + down) * launch.part.width +
              across;
          const int x_depth = y_depth * p.pool.depth + deep + tap_depth - p.padding.depth;
          const T* source = clip + in * p.x_strides.channel + x_depth * p.x_strides.plane;
          for (int tap_row = 0; tap_row < p.kernel.height; ++tap_row) {
            if constexpr (kStaged) {
              row_of_part<kWidth>(sums, weight, launch.channel_tile, line, at, p.kernel.width);
              line += launch.part.width;
            } else {
              row_of_clip<T>(sums, weight, launch.channel_tile, p, source, x_depth >= 0 && x_depth < p.x_size.depth,
                             y_rows, y_columns, down + tap_row - p.padding.height, across - p.padding.width);
            }
            weight += p.kernel.width * launch.channel_tile;
          }
        }
#pragma unroll
      for (int j = 0; j < kVoxels; ++j) {
        const bool exists =
            y_rows[j] * p.pool.height + down < p.z_size.height && y_columns[j] * p.pool.width + across < p.z_size.width;
        // a NaN replaces a number, and no number replaces a NaN
#pragma unroll
        for (int c = 0; c < kOctet; ++c)
          if (exists && (sums[c][j] > best[c][j] || sums[c][j] != sums[c][j])) best[c][j] = sums[c][j];
      }
    }

    if (p.relu) {
#pragma unroll
      for (int c = 0; c < kOctet; ++c)
#pragma unroll
        for (int j = 0; j < kVoxels; ++j)
          if (best[c][j] <= 0.0f) best[c][j] = 0.0f;
    }
    T* y = static_cast<T*>(p.y) + sample * p.y_strides.outer + y_depth * p.y_strides.plane;
    if (channel < p.out_channels) store_maxima<T>(p, best, y, channel, y_rows, y_columns);
  }
}

// The shape of a tile: of those whose part of the clip fits into shared memory the one that covers least beyond the
// output; of all where none fits.
Launch plan(const Conv3dPool3dForward& p) {
  Launch launch{p};
  const int weights = weights_of(p) + 1;  // and the bias
  launch.channel_tile = p.out_channels > kWarpChannels && weights * 2 * kWarpChannels <= kSharedFloats / 2
                            ? 2 * kWarpChannels
                            : kWarpChannels;
  const int room = kSharedFloats - weights * launch.channel_tile;
  for (bool staged : {true, false}) {
    int64_t least = INT64_MAX;
    for (int width : {32, 16, 8}) {
      const int height = kTileVoxels / width;
      const Size part{p.pool.depth + p.kernel.depth - 1, height * p.pool.height + p.kernel.height - 1,
                      width * p.pool.width + p.kernel.width - 1};
      const bool fits = p.in_channels * part.depth * part.height * part.width <= room;
      const int64_t covered = static_cast<int64_t>(round_up(p.y_size.width, width)) * round_up(p.y_size.height, height);
      if ((staged && !fits) || covered >= least) continue;
      least = covered;
      launch.part = staged ? part : Size{0, 0, 0};
      launch.tile_width = width;
      launch.tile_height = height;
    }
    if (least < INT64_MAX) break;
  }
  launch.tiles_down = round_up(p.y_size.height, launch.tile_height) / launch.tile_height;
  launch.tiles_across = round_up(p.y_size.width, launch.tile_width) / launch.tile_width;
  launch.tiles = p.batch * p.y_size.depth * launch.tiles_down * launch.tiles_across;
  return launch;
}

template <typename T>
const void* kernel_for(const Launch& launch) {
  if (launch.part.depth == 0) return reinterpret_cast<const void*>(&conv3d_pool3d_kernel<T, 0, false>);
  if (launch.problem.kernel.width == 3) return reinterpret_cast<const void*>(&conv3d_pool3d_kernel<T, 3, true>);
  return reinterpret_cast<const void*>(&conv3d_pool3d_kernel<T, 0, true>);
}

}  // namespace

cudaError_t conv3d_pool3d_forward(const Conv3dPool3dForward& p, cudaStream_t stream) {
  Launch launch = plan(p);
  if (launch.tiles == 0 || p.out_channels == 0) return cudaSuccess;
  const Size& part = launch.part;
  const size_t floats = static_cast<size_t>(weights_of(p) + 1) * launch.channel_tile +
                        static_cast<size_t>(p.in_channels) * part.depth * part.height * part.width;
  const void* kernel = p.dtype == Dtype::f32   ? kernel_for<float>(launch)
                       : p.dtype == Dtype::f16 ? kernel_for<__half>(launch)
                                               : kernel_for<__nv_bfloat16>(launch);
  return launch_walking(kernel, launch, p.out_channels, floats, stream);
}

}  // namespace vidgen::cuda
