// Direct convolution for 1 to 4 input channels: K = kept taps x input channels is 24 to 100 for a 7x7 kernel, too
// little to feed matrix units through padding, and the output, 64 to 128 channels, is most of the traffic.
//
// Tiling. A thread owns 4 neighbouring pixels of a row x 8 output channels: 32 fp32 sums in registers. A warp's lanes
// are 8 such runs x 4 octets of channels, 32 pixels x 32 channels, so that both layouts are written in segments of
// 128 bytes (fp32). A block is 2 warps of pixels x 1 or 2 warps of channels: 64 pixels, as 2 x 32, 4 x 16 or 8 x 8,
// whichever wastes least of the image, x 32 or 64 channels. In shared memory lie, as floats, the weights of these
// channels ([K][channels], at most 25.6 KB, loaded once) and the image tile with its halo (rows above, columns on both
// sides; about 1 KB per input channel). Blocks stay and walk over tiles.
//
// Per tap a thread reads 8 weights (two 16-byte loads, one wavefront each: lanes of an octet share them) for 32
// multiply-adds. For 7 columns and dilation 1 the pixels come from a window of 12 floats, read once per row of taps.
// Where dilation makes the halo too large for shared memory, pixels are read from the image itself.
//
// Only kept taps are visited; at the centre, a product is added where the pair of colours is kept, so 0 * NaN never
// happens. The sum runs over input channel, row, column, then the centre: an order that depends on nothing.
#include "cuda/masked_conv2d.h"

#include "cuda/direct.cuh"

