// discretized_logistic_mixture on the CPU: a lane is a pixel, a task 128 pixels.
//
// A task copies the parameters of its pixels into scratch as planes of 128 numbers, which widens bfloat16, serves every
// stride, and takes planes that lie a power of two apart out of each other's way in the caches. Derivatives take the
// places of their parameters: for K = 10 and three channels all is 64 kB. Then, mixture by mixture and colour by
// colour, the mass of each bin and its derivatives; then the weights of the mixtures, which are known only when all
// masses are; then derivatives times weights, written plane by plane. Memory sees each parameter and each gradient
// once.
//
// With m = (x - mean) / e^s, b = h / e^s, t = |m| - b (the distance from the bin's nearer edge, negative inside the
// bin), w = exp(-|t|), E = exp(-2b), and (N, M) = (1, w) where t > 0, else (w, 1), the mass of a bin is
//
//     exp(-max(t, 0)) (1 - E) N / ((N + M) Q),    Q = N + M E,
//
// every exponential of a negative number, none of them twice, and one quotient. A = N / (N + M) and B = M E / Q are the
// slopes of log sigma at the two edges: by m it is -sign(m) (A - B), by s it is t A - (|m| + b) B - 2b E / (1 - E).
// At the lower edge the mass is sigma(m + b), at the upper sigma(b - m): the same with E = 0, and -m or m for |m|.
//
// No logarithm is taken until the end. A mixture's joint likelihood is kept as exp(shift) times a ratio, which is at
// least 0.0003: -max(t, 0) goes into the shift, and where 2b is small (1 - E) / 2b into the ratio and log(2b) = log(2h)
// - s, known without b, which may underflow, into the shift. The posterior is ratio exp(shift - largest shift).
//
// Backward computes the masses again. Had forward kept the derivatives, the two would read the parameters, write the
// derivatives, read them and write them scaled; as it is they read the parameters twice and write the gradient: for
// (16, 100, 32, 32) in float32 19.7 MB instead of 26.2, nothing is held in between, and inference pays nothing.
#include "cpu/discretized_logistic_mixture.h"

#include <algorithm>
#include <cmath>

#include "cpu/elementary.h"

