// What methods of optical flow share: planes of numbers with a border, grey levels from pixels of any layout, and
// resizing with the triangle filter.
//
// A plane's rows start on a cache line, 64 bytes of border before their first number and at least two vectors after
// their last, with three rows of border above and below. So whoever reads two pixels beyond an edge, or a whole vector
// at the last pixel, reads the plane's own memory. A method that looks further beyond asks for a wider border.
//
// Resizing by s = in / out: output pixel i is the mean of the input pixels j weighted by max(0, 1 - |j + 1/2 - (i +
// 1/2) s| / max(s, 1)), the weights normalised over the pixels that exist: PyTorch's antialiased bilinear filter, which
// is plain bilinear interpolation where s < 1. Columns first, a vector at a time into one row of scratch, then along
// that row.
#pragma once

#include <algorithm>
#include <cmath>

#include "cpu/elementary.h"
#include "cpu/loop.h"
#include "cpu/views.h"

namespace vidgen::VIDGEN_ISA {

constexpr int64_t kBorderRows = 3, kBorderColumns = 2;
constexpr int64_t kRowsPerTask = 16;

// Hands out a workspace piece by piece; with a null base it only counts.
struct Arena {
  char* base;
  size_t used = 0;

  template <class T>
  T* take(int64_t count) {
    T* const piece = reinterpret_cast<T*>(base + used);
    used += (size_t(count) * sizeof(T) + 63) / 64 * 64;
    return piece;
  }
};

template <class T>
constexpr int64_t kLine = 64 / sizeof(T);

// An odd number of cache lines: planes side by side then do not compete for the same sets of a cache.
template <class T>
constexpr int64_t pitch_of(int64_t width) {
  const int64_t lines = (width + kLine<T> - 1) / kLine<T> + 3;
  return (lines | 1) * kLine<T>;
}

template <class T>
struct Plane {
  T* data;  // of the first pixel
  int64_t height, width, pitch;

