// warp on the CPU: four reads, three interpolations.
//
// Pixels of a row are taken 256 at a time. Their footprints are found once and serve every channel. Two forms:
// - lanes are pixels: planes, and any strides. A vector whose footprints lie in the image reads both neighbours of a
// row
//   at once (gathers of the processor are slower); another is read lane by lane, and what lies outside is zero. The
//   arithmetic is the same.
// - lanes are channels, where these lie next to each other and fill a vector: four rows of memory, weighted.
//
// The gradient in x is a scatter. A thread owns whole planes of it and adds in raster order, so no two threads meet and
// the order of a sum never changes. Neighbours of a smooth flow share a column: what a pixel adds to its right column
// waits in a register for the next pixel, which saves half the memory operations and the wait for the last store.
#include "cpu/warp.h"

#include <algorithm>
#include <limits>
#include <type_traits>
#include <utility>

#include "cpu/warp_footprint.h"

namespace vidgen::VIDGEN_ISA {
namespace {

template <class E>
VIDGEN_INLINE E* row_of(const ImageView& v, int64_t n, int64_t row) {
  return static_cast<E*>(v.data) + n * v.batch_stride + row * v.row_stride;
}

bool in_image(const Warp& p, int64_t row, int64_t column) {
  return row >= 0 && row < p.height && column >= 0 && column < p.width;
}

template <class E, size_t... lane>
VIDGEN_INLINE Vec<E> read_each(const E* base, const Index<Acc<E>>* offset, std::index_sequence<lane...>) {
  return Vec<E>{to_scalar(base[offset[lane]])...};
}

// Both of two neighbours in a row come with one read: a pair of floats as a double, a pair of bfloat16 as a float.
template <size_t... lane>
VIDGEN_INLINE void read_pairs(const float* base, const int32_t* offset, Vec<float>& left, Vec<float>& right,
                              std::index_sequence<lane...>) {
  constexpr int half = kLanes<float> / 2;
  auto pair = [&](int i) {
    double both;
    __builtin_memcpy(&both, base + offset[i], sizeof both);
    return both;
  };
  auto pairs = [&]<size_t... i>(int first, std::index_sequence<i...>) {
    return (Vec<float>)Vec<double>{pair(first + int(i))...};
  };
  const Vec<float> low = pairs(0, std::make_index_sequence<half>()),
                   high = pairs(half, std::make_index_sequence<half>());
  left = __builtin_shufflevector(low, high, (2 * lane)...);
  right = __builtin_shufflevector(low, high, (2 * lane + 1)...);
}

template <size_t... lane>
VIDGEN_INLINE void read_pairs(const bf16* base, const int32_t* offset, Vec<float>& left, Vec<float>& right,
                              std::index_sequence<lane...>) {
  auto pair = [&](int i) {
    float both;
    __builtin_memcpy(&both, base + offset[i], sizeof both);
    return both;
  };
  const Words both = (Words)Vec<float>{pair(int(lane))...};
  left = (Vec<float>)(both << 16);
  right = (Vec<float>)(both & 0xffff0000u);
}

// Two neighbours in a row, `apart` from each other, of a vector of pixels.
template <class E>
VIDGEN_INLINE void read_row(const E* base, int64_t apart, const Index<Acc<E>>* offset, Vec<E>& left, Vec<E>& right) {
  constexpr auto lanes = std::make_index_sequence<kLanes<E>>();
  if constexpr (!std::is_same_v<E, double>) {
    if (apart == 1) return read_pairs(base, offset, left, right, lanes);
  }
  left = read_each(base, offset, lanes);
  right = read_each(base + apart, offset, lanes);
}

// The four neighbours of a vector of pixels in one channel.
template <class E>
struct Corners {
  Vec<E> top_left, top_right, bottom_left, bottom_right;
};

// Lane by lane; a call of its own, so that the common case needs no memory for it.
template <class E>
__attribute__((noinline)) Corners<E> corners_anywhere(const Warp& p, const ImageView& v, const E* plane,
                                                      const Footprints<Acc<E>>& at, int64_t i, int64_t n) {
  Corners<E> c{};
  for (int64_t k = 0; k < kLanes<E> && k < n; ++k) {
    const int64_t row = at.row[i + k], column = at.column[i + k];
    auto value = [&](int64_t down, int64_t right) {
      if (!in_image(p, row + down, column + right)) return Acc<E>(0);
      return to_scalar(plane[(row + down) * v.row_stride + (column + right) * v.column_stride]);
    };
    c.top_left[k] = value(0, 0);
    c.top_right[k] = value(0, 1);
    c.bottom_left[k] = value(1, 0);
    c.bottom_right[k] = value(1, 1);
  }
  return c;
}

template <class E>
VIDGEN_INLINE Corners<E> corners_at(const Warp& p, const ImageView& v, const E* plane, const Footprints<Acc<E>>& at,
                                    int64_t i, int64_t n, bool has_offsets) {
  if (!has_offsets || !at.inside[i / kLanes<E>]) return corners_anywhere(p, v, plane, at, i, n);
  Corners<E> c;
  read_row(plane, v.column_stride, at.offset + i, c.top_left, c.top_right);
  read_row(plane + v.row_stride, v.column_stride, at.offset + i, c.bottom_left, c.bottom_right);
  return c;
}

template <class E>
VIDGEN_INLINE Vec<E> interpolate(const Corners<E>& c, Vec<E> fx, Vec<E> fy) {
  const Vec<E> top = (1 - fx) * c.top_left + fx * c.top_right;
  const Vec<E> bottom = (1 - fx) * c.bottom_left + fx * c.bottom_right;
  return (1 - fy) * top + fy * bottom;
}

template <class E>
VIDGEN_INLINE Vec<E> broadcast(Acc<E> value) {
  return Vec<E>{} + value;
}

template <class E>
VIDGEN_INLINE Vec<E> load_some(const E* from, int64_t n) {
  return n >= kLanes<E> ? load(from) : load(from, n);
}

// n numbers `stride` apart.
template <class E>
VIDGEN_INLINE Vec<E> load_apart(const E* from, int64_t stride, int64_t n) {
  if (stride == 1) return load_some(from, n);
  Vec<E> v{};
  for (int64_t i = 0; i < n && i < kLanes<E>; ++i) v[i] = to_scalar(from[i * stride]);
  return v;
}

template <class E>
VIDGEN_INLINE void store_apart(E* to, int64_t stride, Vec<E> v, int64_t n) {
  if (stride == 1 && n >= kLanes<E>) {
    store(to, v);
  } else {
    for (int64_t i = 0; i < n && i < kLanes<E>; ++i) to[i * stride] = from_scalar<E>(v[i]);
  }
}

// One pixel's neighbours with their channels next to each other; nullptr is zero.
template <class E>
struct Neighbours {
  const E *top_left, *top_right, *bottom_left, *bottom_right;

