// The log-likelihood of images under a mixture of discretised logistics, and its gradient in the parameters
// (vidgen/ops/discretized_logistic_mixture.py has the formula and the order of the parameters).
#pragma once

#include "cpu/views.h"

namespace vidgen {

// The batch is absent on purpose: no choice may depend on it.
struct LogisticMixture {
  int64_t mixtures, channels;  // 1 to 3 channels
  int64_t height, width;
  int64_t levels;
  bool openai;
  Dtype dtype;  // of the parameters and their gradient; everything else is float, double for double

  int64_t coefficients() const { return channels * (channels - 1) / 2; }
  int64_t parameters() const { return mixtures * (1 + 2 * channels + coefficients()); }
};

struct LogisticMixtureTable {
  // An image's tasks are runs of its pixels in raster order; a batch of N has N times as many.
  int64_t (*tasks_per_image)(const LogisticMixture&);
  size_t (*scratch_bytes)(const LogisticMixture&);  // of one task; 64-byte aligned

  // sums[task] = the log-likelihood of the task's pixels.
  void (*forward)(const LogisticMixture&, ImageView params, ImageView x, double* sums, int64_t task, void* scratch);
  // The task's part of grad = weight[image] * d log-likelihood / d params.
  void (*grad_params)(const LogisticMixture&, ImageView params, ImageView x, const void* weight, ImageView grad,
                      int64_t task, void* scratch);
};

// One per instruction set that the build could compile; each lives in a namespace named after the level.
namespace baseline { extern const LogisticMixtureTable discretized_logistic_mixture; }
namespace avx2 { extern const LogisticMixtureTable discretized_logistic_mixture; }
namespace avx512 { extern const LogisticMixtureTable discretized_logistic_mixture; }

}  // namespace vidgen