  T* row(int64_t y) const { return data + y * pitch; }
};

template <class T>
Plane<T> take_plane(Arena& arena, int64_t height, int64_t width) {
  const int64_t pitch = pitch_of<T>(width);
  T* const all = arena.take<T>((height + 2 * kBorderRows) * pitch);
  return {all + kBorderRows * pitch + kLine<T>, height, width, pitch};
}

// With `border` pixels on every side.
template <class T>
Plane<T> take_plane(Arena& arena, int64_t height, int64_t width, int64_t border) {
  const int64_t front = (border + kLine<T> - 1) / kLine<T> * kLine<T>, pitch = pitch_of<T>(width + 2 * front);
  T* const all = arena.take<T>((height + 2 * border) * pitch);
  return {all + border * pitch + front, height, width, pitch};
}

inline void in_turn(void*, int64_t tasks, void (*task)(void*, int64_t), void* context) {
  for (int64_t i = 0; i < tasks; ++i) task(context, i);
}

// f(i) for every i in [0, tasks), perhaps on several threads.
template <class F>
void each(const Loop& loop, int64_t tasks, const F& f) {
  if (tasks <= 0) return;
  loop.run(
      loop.crew, tasks, [](void* context, int64_t index) { (*static_cast<const F*>(context))(index); },
      const_cast<F*>(&f));
}

inline int64_t row_tasks(int64_t height) { return (height + kRowsPerTask - 1) / kRowsPerTask; }

// f(y) for every row, in tasks of neighbouring rows; f also gets the number of its task.
template <class F>
void each_row(const Loop& loop, int64_t height, const F& f) {
  each(loop, row_tasks(height), [&](int64_t task) {
    const int64_t end = std::min(height, (task + 1) * kRowsPerTask);
    for (int64_t y = task * kRowsPerTask; y < end; ++y) f(y, task);
  });
}

// Repeats the edge of a row on both sides, to the right for the rest of any vector.
template <class T>
VIDGEN_INLINE void extend_row(const Plane<T>& plane, int64_t y, int64_t left = kBorderColumns,
                              int64_t right = kLine<T>) {
  T* const row = plane.row(y);
  std::fill_n(row - left, left, row[0]);
  std::fill_n(row + plane.width, right, row[plane.width - 1]);
}

// Repeats the first and last rows, when all rows have been extended.
template <class T>
void extend_columns(const Plane<T>& plane, int64_t rows = kBorderRows, int64_t left = kBorderColumns,
                    int64_t right = kLine<T>) {
  const int64_t count = left + plane.width + right;
  for (int64_t i = 1; i <= rows; ++i) {
    std::copy_n(plane.row(0) - left, count, plane.row(-i) - left);
    std::copy_n(plane.row(plane.height - 1) - left, count, plane.row(plane.height - 1 + i) - left);
  }
}

// One row of grey levels, 0 to 255, from `channels` of S; floating-point pixels are in [0, 1]. Returns whether all lie
// in [-127.5, 382.5], which no NaN does.
template <class S, class T>
bool grey_row(const ImageView& image, int64_t channels, int64_t y, int64_t width, T* to) {
  constexpr T scale = sizeof(S) == 1 ? T(1) : T(255);
  const S* const from = static_cast<const S*>(image.data) + y * image.row_stride;
  const int64_t step = image.column_stride, green = image.channel_stride, blue = 2 * image.channel_stride;
  bool good = true;
  const auto convert = [&](int64_t stride) __attribute__((always_inline)) {
    if (channels == 1) {
      for (int64_t x = 0; x < width; ++x) to[x] = T(from[x * stride]) * scale;
    } else {
      for (int64_t x = 0; x < width; ++x) {
        const S* const pixel = from + x * stride;
        to[x] = (T(0.299) * T(pixel[0]) + T(0.587) * T(pixel[green]) + T(0.114) * T(pixel[blue])) * scale;
      }
    }
  };
  if (step == 1) {
    convert(1);
  } else {
    convert(step);
  }
  if constexpr (sizeof(S) > 1) {
    int64_t x = 0;
    IntVec<T> all = ~IntVec<T>{};
    for (; x + kLanes<T> <= width; x += kLanes<T>) {
      const Vec<T> levels = load(to + x);
      all &= (levels >= T(-127.5)) & (levels <= T(382.5));
    }
    for (int lane = 0; lane < kLanes<T>; ++lane) good &= all[lane] != 0;
    for (; x < width; ++x) good &= (to[x] >= T(-127.5)) & (to[x] <= T(382.5));
  }
  return good;
}

// The triangle filter of one axis.
template <class T>
struct Filter {
  int64_t inputs, outputs, taps;
  int32_t* first;  // [outputs]
  T* weights;      // [outputs, taps]
};

inline int64_t filter_taps(int64_t inputs, int64_t outputs) {
  const double support = std::max(double(inputs) / double(outputs), 1.0);
  return std::min(inputs, int64_t(std::ceil(2 * support - 1e-9)));
}

template <class T>
Filter<T> take_filter(Arena& arena, int64_t inputs, int64_t outputs) {
  const int64_t taps = filter_taps(inputs, outputs);
  int32_t* const first = arena.take<int32_t>(outputs);
  return {inputs, outputs, taps, first, arena.take<T>(outputs * taps)};
}

template <class T>
void fill_filter(const Filter<T>& filter) {
  const double scale = double(filter.inputs) / double(filter.outputs), support = std::max(scale, 1.0);
  for (int64_t i = 0; i < filter.outputs; ++i) {
    const double center = scale * (double(i) + 0.5);
    const auto weight = [&](int64_t j) { return std::max(0.0, 1 - std::abs(double(j) - center + 0.5) / support); };
    int64_t first = std::max<int64_t>(int64_t(center - support + 0.5), 0);
    // what rounding puts within the support by a hair is not worth a tap
    if (weight(first) < 1e-12) ++first;
    first = std::min(first, filter.inputs - filter.taps);
    double total = 0;
    for (int64_t j = 0; j < filter.taps; ++j) total += weight(first + j);
    filter.first[i] = int32_t(first);
    for (int64_t j = 0; j < filter.taps; ++j) filter.weights[i * filter.taps + j] = T(weight(first + j) / total);
  }
}

// Row y of the resized plane times `factor`, into `to`. `scratch` holds a row of the input, rounded up to vectors.
template <class T>
void resize_row(const Plane<T>& from, const Filter<T>& rows, const Filter<T>& columns, T factor, int64_t y, T* scratch,
                T* to) {
  const T* const weights = rows.weights + y * rows.taps;
  const T* const top = from.row(rows.first[y]);
  for (int64_t x = 0; x < from.width; x += kLanes<T>) {
    Vec<T> sum = load(top + x) * weights[0];
    for (int64_t j = 1; j < rows.taps; ++j) sum = multiply_add<T>(weights[j], load(top + j * from.pitch + x), sum);
    store(scratch + x, sum * factor);
  }
  const auto along = [&](int64_t taps) __attribute__((always_inline)) {
    for (int64_t x = 0; x < columns.outputs; ++x) {
      const T* const weight = columns.weights + x * taps;
      const T* const pixel = scratch + columns.first[x];
      T sum = pixel[0] * weight[0];
      for (int64_t j = 1; j < taps; ++j) sum += pixel[j] * weight[j];
      to[x] = sum;
    }
  };
  // up, and down by less than 1.5 or by exactly 2
  if (columns.taps == 2) {
    along(2);
  } else if (columns.taps == 3) {
    along(3);
  } else if (columns.taps == 4) {
    along(4);
  } else {
    along(columns.taps);
  }
}

}  // namespace vidgen::VIDGEN_ISA
