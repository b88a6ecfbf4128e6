// warp on the CPU: checks, allocation, threads, registration.
#include "cpu/warp.h"

#include "bind/cpu_backend.h"
#include "bind/tensors.h"
#include "cpu/isa.h"
#include "cpu/tables.h"

namespace vidgen {
namespace {

const WarpTable& warp_kernels() { return VIDGEN_TABLE(warp); }

ScalarType flow_dtype(const Tensor& image) {
  return image.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

Warp warp_problem(const char* name, const Tensor& image, const Tensor& flow, const std::string& padding) {
  check(image.dim() == 4, name, " must be 4-d (N, C, H, W), got shape ", sizes_of(image));
  check(flow.dim() == 4 && flow.size(0) == image.size(0) && flow.size(1) == 2 && flow.size(2) == image.size(2) &&
            flow.size(3) == image.size(3),
        "flow must have shape (N, 2, H, W) for ", name, " of shape ", sizes_of(image), ", got ", sizes_of(flow));
  check(flow.is_cpu(), "flow must be on the CPU like ", name);
  check(flow.scalar_type() == flow_dtype(image), "flow must be float32, or float64 for float64 ", name);
  check(padding == "zeros" || padding == "border", "padding must be 'zeros' or 'border', got '", padding, "'");
  constexpr int64_t kLongest = int64_t(1) << 30;
  check(image.size(2) < kLongest && image.size(3) < kLongest, name, " must be less than 2^30 high and wide, got shape ",
        sizes_of(image));
  return {image.size(1), image.size(2), image.size(3), padding == "border", kernel_dtype(image.scalar_type())};
}

ImageView warp_view(const Tensor& t) {
  return {const_cast<void*>(t.const_data_ptr()), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

Tensor warp_forward(Tensor x, Tensor flow, std::string padding, std::optional<std::string> impl) {
  if (auto why = handed_over("warp", impl, x.scalar_type()))
    return call_reference("vidgen::warp_reference", x, flow, padding, *why);
  const Warp p = warp_problem("x", x, flow, padding);
  Tensor out = empty_image(x.size(0), p.channels, p.height, p.width, x, is_channels_last(x));
  const ImageView from = warp_view(x), by = warp_view(flow), to = warp_view(out);
  if (out.numel() == 0) return out;
  parallel_tasks(x.size(0) * p.height, 0, [&](int64_t task, void*) { warp_kernels().forward(p, from, by, to, task); });
  return out;
}

Tensor warp_grad_flow(Tensor grad_output, Tensor x, Tensor flow, std::string padding, std::optional<std::string> impl) {
  if (auto why = handed_over("warp_grad_flow", impl, x.scalar_type()))
    return call_reference("vidgen::warp_grad_flow_reference", grad_output, x, flow, padding, *why);
  const Warp p = warp_problem("x", x, flow, padding);
  check_same("grad_output", grad_output, "x", x);
  check(sizes_of(grad_output) == sizes_of(x), "grad_output must have the shape of x ", sizes_of(x), ", got ",
        sizes_of(grad_output));
  Tensor grad = empty_image(x.size(0), 2, p.height, p.width, flow, is_channels_last(flow));
  const ImageView grads = warp_view(grad_output), from = warp_view(x), by = warp_view(flow), to = warp_view(grad);
  if (grad.numel() == 0) return grad;
  parallel_tasks(x.size(0) * p.height, 0,
                 [&](int64_t task, void*) { warp_kernels().grad_flow(p, grads, from, by, to, task); });
  return grad;
}

Tensor warp_grad_x(Tensor grad_output, Tensor flow, std::string padding, std::optional<std::string> impl) {
  if (auto why = handed_over("warp_grad_x", impl, grad_output.scalar_type()))
    return call_reference("vidgen::warp_grad_x_reference", grad_output, flow, padding, *why);
  const Warp p = warp_problem("grad_output", grad_output, flow, padding);
  const bool last = is_channels_last(grad_output);
  Tensor grad = empty_image(grad_output.size(0), p.channels, p.height, p.width, grad_output, last);
  const ImageView grads = warp_view(grad_output), by = warp_view(flow), to = warp_view(grad);
  if (grad.numel() == 0) return grad;
  parallel_tasks(grad_output.size(0) * warp_kernels().grad_x_tasks_per_image(p, last),
                 warp_kernels().grad_x_scratch_bytes(p, last),
                 [&](int64_t task, void* scratch) { warp_kernels().grad_x(p, grads, by, to, last, task, scratch); });
  return grad;
}

}  // namespace
}  // namespace vidgen

STABLE_TORCH_LIBRARY_IMPL(vidgen, CPU, m) {
  m.impl("warp", TORCH_BOX(&vidgen::warp_forward));
  m.impl("warp_grad_flow", TORCH_BOX(&vidgen::warp_grad_flow));
  m.impl("warp_grad_x", TORCH_BOX(&vidgen::warp_grad_x));
}

STABLE_TORCH_LIBRARY_IMPL(vidgen, CompositeExplicitAutograd, m) {
  m.impl("warp_cpu_supports", TORCH_BOX(&vidgen::cpu_supports));
}
