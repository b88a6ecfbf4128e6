// corr_lookup on the CPU: windows of correlations, read or computed, interpolated, and put into planes.
//
// A task is a row of queries, taken a vector of them at a time (8 with AVX2). Each query's values, 324 for 4 levels of
// radius 4, are made in a line of scratch, columns as lanes and so in the order of the image's rows; the lines of a
// vector of queries, 10 kB, stay in the first cache and are transposed square by square into the planes of the output,
// whose order is that of columns. A window of correlations is interpolated where it lies; only at the image's rim, or
// to become float, it is copied. Without stored correlations windows are computed (corr_lookup_dots.h).
//
// Gradients: a query's own correlations are its own, and so are fmap1 and coords; only features of the second image are
// shared. There a task owns some channels of a level and walks over all queries in their order, so no two threads meet
// and the order of a sum never changes.
#include "cpu/corr_lookup.h"

#include <algorithm>
#include <limits>
#include <type_traits>

#include "cpu/corr_lookup_dots.h"
#include "cpu/corr_lookup_window.h"

namespace vidgen::VIDGEN_ISA {
namespace {

// Channels of a task of grad_features: 8 vectors of 8 floats, which stay in registers while a query's pixels pass.
constexpr int64_t kBlock = 64;

template <class E>
VIDGEN_INLINE E* element(const ImageView& v, int64_t n, int64_t channel, int64_t row, int64_t column) {
  return static_cast<E*>(v.data) + n * v.batch_stride + channel * v.channel_stride + row * v.row_stride +
         column * v.column_stride;
}

template <class E>
VIDGEN_INLINE E* image_of(const CorrLevel& v, int64_t n) {
  return static_cast<E*>(v.data) + n * v.batch_stride;
}

template <class E>
VIDGEN_INLINE E* plane_of(const CorrLevel& v, int64_t n, int64_t row, int64_t column) {
  return image_of<E>(v, n) + row * v.query_row_stride + column * v.query_column_stride;
}

// Scratch of a row's task.
template <class E>
struct Room {
  using T = Acc<E>;
  T* lines;     // values of a vector of queries
  T* features;  // of a vector of queries, or of kTogether if that is more
  T* tiles;     // windows of kTogether queries
  T* gradient;  // one window's with a rim
  T* weights;   // one window's
  E* gathered;
  int32_t* order;  // channels of a line's values
  size_t bytes;

