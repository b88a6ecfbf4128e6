// What the bindings of all methods of optical flow do alike: checks of images, and threads within a pair and over the
// batch.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "bind/cpu_backend.h"
#include "bind/crew.h"
#include "bind/tensors.h"
#include "cpu/optical_flow.h"

namespace vidgen {

inline std::string flow_cpu_supports(ScalarType dtype) {
  const bool known = dtype == ScalarType::Byte || dtype == ScalarType::Float || dtype == ScalarType::Double;
  return known ? "" : "the CPU kernel reads uint8, float32 and float64 only";
}

inline ScalarType flow_dtype(const Tensor& prev) {
  return prev.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline Pixels pixels_of(const Tensor& images) {
  return images.scalar_type() == ScalarType::Byte    ? Pixels::u8
         : images.scalar_type() == ScalarType::Float ? Pixels::f32
                                                     : Pixels::f64;
}

inline void check_range(const char* name, double value, double above, double most) {
  check(value > above && value <= most, name, " must be above ", above, " and at most ", most, ", got ", value);
}

inline void check_count(const char* name, int64_t value, int64_t most, int64_t least = 1) {
  check(value >= least && value <= most, name, " must be from ", least, " to ", most, ", got ", value);
}

inline void check_images(const Tensor& prev, const Tensor& next, const std::optional<Tensor>& init) {
  check(prev.dim() == 4 && (prev.size(1) == 1 || prev.size(1) == 3) && prev.size(2) > 0 && prev.size(3) > 0,
        "prev must be 4-d (N, 1 or 3, H, W) with H and W at least 1, got shape ", sizes_of(prev));
  check_same("next", next, "prev", prev);
  check(sizes_of(next) == sizes_of(prev), "next must have the shape of prev ", sizes_of(prev), ", got ",
        sizes_of(next));
  if (!init.has_value()) return;
  check(init->is_cpu() && init->scalar_type() == flow_dtype(prev),
        "init must be on the CPU, float32, or float64 for float64 images");
  check(init->dim() == 4 && init->size(0) == prev.size(0) && init->size(1) == 2 && init->size(2) == prev.size(2) &&
            init->size(3) == prev.size(3),
        "init must have shape (N, 2, H, W) for images ", sizes_of(prev), ", got ", sizes_of(*init));
}

inline ImageView pair_view(const Tensor& t, int64_t pair) {
  char* const data = static_cast<char*>(const_cast<void*>(t.const_data_ptr()));
  const int64_t offset = pair * t.stride(0) * int64_t(t.element_size());
  return {data + offset, t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

inline void in_turn(void*, int64_t tasks, void (*task)(void*, int64_t), void* context) {
  for (int64_t i = 0; i < tasks; ++i) task(context, i);
}

inline void check_status(FlowStatus status, int64_t pair) {
  check(status != FlowStatus::bad_prev && status != FlowStatus::bad_next,
        status == FlowStatus::bad_prev ? "prev" : "next",
        " must be finite and, where it is floating point, in [0, 1] (up to half of that beyond is borne); pair ", pair,
        " of the batch is not");
  check(status != FlowStatus::bad_init, "init must be finite and within 1e6 pixels; pair ", pair,
        " of the batch is not");
}

// The flow of every pair of a batch, by the kernels of a method's table.
template <class Table, class Params>
Tensor solve_pairs(const Table& table, const Params& p, const Tensor& prev, const Tensor& next,
                   const std::optional<Tensor>& init) {
  const int64_t pairs = prev.size(0), shape[] = {pairs, 2, prev.size(2), prev.size(3)};
  Tensor flow = torch::stable::empty({shape, 4}, flow_dtype(prev));
  const int64_t pair_bytes = 2 * prev.size(2) * prev.size(3) * int64_t(flow.element_size());
  char* const flow_data = static_cast<char*>(flow.data_ptr());
  const size_t workspace_bytes = table.workspace_bytes(p);
  std::atomic<bool> out_of_memory{false};
  std::vector<FlowStatus> status(size_t(pairs), FlowStatus::done);
  const auto solve = [&](int64_t pair, const Loop& loop) {
    // a thread keeps its workspace: the next pair of a video finds memory that is mapped already
    void* const workspace = scratch(workspace_bytes);
    if (workspace == nullptr) {
      out_of_memory = true;
      return;
    }
    if (poison_scratch()) std::memset(workspace, 0xff, workspace_bytes);
    const ImageView none{};
    status[size_t(pair)] =
        table.run(p, pair_view(prev, pair), pair_view(next, pair), init ? pair_view(*init, pair) : none,
                  flow_data + pair * pair_bytes, workspace, loop);
  };
  // as many pairs as fill all threads are shared out, one to a thread; the rest one after the other, on all threads
  const int64_t threads = torch::stable::get_num_threads(), shared = pairs / threads * threads;
  const Loop alone{1, nullptr, in_turn};
  torch::stable::parallel_for(0, shared, 1, [&](int64_t begin, int64_t end) {
    for (int64_t pair = begin; pair < end; ++pair) solve(pair, alone);
  });
  for (int64_t pair = shared; pair < pairs; ++pair) {
    Crew crew;
    // the caller's thread gets the first of these, and is the leader
    torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        if (i > 0) {
          crew.help();
        } else {
          crew.lead(threads, [&](const Loop& loop) { solve(pair, loop); });
        }
      }
    });
  }
  check(!out_of_memory, "out of memory: a pair of images needs ", workspace_bytes, " bytes");
  for (int64_t pair = 0; pair < pairs; ++pair) check_status(status[size_t(pair)], pair);
  return flow;
}

}  // namespace vidgen
