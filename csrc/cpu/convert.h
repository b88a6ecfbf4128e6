// Clips between layouts: channels next to each other (NDHWC) on one side, on the other whatever strides there are.
#pragma once

#include "panels.h"

namespace vidgen::VIDGEN_ISA {

template <class E>
VIDGEN_INLINE E* element_at(const ClipView& clip, int64_t n, int64_t d, int64_t h, int64_t w, int64_t channel) {
  return static_cast<E*>(clip.data) + n * clip.batch_stride + d * clip.stride[0] + h * clip.stride[1] +
         w * clip.stride[2] + channel * clip.channel_stride;
}

// out[c * out_pitch + r] = in[r * in_pitch + c], a square of vectors at a time.
template <class E>
void transposed_copy(const E* in, int64_t in_pitch, E* out, int64_t out_pitch, int64_t rows, int64_t columns) {
  constexpr int lanes = kLanes<E>;
  for (int64_t r = 0; r < rows; r += lanes) {
    int64_t high = smaller(lanes, rows - r);
    for (int64_t c = 0; c < columns; c += lanes) {
      int64_t wide = smaller(lanes, columns - c);
      Vec<E> tile[lanes];
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) {
        const E* from = in + (r + i) * in_pitch + c;
        tile[i] = i >= high ? Vec<E>{} : wide == lanes ? load(from) : load(from, wide);
      }
      transpose<E>(tile);
      for (int i = 0; i < wide; ++i) {
        E* to = out + (c + i) * out_pitch + r;
        if (high == lanes) {
          store(to, tile[i]);
        } else {
          store(to, tile[i], high);
        }
      }
    }
  }
}

// Copies plane `task` of N * depth.
template <class E>
void convert_plane(const ClipView& from, const ClipView& to, int64_t channels, const int64_t (&size)[3], int64_t task) {
  int64_t n = task / size[0], d = task % size[0], rows = size[1], columns = size[2];
  // a plane without gaps is one long row
  if (from.stride[1] == columns * from.stride[2] && to.stride[1] == columns * to.stride[2]) {
    columns *= rows;
    rows = 1;
  }
  for (int64_t h = 0; h < rows; ++h) {
    const E* in = element_at<E>(from, n, d, h, 0, 0);
    E* out = element_at<E>(to, n, d, h, 0, 0);
    if (from.channel_stride == 1 && to.stride[2] == 1) {
      transposed_copy(in, from.stride[2], out, to.channel_stride, columns, channels);
    } else if (from.stride[2] == 1 && to.channel_stride == 1) {
      transposed_copy(in, from.channel_stride, out, to.stride[2], channels, columns);
    } else {
      for (int64_t w = 0; w < columns; ++w) {
        for (int64_t c = 0; c < channels; ++c)
          out[w * to.stride[2] + c * to.channel_stride] = in[w * from.stride[2] + c * from.channel_stride];
      }
    }
  }
}

}  // namespace vidgen::VIDGEN_ISA