  VIDGEN_INLINE Neighbours(const Warp& p, const ImageView& v, const E* image, int64_t row, int64_t column) {
    auto at = [&](int64_t r, int64_t c) {
      return in_image(p, r, c) ? image + r * v.row_stride + c * v.column_stride : nullptr;
    };
    top_left = at(row, column);
    top_right = at(row, column + 1);
    bottom_left = at(row + 1, column);
    bottom_right = at(row + 1, column + 1);
  }
  VIDGEN_INLINE Corners<E> at(int64_t channel, int64_t n) const {
    auto read = [&](const E* from) { return from == nullptr ? Vec<E>{} : load_some(from + channel, n); };
    return {read(top_left), read(top_right), read(bottom_left), read(bottom_right)};
  }
};

template <class E>
bool lanes_are_channels(const Warp& p, const ImageView& a, const ImageView& b) {
  return p.channels >= kLanes<E> && a.channel_stride == 1 && b.channel_stride == 1;
}

template <class E>
void forward_of(const Warp& p, const ImageView& x, const ImageView& flow, const ImageView& out, int64_t task) {
  using T = Acc<E>;
  const int64_t n = task / p.height, row = task % p.height;
  const bool by_channels = lanes_are_channels<E>(p, x, out);
  Footprints<T> at;
  for (int64_t begin = 0; begin < p.width; begin += kRun) {
    const int64_t count = std::min(kRun, p.width - begin);
    find_footprints<T>(p, flow, n, row, begin, count, std::numeric_limits<T>::quiet_NaN(), at);
    const bool has_offsets = !by_channels && find_offsets<T>(p, x, count, at);
    const E* image = row_of<E>(x, n, 0);
    E* to = row_of<E>(out, n, row) + begin * out.column_stride;
    if (by_channels) {
      for (int64_t i = 0; i < count; ++i) {
        const Neighbours<E> from(p, x, image, at.row[i], at.column[i]);
        const Vec<E> fx = broadcast<E>(at.fx[i]), fy = broadcast<E>(at.fy[i]);
        for (int64_t c = 0; c < p.channels; c += kLanes<E>)
          store_apart<E>(to + i * out.column_stride + c, 1, interpolate<E>(from.at(c, p.channels - c), fx, fy),
                         p.channels - c);
      }
      continue;
    }
    for (int64_t c = 0; c < p.channels; ++c) {
      for (int64_t i = 0; i < count; i += kLanes<E>) {
        const Corners<E> v = corners_at<E>(p, x, image + c * x.channel_stride, at, i, count - i, has_offsets);
        store_apart<E>(to + c * out.channel_stride + i * out.column_stride, out.column_stride,
                       interpolate<E>(v, load(at.fx + i), load(at.fy + i)), count - i);
      }
    }
  }
}

// Adds grad_output times the slopes of the interpolated surface.
template <class E>
VIDGEN_INLINE void add_slopes(const Corners<E>& v, Vec<E> grad, Vec<E> fx, Vec<E> fy, Vec<E>& by_x, Vec<E>& by_y) {
  by_x += grad * ((1 - fy) * (v.top_right - v.top_left) + fy * (v.bottom_right - v.bottom_left));
  by_y += grad * ((1 - fx) * (v.bottom_left - v.top_left) + fx * (v.bottom_right - v.top_right));
}

template <class E>
void grad_flow_of(const Warp& p, const ImageView& grad_output, const ImageView& x, const ImageView& flow,
                  const ImageView& grad, int64_t task) {
  using T = Acc<E>;
  const int64_t n = task / p.height, row = task % p.height;
  const bool by_channels = lanes_are_channels<E>(p, x, grad_output);
  Footprints<T> at;
  for (int64_t begin = 0; begin < p.width; begin += kRun) {
    const int64_t count = std::min(kRun, p.width - begin);
    find_footprints<T>(p, flow, n, row, begin, count, T(0), at);
    const bool has_offsets = !by_channels && find_offsets<T>(p, x, count, at);
    const E* image = row_of<E>(x, n, 0);
    const E* from = row_of<E>(grad_output, n, row) + begin * grad_output.column_stride;
    T* to_x = row_of<T>(grad, n, row) + begin * grad.column_stride;
    T* to_y = to_x + grad.channel_stride;
    if (by_channels) {
      for (int64_t i = 0; i < count; ++i) {
        const Neighbours<E> near(p, x, image, at.row[i], at.column[i]);
        const Vec<E> fx = broadcast<E>(at.fx[i]), fy = broadcast<E>(at.fy[i]);
        Vec<E> by_x{}, by_y{};
        for (int64_t c = 0; c < p.channels; c += kLanes<E>)
          add_slopes<E>(near.at(c, p.channels - c), load_some(from + i * grad_output.column_stride + c, p.channels - c),
                        fx, fy, by_x, by_y);
        T sum_x = 0, sum_y = 0;
        for (int k = 0; k < kLanes<E>; ++k) sum_x += by_x[k], sum_y += by_y[k];
        to_x[i * grad.column_stride] = at.slope_x[i] != 0 ? sum_x : T(0);
        to_y[i * grad.column_stride] = at.slope_y[i] != 0 ? sum_y : T(0);
      }
      continue;
    }
    for (int64_t i = 0; i < count; i += kLanes<E>) {
      const Vec<E> fx = load(at.fx + i), fy = load(at.fy + i), zero{};
      Vec<E> by_x{}, by_y{};
      for (int64_t c = 0; c < p.channels; ++c) {
        const Corners<E> v = corners_at<E>(p, x, image + c * x.channel_stride, at, i, count - i, has_offsets);
        const E* grads = from + c * grad_output.channel_stride + i * grad_output.column_stride;
        add_slopes<E>(v, load_apart(grads, grad_output.column_stride, count - i), fx, fy, by_x, by_y);
      }
      const int64_t place = i * grad.column_stride;
      store_apart<T>(to_x + place, grad.column_stride, load(at.slope_x + i) != zero ? by_x : zero, count - i);
      store_apart<T>(to_y + place, grad.column_stride, load(at.slope_y + i) != zero ? by_y : zero, count - i);
    }
  }
}

// Channels of a task of grad_x. Footprints are found again by every task, so many channels are better, but as few
// tasks as threads are worse; a line of memory has room for 16 channels_last.
int64_t block_of(const Warp& p, bool channels_last) {
  return channels_last ? 16 : std::clamp<int64_t>(p.channels / 8, 1, 8);
}

int64_t grad_x_tasks_per_image(const Warp& p, bool channels_last) {
  const int64_t block = block_of(p, channels_last);
  return (p.channels + block - 1) / block;
}

// bfloat16 is summed in float.
size_t grad_x_scratch_bytes(const Warp& p, bool channels_last) {
  if (p.dtype != Dtype::bf16) return 0;
  return size_t(std::min(block_of(p, channels_last), p.channels) * p.height * p.width) * sizeof(float);
}

// Sums of some channels of an image; pixel is the distance of two columns, a row has no gaps.
template <class T>
struct Sums {
  T* data;
  int64_t pixel, plane, width;
  VIDGEN_INLINE T* at(int64_t channel, int64_t row, int64_t column) const {
    return data + channel * plane + (row * width + column) * pixel;
  }
};

template <class T>
struct Weights {
  T top_left, top_right, bottom_left, bottom_right;
  VIDGEN_INLINE Weights(T fx, T fy)
      : top_left((1 - fx) * (1 - fy)), top_right(fx * (1 - fy)), bottom_left((1 - fx) * fy), bottom_right(fx * fy) {}
};

// A run of one channel's plane: a vector of products, then their sums pixel by pixel.
template <class E, class T>
void scatter_plane(const Warp& p, const Footprints<T>& at, const E* grads, int64_t stride, int64_t count, T* sums) {
  T top_left[kLanes<E>], top_right[kLanes<E>], bottom_left[kLanes<E>], bottom_right[kLanes<E>];
  T right = 0, lower_right = 0;
  T* waiting = nullptr;  // where `right` belongs; lower_right is a row below
  auto flush = [&] {
    if (waiting == nullptr) return;
    waiting[0] += right;
    waiting[p.width] += lower_right;
    waiting = nullptr;
  };
  for (int64_t i = 0; i < count; i += kLanes<E>) {
    const int64_t lanes = std::min<int64_t>(kLanes<E>, count - i);
    const Vec<E> g = load_apart(grads + i * stride, stride, count - i), fx = load(at.fx + i), fy = load(at.fy + i);
    const Vec<E> upper = g * (1 - fy), lower = g * fy;
    store(top_left, (1 - fx) * upper);
    store(top_right, fx * upper);
    store(bottom_left, (1 - fx) * lower);
    store(bottom_right, fx * lower);
    if (at.inside[i / kLanes<E>]) {
      for (int64_t k = 0; k < lanes; ++k) {
        T* to = sums + int64_t(at.row[i + k]) * p.width + at.column[i + k];
        T left = top_left[k], lower_left = bottom_left[k];
        if (to == waiting) {
          left += right;
          lower_left += lower_right;
        } else {
          flush();
        }
        to[0] += left;
        to[p.width] += lower_left;
        right = top_right[k];
        lower_right = bottom_right[k];
        waiting = to + 1;
      }
      continue;
    }
    flush();
    for (int64_t k = 0; k < lanes; ++k) {
      const int64_t row = at.row[i + k], column = at.column[i + k];
      T* to = sums + row * p.width + column;
      if (in_image(p, row, column)) to[0] += top_left[k];
      if (in_image(p, row, column + 1)) to[1] += top_right[k];
      if (in_image(p, row + 1, column)) to[p.width] += bottom_left[k];
      if (in_image(p, row + 1, column + 1)) to[p.width + 1] += bottom_right[k];
    }
  }
  flush();
}

// A run of `channels` channels next to each other.
template <class E, class T>
void scatter_channels(const Warp& p, const Footprints<T>& at, const E* grads, int64_t column_stride,
                      int64_t channel_stride, int64_t channels, int64_t count, const Sums<T>& sums) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = at.row[i], column = at.column[i];
    const Weights<T> w(at.fx[i], at.fy[i]);
    const E* from = grads + i * column_stride;
    auto add = [&](int64_t r, int64_t c, T weight) {
      if (!in_image(p, r, c)) return;
      T* to = sums.at(0, r, c);
      int64_t k = 0;
      for (; channel_stride == 1 && k + kLanes<E> <= channels; k += kLanes<E>)
        store(to + k, load(to + k) + weight * load(from + k));
      for (; k < channels; ++k) to[k] += weight * to_scalar(from[k * channel_stride]);
    };
    add(row, column, w.top_left);
    add(row, column + 1, w.top_right);
    add(row + 1, column, w.bottom_left);
    add(row + 1, column + 1, w.bottom_right);
  }
}