namespace vidgen::VIDGEN_ISA {
namespace {

constexpr int64_t kPixels = 128, kCacheLine = 64;

// Below it t makes no difference but to 1 / w, which has some room up to the largest number.
template <class T>
constexpr T kFarInside = sizeof(T) == 4 ? -69 : -600;
// Stands for the width 2b of the bins at both edges, for which E is exactly zero; others are 2 e^7 wide at most.
template <class T>
constexpr T kEdgeWidth = 1e4;
// Where 2b is below it, (1 - E) / 2b is the quotient of `exponential`, which reduces no such argument.
template <class T>
constexpr T kNarrow = T(0.34);

// What is the same for all pixels.
template <class T>
struct Constants {
  T half, edge, log_bin;
  explicit Constants(int64_t levels)
      : half(T(1.0 / double(levels - 1))),
        edge(T(1.0 - std::min(1.0 / double(levels - 1), 0.001))),
        log_bin(T(std::log(2.0 / double(levels - 1)))) {}
};

// The index of colour `channel`'s first plane; its means, log-scales and perhaps coefficients follow.
int64_t first_plane(const LogisticMixture& p, int64_t channel) {
  return p.mixtures * (1 + 2 * channel + std::min(channel, p.coefficients()));
}

// A task's scratch: planes of kPixels numbers each, of which the first `pixels`, whole vectors, are in use.
template <class T>
struct Scratch {
  int64_t pixels;
  T *params, *shift, *ratio, *colors, *log_likelihood;
  Scratch(const LogisticMixture& p, int64_t count, void* memory)
      : pixels((count + kLanes<T> - 1) / kLanes<T> * kLanes<T>),
        params(static_cast<T*>(memory)),
        shift(params + p.parameters() * kPixels),
        ratio(shift + p.mixtures * kPixels),
        colors(ratio + p.mixtures * kPixels),
        log_likelihood(colors + p.channels * kPixels) {}
};

size_t scratch_bytes(const LogisticMixture& p) {
  const int64_t planes = p.parameters() + 2 * p.mixtures + p.channels + 1;
  return size_t(planes * kPixels) * (p.dtype == Dtype::f64 ? sizeof(double) : sizeof(float));
}

// One colour of one mixture between the loops of `masses`: in each loop pixels are independent and chains are short, so
// that the processor, which looks some 200 instructions ahead, always finds work.
template <class T>
struct Bins {
  T inverse[kPixels], t[kPixels], width[kPixels], e[kPixels], numerator[kPixels], w[kPixels];
};

// Multiplies the joint likelihoods exp(shift) * ratio by the masses of the bins of x; with `gradient` means and
// log-scales become the derivatives of the masses' logarithms.
template <class T, bool gradient, bool openai>
VIDGEN_INLINE void masses(const Constants<T>& c, int64_t pixels, const T* x, T* means, T* log_scales, T* shifts,
                          T* ratios, Bins<T>& bins) {
  const Vec<T> zero{}, one = splat<T>(1);
  for (int64_t i = 0; i < pixels; i += kLanes<T>)
    store(bins.inverse + i, exponential<T>(-at_least<T>(load(log_scales + i), -7)).exp());
  for (int64_t i = 0; i < pixels; i += kLanes<T>) {
    const Vec<T> level = load(x + i), inverse = load(bins.inverse + i);
    const Vec<T> signed_m = inverse * (level - load(means + i)), b = inverse * c.half;
    const auto lower = level<-c.edge, upper = level> c.edge;
    const IntVec<T> sign = (((IntVec<T>)signed_m & ~(lower | upper)) | lower) & sign_bit<T>();
    const Vec<T> m = (Vec<T>)((IntVec<T>)signed_m ^ sign);
    store(bins.inverse + i, (Vec<T>)((IntVec<T>)inverse ^ sign));
    store(bins.t + i, at_least<T>(m - b, kFarInside<T>));
    store(bins.width + i, lower | upper ? splat<T>(kEdgeWidth<T>) : b + b);
  }
  for (int64_t i = 0; i < pixels; i += kLanes<T>) {
    const Vec<T> width = load(bins.width + i);
    const Exponential<T> e = exponential<T>(-width);
    store(bins.e + i, e.exp());
    store(bins.numerator + i, width < kNarrow<T> ? e.quotient : -e.expm1());
  }
  for (int64_t i = 0; i < pixels; i += kLanes<T>)
    store(bins.w + i, exponential<T>(-absolute<T>(load(bins.t + i))).exp());
  for (int64_t i = 0; i < pixels; i += kLanes<T>) {
    const Vec<T> raw_log_scale = load(log_scales + i), log_scale = at_least<T>(raw_log_scale, -7);
    const Vec<T> t = load(bins.t + i), width = load(bins.width + i), w = load(bins.w + i), e = load(bins.e + i);
    const Vec<T> numerator = load(bins.numerator + i);
    const auto narrow = width < kNarrow<T>, outside = t > 0;
    const Vec<T> n = outside ? one : w, m_e = (outside ? w : one) * e, sum = w + 1, q = n + m_e;
    const Vec<T> divisor = sum * q, inverse_all = 1 / (divisor * numerator);
    const Vec<T> inverse_divisor = inverse_all * numerator, n_by_divisor = n * inverse_divisor;

    Vec<T> shift = (narrow ? c.log_bin - log_scale : zero) - at_least<T>(t, 0);
    Vec<T> ratio = numerator * n_by_divisor;
    const Vec<T> a = n_by_divisor * q, b = m_e * sum * inverse_divisor;
    const Vec<T> by_width = (narrow ? one : width) * e * (inverse_all * divisor);
    Vec<T> by_m = a - b, by_log_scale = fused<T>(t, a, -fused<T>(t + width, b, by_width));
    if constexpr (openai) {
      const Vec<T> mass = w * inverse_divisor * (narrow ? width * numerator : numerator);
      const auto rare = (width < kEdgeWidth<T>)&(mass <= T(1e-5));
      const Vec<T> m = t + T(0.5) * width, tail = exponential<T>(-absolute<T>(m)).exp(), inverse_tail = 1 / (tail + 1);
      const Vec<T> slope = (1 - tail) * inverse_tail;  // 2 sigma(m) - 1
      shift = rare ? c.log_bin - log_scale - m : shift;
      ratio = rare ? inverse_tail * inverse_tail : ratio;
      by_m = rare ? slope : by_m;
      by_log_scale = rare ? m * slope - 1 : by_log_scale;
    }
    store(shifts + i, load(shifts + i) + shift);
    store(ratios + i, load(ratios + i) * ratio);
    if constexpr (gradient) {
      store(means + i, load(bins.inverse + i) * by_m);
      store(log_scales + i, raw_log_scale < -7 ? zero : by_log_scale);
    }
  }
}

// The lines of each plane that the next task will read, asked of memory while this one computes.
struct Upcoming {
  const char* first;
  int64_t plane_bytes, lines;
  VIDGEN_INLINE void fetch(int64_t plane) const {
    for (int64_t i = 0; i < lines; ++i) __builtin_prefetch(first + plane * plane_bytes + i * kCacheLine, 0, 2);
  }
};

// Every mixture's joint likelihood; with `gradient` all parameters but the logits become derivatives of its logarithm.
template <class T, bool gradient, bool openai>
void joint_likelihoods(const LogisticMixture& p, const Scratch<T>& s, const Upcoming& next) {
  const Constants<T> constants(p.levels);
  const int64_t plane = p.mixtures * kPixels, steps = p.mixtures * p.channels;
  std::copy_n(s.params, plane, s.shift);
  std::fill_n(s.ratio, plane, T(1));
  Bins<T> bins;
  for (int64_t step = 0, fetched = 0; step < steps; ++step) {
    while (fetched < p.parameters() * (step + 1) / steps) next.fetch(fetched++);
    const int64_t c = step % p.channels, k = step / p.channels * kPixels;
    T* const means = s.params + first_plane(p, c) * kPixels + k;
    // those of this colour in the order of the colours before it
    T* coefficients[2] = {};
    for (int64_t j = 0; j < c; ++j) {
      coefficients[j] = s.params + first_plane(p, c * (c - 1) / 2 + j) * kPixels + 2 * plane + k;
      for (int64_t i = 0; i < s.pixels; i += kLanes<T>) {
        const Vec<T> before = load(s.colors + j * kPixels + i), coefficient = tanh<T>(load(coefficients[j] + i));
        store(means + i, fused<T>(coefficient, before, load(means + i)));
        if constexpr (gradient) store(coefficients[j] + i, before * fused<T>(-coefficient, coefficient, splat<T>(1)));
      }
    }
    masses<T, gradient, openai>(constants, s.pixels, s.colors + c * kPixels, means, means + plane, s.shift + k,
                                s.ratio + k, bins);
    if constexpr (gradient) {
      for (int64_t j = 0; j < c; ++j)
        for (int64_t i = 0; i < s.pixels; i += kLanes<T>)
          store(coefficients[j] + i, load(coefficients[j] + i) * load(means + i));
    }
  }
}

// The pixels' log-likelihoods; with `gradient` instead `ratio` becomes weight times the mixtures' posteriors, and the
// logits weight times their gradients.
template <class T, bool gradient>
void mix(const LogisticMixture& p, const Scratch<T>& s, T weight) {
  const int64_t plane = p.mixtures * kPixels;
  for (int64_t i = 0; i < s.pixels; i += kLanes<T>) {
    Vec<T> largest_logit = splat<T>(-std::numeric_limits<T>::infinity()), largest_shift = largest_logit;
    for (int64_t k = i; k < plane; k += kPixels) {
      largest_logit = larger<T>(largest_logit, load(s.params + k));
      largest_shift = larger<T>(largest_shift, load(s.shift + k));
    }
    Vec<T> sum_priors{}, sum_joint{};
    for (int64_t k = i; k < plane; k += kPixels) {
      const Vec<T> prior = exponential<T>(load(s.params + k) - largest_logit).exp();
      const Vec<T> joint = load(s.ratio + k) * exponential<T>(load(s.shift + k) - largest_shift).exp();
      sum_priors = sum_priors + prior;
      sum_joint = sum_joint + joint;
      store(s.params + k, prior);
      store(s.ratio + k, joint);
    }
    if constexpr (gradient) {
      const Vec<T> prior_scale = weight / sum_priors, posterior_scale = weight / sum_joint;
      for (int64_t k = i; k < plane; k += kPixels) {
        const Vec<T> posterior = load(s.ratio + k) * posterior_scale;
        store(s.ratio + k, posterior);
        store(s.params + k, posterior - load(s.params + k) * prior_scale);
      }
    } else {
      store(s.log_likelihood + i, largest_shift - largest_logit + log<T>(sum_joint / sum_priors));
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

template <class S>
Upcoming upcoming(const LogisticMixture& p, const ImageView& v, const Run& run) {
  const int64_t first = run.first + kPixels, count = std::min(kPixels, p.height * p.width - first);
  if (!raster(p, v) || count <= 0) return {};
  return {reinterpret_cast<const char*>(base_of<S>(v, run) + first), v.channel_stride * int64_t(sizeof(S)),
          count * int64_t(sizeof(S)) / kCacheLine};
}

// How planes in scratch and an image's channels correspond: squares of channels that lie side by side are transposed,
// what is left over goes number by number.
template <class T, class Square, class Single>
VIDGEN_INLINE void each_number(const LogisticMixture& p, const ImageView& v, const Run& run, int64_t planes,
                               const Square& square, const Single& single) {
  constexpr int64_t lanes = kLanes<T>;
  int64_t offsets[kPixels], row = run.row, column = run.column;
  for (int64_t i = 0; i < run.count; ++i) {
    offsets[i] = row * v.row_stride + column * v.column_stride;
    if (++column == p.width) column = 0, ++row;
  }
  const int64_t whole_planes = v.channel_stride == 1 ? planes / lanes * lanes : 0;
  const int64_t whole_pixels = run.count / lanes * lanes;
  for (int64_t i = 0; i < whole_pixels; i += lanes)
    for (int64_t plane = 0; plane < whole_planes; plane += lanes) square(plane, i, offsets + i);
  for (int64_t i = 0; i < run.count; ++i)
    for (int64_t plane = i < whole_pixels ? whole_planes : 0; plane < planes; ++plane)
      single(plane * kPixels + i, offsets[i] + plane * v.channel_stride);
}

// Copies `planes` channels of the run into scratch; the lanes beyond the run are zero.
template <class S, class T>
void gather(const LogisticMixture& p, const ImageView& v, const Run& run, int64_t planes, T* to) {
  constexpr int64_t lanes = kLanes<T>;
  const S* from = base_of<S>(v, run);
  if (!raster(p, v)) {
    if (run.count < kPixels) std::fill_n(to, planes * kPixels, T(0));
    each_number<T>(
        p, v, run, planes,
        [&](int64_t plane, int64_t i, const int64_t* offsets) {
          Vec<T> rows[lanes];
          for (int64_t j = 0; j < lanes; ++j) rows[j] = load(from + offsets[j] + plane);
          transpose<T>(rows);
          for (int64_t j = 0; j < lanes; ++j) store(to + (plane + j) * kPixels + i, rows[j]);
        },
        [&](int64_t here, int64_t there) { to[here] = to_scalar(from[there]); });
    return;
  }
  from += run.first;
  const int64_t whole = run.count / lanes * lanes;
  for (int64_t plane = 0; plane < planes; ++plane, from += v.channel_stride, to += kPixels) {
    for (int64_t i = 0; i < whole; i += lanes) store(to + i, load(from + i));
    if (whole < run.count) store(to + whole, load(from + whole, run.count - whole));
  }
}

// Multiplies derivatives by what `mix` left in `ratio`, and puts all gradients where they belong.
template <class S, class T>
void scatter(const LogisticMixture& p, const ImageView& v, const Run& run, const Scratch<T>& s) {
  constexpr int64_t lanes = kLanes<T>, ahead = 4;
  const bool direct = raster(p, v);
  S* to = base_of<S>(v, run);
  const int64_t whole = direct ? run.count / lanes * lanes : 0;
  for (int64_t plane = 0; plane < p.parameters(); ++plane) {
    T* const values = s.params + plane * kPixels;
    const T* const posterior = s.ratio + plane % p.mixtures * kPixels;
    if (plane >= p.mixtures)
      for (int64_t i = 0; i < s.pixels; i += lanes) store(values + i, load(values + i) * load(posterior + i));
    if (!direct) continue;
    S* const out = to + run.first + plane * v.channel_stride;
    for (int64_t i = 0; i < whole; i += kCacheLine / int64_t(sizeof(S)))
      __builtin_prefetch(out + ahead * v.channel_stride + i, 1);
    for (int64_t i = 0; i < whole; i += lanes) store(out + i, load(values + i));
    if (whole < run.count) store(out + whole, load(values + whole), run.count - whole);
  }
  if (direct) return;
  each_number<T>(
      p, v, run, p.parameters(),
      [&](int64_t plane, int64_t i, const int64_t* offsets) {
        Vec<T> rows[lanes];
        for (int64_t j = 0; j < lanes; ++j) rows[j] = load(s.params + (plane + j) * kPixels + i);
        transpose<T>(rows);
        for (int64_t j = 0; j < lanes; ++j) store(to + offsets[j] + plane, rows[j]);
      },
      [&](int64_t here, int64_t there) { to[there] = from_scalar<S>(s.params[here]); });
}

template <class S, bool gradient>
void run_task(const LogisticMixture& p, ImageView params, ImageView x, const void* weight, ImageView grad, double* sums,
              int64_t task, void* memory) {
  using T = Acc<S>;
  const Run run = run_of(p, task);
  const Scratch<T> s(p, run.count, memory);
  gather<T>(p, x, run, p.channels, s.colors);
  gather<S>(p, params, run, p.parameters(), s.params);
  auto* likelihoods = p.openai ? &joint_likelihoods<T, gradient, true> : &joint_likelihoods<T, gradient, false>;
  likelihoods(p, s, upcoming<S>(p, params, run));
  mix<T, gradient>(p, s, gradient ? static_cast<const T*>(weight)[run.image] : T(0));
  if constexpr (gradient) {
    scatter<S>(p, grad, run, s);
  } else {
    double sum = 0;
    for (int64_t i = 0; i < run.count; ++i) sum += double(s.log_likelihood[i]);
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
