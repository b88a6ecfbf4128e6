// corr_lookup on the CPU: checks, allocation, threads, registration.
#include "cpu/corr_lookup.h"

#include <vector>

#include "bind/cpu_backend.h"
#include "bind/tensors.h"
#include "cpu/isa.h"
#include "cpu/tables.h"

namespace vidgen {
namespace {

using Pyramid = std::vector<Tensor>;
using Impl = std::optional<std::string>;

const CorrLookupTable& corr_kernels() { return VIDGEN_TABLE(corr_lookup); }

ImageView corr_view(const Tensor& t) {
  return {const_cast<void*>(t.const_data_ptr()), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

CorrLevel corr_level(const Tensor& t) {
  void* data = const_cast<void*>(t.const_data_ptr());
  if (t.dim() == 5)
    return {data, t.stride(0), t.stride(1), t.stride(2), 0, t.stride(3), t.stride(4), t.size(3), t.size(4)};
  return {data, t.stride(0), 0, 0, t.stride(1), t.stride(2), t.stride(3), t.size(2), t.size(3)};
}

std::vector<CorrLevel> corr_levels(const Pyramid& pyramid) {
  std::vector<CorrLevel> levels;
  for (const Tensor& t : pyramid) levels.push_back(corr_level(t));
  return levels;
}

ScalarType corr_dtype(const Pyramid& pyramid) {
  check(!pyramid.empty(), "pyramid must hold at least one tensor");
  return pyramid[0].scalar_type();
}

ScalarType result_dtype(const Pyramid& pyramid) {
  return corr_dtype(pyramid) == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// The problem, whose levels point into `levels`.
CorrLookup corr_problem(const Pyramid& pyramid, const Tensor& coords, int64_t radius,
                        const std::optional<Tensor>& fmap1, std::vector<CorrLevel>& levels) {
  constexpr int64_t kLongest = int64_t(1) << 30, kLargestRadius = 127;
  check(coords.dim() == 4 && coords.size(1) == 2, "coords must have shape (B, 2, H, W), got ", sizes_of(coords));
  check(coords.is_cpu() && coords.scalar_type() == result_dtype(pyramid),
        "coords must be on the CPU, and float32, or float64 for a float64 pyramid");
  check(radius >= 0 && radius <= kLargestRadius, "radius must be from 0 to ", kLargestRadius, ", got ", radius);
  const int64_t batch = coords.size(0), height = coords.size(2), width = coords.size(3);
  if (fmap1.has_value()) {
    check_same("fmap1", *fmap1, "pyramid", pyramid[0]);
    check(fmap1->dim() == 4 && fmap1->size(0) == batch && fmap1->size(2) == height && fmap1->size(3) == width &&
              fmap1->size(1) > 0,
          "fmap1 must have shape (B, C, H, W) for coords ", sizes_of(coords), ", got ", sizes_of(*fmap1));
  }
  for (const Tensor& level : pyramid) {
    check_same("a level of pyramid", level, "coords and the others", pyramid[0]);
    const bool fits = fmap1.has_value() ? level.dim() == 4 && level.size(0) == batch && level.size(1) == fmap1->size(1)
                                        : level.dim() == 5 && level.size(0) == batch && level.size(1) == height &&
                                              level.size(2) == width;
    check(fits, "a level of pyramid must have shape ", fmap1.has_value() ? "(B, C, H_l, W_l)" : "(B, H, W, H_l, W_l)",
          " for coords ", sizes_of(coords), ", got ", sizes_of(level));
    const int64_t rows = level.size(level.dim() - 2), columns = level.size(level.dim() - 1);
    check(rows > 0 && columns > 0 && rows < kLongest && columns < kLongest,
          "a level of pyramid must be 1 to 2^30 - 1 high and wide, got shape ", sizes_of(level));
  }
  levels = corr_levels(pyramid);
  return {height, width,         fmap1.has_value() ? fmap1->size(1) : 0, int64_t(levels.size()),
          radius, levels.data(), kernel_dtype(corr_dtype(pyramid))};
}

ImageView features_view(const std::optional<Tensor>& fmap1) {
  return fmap1.has_value() ? corr_view(*fmap1) : ImageView{};
}

void check_gradient(const CorrLookup& p, const Tensor& grad_output, const Tensor& coords) {
  const int64_t side = 2 * p.radius + 1;
  check_same("grad_output", grad_output, "coords", coords);
  check(grad_output.dim() == 4 && grad_output.size(0) == coords.size(0) &&
            grad_output.size(1) == p.levels * side * side && grad_output.size(2) == p.height &&
            grad_output.size(3) == p.width,
        "grad_output must have shape (B, ", p.levels * side * side, ", H, W) for coords ", sizes_of(coords), ", got ",
        sizes_of(grad_output));
}

Tensor corr_lookup(Pyramid pyramid, Tensor coords, int64_t radius, std::optional<Tensor> fmap1, Impl impl) {
  if (auto why = handed_over("corr_lookup", impl, corr_dtype(pyramid)))
    return call_reference("vidgen::corr_lookup_reference", pyramid, coords, radius, fmap1, *why);
  std::vector<CorrLevel> levels;
  const CorrLookup p = corr_problem(pyramid, coords, radius, fmap1, levels);
  const int64_t side = 2 * radius + 1, batch = coords.size(0);
  Tensor out = empty_image(batch, p.levels * side * side, p.height, p.width, coords, is_channels_last(coords));
  if (out.numel() == 0) return out;
  const ImageView features = features_view(fmap1), by = corr_view(coords), to = corr_view(out);
  parallel_tasks(batch * p.height, corr_kernels().scratch_bytes(p),
                 [&](int64_t task, void* scratch) { corr_kernels().forward(p, features, by, to, task, scratch); });
  return out;
}

Tensor corr_lookup_grad_coords(Tensor grad_output, Pyramid pyramid, Tensor coords, int64_t radius,
                               std::optional<Tensor> fmap1, Impl impl) {
  if (auto why = handed_over("corr_lookup_grad_coords", impl, corr_dtype(pyramid)))
    return call_reference("vidgen::corr_lookup_grad_coords_reference", grad_output, pyramid, coords, radius, fmap1,
                          *why);
  std::vector<CorrLevel> levels;
  const CorrLookup p = corr_problem(pyramid, coords, radius, fmap1, levels);
  check_gradient(p, grad_output, coords);
  Tensor grad = empty_image(coords.size(0), 2, p.height, p.width, coords, is_channels_last(coords));
  if (grad.numel() == 0) return grad;
  const ImageView grads = corr_view(grad_output), features = features_view(fmap1), by = corr_view(coords),
                  to = corr_view(grad);
  parallel_tasks(coords.size(0) * p.height, corr_kernels().scratch_bytes(p), [&](int64_t task, void* scratch) {
    corr_kernels().grad_coords(p, grads, features, by, to, task, scratch);
  });
  return grad;
}

Tensor corr_lookup_grad_fmap1(Tensor grad_output, Pyramid pyramid, Tensor coords, int64_t radius,
                              std::optional<Tensor> fmap1, Impl impl) {
  check(fmap1.has_value(), "fmap1 must be given where its gradient is asked for");
  if (auto why = handed_over("corr_lookup_grad_fmap1", impl, corr_dtype(pyramid)))
    return call_reference("vidgen::corr_lookup_grad_fmap1_reference", grad_output, pyramid, coords, radius, fmap1,
                          *why);
  std::vector<CorrLevel> levels;
  const CorrLookup p = corr_problem(pyramid, coords, radius, fmap1, levels);
  check_gradient(p, grad_output, coords);
  Tensor grad = empty_image(coords.size(0), p.channels, p.height, p.width, *fmap1, is_channels_last(*fmap1));
  if (grad.numel() == 0) return grad;
  const ImageView grads = corr_view(grad_output), by = corr_view(coords), to = corr_view(grad);
  parallel_tasks(coords.size(0) * p.height, corr_kernels().scratch_bytes(p),
                 [&](int64_t task, void* scratch) { corr_kernels().grad_fmap1(p, grads, by, to, task, scratch); });
  return grad;
}

Pyramid corr_lookup_grad_pyramid(Tensor grad_output, Pyramid pyramid, Tensor coords, int64_t radius,
                                 std::optional<Tensor> fmap1, Impl impl) {
  if (auto why = handed_over("corr_lookup_grad_pyramid", impl, corr_dtype(pyramid)))
    return call_reference<Pyramid>("vidgen::corr_lookup_grad_pyramid_reference", grad_output, pyramid, coords, radius,
                                   fmap1, *why);
  std::vector<CorrLevel> levels;
  const CorrLookup p = corr_problem(pyramid, coords, radius, fmap1, levels);
  check_gradient(p, grad_output, coords);
  Pyramid gradients;
  for (const Tensor& level : pyramid) {
    if (level.dim() == 5) {
      gradients.push_back(
          empty_clip(level.size(0), level.size(1), {level.size(2), level.size(3), level.size(4)}, level, false));
    } else {
      gradients.push_back(
          empty_image(level.size(0), level.size(1), level.size(2), level.size(3), level, is_channels_last(level)));
    }
  }
  if (coords.size(0) == 0) return gradients;
  const std::vector<CorrLevel> to = corr_levels(gradients);
  const ImageView grads = corr_view(grad_output), features = features_view(fmap1), by = corr_view(coords);
  if (fmap1.has_value()) {
    parallel_tasks(coords.size(0) * corr_kernels().grad_features_tasks_per_image(p),
                   corr_kernels().grad_features_scratch_bytes(p), [&](int64_t task, void* scratch) {
                     corr_kernels().grad_features(p, grads, features, by, to.data(), task, scratch);
                   });
  } else if (p.width > 0) {
    parallel_tasks(coords.size(0) * p.height, corr_kernels().scratch_bytes(p), [&](int64_t task, void* scratch) {
      corr_kernels().grad_correlations(p, grads, by, to.data(), task, scratch);
    });
  }
  return gradients;
}

}  // namespace
}  // namespace vidgen

STABLE_TORCH_LIBRARY_IMPL(vidgen, CPU, m) {
  m.impl("corr_lookup", TORCH_BOX(&vidgen::corr_lookup));
  m.impl("corr_lookup_grad_pyramid", TORCH_BOX(&vidgen::corr_lookup_grad_pyramid));
  m.impl("corr_lookup_grad_coords", TORCH_BOX(&vidgen::corr_lookup_grad_coords));
  m.impl("corr_lookup_grad_fmap1", TORCH_BOX(&vidgen::corr_lookup_grad_fmap1));
}

STABLE_TORCH_LIBRARY_IMPL(vidgen, CompositeExplicitAutograd, m) {
  m.impl("corr_lookup_cpu_supports", TORCH_BOX(&vidgen::cpu_supports));
}
