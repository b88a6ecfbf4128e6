// discretized_logistic_mixture on the CPU: checks, allocation, threads, registration.
#include "cpu/discretized_logistic_mixture.h"

#include "bind/cpu_backend.h"
#include "bind/tensors.h"
#include "cpu/isa.h"
#include "cpu/tables.h"

namespace vidgen {
namespace {

const LogisticMixtureTable& mixture_kernels() { return VIDGEN_TABLE(discretized_logistic_mixture); }

ScalarType computed_in(const Tensor& params) {
  return params.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

LogisticMixture mixture_problem(const Tensor& params, const Tensor& x, int64_t levels, const std::string& mode) {
  check(params.dim() == 4 && x.dim() == 4, "params and x must be 4-d (N, channels, H, W), got shapes ",
        sizes_of(params), " and ", sizes_of(x));
  check(params.size(0) == x.size(0) && params.size(2) == x.size(2) && params.size(3) == x.size(3),
        "params must have the batch, height and width of x ", sizes_of(x), ", got shape ", sizes_of(params));
  check(x.size(1) >= 1 && x.size(1) <= 3, "x must have 1 to 3 channels, got shape ", sizes_of(x));
  check(x.is_cpu(), "x must be on the CPU like params");
  check(x.scalar_type() == computed_in(params), "x must be float32, or float64 for float64 params");
  check(levels >= 2, "levels must be at least 2, got ", levels);
  check(mode == "exact" || mode == "openai", "mode must be 'exact' or 'openai', got '", mode, "'");
  LogisticMixture p{};
  p.mixtures = 1;
  p.channels = x.size(1);
  const int64_t each = p.parameters();
  check(params.size(1) > 0 && params.size(1) % each == 0, "params must have ", each, "K channels for ", p.channels,
        " of x, got ", params.size(1));
  p.mixtures = params.size(1) / each;
  p.height = x.size(2);
  p.width = x.size(3);
  p.levels = levels;
  p.openai = mode == "openai";
  p.dtype = kernel_dtype(params.scalar_type());
  return p;
}

ImageView image_view(const Tensor& t) {
  return {const_cast<void*>(t.const_data_ptr()), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

// Sums an image's tasks in their order, in double.
template <class T>
void total(const double* sums, int64_t images, int64_t tasks, T* to) {
  for (int64_t n = 0; n < images; ++n) {
    double sum = 0;
    for (int64_t task = 0; task < tasks; ++task) sum += sums[n * tasks + task];
    to[n] = T(sum);
  }
}

Tensor mixture_forward(Tensor params, Tensor x, int64_t levels, std::string mode, std::optional<std::string> impl) {
  if (auto why = handed_over("discretized_logistic_mixture", impl, params.scalar_type()))
    return call_reference("vidgen::discretized_logistic_mixture_reference", params, x, levels, mode, *why);
  const LogisticMixture p = mixture_problem(params, x, levels, mode);
  const int64_t images = params.size(0), tasks = mixture_kernels().tasks_per_image(p);
  Tensor result = torch::stable::empty({&images, 1}, computed_in(params));
  Tensor memory = empty_bytes(size_t(images * tasks) * sizeof(double));
  double* sums = static_cast<double*>(memory.data_ptr());
  const ImageView params_view = image_view(params), x_view = image_view(x);
  parallel_tasks(images * tasks, mixture_kernels().scratch_bytes(p), [&](int64_t task, void* scratch) {
    mixture_kernels().forward(p, params_view, x_view, sums, task, scratch);
  });
  if (p.dtype == Dtype::f64) {
    total(sums, images, tasks, static_cast<double*>(result.data_ptr()));
  } else {
    total(sums, images, tasks, static_cast<float*>(result.data_ptr()));
  }
  return result;
}

Tensor mixture_grad_params(Tensor grad_output, Tensor params, Tensor x, int64_t levels, std::string mode,
                           std::optional<std::string> impl) {
  if (auto why = handed_over("discretized_logistic_mixture_grad_params", impl, params.scalar_type()))
    return call_reference("vidgen::discretized_logistic_mixture_grad_params_reference", grad_output, params, x, levels,
                          mode, *why);
  const LogisticMixture p = mixture_problem(params, x, levels, mode);
  const int64_t images = params.size(0), tasks = mixture_kernels().tasks_per_image(p);
  check(grad_output.is_cpu() && grad_output.scalar_type() == computed_in(params) && grad_output.dim() == 1 &&
            grad_output.size(0) == images,
        "grad_output must have the dtype of x and shape (", images, "), got ", sizes_of(grad_output));
  const Tensor weight = torch::stable::contiguous(grad_output);
  Tensor grad = empty_image(images, params.size(1), p.height, p.width, params, is_channels_last(params));
  const ImageView params_view = image_view(params), x_view = image_view(x), grad_view = image_view(grad);
  parallel_tasks(images * tasks, mixture_kernels().scratch_bytes(p), [&](int64_t task, void* scratch) {
    mixture_kernels().grad_params(p, params_view, x_view, weight.const_data_ptr(), grad_view, task, scratch);
  });
  return grad;
}

}  // namespace
}  // namespace vidgen

STABLE_TORCH_LIBRARY_IMPL(vidgen, CPU, m) {
  m.impl("discretized_logistic_mixture", TORCH_BOX(&vidgen::mixture_forward));
  m.impl("discretized_logistic_mixture_grad_params", TORCH_BOX(&vidgen::mixture_grad_params));
}

STABLE_TORCH_LIBRARY_IMPL(vidgen, CompositeExplicitAutograd, m) {
  m.impl("discretized_logistic_mixture_cpu_supports", TORCH_BOX(&vidgen::cpu_supports));
}
