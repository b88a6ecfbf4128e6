// optical_flow_dis_cuda: the CUDA C++ kernels as an op of its own, which the selector in vidgen/ops/optical_flow_dis.py
// calls. Checks, allocation, stream; built even where torch has no CUDA, loaded only where it has.
#include <algorithm>

#include "bind/cuda_tensors.h"
#include "bind/optical_flow_checks.h"
#include "cuda/optical_flow_dis.h"

namespace vidgen {
namespace {

// Pairs go through the kernels together as long as their workspaces fit into this, and their planes into a grid.
constexpr int64_t kMostWorkspace = int64_t{2} << 30, kMostTogether = 65535 / 2;

cuda::PixelView images_of(const Tensor& t) {
  return {t.const_data_ptr(), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

int count(const char* name, int64_t value, int64_t most, int64_t least = 1) {
  check_count(name, value, most, least);
  return static_cast<int>(value);
}

double weight(const char* name, double value, double least) {
  check(value >= least && value <= 1e6, name, " must be from ", least, " to 1e6, got ", value);
  return value;
}

Tensor flow_of(Tensor prev, Tensor next, std::optional<Tensor> init, int64_t finest_scale, int64_t patch_size,
               int64_t patch_stride, int64_t descent_iterations, int64_t refinement_iterations, double alpha,
               double delta, double gamma) {
  const ScalarType dtype = prev.scalar_type();
  check(prev.is_cuda(), "prev must be a CUDA tensor");
  check(dtype == ScalarType::Byte || dtype == ScalarType::Float || dtype == ScalarType::Double,
        "the CUDA kernel reads uint8, float32 and float64 only");
  check_images(prev, next, init);
  check(patch_size == 4 || patch_size == 8 || patch_size == 16, "patch_size must be 4, 8 or 16, got ", patch_size);

  cuda::OpticalFlowDis p{};
  p.pairs = prev.size(0);
  check(prev.size(2) <= cuda::kMostRows, "prev must have at most ", cuda::kMostRows, " rows, got ", prev.size(2));
  p.height = static_cast<int>(prev.size(2));
  p.width = extent("prev's width", prev.size(3));
  p.channels = static_cast<int>(prev.size(1));
  p.pixels = dtype == ScalarType::Byte    ? cuda::Pixels::u8
             : dtype == ScalarType::Float ? cuda::Pixels::f32
                                          : cuda::Pixels::f64;
  p.finest_scale = count("finest_scale", finest_scale, 30, 0);
  p.patch_size = static_cast<int>(patch_size);
  p.patch_stride = count("patch_stride", patch_stride, patch_size);
  p.descent_iterations = count("descent_iterations", descent_iterations, 100000);
  p.refinement_iterations = count("refinement_iterations", refinement_iterations, 100000, 0);
  p.alpha = weight("alpha", alpha, 1e-3);
  p.delta = weight("delta", delta, 0);
  p.gamma = weight("gamma", gamma, 0);

  const torch::stable::accelerator::DeviceGuard guard(prev.get_device_index());
  const int64_t shape[] = {p.pairs, 2, p.height, p.width};
  Tensor flow = torch::stable::empty({shape, 4}, flow_dtype(prev), std::nullopt, prev.device());
  if (p.pairs == 0) return flow;
  const int64_t pair_bytes = static_cast<int64_t>(cuda::optical_flow_dis_workspace(p));
  const int64_t together = std::clamp<int64_t>(kMostWorkspace / pair_bytes, 1, std::min(p.pairs, kMostTogether));
  const int64_t bytes[] = {together * pair_bytes};
  Tensor workspace = torch::stable::empty({bytes, 1}, ScalarType::Byte, std::nullopt, prev.device());
  p.prev = images_of(prev);
  p.next = images_of(next);
  if (init) p.init = images_of(*init);
  p.flow = flow.mutable_data_ptr();
  const cudaError_t error = cuda::optical_flow_dis(p, together, workspace.mutable_data_ptr(), stream_of(prev));
  check(error == cudaSuccess, "a CUDA kernel of optical_flow_dis did not start: ", cudaGetErrorString(error));
  return flow;
}

}  // namespace
}  // namespace vidgen

STABLE_TORCH_LIBRARY_FRAGMENT(vidgen, m) {
  m.def(
      "optical_flow_dis_cuda(Tensor prev, Tensor next, Tensor? init, int finest_scale, int patch_size, "
      "int patch_stride, int descent_iterations, int refinement_iterations, float alpha, float delta, float gamma) "
      "-> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(vidgen, CUDA, m) { m.impl("optical_flow_dis_cuda", TORCH_BOX(&vidgen::flow_of)); }