  Room(const CorrLookup& p, const CorrSizes<T>& sizes, void* memory) {
    T* next = static_cast<T*>(memory);
    auto take = [&](int64_t n) {
      T* taken = next;
      next += round_up(n, 16);
      return taken;
    };
    lines = take(kLanes<T> * sizes.line);
    features = take(std::max(kLanes<T>, kTogether) * sizes.channels);
    tiles = take(kTogether * sizes.shared);
    gradient = take((sizes.side + 1) * sizes.pitch);
    weights = take(sizes.side * sizes.side + kLanes<T>);
    gathered = reinterpret_cast<E*>(take(kDots<E> * p.channels));
    order = reinterpret_cast<int32_t*>(take(sizes.values));
    bytes = size_t(next - static_cast<T*>(memory)) * sizeof(T);
  }
};

template <class T>
void find_order(const CorrSizes<T>& sizes, int64_t levels, int32_t* order) {
  for (int64_t l = 0; l < levels; ++l)
    for (int64_t r = 0; r < sizes.n; ++r)
      for (int64_t c = 0; c < sizes.n; ++c) *order++ = int32_t(l * sizes.taps + c * sizes.n + r);
}

// Features of `count` queries in float, each ending with zeros up to whole vectors.
template <class E>
void read_features(const CorrLookup& p, const ImageView& fmap1, int64_t n, int64_t row, int64_t column, int64_t count,
                   const CorrSizes<Acc<E>>& sizes, Acc<E>* to) {
  for (int64_t q = 0; q < count; ++q) {
    const E* from = element<const E>(fmap1, n, 0, row, column + q);
    for (int64_t c = 0; c < p.channels; ++c) to[q * sizes.channels + c] = to_scalar(from[c * fmap1.channel_stride]);
    std::fill(to + q * sizes.channels + p.channels, to + (q + 1) * sizes.channels, Acc<E>(0));
  }
}

// Places and windows of up to kTogether queries on a level; known[q] says whether the coordinates are finite.
template <class E>
void find_windows(const CorrLookup& p, const ImageView& coords, int64_t n, int64_t row, int64_t column, int64_t count,
                  int64_t l, const Acc<E>* features, const CorrSizes<Acc<E>>& sizes, const Room<E>& room,
                  Place<Acc<E>>* at, bool* known, Window<Acc<E>>* windows) {
  using T = Acc<E>;
  const CorrLevel& level = p.level[l];
  for (int64_t q = 0; q < count; ++q) {
    const T* x = element<const T>(coords, n, 0, row, column + q);
    known[q] = place_of<T>(p, x[0], x[coords.channel_stride], l, at[q]);
    if (p.channels > 0) continue;
    const E* plane = plane_of<const E>(level, n, row, column + q);
    windows[q] = read_window<E>(plane, level, at[q], sizes, room.tiles + q * sizes.shared);
  }
  if (p.channels > 0)
    compute_windows<E>(p, level, image_of<const E>(level, n), features, at, count, sizes, room.tiles, room.gathered,
                       windows);
}

// Lines of values to `count` queries of the output, whose planes or channels are next to each other.
template <class T>
void write_lines(const CorrSizes<T>& sizes, const T* lines, const int32_t* order, int64_t count, const ImageView& out,
                 T* to) {
  constexpr int lanes = kLanes<T>;
  if (out.column_stride != 1) {
    for (int64_t q = 0; q < count; ++q)
      for (int64_t i = 0; i < sizes.values; ++i)
        to[q * out.column_stride + order[i] * out.channel_stride] = lines[q * sizes.line + i];
    return;
  }
  for (int64_t i = 0; i < sizes.values; i += lanes) {
    Vec<T> square[lanes];
#pragma GCC unroll 16
    for (int q = 0; q < lanes; ++q) square[q] = load(lines + q * sizes.line + i);
    transpose<T>(square);
    for (int64_t k = 0; k < lanes && i + k < sizes.values; ++k) {
      T* at = to + order[i + k] * out.channel_stride;
      if (count == lanes) {
        store(at, square[k]);
      } else {
        store(at, square[k], count);
      }
    }
  }
}

template <class E>
void forward_of(const CorrLookup& p, const ImageView& fmap1, const ImageView& coords, const ImageView& out,
                int64_t task, void* scratch) {
  using T = Acc<E>;
  const int64_t n = task / p.height, row = task % p.height;
  const CorrSizes<T> sizes(p);
  const Room<E> room(p, sizes, scratch);
  find_order(sizes, p.levels, room.order);
  Place<T> at[kTogether];
  Window<T> windows[kTogether];
  bool known[kTogether];
  for (int64_t column = 0; column < p.width; column += kLanes<T>) {
    const int64_t count = std::min<int64_t>(kLanes<T>, p.width - column);
    if (p.channels > 0) read_features<E>(p, fmap1, n, row, column, count, sizes, room.features);
    for (int64_t first = 0; first < count; first += kTogether) {
      const int64_t some = std::min<int64_t>(kTogether, count - first);
      T* lines = room.lines + first * sizes.line;
      for (int64_t l = 0; l < p.levels; ++l) {
        find_windows<E>(p, coords, n, row, column + first, some, l, room.features + first * sizes.channels, sizes, room,
                        at, known, windows);
        for (int64_t q = 0; q < some; ++q)
          interpolate<T>(windows[q], blend_of(at[q]), sizes.n, lines + q * sizes.line + l * sizes.taps);
      }
      for (int64_t q = 0; q < some; ++q) {
        if (!known[q]) std::fill_n(lines + q * sizes.line, sizes.values, std::numeric_limits<T>::quiet_NaN());
      }
    }
    write_lines<T>(sizes, room.lines, room.order, count, out, element<T>(out, n, 0, row, column));
  }
}

// The sums of a window's values times its horizontal and its vertical slopes.
template <class T>
VIDGEN_INLINE void add_slopes(const Window<T>& window, const T* gradient, const Blend<T>& by, const CorrSizes<T>& sizes,
                              T scale, T& to_x, T& to_y) {
  constexpr int lanes = kLanes<T>;
  IntVec<T> lane;
  for (int i = 0; i < lanes; ++i) lane[i] = i;
  const Vec<T> zero{};
  Vec<T> by_x{}, by_y{};
  for (int64_t r = 0; r < sizes.n; ++r) {
    for (int64_t c = 0; c < sizes.n; c += lanes) {
      const T* from = window.at + r * window.pitch + c;
      const Vec<T> a = load(from), b = load(from + 1);
      const Vec<T> d = load(from + window.pitch), e = load(from + window.pitch + 1);
      const Vec<T> g = load(gradient + (r + 1) * sizes.pitch + c + 1);
      // beyond the window may be anything
      const auto inside = lane < IntVec<T>{} + decltype(lane[0] + 0)(sizes.n - c);
      by_x += inside ? g * (by.top * (b - a) + by.bottom * (e - d)) : zero;
      by_y += inside ? g * (by.left * (d - a) + by.right * (e - b)) : zero;
    }
  }
  T x = 0, y = 0;
  for (int i = 0; i < lanes; ++i) {
    x += by_x[i];
    y += by_y[i];
  }
  to_x += scale * x;
  to_y += scale * y;
}

template <class E>
void grad_coords_of(const CorrLookup& p, const ImageView& grad_output, const ImageView& fmap1, const ImageView& coords,
                    const ImageView& grad, int64_t task, void* scratch) {
  using T = Acc<E>;
  const int64_t n = task / p.height, row = task % p.height;
  const CorrSizes<T> sizes(p);
  const Room<E> room(p, sizes, scratch);
  Place<T> at[kTogether];
  Window<T> windows[kTogether];
  bool known[kTogether];
  for (int64_t column = 0; column < p.width; column += kTogether) {
    const int64_t count = std::min<int64_t>(kTogether, p.width - column);
    if (p.channels > 0) read_features<E>(p, fmap1, n, row, column, count, sizes, room.features);
    T x[kTogether] = {}, y[kTogether] = {};
    T scale = 1;
    for (int64_t l = 0; l < p.levels; ++l, scale *= T(0.5)) {
      find_windows<E>(p, coords, n, row, column, count, l, room.features, sizes, room, at, known, windows);
      for (int64_t q = 0; q < count; ++q) {
        if (!known[q]) continue;
        read_gradient<T>(element<const T>(grad_output, n, l * sizes.taps, row, column + q), grad_output.channel_stride,
                         sizes, room.gradient);
        add_slopes<T>(windows[q], room.gradient, blend_of(at[q]), sizes, scale, x[q], y[q]);
      }
    }
    for (int64_t q = 0; q < count; ++q) {
      *element<T>(grad, n, 0, row, column + q) = x[q];
      *element<T>(grad, n, 1, row, column + q) = y[q];
    }
  }
}

// Calls visit(row, column, weight) for the pixels of a query's window on a level: the gradient of its correlations.
template <class E, class Visit>
VIDGEN_INLINE void for_each_gradient(const CorrLookup& p, const ImageView& grad_output, const ImageView& coords,
                                     int64_t n, int64_t row, int64_t column, int64_t l, const CorrSizes<Acc<E>>& sizes,
                                     Acc<E>* gradient, Acc<E>* weights, const Visit& visit) {
  using T = Acc<E>;
  const T* x = element<const T>(coords, n, 0, row, column);
  Place<T> at;
  if (!place_of<T>(p, x[0], x[coords.channel_stride], l, at) || !meets(p.level[l], at, sizes.side)) return;
  read_gradient<T>(element<const T>(grad_output, n, l * sizes.taps, row, column), grad_output.channel_stride, sizes,
                   gradient);
  spread<T>(gradient, at, sizes, weights);
  for_each_pixel(p.level[l], at, sizes.side, weights, visit);
}

template <class E>
void grad_correlations_of(const CorrLookup& p, const ImageView& grad_output, const ImageView& coords,
                          const CorrLevel* grads, int64_t task, void* scratch) {
  using T = Acc<E>;
  const int64_t n = task / p.height, row = task % p.height;
  const CorrSizes<T> sizes(p);
  const Room<E> room(p, sizes, scratch);
  for (int64_t l = 0; l < p.levels; ++l) {
    const CorrLevel& level = grads[l];
    __builtin_memset(plane_of<E>(level, n, row, 0), 0, size_t(p.width * level.height * level.width) * sizeof(E));
    for (int64_t column = 0; column < p.width; ++column) {
      E* plane = plane_of<E>(level, n, row, column);
      for_each_gradient<E>(
          p, grad_output, coords, n, row, column, l, sizes, room.gradient, room.weights,
          [&](int64_t r, int64_t c, T weight) { plane[r * level.width + c] = from_scalar<E>(weight); });
    }
  }
}

template <class E>
void grad_fmap1_of(const CorrLookup& p, const ImageView& grad_output, const ImageView& coords, const ImageView& grad,
                   int64_t task, void* scratch) {
  using T = Acc<E>;
  constexpr int lanes = kLanes<T>;
  const int64_t n = task / p.height, row = task % p.height;
  const CorrSizes<T> sizes(p);
  const Room<E> room(p, sizes, scratch);
  const T scale = T(1 / __builtin_sqrt(double(p.channels)));
  T* sums = room.features;
  for (int64_t column = 0; column < p.width; ++column) {
    std::fill_n(sums, sizes.channels, T(0));
    for (int64_t l = 0; l < p.levels; ++l) {
      const CorrLevel& level = p.level[l];
      const E* image = image_of<const E>(level, n);
      for_each_gradient<E>(p, grad_output, coords, n, row, column, l, sizes, room.gradient, room.weights,
                           [&](int64_t r, int64_t c, T weight) {
                             const E* pixel = gathered(image + r * level.row_stride + c * level.column_stride,
                                                       level.channel_stride, p.channels, room.gathered);
                             int64_t k = 0;
                             for (; k + lanes <= p.channels; k += lanes)
                               store(sums + k, multiply_add<E>(weight, load(pixel + k), load(sums + k)));
                             if (k < p.channels) {
                               const Vec<E> rest = load(pixel + k, p.channels - k);
                               store(sums + k, multiply_add<E>(weight, rest, load(sums + k)));
                             }
                           });
    }
    E* to = element<E>(grad, n, 0, row, column);
    for (int64_t c = 0; c < p.channels; ++c) to[c * grad.channel_stride] = from_scalar<E>(scale * sums[c]);
  }
}

// Scratch of a task of grad_features.
template <class T>
struct FeatureRoom {
  int64_t pixels;  // of the largest level
  T *sums, *gradient, *weights;
  size_t bytes;

