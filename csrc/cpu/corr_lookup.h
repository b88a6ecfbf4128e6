// RAFT's correlation lookup and its gradients (vidgen/ops/corr_lookup.py has the formula).
#pragma once

#include "cpu/views.h"

namespace vidgen {

// One level of a pyramid: correlations (B, H, W, height, width) of every query (a pixel of the first image), or
// features (B, C, height, width). The strides of what a form has not are 0.
struct CorrLevel {
  void* data;
  int64_t batch_stride, query_row_stride, query_column_stride, channel_stride, row_stride, column_stride;
  int64_t height, width;
};

// The batch is absent on purpose: no choice may depend on it.
struct CorrLookup {
  int64_t height, width;  // of the first image
  int64_t channels;       // of the features; 0: the pyramid holds correlations
  int64_t levels, radius;
  const CorrLevel* level;
  Dtype dtype;  // of pyramid and fmap1; coords and what is looked up are float, double for double
};

struct CorrLookupTable {
  // A task is a row of queries of one image: N * height of them. fmap1 is read where the pyramid holds features.
  size_t (*scratch_bytes)(const CorrLookup&);
  void (*forward)(const CorrLookup&, ImageView fmap1, ImageView coords, ImageView out, int64_t task, void* scratch);
  void (*grad_coords)(const CorrLookup&, ImageView grad_output, ImageView fmap1, ImageView coords, ImageView grad,
                      int64_t task, void* scratch);
  void (*grad_fmap1)(const CorrLookup&, ImageView grad_output, ImageView coords, ImageView grad, int64_t task,
                     void* scratch);
  // grads: the levels' gradients, without gaps.
  void (*grad_correlations)(const CorrLookup&, ImageView grad_output, ImageView coords, const CorrLevel* grads,
                            int64_t task, void* scratch);

  // A task is some channels of one level of one image: the sums of a pixel are made by one thread, in the queries'
  // order.
  int64_t (*grad_features_tasks_per_image)(const CorrLookup&);
  size_t (*grad_features_scratch_bytes)(const CorrLookup&);
  void (*grad_features)(const CorrLookup&, ImageView grad_output, ImageView fmap1, ImageView coords,
                        const CorrLevel* grads, int64_t task, void* scratch);
};

// One per instruction set that the build could compile; each lives in a namespace named after the level.
namespace baseline { extern const CorrLookupTable corr_lookup; }
namespace avx2 { extern const CorrLookupTable corr_lookup; }
namespace avx512 { extern const CorrLookupTable corr_lookup; }

}  // namespace vidgen
