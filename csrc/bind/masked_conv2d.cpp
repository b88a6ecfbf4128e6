// masked_conv2d on the CPU: checks, allocation, threads, registration.
//
// Forward and grad_input are one computation: seen from the last pixel backwards, the adjoint of a causal
// convolution is a causal convolution whose weight has its channel axes exchanged. So grad_input hands the
// kernel mirrored views (negative strides) and sets `adjoint`.
#include <tuple>

#include "bind/cpu_backend.h"
#include "bind/tensors.h"
#include "cpu/isa.h"
#include "cpu/masked_conv2d.h"
#include "cpu/tables.h"

namespace vidgen {
namespace {

struct Rule {  // the arguments that say which taps are kept, and how to compute
  std::string mask;
  int64_t colors;
  std::string color_layout;
  int64_t dilation;
};

// The weight is given by its sizes: grad_weight has none yet.
MaskedConv2d problem(const int64_t (&weight)[4], int64_t height, int64_t width, ScalarType dtype, const Rule& rule,
                     bool adjoint) {
  const auto [out_channels, in_channels, kernel_height, kernel_width] = weight;
  check(rule.mask == "A" || rule.mask == "B", "mask must be 'A' or 'B', got '", rule.mask, "'");
  check(rule.color_layout == "interleaved" || rule.color_layout == "blocked",
        "color_layout must be 'interleaved' or 'blocked', got '", rule.color_layout, "'");
  check(kernel_height % 2 == 1 && kernel_width % 2 == 1, "weight must have odd kernel sizes, got ", kernel_height,
        " x ", kernel_width);
  check(rule.dilation >= 1, "dilation must be at least 1, got ", rule.dilation);
  check(rule.colors >= 1 && in_channels % rule.colors == 0 && out_channels % rule.colors == 0, "colors (", rule.colors,
        ") must divide the weight's channels, got ", out_channels, " and ", in_channels);
  MaskedConv2d p{};
  p.in_channels = adjoint ? out_channels : in_channels;
  p.out_channels = adjoint ? in_channels : out_channels;
  p.height = height;
  p.width = width;
  p.kernel_height = kernel_height;
  p.kernel_width = kernel_width;
  p.dilation = rule.dilation;
  p.colors = rule.colors;
  p.mask_b = rule.mask == "B";
  p.interleaved = rule.color_layout == "interleaved";
  p.adjoint = adjoint;
  p.dtype = kernel_dtype(dtype);
  return p;
}

MaskedConv2d problem(const Tensor& weight, int64_t height, int64_t width, const Rule& rule, bool adjoint) {
  check(weight.dim() == 4, "weight must be 4-d (out, in, height, width), got shape ", sizes_of(weight));
  const int64_t sizes[] = {weight.size(0), weight.size(1), weight.size(2), weight.size(3)};
  return problem(sizes, height, width, weight.scalar_type(), rule, adjoint);
}

void check_image(const char* name, const Tensor& t, int64_t channels, const char* channels_from) {
  check(t.dim() == 4, name, " must be 4-d (N, C, H, W), got shape ", sizes_of(t));
  check(t.size(1) == channels, name, " must have ", channels, " channels (", channels_from, "), got shape ",
        sizes_of(t));
}

// Asking for a pointer to write through would copy a lazily cloned input; what is written is always fresh.
ImageView view(const Tensor& t) {
  return {const_cast<void*>(t.const_data_ptr()), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

// The same image read from its last pixel backwards.
ImageView mirrored(const Tensor& t) {
  ImageView v = view(t);
  const int64_t last = (t.size(2) - 1) * v.row_stride + (t.size(3) - 1) * v.column_stride;
  v.data = static_cast<char*>(v.data) + last * static_cast<int64_t>(t.element_size());
  v.row_stride = -v.row_stride;
  v.column_stride = -v.column_stride;
  return v;
}

const MaskedConv2dTable& kernels() { return VIDGEN_BF16_TABLE(masked_conv2d); }

void pack_into(const MaskedConv2d& p, Form form, const Tensor& weight, void* packed) {
  parallel_tasks(kernels().pack_tasks(p, form), 0,
                 [&](int64_t task, void*) { kernels().pack(p, form, weight.const_data_ptr(), packed, task); });
}

// A prepacked weight holds every form that may be chosen, direct first.
size_t packed_bytes(const MaskedConv2d& p, bool only_direct) {
  return kernels().packed_bytes(p, Form::direct) + (only_direct ? 0 : kernels().packed_bytes(p, Form::winograd));
}

void convolve(const MaskedConv2d& p, int64_t batch, ImageView x, const Tensor& weight,
              const std::optional<Tensor>& packed, const void* bias, ImageView y, bool only_direct) {
  const MaskedConv2dPlan plan = kernels().plan(p, only_direct);
  Tensor fresh;
  const char* weights = nullptr;
  if (packed.has_value()) {
    const size_t all = packed_bytes(p, only_direct);
    check(packed->is_cpu() && packed->scalar_type() == ScalarType::Byte && packed->is_contiguous() &&
              static_cast<size_t>(packed->numel()) == all,
          "packed must be what masked_conv2d_pack gives for this weight, dtype and algorithm on this machine (", all,
          " bytes), got ", packed->numel(), " elements; pack again");
    weights = static_cast<const char*>(packed->const_data_ptr());
    if (plan.form == Form::winograd) weights += kernels().packed_bytes(p, Form::direct);
  } else {
    fresh = empty_bytes(plan.packed_bytes);
    pack_into(p, plan.form, torch::stable::contiguous(weight), fresh.data_ptr());
    weights = static_cast<const char*>(fresh.const_data_ptr());
  }
  parallel_tasks(batch * plan.tasks_per_image, plan.scratch_bytes,
                 [&](int64_t task, void* memory) { kernels().forward(p, plan, x, weights, bias, y, task, memory); });
}

Tensor forward(Tensor x, Tensor weight, std::optional<Tensor> bias, std::string mask, int64_t colors,
               std::string color_layout, int64_t dilation, std::string algorithm, std::optional<std::string> impl,
               std::optional<Tensor> packed) {
  if (auto why = handed_over("masked_conv2d", impl, x.scalar_type()))
    return call_reference("vidgen::masked_conv2d_reference", x, weight, bias, mask, colors, color_layout, dilation,
                          *why);
  const Rule rule{mask, colors, color_layout, dilation};
  check(weight.dim() == 4, "weight must be 4-d (out, in, height, width), got shape ", sizes_of(weight));
  check_image("x", x, weight.size(1), "weight's in-channels");
  check_same("weight", weight, "x", x);
  const MaskedConv2d p = problem(weight, x.size(2), x.size(3), rule, false);
  const bool only_direct = direct_only(algorithm);
  std::optional<Tensor> dense_bias;
  if (bias.has_value()) {
    check_same("bias", *bias, "x", x);
    check(bias->dim() == 1 && bias->size(0) == p.out_channels, "bias must have shape (", p.out_channels, "), got ",
          sizes_of(*bias));
    dense_bias = torch::stable::contiguous(*bias);
  }
  Tensor y = empty_image(x.size(0), p.out_channels, p.height, p.width, x, is_channels_last(x));
  if (y.numel() > 0)
    convolve(p, x.size(0), view(x), weight, packed, dense_bias ? dense_bias->const_data_ptr() : nullptr, view(y),
             only_direct);
  return y;
}

Tensor grad_input(Tensor grad_output, Tensor weight, std::string mask, int64_t colors, std::string color_layout,
                  int64_t dilation, std::string algorithm, std::optional<std::string> impl) {
  if (auto why = handed_over("masked_conv2d_grad_input", impl, grad_output.scalar_type()))
    return call_reference("vidgen::masked_conv2d_grad_input_reference", grad_output, weight, mask, colors, color_layout,
                          dilation, *why);
  check(weight.dim() == 4, "weight must be 4-d (out, in, height, width), got shape ", sizes_of(weight));
  check_image("grad_output", grad_output, weight.size(0), "weight's out-channels");
  check_same("weight", weight, "grad_output", grad_output);
  const MaskedConv2d p =
      problem(weight, grad_output.size(2), grad_output.size(3), {mask, colors, color_layout, dilation}, true);
  const bool only_direct = direct_only(algorithm);
  Tensor grad =
      empty_image(grad_output.size(0), p.out_channels, p.height, p.width, grad_output, is_channels_last(grad_output));
  if (grad.numel() > 0)
    convolve(p, grad_output.size(0), mirrored(grad_output), weight, std::nullopt, nullptr, mirrored(grad), only_direct);
  return grad;
}

Tensor grad_weight(Tensor grad_output, Tensor x, std::vector<int64_t> kernel_size, std::string mask, int64_t colors,
                   std::string color_layout, int64_t dilation, std::string algorithm, std::optional<std::string> impl) {
  direct_only(algorithm);  // there is one form; the argument is here for the double backward to pass on
  if (auto why = handed_over("masked_conv2d_grad_weight", impl, x.scalar_type()))
    return call_reference("vidgen::masked_conv2d_grad_weight_reference", grad_output, x, kernel_size, mask, colors,
                          color_layout, dilation, *why);
  check(kernel_size.size() == 2, "kernel_size must have two entries, got ", kernel_size.size());
  check(grad_output.dim() == 4, "grad_output must be 4-d (N, C, H, W), got shape ", sizes_of(grad_output));
  check(x.dim() == 4 && x.size(0) == grad_output.size(0) && x.size(2) == grad_output.size(2) &&
            x.size(3) == grad_output.size(3),
        "x must have the batch, height and width of grad_output ", sizes_of(grad_output), ", got shape ", sizes_of(x));
  check_same("grad_output", grad_output, "x", x);
  const int64_t sizes[] = {grad_output.size(1), x.size(1), kernel_size[0], kernel_size[1]};
  const MaskedConv2d p =
      problem(sizes, x.size(2), x.size(3), x.scalar_type(), {mask, colors, color_layout, dilation}, false);
  Tensor grad = empty_image(sizes[0], sizes[1], sizes[2], sizes[3], x, false);
  if (x.numel() == 0 || grad_output.numel() == 0) {
    torch::stable::zero_(grad);
  } else {
    parallel_tasks(kernels().grad_weight_tasks(p), kernels().grad_weight_scratch_bytes(p),
                   [&](int64_t task, void* memory) {
                     kernels().grad_weight(p, x.size(0), view(x), view(grad_output), grad.data_ptr(), task, memory);
                   });
  }
  return grad;
}

int64_t packed_size(std::vector<int64_t> weight_size, ScalarType dtype, std::string mask, int64_t colors,
                    std::string color_layout, int64_t dilation, std::string algorithm) {
  check(weight_size.size() == 4, "weight must be 4-d (out, in, height, width), got ", weight_size.size(),
        " dimensions");
  check(supported(dtype), "weight cannot be packed: ", cpu_supports(dtype));
  const int64_t sizes[] = {weight_size[0], weight_size[1], weight_size[2], weight_size[3]};
  const MaskedConv2d p = problem(sizes, 0, 0, dtype, {mask, colors, color_layout, dilation}, false);
  return static_cast<int64_t>(packed_bytes(p, direct_only(algorithm)));
}

Tensor pack(Tensor weight, std::string mask, int64_t colors, std::string color_layout, int64_t dilation,
            std::string algorithm) {
  check(supported(weight.scalar_type()), "weight cannot be packed: ", cpu_supports(weight.scalar_type()));
  const MaskedConv2d p = problem(weight, 0, 0, {mask, colors, color_layout, dilation}, false);
  const bool only_direct = direct_only(algorithm);
  const Tensor dense = torch::stable::contiguous(weight);
  Tensor packed = empty_bytes(packed_bytes(p, only_direct));
  pack_into(p, Form::direct, dense, packed.data_ptr());
  if (!only_direct)
    pack_into(p, Form::winograd, dense,
              static_cast<char*>(packed.data_ptr()) + kernels().packed_bytes(p, Form::direct));
  return packed;
}

std::tuple<std::string, double> describe_plan(Tensor x, Tensor weight, std::string mask, int64_t colors,
                                              std::string color_layout, int64_t dilation, std::string algorithm) {
  const MaskedConv2d p = problem(weight, x.size(2), x.size(3), {mask, colors, color_layout, dilation}, false);
  const MaskedConv2dPlan plan = kernels().plan(p, direct_only(algorithm));
  std::ostringstream text;
  text << (plan.form == Form::direct ? "direct" : "Winograd") << ", " << plan.block_rows << " rows per task, "
       << isa_name(isa_in_use());
  return {text.str(), 2 * plan.multiply_adds};
}

}  // namespace
}  // namespace vidgen

STABLE_TORCH_LIBRARY_IMPL(vidgen, CPU, m) {
  m.impl("masked_conv2d", TORCH_BOX(&vidgen::forward));
  m.impl("masked_conv2d_grad_input", TORCH_BOX(&vidgen::grad_input));
  m.impl("masked_conv2d_grad_weight", TORCH_BOX(&vidgen::grad_weight));
  m.impl("masked_conv2d_pack", TORCH_BOX(&vidgen::pack));
  m.impl("masked_conv2d_cpu_plan", TORCH_BOX(&vidgen::describe_plan));
}

STABLE_TORCH_LIBRARY_IMPL(vidgen, CompositeExplicitAutograd, m) {
  m.impl("masked_conv2d_packed_bytes", TORCH_BOX(&vidgen::packed_size));
  m.impl("masked_conv2d_cpu_supports", TORCH_BOX(&vidgen::cpu_supports));
}
