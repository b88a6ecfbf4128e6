// optical_flow_tvl1 on the CPU: checks, allocation, threads, registration.
#include "cpu/optical_flow_tvl1.h"

#include <cmath>

#include "bind/optical_flow.h"
#include "cpu/isa.h"
#include "cpu/tables.h"

namespace vidgen {
namespace {

const OpticalFlowTvl1Table& tvl1_kernels() { return VIDGEN_TABLE(optical_flow_tvl1); }

Tensor tvl1(Tensor prev, Tensor next, std::optional<Tensor> init, double tau, double lambda, double theta,
            int64_t levels, double scale_factor, int64_t warps, int64_t outer_iterations, int64_t inner_iterations,
            int64_t median, double epsilon, std::optional<std::string> impl) {
  if (auto why = handed_over("optical_flow_tvl1", impl, flow_cpu_supports(prev.scalar_type())))
    return call_reference("vidgen::optical_flow_tvl1_reference", prev, next, init, tau, lambda, theta, levels,
                          scale_factor, warps, outer_iterations, inner_iterations, median, epsilon, *why);
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
  const OpticalFlowTvl1 p{prev.size(2), prev.size(3), prev.size(1),     pixels_of(prev),  tau,    lambda, theta, levels,
                          scale_factor, warps,        outer_iterations, inner_iterations, median, epsilon};
  return solve_pairs(tvl1_kernels(), p, prev, next, init);
}

}  // namespace
}  // namespace vidgen

STABLE_TORCH_LIBRARY_IMPL(vidgen, CPU, m) { m.impl("optical_flow_tvl1", TORCH_BOX(&vidgen::tvl1)); }

STABLE_TORCH_LIBRARY_IMPL(vidgen, CompositeExplicitAutograd, m) {
  m.impl("optical_flow_tvl1_cpu_supports", TORCH_BOX(&vidgen::flow_cpu_supports));
}