template <class E>
void grad_x_of(const Warp& p, const ImageView& grad_output, const ImageView& flow, const ImageView& grad,
               bool channels_last, int64_t task, void* scratch) {
  using T = Acc<E>;
  constexpr bool in_place = std::is_same_v<E, T>;
  const int64_t tasks = grad_x_tasks_per_image(p, channels_last), n = task / tasks;
  const int64_t first = task % tasks * block_of(p, channels_last);
  const int64_t channels = std::min(block_of(p, channels_last), p.channels - first), area = p.height * p.width;
  E* out = row_of<E>(grad, n, 0) + first * grad.channel_stride;
  // in scratch the task's channels are alone
  Sums<T> sums{static_cast<T*>(scratch), channels_last ? channels : 1, channels_last ? 1 : area, p.width};
  if constexpr (in_place) sums = {out, channels_last ? p.channels : 1, channels_last ? 1 : area, p.width};
  for (int64_t i = 0; channels_last && i < area; ++i) std::fill_n(sums.data + i * sums.pixel, channels, T(0));
  if (!channels_last) std::fill_n(sums.data, channels * area, T(0));

  Footprints<T> at;
  for (int64_t row = 0; row < p.height; ++row) {
    for (int64_t begin = 0; begin < p.width; begin += kRun) {
      const int64_t count = std::min(kRun, p.width - begin);
      find_footprints<T>(p, flow, n, row, begin, count, T(0), at);
      const E* from =
          row_of<E>(grad_output, n, row) + begin * grad_output.column_stride + first * grad_output.channel_stride;
      if (channels_last) {
        scatter_channels<E, T>(p, at, from, grad_output.column_stride, grad_output.channel_stride, channels, count,
                               sums);
        continue;
      }
      for (int64_t c = 0; c < channels; ++c)
        scatter_plane<E, T>(p, at, from + c * grad_output.channel_stride, grad_output.column_stride, count,
                            sums.at(c, 0, 0));
    }
  }
  if constexpr (!in_place) {
    const int64_t step = channels_last ? p.channels : 1, plane = channels_last ? 1 : area;
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t i = 0; i < area; ++i) out[c * plane + i * step] = from_scalar<E>(*sums.at(c, 0, i));
  }
}