namespace vidgen::cuda {
namespace {

constexpr int kRun = 4;          // pixels of a thread
constexpr int kWarpPixels = 32;  // 8 runs
constexpr int kTilePixels = kPixelWarps * kWarpPixels;

// How a thread gets its pixels: by windows of 12 floats, or one by one from the tile, or from the image itself.
enum class Reach { window, tile, image };
constexpr int kMaxTileDilation = 4;  // 4 channels, 7 x 7 taps: 12.8 KB of halo and image beside 25.6 KB of weights

struct Launch {
  MaskedConv2dForward problem;
  int channel_tile;  // 32 or 64
  int tile_height, tile_width;
  int halo_above, halo_aside;  // of the image tile in shared memory; `aside` is at least what the taps need
  int pitch;                   // floats from row to row of the image tile
  int tiles_down, tiles_across;
  int64_t tiles;
};

__device__ inline int color_of(int channel, int channels, const MaskedConv2dForward& p) {
  return p.interleaved ? channel % p.colors : channel / (channels / p.colors);
}

__device__ inline bool keeps_centre(int in, int out, const MaskedConv2dForward& p) {
  const int source = color_of(in, p.in_channels, p), reader = color_of(out, p.out_channels, p);
  return p.mask_b ? source <= reader : source < reader;
}

// Weights of the block's channels as floats, [input channel][kept tap, then the centre][channel].
template <typename T>
__device__ void load_weights(const Launch& launch, int first_channel, float* weights) {
  const MaskedConv2dForward& p = launch.problem;
  const int centre = p.kernel_height * p.kernel_width / 2, count = p.in_channels * (centre + 1) * launch.channel_tile;
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    const int channel = first_channel + i % launch.channel_tile, k = i / launch.channel_tile;
    const int in = k / (centre + 1), tap = k % (centre + 1);
    float value = 0.0f;
    if (channel < p.out_channels && (tap < centre || keeps_centre(in, channel, p))) {
      const int64_t at = channel * p.weight_strides.outer + in * p.weight_strides.channel +
                         tap / p.kernel_width * p.weight_strides.row + tap % p.kernel_width * p.weight_strides.column;
      value = to_float(static_cast<const T*>(p.weight)[at]);
    }
    weights[i] = value;
  }
}

// The image tile with its halo as floats, [input channel][row][column]; zeros outside the image.
template <typename T>
__device__ void load_image(const Launch& launch, int64_t image, int top, int left, float* tile) {
  const MaskedConv2dForward& p = launch.problem;
  const int rows = launch.tile_height + launch.halo_above, columns = launch.tile_width + 2 * launch.halo_aside;
  const T* x = static_cast<const T*>(p.x) + image * p.x_strides.outer;
  for (int i = threadIdx.x; i < p.in_channels * rows * columns; i += blockDim.x) {
    const int c = i % columns, r = i / columns % rows, in = i / columns / rows;
    const int row = top - launch.halo_above + r, column = left - launch.halo_aside + c;
    float value = 0.0f;
    if (row >= 0 && row < p.height && column >= 0 && column < p.width)
      value = to_float(x[in * p.x_strides.channel + row * p.x_strides.row + column * p.x_strides.column]);
    tile[(in * rows + r) * launch.pitch + c] = value;
  }
}

// The taps [0, kTaps) of one kernel row of 7 at dilation 1; `row` points at the run's first pixel less 4, aligned.
template <int kTaps>
__device__ inline void row_of_seven(float (&sums)[kOctet][kRun], const float* weights, int channel_tile,
                                    const float* row) {
  float window[12];
#pragma unroll
  for (int i = 0; i < 12; i += 4) *reinterpret_cast<float4*>(window + i) = *reinterpret_cast<const float4*>(row + i);
#pragma unroll
  for (int tap = 0; tap < kTaps; ++tap) multiply_add(sums, weights + tap * channel_tile, window + tap + 1);
}

__device__ inline void row_of_any(float (&sums)[kOctet][kRun], const float* weights, int channel_tile, const float* row,
                                  int taps, int dilation) {
  for (int tap = 0; tap < taps; ++tap) {
    float pixels[kRun];
#pragma unroll
    for (int j = 0; j < kRun; ++j) pixels[j] = row[j + tap * dilation];
    multiply_add(sums, weights + tap * channel_tile, pixels);
  }
}

// The same from the image: `row` of `x`, one input channel, may lie outside, and so may the columns.
template <typename T>
__device__ inline void row_of_image(float (&sums)[kOctet][kRun], const float* weights, int channel_tile,
                                    const MaskedConv2dForward& p, const T* x, int64_t row, int64_t column, int taps) {
  for (int tap = 0; tap < taps; ++tap) {
    float pixels[kRun];
#pragma unroll
    for (int j = 0; j < kRun; ++j) {
      const int64_t c = column + j + (tap - p.kernel_width / 2) * static_cast<int64_t>(p.dilation);
      const bool inside = row >= 0 && row < p.height && c >= 0 && c < p.width;
      pixels[j] = inside ? to_float(x[row * p.x_strides.row + c * p.x_strides.column]) : 0.0f;
    }
    multiply_add(sums, weights + tap * channel_tile, pixels);
  }
}

// At the centre only the pairs of colours in `seen` are added; bit c is the thread's channel c.
__device__ inline void add_centre(float (&sums)[kOctet][kRun], const float* weights, const float (&pixels)[kRun],
                                  unsigned seen) {
#pragma unroll
  for (int c = 0; c < kOctet; ++c)
#pragma unroll
    for (int j = 0; j < kRun; ++j)
      if (seen >> c & 1) sums[c][j] = fmaf(weights[c], pixels[j], sums[c][j]);
}

template <typename T>
__device__ void store_sums(const MaskedConv2dForward& p, const float (&sums)[kOctet][kRun], int64_t image, int row,
                           int column, int channel) {
  T* y = static_cast<T*>(p.y) + image * p.y_strides.outer + row * p.y_strides.row + column * p.y_strides.column +
         channel * p.y_strides.channel;
  const bool planar = p.y_strides.column == 1;
  if (planar && p.width % kRun == 0) {
#pragma unroll
    for (int c = 0; c < kOctet; ++c)
      if (channel + c < p.out_channels) store<T, kRun>(y + c * p.y_strides.channel, sums[c]);
    return;
  }
  const bool whole_octets = !planar && p.out_channels % kOctet == 0;
#pragma unroll
  for (int j = 0; j < kRun; ++j) {
    if (column + j >= p.width) break;
    T* pixel = y + j * p.y_strides.column;
    if (whole_octets) {
      float values[kOctet];
#pragma unroll
      for (int c = 0; c < kOctet; ++c) values[c] = sums[c][j];
      store<T, kOctet>(pixel, values);
    } else {
#pragma unroll
      for (int c = 0; c < kOctet; ++c)
        if (channel + c < p.out_channels) from_float(sums[c][j], pixel[c * p.y_strides.channel]);
    }
  }
}

template <typename T, Reach kReach>
__global__ void __launch_bounds__(kMaxThreads) masked_conv2d_kernel(const Launch launch) {
  extern __shared__ __align__(16) float shared[];
  const MaskedConv2dForward& p = launch.problem;
  const int centre = p.kernel_height * p.kernel_width / 2, rows_above = p.kernel_height / 2;
  float* const weights = shared;
  float* const tile = shared + p.in_channels * (centre + 1) * launch.channel_tile;
  const int plane = (launch.tile_height + launch.halo_above) * launch.pitch;

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int octet = warp / kPixelWarps * kWarpChannels + lane / 8 * kOctet;  // within the block's channels
  const int run = (warp % kPixelWarps * 8 + lane % 8) * kRun;
  const int tile_row = run / launch.tile_width, tile_column = run % launch.tile_width;
  const int first_channel = blockIdx.y * launch.channel_tile, channel = first_channel + octet;

  load_weights<T>(launch, first_channel, weights);
  if constexpr (kReach == Reach::image) __syncthreads();
  float bias[kOctet];
  unsigned seen = 0;  // bit 8 * in + c: the centre tap joins input channel `in` to the thread's channel c
#pragma unroll
  for (int c = 0; c < kOctet; ++c) {
    const bool real = channel + c < p.out_channels;
    bias[c] = real && p.bias != nullptr ? to_float(static_cast<const T*>(p.bias)[channel + c]) : 0.0f;
    for (int in = 0; real && in < p.in_channels; ++in)
      if (keeps_centre(in, channel + c, p)) seen |= 1u << (8 * in + c);
  }

  for (int64_t t = blockIdx.x; t < launch.tiles; t += gridDim.x) {
    const int64_t image = t / launch.tiles_across / launch.tiles_down;
    const int top = static_cast<int>(t / launch.tiles_across % launch.tiles_down) * launch.tile_height;
    const int left = static_cast<int>(t % launch.tiles_across) * launch.tile_width;
    const int y_row = top + tile_row, y_column = left + tile_column;
    if constexpr (kReach != Reach::image) {
      __syncthreads();  // the previous tile has been read
      load_image<T>(launch, image, top, left, tile);
      __syncthreads();
    }

    float sums[kOctet][kRun];
#pragma unroll
    for (int c = 0; c < kOctet; ++c)
#pragma unroll
      for (int j = 0; j < kRun; ++j) sums[c][j] = bias[c];

    for (int in = 0; in < p.in_channels; ++in) {
      const float* weight = weights + in * (centre + 1) * launch.channel_tile + octet;
      const float* row = tile + in * plane + tile_row * launch.pitch + tile_column;
      const T* x = static_cast<const T*>(p.x) + image * p.x_strides.outer + in * p.x_strides.channel;
      for (int r = 0; r < rows_above; ++r) {
        if constexpr (kReach == Reach::window)
          row_of_seven<7>(sums, weight, launch.channel_tile, row);
        else if constexpr (kReach == Reach::tile)
          row_of_any(sums, weight, launch.channel_tile, row, p.kernel_width, p.dilation);
        else
          row_of_image<T>(sums, weight, launch.channel_tile, p, x,
                          y_row - (rows_above - r) * static_cast<int64_t>(p.dilation), y_column, p.kernel_width);
        weight += p.kernel_width * launch.channel_tile;
        row += p.dilation * launch.pitch;
      }
      float pixels[kRun];  // the run itself
      if constexpr (kReach == Reach::window)
        row_of_seven<3>(sums, weight, launch.channel_tile, row);
      else if constexpr (kReach == Reach::tile)
        row_of_any(sums, weight, launch.channel_tile, row, p.kernel_width / 2, p.dilation);
      else
        row_of_image<T>(sums, weight, launch.channel_tile, p, x, y_row, y_column, p.kernel_width / 2);
      weight += p.kernel_width / 2 * launch.channel_tile;
#pragma unroll
      for (int j = 0; j < kRun; ++j) {
        if constexpr (kReach == Reach::image)
          pixels[j] = y_row < p.height && y_column + j < p.width
                          ? to_float(x[y_row * p.x_strides.row + (y_column + j) * p.x_strides.column])
                          : 0.0f;
        else
          pixels[j] = row[launch.halo_aside + j];
      }
      add_centre(sums, weight, pixels, seen >> (8 * in));
    }

    if (y_row < p.height && y_column < p.width && channel < p.out_channels)
      store_sums<T>(p, sums, image, y_row, y_column, channel);
  }
}

Launch plan(const MaskedConv2dForward& p, Reach reach) {
  Launch launch{p};
  launch.channel_tile = p.out_channels > kWarpChannels ? 2 * kWarpChannels : kWarpChannels;
  int64_t least = INT64_MAX;
  for (int width : {32, 16, 8}) {
    const int height = kTilePixels / width;
    const int64_t covered = static_cast<int64_t>(round_up(p.width, width)) * round_up(p.height, height);
    if (covered >= least) continue;
    least = covered;
    launch.tile_width = width;
    launch.tile_height = height;
  }
  if (reach != Reach::image) {
    launch.halo_above = p.kernel_height / 2 * p.dilation;
    launch.halo_aside = reach == Reach::window ? 4 : p.kernel_width / 2 * p.dilation;
    launch.pitch = round_up(launch.tile_width + 2 * launch.halo_aside, 4);
    // the runs of a warp that lie in different rows read different banks
    while (launch.tile_width < 32 && launch.pitch % (2 * launch.tile_width) != launch.tile_width) launch.pitch += 4;
  }
  launch.tiles_down = round_up(p.height, launch.tile_height) / launch.tile_height;
  launch.tiles_across = round_up(p.width, launch.tile_width) / launch.tile_width;
  launch.tiles = p.batch * launch.tiles_down * launch.tiles_across;
  return launch;
}

template <typename T>
const void* kernel_for(Reach reach) {
  switch (reach) {
    case Reach::window:
      return reinterpret_cast<const void*>(&masked_conv2d_kernel<T, Reach::window>);
    case Reach::tile:
      return reinterpret_cast<const void*>(&masked_conv2d_kernel<T, Reach::tile>);
    default:
      return reinterpret_cast<const void*>(&masked_conv2d_kernel<T, Reach::image>);
  }
}

}  // namespace

cudaError_t masked_conv2d_forward(const MaskedConv2dForward& p, cudaStream_t stream) {
  const Reach reach = p.dilation > kMaxTileDilation            ? Reach::image
                      : p.kernel_width == 7 && p.dilation == 1 ? Reach::window
                                                               : Reach::tile;
  Launch launch = plan(p, reach);
  if (launch.tiles == 0 || p.out_channels == 0) return cudaSuccess;
  const int taps = p.kernel_height * p.kernel_width / 2 + 1;
  const int tile_rows = reach == Reach::image ? 0 : launch.tile_height + launch.halo_above;
  const size_t floats = static_cast<size_t>(p.in_channels) * (taps * launch.channel_tile + tile_rows * launch.pitch);
  const void* kernel = p.dtype == Dtype::f32   ? kernel_for<float>(reach)
                       : p.dtype == Dtype::f16 ? kernel_for<__half>(reach)
                                               : kernel_for<__nv_bfloat16>(reach);
  return launch_walking(kernel, launch, p.out_channels, floats, stream);
}

}  // namespace vidgen::cuda
