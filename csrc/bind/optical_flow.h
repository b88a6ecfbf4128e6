// What the CPU bindings of all methods of optical flow do alike: threads within a pair and over the batch.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "bind/cpu_backend.h"
#include "bind/crew.h"
#include "bind/optical_flow_checks.h"
#include "cpu/optical_flow.h"

namespace vidgen {

inline std::string flow_cpu_supports(ScalarType dtype) {
  const bool known = dtype == ScalarType::Byte || dtype == ScalarType::Float || dtype == ScalarType::Double;
  return known ? "" : "the CPU kernel reads uint8, float32 and float64 only";
}

inline Pixels pixels_of(const Tensor& images) {
  return images.scalar_type() == ScalarType::Byte    ? Pixels::u8
         : images.scalar_type() == ScalarType::Float ? Pixels::f32
                                                     : Pixels::f64;
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
