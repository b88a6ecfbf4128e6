// optical_flow_tvl1_cuda: the CUDA C++ kernels as an op of its own, which the selector in
// vidgen/ops/optical_flow_tvl1.py calls. Checks, allocation, stream; built even where torch has no CUDA, loaded only
// where it has.
#include <algorithm>
#include <cmath>

#include "bind/cuda_tensors.h"
#include "bind/optical_flow_checks.h"
#include "cuda/optical_flow_tvl1.h"

namespace vidgen {
namespace {

// Pairs are solved together as far as their workspace stays below this: some 40 of 640 x 480, which are 4,300 windows
// for the iteration's blocks.
constexpr size_t kWorkspaceBytes = size_t{1} << 30;

cuda::PixelView pairs_from(const Tensor& t, int64_t pair) {
  const int64_t offset = pair * t.stride(0) * static_cast<int64_t>(t.element_size());
  return {static_cast<const char*>(t.const_data_ptr()) + offset, t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

Tensor forward(Tensor prev, Tensor next, std::optional<Tensor> init, double tau, double lambda, double theta,
               int64_t levels, double scale_factor, int64_t warps, int64_t outer_iterations, int64_t inner_iterations,
               int64_t median, double epsilon) {
  check(prev.is_cuda(), "prev must be a CUDA tensor");
  check(prev.scalar_type() == ScalarType::Byte || prev.scalar_type() == ScalarType::Float ||
            prev.scalar_type() == ScalarType::Double,
        "the CUDA kernel reads uint8, float32 and float64 only");
  check_images(prev, next, init);
  check_range("tau", tau, 0, 10);
  check_range("lambda_", lambda, 0, 1000);
  check_range("theta", theta, 0, 1000);
  check_range("scale_factor", scale_factor, 0, 0.95);
  check(epsilon >= 0 && std::isfinite(epsilon), "epsilon must be finite and at least 0, got ", epsilon);
  check_count("levels", levels, 64);
  check_count("warps", warps, 100000);
  check_count("outer_iterations", outer_iterations, 100000);
  check_count("inner_iterations", inner_iterations, 100000);
  check(median == 0 || median == 3 || median == 5, "median must be 0, 3 or 5, got ", median);

  const torch::stable::accelerator::DeviceGuard guard(prev.get_device_index());
  const int64_t pairs = prev.size(0), shape[] = {pairs, 2, prev.size(2), prev.size(3)};
  Tensor flow = torch::stable::empty({shape, 4}, flow_dtype(prev), std::nullopt, prev.device());
  if (pairs == 0) return flow;

  cuda::OpticalFlowTvl1 p{};
  p.height = extent("prev's height", prev.size(2));
  p.width = extent("prev's width", prev.size(3));
  p.channels = static_cast<int>(prev.size(1));
  p.pixels = prev.scalar_type() == ScalarType::Byte    ? cuda::Pixels::u8
             : prev.scalar_type() == ScalarType::Float ? cuda::Pixels::f32
                                                       : cuda::Pixels::f64;
  p.tau = tau;
  p.lambda = lambda;
  p.theta = theta;
  p.levels = static_cast<int>(levels);
  p.scale_factor = scale_factor;
  p.warps = static_cast<int>(warps);
  p.outer_iterations = static_cast<int>(outer_iterations);
  p.inner_iterations = static_cast<int>(inner_iterations);
  p.median = static_cast<int>(median);
  p.epsilon = epsilon;
  p.pairs = 1;
  const int64_t together = static_cast<int64_t>(kWorkspaceBytes / cuda::optical_flow_tvl1_workspace_bytes(p));
  p.pairs = std::clamp<int64_t>(together, 1, pairs);
  const int64_t bytes[] = {static_cast<int64_t>(cuda::optical_flow_tvl1_workspace_bytes(p))};
  // one after the other on the stream, so the same memory serves all
  Tensor workspace = torch::stable::empty({bytes, 1}, ScalarType::Byte, std::nullopt, prev.device());
  const int64_t pair_bytes = 2 * prev.size(2) * prev.size(3) * static_cast<int64_t>(flow.element_size());
  for (int64_t first = 0, step = p.pairs; first < pairs; first += step) {
    p.pairs = std::min(step, pairs - first);
    p.prev = pairs_from(prev, first);
    p.next = pairs_from(next, first);
    if (init.has_value()) p.init = pairs_from(*init, first);
    p.flow = static_cast<char*>(flow.mutable_data_ptr()) + first * pair_bytes;
    const cudaError_t error = cuda::optical_flow_tvl1(p, workspace.mutable_data_ptr(), stream_of(prev));
    check(error == cudaSuccess, "the CUDA kernels of optical_flow_tvl1 did not start: ", cudaGetErrorString(error));
  }
  return flow;
}

}  // namespace
}  // namespace vidgen

STABLE_TORCH_LIBRARY_FRAGMENT(vidgen, m) {
  m.def(
      "optical_flow_tvl1_cuda(Tensor prev, Tensor next, Tensor? init, float tau, float lambda_, float theta, "
      "int levels, float scale_factor, int warps, int outer_iterations, int inner_iterations, int median, "
      "float epsilon) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(vidgen, CUDA, m) { m.impl("optical_flow_tvl1_cuda", TORCH_BOX(&vidgen::forward)); }