  FeatureRoom(const CorrLookup& p, const CorrSizes<T>& sizes, void* memory) : pixels(0) {
    for (int64_t l = 0; l < p.levels; ++l) pixels = std::max(pixels, p.level[l].height * p.level[l].width);
    sums = static_cast<T*>(memory);
    gradient = sums + pixels * kBlock;
    weights = gradient + round_up((sizes.side + 1) * sizes.pitch, 16);
    bytes = size_t(weights - sums + sizes.side * sizes.side + kLanes<T>) * sizeof(T);
  }
};

int64_t grad_features_tasks_per_image(const CorrLookup& p) { return p.levels * divide_up(p.channels, kBlock); }

template <class E>
void grad_features_of(const CorrLookup& p, const ImageView& grad_output, const ImageView& fmap1,
                      const ImageView& coords, const CorrLevel* grads, int64_t task, void* scratch) {
  using T = Acc<E>;
  constexpr int lanes = kLanes<T>, vectors = kBlock / lanes;
  const int64_t tasks = grad_features_tasks_per_image(p), n = task / tasks;
  const int64_t l = task % tasks % p.levels, first = task % tasks / p.levels * kBlock;
  const int64_t channels = std::min(kBlock, p.channels - first);
  const CorrLevel& level = grads[l];
  const CorrSizes<T> sizes(p);
  const FeatureRoom<T> room(p, sizes, scratch);
  const T scale = T(1 / __builtin_sqrt(double(p.channels)));
  std::fill_n(room.sums, level.height * level.width * kBlock, T(0));
  T features[kBlock] = {};
  for (int64_t row = 0; row < p.height; ++row) {
    for (int64_t column = 0; column < p.width; ++column) {
      const E* from = element<const E>(fmap1, n, first, row, column);
      for (int64_t c = 0; c < channels; ++c) features[c] = scale * to_scalar(from[c * fmap1.channel_stride]);
      Vec<T> f[vectors];
      for (int v = 0; v < vectors; ++v) f[v] = load(features + v * lanes);
      for_each_gradient<E>(p, grad_output, coords, n, row, column, l, sizes, room.gradient, room.weights,
                           [&](int64_t r, int64_t c, T weight) {
                             T* to = room.sums + (r * level.width + c) * kBlock;
#pragma GCC unroll 16
                             for (int v = 0; v < vectors; ++v)
                               store(to + v * lanes, multiply_add<T>(weight, f[v], load(to + v * lanes)));
                           });
    }
  }
  E* image = image_of<E>(level, n) + first * level.channel_stride;
  for (int64_t r = 0; r < level.height; ++r)
    for (int64_t c = 0; c < level.width; ++c)
      for (int64_t k = 0; k < channels; ++k)
        image[r * level.row_stride + c * level.column_stride + k * level.channel_stride] =
            from_scalar<E>(room.sums[(r * level.width + c) * kBlock + k]);
}

// Calls f with a number of the pyramid's type.
template <class F>
VIDGEN_INLINE auto for_dtype(Dtype dtype, const F& f) {
  return dtype == Dtype::f32 ? f(float()) : dtype == Dtype::bf16 ? f(bf16()) : f(double());
}

size_t scratch_bytes(const CorrLookup& p) {
  return for_dtype(p.dtype, [&]<class E>(E) { return Room<E>(p, CorrSizes<Acc<E>>(p), nullptr).bytes; });
}

void forward(const CorrLookup& p, ImageView fmap1, ImageView coords, ImageView out, int64_t task, void* scratch) {
  for_dtype(p.dtype, [&]<class E>(E) { forward_of<E>(p, fmap1, coords, out, task, scratch); });
}

void grad_coords(const CorrLookup& p, ImageView grad_output, ImageView fmap1, ImageView coords, ImageView grad,
                 int64_t task, void* scratch) {
  for_dtype(p.dtype, [&]<class E>(E) { grad_coords_of<E>(p, grad_output, fmap1, coords, grad, task, scratch); });
}

void grad_fmap1(const CorrLookup& p, ImageView grad_output, ImageView coords, ImageView grad, int64_t task,
                void* scratch) {
  for_dtype(p.dtype, [&]<class E>(E) { grad_fmap1_of<E>(p, grad_output, coords, grad, task, scratch); });
}

void grad_correlations(const CorrLookup& p, ImageView grad_output, ImageView coords, const CorrLevel* grads,
                       int64_t task, void* scratch) {
  for_dtype(p.dtype, [&]<class E>(E) { grad_correlations_of<E>(p, grad_output, coords, grads, task, scratch); });
}

size_t grad_features_scratch_bytes(const CorrLookup& p) {
  return for_dtype(p.dtype, [&]<class E>(E) {
    using T = Acc<E>;
    return FeatureRoom<T>(p, CorrSizes<T>(p), nullptr).bytes;
  });
}

void grad_features(const CorrLookup& p, ImageView grad_output, ImageView fmap1, ImageView coords,
                   const CorrLevel* grads, int64_t task, void* scratch) {
  for_dtype(p.dtype, [&]<class E>(E) { grad_features_of<E>(p, grad_output, fmap1, coords, grads, task, scratch); });
}

}  // namespace

extern const CorrLookupTable corr_lookup;
const CorrLookupTable corr_lookup = {
    scratch_bytes,
    forward,
    grad_coords,
    grad_fmap1,
    grad_correlations,
    grad_features_tasks_per_image,
    grad_features_scratch_bytes,
    grad_features,
};

}  // namespace vidgen::VIDGEN_ISA
