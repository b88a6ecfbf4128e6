// Images in and out of scratch: any strides outside, dense pixels of channels (NHWC) inside.
//
// Two layouts are fast, each also mirrored (negative strides, the adjoint): channels next to each other are
// copied pixel by pixel; columns next to each other (NCHW) pass through register transposes of 16 x 16 (8 x 8,
// 4 x 4), so that no separate layout pass over memory exists. Anything else is copied one by one. bf16 becomes
// fp32 on the way where the processor cannot multiply it.
#pragma once

#include "gemm.h"
#include "simd.h"
#include "views.h"

namespace vidgen::VIDGEN_ISA {

template <class E>
VIDGEN_INLINE E* pixel_at(const ImageView& image, int64_t n, int64_t row) {
  return static_cast<E*>(image.data) + n * image.batch_stride + row * image.row_stride;
}

template <class S>
VIDGEN_INLINE void zero(S* p, int64_t n) {
  if (n > 0) __builtin_memset(p, 0, n * sizeof(S));
}

// One row of `width` pixels to out[width][pitch]; channels from `channels` to `pitch` become zero.
template <class E, class S>
void stage_row(const E* in, int64_t channel_stride, int64_t column_stride, int64_t width, int64_t channels, S* out,
               int64_t pitch) {
  constexpr int lanes = kLanes<E>;
  if (channels == 1) channel_stride = 1;
  if constexpr (sizeof(E) == sizeof(S)) {
    if (channel_stride == 1 && column_stride == pitch && channels == pitch) {
      __builtin_memcpy(out, in, width * pitch * sizeof(S));
      return;
    }
  }
  if (channels < 4 || (channel_stride != 1 && column_stride != 1 && column_stride != -1)) {
    for (int64_t w = 0; w < width; ++w) {
      for (int64_t c = 0; c < channels; ++c)
        out[w * pitch + c] = from_scalar<S>(to_scalar(in[w * column_stride + c * channel_stride]));
      zero(out + w * pitch + channels, pitch - channels);
    }
  } else if (channel_stride == 1) {
    for (int64_t w = 0; w < width; ++w) {
      const E* from = in + w * column_stride;
      S* to = out + w * pitch;
      int64_t c = 0;
      for (; c + lanes <= channels; c += lanes) store(to + c, load(from + c));
      if (c < channels) store(to + c, load(from + c, channels - c), channels - c);
      zero(to + channels, pitch - channels);
    }
  } else {
    // a vector of columns per channel; a mirrored row is read forwards and its pixels are written backwards
    for (int64_t w = 0; w < width; w += lanes) {
      int64_t columns = width - w < lanes ? width - w : lanes;
      const E* from = column_stride > 0 ? in + w : in - w - (columns - 1);
      S* to = column_stride > 0 ? out + w * pitch : out + (w + columns - 1) * pitch;
      int64_t to_pitch = column_stride > 0 ? pitch : -pitch;
      for (int64_t c = 0; c < pitch; c += lanes) {
        Vec<E> tile[lanes];
#pragma GCC unroll 16
        for (int i = 0; i < lanes; ++i) {
          const E* plane = from + (c + i) * channel_stride;
          tile[i] = c + i >= channels ? Vec<E>{} : columns == lanes ? load(plane) : load(plane, columns);
        }
        transpose<E>(tile);
        if (c + lanes <= pitch && columns == lanes) {
#pragma GCC unroll 16
          for (int i = 0; i < lanes; ++i) store(to + i * to_pitch + c, tile[i]);
        } else {
          int64_t n = pitch - c < lanes ? pitch - c : lanes;
          for (int i = 0; i < columns; ++i) store(to + i * to_pitch + c, tile[i], n);
        }
      }
    }
  }
}

// The zero-padded block of input that a block of output rows reads.
struct StagedBlock {
  int64_t first_row, rows;                 // rows of the image; those above it are zeros
  int64_t left, columns;                   // zero columns on the left; columns in all
  int64_t first_channel, channels, pitch;  // channels read, and their distance between pixels
};

template <class E, class S>
void stage_block(const ImageView& x, int64_t n, int64_t width, const StagedBlock& block, S* out) {
  int64_t line = block.columns * block.pitch;
  for (int64_t r = 0; r < block.rows; ++r, out += line) {
    int64_t row = block.first_row + r;
    if (row < 0) {
      zero(out, line);
      continue;
    }
    S* pixels = out + block.left * block.pitch;
    zero(out, block.left * block.pitch);
    stage_row(pixel_at<E>(x, n, row) + block.first_channel * x.channel_stride, x.channel_stride, x.column_stride, width,
              block.channels, pixels, block.pitch);
    zero(pixels + width * block.pitch, (block.columns - block.left - width) * block.pitch);
  }
}

// The memory of some rows of an image, to be prefetched.
template <class E>
Prefetch::Region region_of(const ImageView& image, int64_t n, int64_t row, int64_t rows, int64_t width,
                           int64_t channels) {
  constexpr int64_t size = sizeof(E);
  const E* base = pixel_at<E>(image, n, row);
  int64_t column = image.column_stride, channel = image.channel_stride;
  if (column < 0) base += (width - 1) * column;
  column = column < 0 ? -column : column;
  const char* bytes = reinterpret_cast<const char*>(base);
  if (channel < column) return {bytes, rows, image.row_stride * size, 1, 0, width * column * size};
  return {bytes, channels, channel * size, rows, image.row_stride * size, width * column * size};
}

// values[rows][line / pitch][pitch] + bias to rows of `width` pixels, channels [first_channel, first_channel +
// channels).
// Adding the bias here, after the sum, keeps it out of the rounding of every product.
template <class E>
void store_block(const Acc<E>* values, int64_t line, int64_t pitch, const E* bias, const ImageView& y, int64_t n,
                 int64_t first_row, int64_t rows, int64_t width, int64_t first_channel, int64_t channels) {
  constexpr int lanes = kLanes<E>;
  int64_t column_stride = y.column_stride, channel_stride = y.channel_stride;
  if (y.row_stride == width * column_stride && line == width * pitch) {
    width *= rows;
    rows = 1;
  }
  for (int64_t r = 0; r < rows; ++r, values += line) {
    E* out = pixel_at<E>(y, n, first_row + r) + first_channel * channel_stride;
    for (int64_t c = 0; c < channels; c += lanes) {
      int64_t count = channels - c < lanes ? channels - c : lanes;
      Vec<E> add = bias == nullptr ? Vec<E>{} : load(bias + first_channel + c, count);
      if (channel_stride == 1) {
        for (int64_t w = 0; w < width; ++w) {
          Vec<E> v = load(values + w * pitch + c) + add;
          if (count == lanes) {
            store(out + w * column_stride + c, v);
          } else {
            store(out + w * column_stride + c, v, count);
          }
        }
      } else if (column_stride == 1 || column_stride == -1) {
        for (int64_t w = 0; w < width; w += lanes) {
          int64_t columns = width - w < lanes ? width - w : lanes;
          const Acc<E>* from = values + (column_stride > 0 ? w : w + columns - 1) * pitch + c;
          E* to = column_stride > 0 ? out + w : out - w - (columns - 1);
          int64_t from_pitch = column_stride > 0 ? pitch : -pitch;
          Vec<E> tile[lanes];
#pragma GCC unroll 16
          for (int i = 0; i < lanes; ++i) tile[i] = i < columns ? load(from + i * from_pitch) + add : Vec<E>{};
          transpose<E>(tile);
          if (count == lanes && columns == lanes) {
#pragma GCC unroll 16
            for (int i = 0; i < lanes; ++i) store(to + (c + i) * channel_stride, tile[i]);
          } else {
            for (int i = 0; i < count; ++i) store(to + (c + i) * channel_stride, tile[i], columns);
          }
        }
      } else {
        for (int64_t w = 0; w < width; ++w) {
          for (int64_t i = 0; i < count; ++i) {
            Acc<E> v = values[w * pitch + c + i] + add[i];
            out[w * column_stride + (c + i) * channel_stride] = from_scalar<E>(v);
          }
        }
      }
    }
  }
}

}  // namespace vidgen::VIDGEN_ISA