void forward(const Warp& p, ImageView x, ImageView flow, ImageView out, int64_t task) {
  auto* run = p.dtype == Dtype::f32    ? &forward_of<float>
              : p.dtype == Dtype::bf16 ? &forward_of<bf16>
                                       : &forward_of<double>;
  run(p, x, flow, out, task);
}

void grad_flow(const Warp& p, ImageView grad_output, ImageView x, ImageView flow, ImageView grad, int64_t task) {
  auto* run = p.dtype == Dtype::f32    ? &grad_flow_of<float>
              : p.dtype == Dtype::bf16 ? &grad_flow_of<bf16>
                                       : &grad_flow_of<double>;
  run(p, grad_output, x, flow, grad, task);
}

void grad_x(const Warp& p, ImageView grad_output, ImageView flow, ImageView grad, bool channels_last, int64_t task,
            void* scratch) {
  auto* run = p.dtype == Dtype::f32    ? &grad_x_of<float>
              : p.dtype == Dtype::bf16 ? &grad_x_of<bf16>
                                       : &grad_x_of<double>;
  run(p, grad_output, flow, grad, channels_last, task, scratch);
}

}  // namespace

extern const WarpTable warp;
const WarpTable warp = {forward, grad_flow, grad_x_tasks_per_image, grad_x_scratch_bytes, grad_x};

}  // namespace vidgen::VIDGEN_ISA
