// What happens to a sum before it is stored: bias, activation, and the pooling window or its gradient.
//
// Works on a box of z in memory, one vector of channels at a time. Boxes begin where windows begin, and a window that a
// box cuts is one that the end of z cuts. Rounding is monotone, so max(z) + bias is max(z + bias) to the bit (finite
// bias), and ReLU of a maximum is the maximum of ReLUs: bias and ReLU are applied once per window.
#pragma once

#include <limits>

#include "conv3d_pool3d.h"
#include "convert.h"
#include "panels.h"

namespace vidgen::VIDGEN_ISA {

constexpr int64_t kConvChunk = 128;  // input rows of a sum that is rounded by itself, see gemm.h

// The larger one, the first of equals; a NaN is larger than any number (PyTorch's rule for pooling).
template <class E>
VIDGEN_INLINE IntVec<E> replaces(Vec<E> v, Vec<E> maximum) {
  return (v > maximum) | (v != v);
}

template <class E>
VIDGEN_INLINE Vec<E> rectified(Vec<E> v) {
  return v < 0 ? Vec<E>{} : v;
}

// z of one vector of channels: position (d, h, w) of the box is at values + d * stride[0] + h * stride[1] + w *
// stride[2].
template <class V>
struct Box {
  const V* values;
  int64_t stride[3];
  int64_t origin[3];  // in z
  int64_t size[3];    // what of the box lies inside z
};

// The channels of one vector: where they begin, and how many are used.
struct Lanes {
  int64_t first, used;
};

template <class E>
VIDGEN_INLINE void store_lanes(E* to, Vec<E> v, int64_t used) {
  if (used == kLanes<E>) {
    store(to, v);
  } else {
    store(to, v, used);
  }
}

template <class V, class E>
VIDGEN_INLINE Vec<E> load_lanes(const V* from, int64_t used) {
  return used == kLanes<E> ? load(from) : load(from, used);
}

// One pooling window: its positions in the box.
struct Window {
  int64_t first[3], last[3];
};

// Calls f(window, pooled position, whether y has it) for every window that begins in the box.
template <class V, class F>
VIDGEN_INLINE void for_each_window(const Conv3dPool3d& p, const Box<V>& box, F f) {
  Window w;
  int64_t at[3];
  for (w.first[0] = 0; w.first[0] < box.size[0]; w.first[0] += p.pool[0]) {
    w.last[0] = smaller(w.first[0] + p.pool[0], box.size[0]);
    at[0] = (box.origin[0] + w.first[0]) / p.pool[0];
    for (w.first[1] = 0; w.first[1] < box.size[1]; w.first[1] += p.pool[1]) {
      w.last[1] = smaller(w.first[1] + p.pool[1], box.size[1]);
      at[1] = (box.origin[1] + w.first[1]) / p.pool[1];
      for (w.first[2] = 0; w.first[2] < box.size[2]; w.first[2] += p.pool[2]) {
        w.last[2] = smaller(w.first[2] + p.pool[2], box.size[2]);
        at[2] = (box.origin[2] + w.first[2]) / p.pool[2];
        f(w, at, at[0] < p.pooled_size[0] && at[1] < p.pooled_size[1] && at[2] < p.pooled_size[2]);
      }
    }
  }
}

// Calls f(values, index, d, h, w) for every position of a window, in scan order.
template <class V, class F>
VIDGEN_INLINE void for_each_position(const Box<V>& box, const Window& w, F f) {
  int32_t index = 0;
  for (int64_t d = w.first[0]; d < w.last[0]; ++d) {
    for (int64_t h = w.first[1]; h < w.last[1]; ++h) {
      const V* row = box.values + d * box.stride[0] + h * box.stride[1];
      for (int64_t c = w.first[2]; c < w.last[2]; ++c) f(row + c * box.stride[2], index++, d, h, c);
    }
  }
}

// What becomes of a sum: bias, activation.
template <class E>
struct Activation {
  Vec<E> bias;
  bool relu;
  VIDGEN_INLINE Vec<E> operator()(Vec<E> v) const {
    v = v + bias;
    return relu ? rectified<E>(v) : v;
  }
};

// `count` windows next to each other, `wide` columns each, `depth` planes and `height` rows. Returns the sum of all
// that they hold: one number of them is a NaN only if the sum is, too, and the maxima are right if none is.
template <int wide, class E, class V>
VIDGEN_INLINE Vec<E> store_maxima(const V* from, const int64_t (&stride)[3], int64_t depth, int64_t height,
                                  int64_t count, Activation<E> activation, E* to, int64_t to_stride, int64_t used) {
  Vec<E> sum{};
  for (; count > 0; --count, from += wide * stride[2], to += to_stride) {
    Vec<E> maximum = Vec<E>{} - std::numeric_limits<Acc<E>>::infinity();
    for (int64_t d = 0; d < depth; ++d) {
      for (int64_t h = 0; h < height; ++h) {
        const V* row = from + d * stride[0] + h * stride[1];
#pragma GCC unroll 4
        for (int w = 0; w < wide; ++w) {
          const Vec<E> v = load_lanes<V, E>(row + w * stride[2], used);
          maximum = v > maximum ? v : maximum;
          sum += v;
        }
      }
    }
    store_lanes(to, activation(maximum), used);
  }
  return sum;
}

// All windows of a box. Returns whether there may be a NaN among what they hold: the maxima are right only if not.
template <class E, class V>
bool store_maxima(const Conv3dPool3d& p, const Box<V>& box, Activation<E> activation, Lanes lanes, const ClipView& y,
                  int64_t n) {
  constexpr decltype(&store_maxima<1, E, V>) of_width[] = {&store_maxima<1, E, V>, &store_maxima<2, E, V>,
                                                           &store_maxima<3, E, V>, &store_maxima<4, E, V>};
  const int64_t whole = box.size[2] / p.pool[2], rest = box.size[2] % p.pool[2];
  Vec<E> sum{};
  for (int64_t d = 0; d < box.size[0]; d += p.pool[0]) {
    for (int64_t h = 0; h < box.size[1]; h += p.pool[1]) {
      const int64_t at[3] = {(box.origin[0] + d) / p.pool[0], (box.origin[1] + h) / p.pool[1],
                             box.origin[2] / p.pool[2]};
      if (at[0] >= p.pooled_size[0] || at[1] >= p.pooled_size[1]) continue;
      auto store = [&](int64_t wide, int64_t first, int64_t count) {
        sum += of_width[wide - 1](
            box.values + d * box.stride[0] + h * box.stride[1] + first * p.pool[2] * box.stride[2], box.stride,
            smaller(p.pool[0], box.size[0] - d), smaller(p.pool[1], box.size[1] - h), count, activation,
            element_at<E>(y, n, at[0], at[1], at[2] + first, lanes.first), y.stride[2], lanes.used);
      };
      store(p.pool[2], 0, whole);
      if (rest > 0 && at[2] + whole < p.pooled_size[2]) store(rest, whole, 1);
    }
  }
  return has_nan<E>(sum);
}

template <class E, class V>
void store_activations(const Conv3dPool3d& p, const Box<V>& box, Activation<E> activation, Lanes lanes,
                       const ClipView& y, int64_t n) {
  if (!p.pools()) {
    for (int64_t d = 0; d < box.size[0]; ++d) {
      for (int64_t h = 0; h < box.size[1]; ++h) {
        const V* from = box.values + d * box.stride[0] + h * box.stride[1];
        E* to = element_at<E>(y, n, box.origin[0] + d, box.origin[1] + h, box.origin[2], lanes.first);
        for (int64_t w = 0; w < box.size[2]; ++w) {
          store_lanes(to + w * y.stride[2], activation(load_lanes<V, E>(from + w * box.stride[2], lanes.used)),
                      lanes.used);
        }
      }
    }
    return;
  }
  if (!store_maxima<E, V>(p, box, activation, lanes, y, n)) return;
  for_each_window(p, box, [&](const Window& window, const int64_t* at, bool kept) __attribute__((always_inline)) {
    if (!kept) return;
    Vec<E> maximum{};
    for_each_position(box, window,
                      [&](const V* from, int32_t index, int64_t, int64_t, int64_t) __attribute__((always_inline)) {
                        Vec<E> v = load_lanes<V, E>(from, lanes.used);
                        maximum = index == 0 ? v : replaces<E>(v, maximum) ? v : maximum;
                      });
    store_lanes(element_at<E>(y, n, at[0], at[1], at[2], lanes.first), activation(maximum), lanes.used);
  });
}

template <class E, class V>
void store_gradient(const Conv3dPool3d& p, const Box<V>& box, Vec<E> bias, Lanes lanes, const Conv3dTarget& target,
                    int64_t n) {
  for_each_window(p, box, [&](const Window& window, const int64_t* at, bool kept) __attribute__((always_inline)) {
    Vec<E> maximum{}, gradient{};
    IntVec<E> winner{};
    if (kept) {
      for_each_position(box, window,
                        [&](const V* from, int32_t index, int64_t, int64_t, int64_t) __attribute__((always_inline)) {
                          Vec<E> v = load_lanes<V, E>(from, lanes.used) + bias;
                          IntVec<E> better = index == 0 ? IntVec<E>{} - 1 : replaces<E>(v, maximum);
                          maximum = better ? v : maximum;
                          winner = better ? IntVec<E>{} + index : winner;
                        });
      gradient = load_lanes<E, E>(element_at<E>(*target.grad, n, at[0], at[1], at[2], lanes.first), lanes.used);
      if (p.relu) gradient = maximum <= 0 ? Vec<E>{} : gradient;
    }
    for_each_position(
        box, window, [&](const V*, int32_t index, int64_t d, int64_t h, int64_t w) __attribute__((always_inline)) {
          Vec<E> v = winner == IntVec<E>{} + index ? gradient : Vec<E>{};
          store_lanes(
              element_at<E>(target.out, n, box.origin[0] + d, box.origin[1] + h, box.origin[2] + w, lanes.first), v,
              lanes.used);
        });
  });
}

template <class E, class V>
VIDGEN_INLINE void finish_box(const Conv3dPool3d& p, const Box<V>& box, const E* bias, Lanes lanes,
                              const Conv3dTarget& target, int64_t n) {
  Vec<E> add = bias == nullptr ? Vec<E>{} : load_lanes<E, E>(bias + lanes.first, lanes.used);
  if (target.grad == nullptr) {
    store_activations<E>(p, box, {add, p.relu}, lanes, target.out, n);
  } else {
    store_gradient<E>(p, box, add, lanes, target, n);
  }
}

// A plane of windows of a finished z with channels next to each other.
template <class E>
void finish_plane(const Conv3dPool3d& p, const ClipView& z, const Conv3dTarget& target, int64_t task) {
  int64_t planes = divide_up(p.out_size[0], p.pool[0]);
  int64_t n = task / planes, first = task % planes * p.pool[0];
  for (int64_t c = 0; c < p.out_channels; c += kLanes<E>) {
    Box<E> box{element_at<E>(z, n, first, 0, 0, c),
               {z.stride[0], z.stride[1], z.stride[2]},
               {first, 0, 0},
               {smaller(p.pool[0], p.out_size[0] - first), p.out_size[1], p.out_size[2]}};
    finish_box<E, E>(p, box, nullptr, {c, smaller(kLanes<E>, p.out_channels - c)}, target, n);
  }
}

}  // namespace vidgen::VIDGEN_ISA
