// Where a pixel of a warped image is read: the upper left one of four neighbours, and how far beyond it.
//
// A displacement d of pixel j is split into floor(d) and d - floor(d) before j is added, so the position j + d is never
// rounded: the fraction is as exact as the displacement, however wide the image.
#pragma once

#include <cstdlib>
#include <limits>
#include <type_traits>

#include "cpu/simd.h"
#include "cpu/warp.h"

namespace vidgen::VIDGEN_ISA {

// Pixels of one row that are handled together; their footprints are 7 to 14 kB and stay in the first cache.
constexpr int64_t kRun = 256;

template <class T>
using Index = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

template <class T>
struct Footprints {
  Index<T> column[kRun], row[kRun];  // may lie outside the image, by 2 at most
  Index<T> offset[kRun];             // of the upper left neighbour from its plane's first pixel, where inside
  T fx[kRun], fy[kRun];              // in [0, 1]
  T slope_x[kRun], slope_y[kRun];    // 0 where the position does not move with the flow, else 1
  bool inside[kRun / kLanes<T>];     // all four neighbours of a vector's pixels are in the image
};

template <class T>
VIDGEN_INLINE Vec<T> load_strided(const T* from, int64_t stride, int64_t n) {
  if (stride == 1) return n >= kLanes<T> ? load(from) : load(from, n);
  Vec<T> v{};
  for (int64_t i = 0; i < n && i < kLanes<T>; ++i) v[i] = from[i * stride];
  return v;
}

template <class T>
struct Axis {
  IntVec<T> first;
  Vec<T> fraction, slope;
};

// One coordinate of a vector of finite displacements; `at` is where the pixels are.
template <class T>
VIDGEN_INLINE Axis<T> along(Vec<T> displacement, IntVec<T> at, int64_t size, bool border) {
  // beyond the image all is one, and integers must not overflow
  const Vec<T> zero{}, far = zero + T(size + 2);
  displacement = displacement > far ? far : displacement < -far ? -far : displacement;
  IntVec<T> whole = __builtin_convertvector(displacement, IntVec<T>);
  whole += (__builtin_convertvector(whole, Vec<T>) > displacement);
  Axis<T> axis;
  axis.fraction = displacement - __builtin_convertvector(whole, Vec<T>);
  axis.slope = zero + T(1);
  axis.first = whole + at;
  const IntVec<T> none{}, last = none + Index<T>(size - 1);
  if (border) {
    const auto held = (axis.first < none) | ((axis.first == none) & (axis.fraction == zero)) | (axis.first >= last);
    axis.fraction = held ? zero : axis.fraction;
    axis.slope = held ? zero : axis.slope;
    axis.first = axis.first < none ? none : axis.first > last ? last : axis.first;
  } else {
    axis.first = axis.first < none - 2 ? none - 2 : axis.first > last + 1 ? last + 1 : axis.first;
  }
  return axis;
}

// Footprints of pixels [begin, begin + count) of a row. Where the flow is not finite the neighbours lie outside, the
// position does not move, and the fraction is `unknown`.
template <class T>
void find_footprints(const Warp& p, const ImageView& flow, int64_t image, int64_t row, int64_t begin, int64_t count,
                     T unknown, Footprints<T>& to) {
  const T* dx =
      static_cast<const T*>(flow.data) + image * flow.batch_stride + row * flow.row_stride + begin * flow.column_stride;
  const T* dy = dx + flow.channel_stride;
  IntVec<T> lane;
  for (int i = 0; i < kLanes<T>; ++i) lane[i] = i;
  const IntVec<T> none{};
  const Vec<T> zero{};
  for (int64_t i = 0; i < count; i += kLanes<T>) {
    Vec<T> x = load_strided(dx + i * flow.column_stride, flow.column_stride, count - i);
    Vec<T> y = load_strided(dy + i * flow.column_stride, flow.column_stride, count - i);
    const auto finite = (x - x == zero) & (y - y == zero);
    x = finite ? x : zero;
    y = finite ? y : zero;
    Axis<T> across = along<T>(x, lane + Index<T>(begin + i), p.width, p.border);
    Axis<T> down = along<T>(y, none + Index<T>(row), p.height, p.border);
    across.first = finite ? across.first : none - 2;
    const auto inside = (across.first >= none) & (across.first < none + Index<T>(p.width - 1)) & (down.first >= none) &
                        (down.first < none + Index<T>(p.height - 1));
    int64_t parts[kVectorBytes / 8], all = -1;
    __builtin_memcpy(parts, &inside, sizeof parts);
    for (int64_t part : parts) all &= part;
    to.inside[i / kLanes<T>] = all == -1;
    __builtin_memcpy(to.column + i, &across.first, sizeof(across.first));
    __builtin_memcpy(to.row + i, &down.first, sizeof(down.first));
    store(to.fx + i, finite ? across.fraction : zero + unknown);
    store(to.fy + i, down.fraction);
    store(to.slope_x + i, finite ? across.slope : zero);
    store(to.slope_y + i, finite ? down.slope : zero);
  }
}

// Fills in the offsets in planes of an image; false, and no offsets, if they do not fit the integers.
template <class T>
bool find_offsets(const Warp& p, const ImageView& image, int64_t count, Footprints<T>& at) {
  const int64_t reach = p.height * std::abs(image.row_stride) + p.width * std::abs(image.column_stride);
  if (reach >= std::numeric_limits<int32_t>::max()) return false;
  const auto row_stride = Index<T>(image.row_stride), column_stride = Index<T>(image.column_stride);
  for (int64_t i = 0; i < count; ++i)
    at.offset[i] = at.inside[i / kLanes<T>] ? at.row[i] * row_stride + at.column[i] * column_stride : 0;
  return true;
}

}  // namespace vidgen::VIDGEN_ISA
