// discretized_logistic_mixture on the CPU: a lane is a pixel, a task 64 pixels.
//
// The parameters of 64 pixels are planes of 64 numbers: read in place where they lie so, else copied into scratch,
// which widens bfloat16 and serves every stride. For K = 10 and three channels planes and derivatives are 51 kB, so
// both passes over the mixtures find them in a cache, and memory sees each parameter once and each gradient once. The
// first pass makes every mixture's log-likelihood and, for the gradient, its derivatives; the second, when the weights
// of the mixtures are known, multiplies by them.
//
// With p = (x + h - m) / e^s, q = (x - h - m) / e^s, d = p - q and e = 1 - exp(-d), the mass of a bin is
// e / ((1 + exp(-p)) (1 + exp(q))): one logarithm of a quotient in which every exponential is of a negative number,
// plus min(p, 0) + min(-q, 0). Where d < 1 log(d) is taken out, for it is known as log(2h) - s, and d may underflow.
#include "cpu/discretized_logistic_mixture.h"

#include <algorithm>
#include <cmath>

#include "cpu/elementary.h"

namespace vidgen::VIDGEN_ISA {
namespace {

constexpr int64_t kPixels = 64;

// What is the same for all pixels.
template <class T>
struct Constants {
  T half, edge, log_bin, log_threshold = T(-11.512925464970229);  // log 1e-5
  explicit Constants(int64_t levels)
      : half(T(1.0 / double(levels - 1))),
        edge(T(1.0 - std::min(1.0 / double(levels - 1), 0.001))),
        log_bin(T(std::log(2.0 / double(levels - 1)))) {}
};

template <class T>
struct Mass {
  Vec<T> log, by_mean, by_log_scale;
};

// log P of one colour under one logistic, and its derivatives.
template <class T, bool gradient>
VIDGEN_INLINE Mass<T> log_mass(const Constants<T>& c, bool openai, Vec<T> x, Vec<T> mean, Vec<T> raw_log_scale) {
  const Vec<T> zero{}, one = splat<T>(1);
  const Vec<T> log_scale = at_least<T>(raw_log_scale, -7);
  const Vec<T> inverse = exp<T>(-log_scale), centered = x - mean;
  const Vec<T> p = inverse * (centered + c.half), q = inverse * (centered - c.half);
  const Vec<T> small_p = exp<T>(-absolute<T>(p)), small_q = exp<T>(-absolute<T>(q));
  const Vec<T> one_p = small_p + 1, one_q = small_q + 1;
  const Vec<T> d = at_least<T>(2 * c.half * inverse, T(1e-30)), e = -expm1<T>(-d);
  const auto lower = x<-c.edge, upper = x> c.edge, inside = ~(lower | upper), narrow = d < 1;

  const Vec<T> divisor = (upper ? one : one_p) * (lower ? one : one_q) * (inside & narrow ? d : one);
  Mass<T> mass;
  mass.log = (upper ? zero : at_most<T>(p, 0)) + (lower ? zero : at_most<T>(-q, 0)) +
             (inside & narrow ? c.log_bin - log_scale : zero) + log<T>((inside ? e : one) / divisor);
  if constexpr (gradient) {
    const Vec<T> both = 1 / (one_p * one_q);
    const Vec<T> by_p = upper ? zero : (p >= 0 ? small_p : one) * one_q * both;
    const Vec<T> by_q = lower ? zero : (q >= 0 ? one : small_q) * one_p * both;
    mass.by_mean = inverse * (by_q - by_p);
    mass.by_log_scale = q * by_q - p * by_p - (inside ? d * (1 - e) / e : zero);
  }
  if (openai) {
    const Vec<T> middle = inverse * centered, t = exp<T>(-absolute<T>(middle));
    const auto rare = inside & (mass.log <= c.log_threshold);
    const Vec<T> density = c.log_bin - log_scale - absolute<T>(middle) - 2 * log1p<T>(t);
    mass.log = rare ? density : mass.log;
    if constexpr (gradient) {
      const Vec<T> slope = with_sign_of<T>((1 - t) / (1 + t), middle);  // 2 sigmoid(middle) - 1
      mass.by_mean = rare ? inverse * slope : mass.by_mean;
      mass.by_log_scale = rare ? middle * slope - 1 : mass.by_log_scale;
    }
  }
  if constexpr (gradient) mass.by_log_scale = raw_log_scale < -7 ? zero : mass.by_log_scale;
  return mass;
}

// Planes of 64 numbers, `stride` apart.
template <class T>
struct Planes {
  T* data;
  int64_t stride;
  VIDGEN_INLINE T* at(int64_t plane, int64_t pixel) const { return data + plane * stride + pixel; }
};

// The index of colour `channel`'s first plane; its means, log-scales and perhaps coefficients follow.
int64_t first_plane(const LogisticMixture& p, int64_t channel) {
  return p.mixtures * (1 + 2 * channel + std::min(channel, p.coefficients()));
}

// 64 pixels: their log-likelihoods, and with `gradient` weight times its derivative in `out`.
template <class T, bool gradient>
void compute(const LogisticMixture& problem, Planes<const T> in, const T* x, T* joint, T* log_likelihood, T weight,
             Planes<T> partial, Planes<T> out) {
  const Constants<T> constants(problem.levels);
  const int64_t mixtures = problem.mixtures, channels = problem.channels;
  int64_t first[3] = {};
  for (int64_t c = 0; c < channels; ++c) first[c] = first_plane(problem, c);
  for (int64_t i = 0; i < kPixels; i += kLanes<T>) {
    Vec<T> largest_logit = splat<T>(-std::numeric_limits<T>::infinity()), largest_joint = largest_logit;
    for (int64_t k = 0; k < mixtures; ++k) {
      const Vec<T> logit = load(in.at(k, i));
      Vec<T> total = logit;
      for (int64_t c = 0; c < channels; ++c) {
        Vec<T> mean = load(in.at(first[c] + k, i)), slopes[2];
        for (int64_t j = 0; j < c; ++j) {
          const Vec<T> before = load(x + j * kPixels + i);
          const Vec<T> coefficient = tanh<T>(load(in.at(first[c * (c - 1) / 2 + j] + 2 * mixtures + k, i)));
          mean = mean + coefficient * before;
          slopes[j] = before * (1 - coefficient * coefficient);
        }
        const Mass<T> mass = log_mass<T, gradient>(constants, problem.openai, load(x + c * kPixels + i), mean,
                                                   load(in.at(first[c] + mixtures + k, i)));
        total = total + mass.log;
        if constexpr (gradient) {
          store(partial.at(first[c] + k, i), mass.by_mean);
          store(partial.at(first[c] + mixtures + k, i), mass.by_log_scale);
          for (int64_t j = 0; j < c; ++j)
            store(partial.at(first[c * (c - 1) / 2 + j] + 2 * mixtures + k, i), mass.by_mean * slopes[j]);
        }
      }
      store(joint + k * kPixels + i, total);
      // of two the one that is not smaller; a NaN in the second stays
      largest_logit = logit < largest_logit ? largest_logit : logit;
      largest_joint = total < largest_joint ? largest_joint : total;
    }
    Vec<T> sum_logits{}, sum_joint{};
    for (int64_t k = 0; k < mixtures; ++k) {
      const Vec<T> posterior = exp<T>(load(joint + k * kPixels + i) - largest_joint);
      sum_logits = sum_logits + exp<T>(load(in.at(k, i)) - largest_logit);
      sum_joint = sum_joint + posterior;
      store(joint + k * kPixels + i, posterior);
    }
    store(log_likelihood + i, largest_joint - largest_logit + log<T>(sum_joint / sum_logits));
    if constexpr (gradient) {
      const Vec<T> prior_scale = weight / sum_logits, posterior_scale = weight / sum_joint;
      for (int64_t k = 0; k < mixtures; ++k) {
        const Vec<T> posterior = load(joint + k * kPixels + i) * posterior_scale;
        const Vec<T> prior = exp<T>(load(in.at(k, i)) - largest_logit) * prior_scale;
        store(out.at(k, i), posterior - prior);
        for (int64_t plane = mixtures + k; plane < problem.parameters(); plane += mixtures)
          store(out.at(plane, i), load(partial.at(plane, i)) * posterior);
      }
    }
  }
}

// The pixels of one task, and where they lie.
struct Run {
  int64_t image, first, count, row, column;
};

int64_t tasks_per_image(const LogisticMixture& p) { return (p.height * p.width + kPixels - 1) / kPixels; }

Run run_of(const LogisticMixture& p, int64_t task) {
  const int64_t image = task / tasks_per_image(p), first = task % tasks_per_image(p) * kPixels;
  return {image, first, std::min(kPixels, p.height * p.width - first), first / p.width, first % p.width};
}

bool raster(const LogisticMixture& p, const ImageView& v) {
  return (v.column_stride == 1 || p.width == 1) && (v.row_stride == p.width * v.column_stride || p.height == 1) &&
         (p.width > 1 || p.height == 1 || v.row_stride == 1);
}

template <class S>
S* base_of(const ImageView& v, const Run& run) {
  return static_cast<S*>(v.data) + run.image * v.batch_stride;
}

// Calls visit(pixel, offset in the image) for the pixels of a run.
template <class Visit>
VIDGEN_INLINE void each_pixel(const LogisticMixture& p, const ImageView& v, const Run& run, const Visit& visit) {
  int64_t row = run.row, column = run.column;
  for (int64_t i = 0; i < run.count; ++i) {
    visit(i, row * v.row_stride + column * v.column_stride);
    if (++column == p.width) column = 0, ++row;
  }
}

// Copies `planes` channels of the run into scratch; pixels beyond the run are zero.
template <class S, class T>
void gather(const LogisticMixture& p, const ImageView& v, const Run& run, int64_t planes, T* to) {
  const S* from = base_of<S>(v, run);
  if (raster(p, v)) {
    for (int64_t plane = 0; plane < planes; ++plane)
      for (int64_t i = 0; i < kPixels; i += kLanes<T>)
        store(to + plane * kPixels + i,
              load(from + plane * v.channel_stride + run.first + i, std::clamp<int64_t>(run.count - i, 0, kLanes<T>)));
    return;
  }
  if (run.count < kPixels) std::fill(to, to + planes * kPixels, T(0));
  each_pixel(p, v, run, [&](int64_t i, int64_t offset) {
    for (int64_t plane = 0; plane < planes; ++plane)
      to[plane * kPixels + i] = to_scalar(from[offset + plane * v.channel_stride]);
  });
}

template <class S, class T>
void scatter(const LogisticMixture& p, const ImageView& v, const Run& run, int64_t planes, const T* from) {
  S* to = base_of<S>(v, run);
  if (raster(p, v)) {
    for (int64_t plane = 0; plane < planes; ++plane)
      for (int64_t i = 0; i < run.count; i += kLanes<T>)
        store(to + plane * v.channel_stride + run.first + i, load(from + plane * kPixels + i),
              std::min<int64_t>(run.count - i, kLanes<T>));
    return;
  }
  each_pixel(p, v, run, [&](int64_t i, int64_t offset) {
    for (int64_t plane = 0; plane < planes; ++plane)
      to[offset + plane * v.channel_stride] = from_scalar<S>(from[plane * kPixels + i]);
  });
}

// Scratch: parameters, derivatives, joint log-likelihoods of the mixtures, colours, log-likelihoods.
size_t scratch_bytes(const LogisticMixture& p) {
  const int64_t planes = 2 * p.parameters() + p.mixtures + p.channels + 1;
  return size_t(planes * kPixels) * (p.dtype == Dtype::f64 ? sizeof(double) : sizeof(float));
}

template <class S, bool gradient>
void run_task(const LogisticMixture& p, ImageView params, ImageView x, const void* weight, ImageView grad, double* sums,
              int64_t task, void* scratch) {
  using T = Acc<S>;
  const Run run = run_of(p, task);
  T* const in = static_cast<T*>(scratch);
  T* const partial = in + p.parameters() * kPixels;
  T* const joint = partial + p.parameters() * kPixels;
  T* const colors = joint + p.mixtures * kPixels;
  T* const log_likelihood = colors + p.channels * kPixels;
  gather<T>(p, x, run, p.channels, colors);
  Planes<const T> planes{in, kPixels};
  Planes<T> out{partial, kPixels};
  bool in_place = false;
  if constexpr (sizeof(S) == sizeof(T)) {
    if (run.count == kPixels && raster(p, params))
      planes = {base_of<const T>(params, run) + run.first, params.channel_stride};
    in_place = gradient && run.count == kPixels && raster(p, grad);
    if (in_place) out = {base_of<T>(grad, run) + run.first, grad.channel_stride};
  }
  if (planes.data == in) gather<S>(p, params, run, p.parameters(), in);
  const T by = gradient ? static_cast<const T*>(weight)[run.image] : T(0);
  compute<T, gradient>(p, planes, colors, joint, log_likelihood, by, {partial, kPixels}, out);
  if constexpr (gradient) {
    if (!in_place) scatter<S>(p, grad, run, p.parameters(), partial);
  } else {
    double sum = 0;
    for (int64_t i = 0; i < run.count; ++i) sum += double(log_likelihood[i]);
    sums[task] = sum;
  }
}

template <bool gradient>
void dispatch(const LogisticMixture& p, ImageView params, ImageView x, const void* weight, ImageView grad, double* sums,
              int64_t task, void* scratch) {
  auto* run = p.dtype == Dtype::f32    ? &run_task<float, gradient>
              : p.dtype == Dtype::bf16 ? &run_task<bf16, gradient>
                                       : &run_task<double, gradient>;
  run(p, params, x, weight, grad, sums, task, scratch);
}

void forward(const LogisticMixture& p, ImageView params, ImageView x, double* sums, int64_t task, void* scratch) {
  dispatch<false>(p, params, x, nullptr, {}, sums, task, scratch);
}

void grad_params(const LogisticMixture& p, ImageView params, ImageView x, const void* weight, ImageView grad,
                 int64_t task, void* scratch) {
  dispatch<true>(p, params, x, weight, grad, nullptr, task, scratch);
}

}  // namespace

extern const LogisticMixtureTable discretized_logistic_mixture;
const LogisticMixtureTable discretized_logistic_mixture = {tasks_per_image, scratch_bytes, forward, grad_params};

}  // namespace vidgen::VIDGEN_ISA
