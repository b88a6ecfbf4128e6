// optical_flow_dis on the CPU: checks and registration.
#include "cpu/optical_flow_dis.h"

#include "bind/optical_flow.h"
#include "cpu/isa.h"
#include "cpu/tables.h"

namespace vidgen {
namespace {

Tensor dis(Tensor prev, Tensor next, std::optional<Tensor> init, int64_t finest_scale, int64_t patch_size,
           int64_t patch_stride, int64_t descent_iterations, int64_t refinement_iterations, double alpha, double delta,
           double gamma, std::optional<std::string> impl) {
  if (auto why = handed_over("optical_flow_dis", impl, flow_cpu_supports(prev.scalar_type())))
    return call_reference("vidgen::optical_flow_dis_reference", prev, next, init, finest_scale, patch_size,
                          patch_stride, descent_iterations, refinement_iterations, alpha, delta, gamma, *why);
  check_images(prev, next, init);
  check(patch_size == 4 || patch_size == 8 || patch_size == 16, "patch_size must be 4, 8 or 16, got ", patch_size);
  check_count("finest_scale", finest_scale, 30, 0);
  check_count("patch_stride", patch_stride, patch_size);
  check_count("descent_iterations", descent_iterations, 100000);
  check_count("refinement_iterations", refinement_iterations, 100000, 0);
  check(alpha >= 1e-3 && alpha <= 1e6, "alpha must be from 0.001 to 1e6, got ", alpha);
  check(delta >= 0 && delta <= 1e6, "delta must be from 0 to 1e6, got ", delta);
  check(gamma >= 0 && gamma <= 1e6, "gamma must be from 0 to 1e6, got ", gamma);
  const OpticalFlowDis p{prev.size(2),          prev.size(3), prev.size(1), pixels_of(prev),
                         finest_scale,          patch_size,   patch_stride, descent_iterations,
                         refinement_iterations, alpha,        delta,        gamma};
  return solve_pairs(VIDGEN_TABLE(optical_flow_dis), p, prev, next, init);
}

}  // namespace
}  // namespace vidgen

STABLE_TORCH_LIBRARY_IMPL(vidgen, CPU, m) { m.impl("optical_flow_dis", TORCH_BOX(&vidgen::dis)); }

STABLE_TORCH_LIBRARY_IMPL(vidgen, CompositeExplicitAutograd, m) {
  m.impl("optical_flow_dis_cpu_supports", TORCH_BOX(&vidgen::flow_cpu_supports));
}
