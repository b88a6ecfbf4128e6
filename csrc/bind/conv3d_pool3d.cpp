// conv3d_pool3d on the CPU: checks, allocation, threads, registration.
//
// The forward, the gradient of what the activation reads (which convolves again and finishes differently) and the
// gradient of the input (a convolution with exchanged channel axes and reversed taps) are one computation. Kernels
// write channels next to each other; a contiguous result is converted at the end, a contiguous input at the beginning
// unless the direct form reads it as it is.
#include <unistd.h>

#include <algorithm>
#include <tuple>

#include "bind/cpu_backend.h"
#include "bind/tensors.h"
#include "cpu/conv3d_pool3d.h"
#include "cpu/isa.h"
#include "cpu/tables.h"

namespace vidgen {
namespace {

using Sizes = std::vector<int64_t>;

const Conv3dPool3dTable& kernels() { return VIDGEN_BF16_TABLE(conv3d_pool3d); }

// What a task may keep close: the second-level cache of a core.
int64_t cache_bytes() {
  static const int64_t bytes = [] {
#if defined(_SC_LEVEL2_CACHE_SIZE)
    const int64_t found = sysconf(_SC_LEVEL2_CACHE_SIZE);
    if (found > 0) return found;
#endif
    return int64_t{1} << 20;
  }();
  return bytes;
}

// The weight is given by its sizes, (O, I, kd, kh, kw).
Conv3dPool3d problem(const Sizes& weight, const Sizes& in_size, const Sizes& padding, ScalarType dtype) {
  check(weight.size() == 5, "weight must be 5-d (out, in, depth, height, width), got ", weight.size(), " dimensions");
  check(padding.size() == 6, "padding must be six numbers, before and after each axis, got ", padding.size());
  check(weight[0] > 0 && weight[1] > 0, "weight must have at least one channel in and out, got ", weight[1], " and ",
        weight[0]);
  Conv3dPool3d p{};
  p.out_channels = weight[0];
  p.in_channels = weight[1];
  for (int i = 0; i < 3; ++i) {
    const int64_t k = weight[2 + i], before = padding[2 * i], after = padding[2 * i + 1];
    check(k >= 1 && k <= 7, "weight must have 1 to 7 taps per axis, got ", k);
    check(before >= 0 && before < k && after >= 0 && after < k, "padding must be from 0 to kernel size - 1, got ",
          before, " and ", after, " for ", k, " taps");
    p.in_size[i] = in_size[i];
    p.kernel[i] = k;
    p.before[i] = before;
    p.out_size[i] = in_size[i] + before + after - k + 1;
    check(p.out_size[i] > 0, "x must be at least as large as the kernel, got ", in_size[i], " for ", k, " taps");
    p.pool[i] = 1;
    p.pooled_size[i] = p.out_size[i];
  }
  p.row_channels = p.in_channels;
  p.dtype = kernel_dtype(dtype);
  return p;
}

void add_pooling(Conv3dPool3d& p, const std::string& activation, const Sizes& pool, bool ceil_mode) {
  check(activation == "relu" || activation == "identity", "activation must be 'relu' or 'identity', got '", activation,
        "'");
  check(pool.size() == 3, "pool must be three numbers, got ", pool.size());
  p.relu = activation == "relu";
  for (int i = 0; i < 3; ++i) {
    check(pool[i] >= 1 && pool[i] <= 4, "pool must be windows of 1 to 4 per axis, got ", pool[i]);
    p.pool[i] = pool[i];
    p.pooled_size[i] = (p.out_size[i] + (ceil_mode ? pool[i] - 1 : 0)) / pool[i];
    check(p.pooled_size[i] > 0, "pool must fit into the convolution's output, got ", pool[i], " for ", p.out_size[i]);
  }
}

Sizes sizes(const Tensor& t) {
  Sizes all;
  for (int64_t d = 0; d < t.dim(); ++d) all.push_back(t.size(d));
  return all;
}

Sizes clip_size(const Tensor& t) { return {t.size(2), t.size(3), t.size(4)}; }

void check_clips(const char* name, const Tensor& t, int64_t channels, const char* channels_from) {
  check(t.dim() == 5, name, " must be 5-d (N, C, D, H, W), got shape ", sizes_of(t));
  check(t.size(1) == channels, name, " must have ", channels, " channels (", channels_from, "), got shape ",
        sizes_of(t));
}

// A single channel is next to itself, whatever its stride.
bool channels_adjacent(const Tensor& t) { return t.stride(1) == 1 || t.size(1) == 1; }

ClipView view_of(const Tensor& t, void* data) {
  return {data, t.stride(0), t.size(1) == 1 ? 1 : t.stride(1), {t.stride(2), t.stride(3), t.stride(4)}};
}

ClipView writable(const Tensor& t) { return view_of(t, t.data_ptr()); }

// Asking for a pointer to write through would copy a lazily cloned tensor.
ClipView readable(const Tensor& t) { return view_of(t, const_cast<void*>(t.const_data_ptr())); }

void convert(const Tensor& from, const Tensor& to) {
  const int64_t size[] = {from.size(2), from.size(3), from.size(4)}, channels = from.size(1);
  const ClipView in = readable(from), out = writable(to);
  const Dtype dtype = kernel_dtype(from.scalar_type());
  parallel_tasks(from.size(0) * size[0], 0,
                 [&](int64_t task, void*) { kernels().convert(dtype, in, out, channels, size, task); });
}

Tensor with_adjacent_channels(const Tensor& t) {
  if (channels_adjacent(t)) return t;
  const int64_t size[] = {t.size(2), t.size(3), t.size(4)};
  Tensor copy = empty_clip(t.size(0), t.size(1), size, t, true);
  convert(t, copy);
  return copy;
}

// A packed weight begins with what it is of; the weight follows.
struct PackedHeader {
  char name[8];
  int64_t form, dtype, isa, out_channels, in_channels, taps, adjoint;
};
static_assert(sizeof(PackedHeader) == 64, "what follows keeps the alignment of a cache line");

PackedHeader header(const Conv3dPool3d& p, Conv3dForm form) {
  return {{'c', 'o', 'n', 'v', '3', 'd', 0, 1},
          static_cast<int64_t>(form),
          static_cast<int64_t>(p.dtype),
          static_cast<int64_t>(isa_in_use()),
          p.out_channels,
          p.in_channels,
          (p.kernel[0] * 8 + p.kernel[1]) * 8 + p.kernel[2],
          p.adjoint};
}

Tensor pack_form(const Conv3dPool3d& p, Conv3dForm form, const Tensor& weight) {
  Tensor packed = empty_bytes(sizeof(PackedHeader) + kernels().packed_bytes(p, form));
  char* bytes = static_cast<char*>(packed.data_ptr());
  const PackedHeader head = header(p, form);
  std::memcpy(bytes, &head, sizeof head);
  const Tensor dense = torch::stable::contiguous(weight);
  parallel_tasks(kernels().pack_tasks(p, form), kernels().pack_scratch_bytes(p, form), [&](int64_t task, void* memory) {
    kernels().pack(p, form, dense.const_data_ptr(), bytes + sizeof head, task, memory);
  });
  return packed;
}

// The form of a packed weight, which must be one of this convolution.
Conv3dForm form_of(const Conv3dPool3d& p, const Tensor& packed, bool only_direct) {
  check(packed.is_cpu() && packed.scalar_type() == ScalarType::Byte && packed.is_contiguous(),
        "packed must be what conv3d_pool3d_pack gives");
  for (Conv3dForm form : {Conv3dForm::direct, Conv3dForm::winograd2, Conv3dForm::winograd4, Conv3dForm::planes}) {
    if (!kernels().supports(p, form) || (only_direct && form != Conv3dForm::direct)) continue;
    const PackedHeader expected = header(p, form);
    if (static_cast<size_t>(packed.numel()) == sizeof expected + kernels().packed_bytes(p, form) &&
        std::memcmp(packed.const_data_ptr(), &expected, sizeof expected) == 0)
      return form;
  }
  check(false,
        "packed must be what conv3d_pool3d_pack gives for this weight, dtype and algorithm on this machine, got ",
        packed.numel(), " other bytes; pack again");
  return Conv3dForm::direct;
}

// Axes along which the kernel has one tap and nothing is pooled are one long axis where memory has them so.
void join_axes(Conv3dPool3d& p, ClipView& x, ClipView& out) {
  auto joined = [&](int outer) {
    if (p.kernel[outer] * p.pool[outer] * p.kernel[2] * p.pool[2] != 1) return false;
    if (p.in_size[outer] > 1 &&
        (x.stride[outer] != x.stride[2] * p.in_size[2] || out.stride[outer] != out.stride[2] * p.out_size[2]))
      return false;
    for (int64_t* size : {p.in_size, p.out_size, p.pooled_size}) size[2] *= size[outer], size[outer] = 1;
    return true;
  };
  if (joined(1)) joined(0);
}

void compute(const Conv3dPool3d& p, Conv3dForm form, int64_t batch, const ClipView& x, const Tensor& packed,
             const void* bias, const Conv3dTarget& target) {
  const Conv3dSchedule schedule = kernels().schedule(p, form, batch, torch::stable::get_num_threads(), cache_bytes());
  const char* bytes = static_cast<const char*>(packed.const_data_ptr()) + sizeof(PackedHeader);
  parallel_tasks(schedule.tasks, schedule.scratch_bytes, [&](int64_t task, void* memory) {
    kernels().run(p, form, schedule, batch, x, bytes, bias, target, task, memory);
  });
}

// As `compute`, with a weight that is packed for this call: as a whole, or in parts of its output channels, each a
// convolution by itself.
void pack_and_compute(const Conv3dPool3d& p, Conv3dForm form, int64_t batch, const ClipView& x, const Tensor& weight,
                      const void* bias, const Conv3dTarget& target) {
  const int64_t step = kernels().packed_at_once(p, form, batch, torch::stable::get_num_threads(), cache_bytes());
  if (step >= p.out_channels) return compute(p, form, batch, x, pack_form(p, form, weight), bias, target);
  auto part_of = [&](int64_t first) {
    Conv3dPool3d part = p;
    part.out_channels = std::min(step, p.out_channels - first);
    return part;
  };
  const int64_t parts = (p.out_channels + step - 1) / step, size = weight.element_size();
  const Conv3dPool3d largest = part_of(0), last = part_of((parts - 1) * step);
  auto aligned = [](size_t bytes) { return (bytes + 63) / 64 * 64; };
  const size_t packed = aligned(kernels().packed_bytes(largest, form));
  const size_t packing = aligned(kernels().pack_scratch_bytes(largest, form));
  auto computing_of = [&](const Conv3dPool3d& part) {
    return kernels().schedule(part, form, batch, 1, cache_bytes()).scratch_bytes;
  };
  // fewer channels may be computed in larger tasks
  const size_t computing = std::max(computing_of(largest), computing_of(last));
  const int64_t taps = p.kernel[0] * p.kernel[1] * p.kernel[2];
  const Tensor dense = torch::stable::contiguous(weight);
  const char* weights = static_cast<const char*>(dense.const_data_ptr());
  parallel_tasks(parts, packed + std::max(packing, computing), [&](int64_t index, void* memory) {
    const int64_t first = index * step;
    const Conv3dPool3d part = part_of(first);
    char *own = static_cast<char*>(memory), *scratch = own + packed;
    const char* from = weights + first * taps * (p.adjoint ? 1 : p.in_channels) * size;
    for (int64_t task = 0; task < kernels().pack_tasks(part, form); ++task)
      kernels().pack(part, form, from, own, task, scratch);
    auto shifted = [&](ClipView clips) {
      clips.data = static_cast<char*>(clips.data) + first * clips.channel_stride * size;
      return clips;
    };
    const ClipView grad = target.grad == nullptr ? ClipView{} : shifted(*target.grad);
    const Conv3dTarget to{shifted(target.out), target.grad == nullptr ? nullptr : &grad};
    const void* own_bias = bias == nullptr ? nullptr : static_cast<const char*>(bias) + first * size;
    const Conv3dSchedule schedule = kernels().schedule(part, form, batch, 1, cache_bytes());
    for (int64_t task = 0; task < schedule.tasks; ++task)
      kernels().run(part, form, schedule, batch, x, own, own_bias, to, task, scratch);
  });
}

// y (or with `grad` the gradient of z) from x; `out` may have any layout.
void convolve(const Conv3dPool3d& p, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& packed,
              const void* bias, const Tensor& out, const Tensor* grad, bool only_direct) {
  const Conv3dForm form = packed.has_value() ? form_of(p, *packed, only_direct) : kernels().choose(p, only_direct);
  const Tensor read = form == Conv3dForm::direct ? x : with_adjacent_channels(x);
  const int64_t written[] = {out.size(2), out.size(3), out.size(4)};
  // the direct form also writes planes of columns, where it stores its sums as they are
  const bool as_it_is = channels_adjacent(out) || (form == Conv3dForm::direct && !p.pools() && grad == nullptr &&
                                                   p.dtype != Dtype::bf16 && out.stride(4) == 1);
  const Tensor result = as_it_is ? out : empty_clip(out.size(0), out.size(1), written, out, true);
  const Tensor routed = grad == nullptr ? Tensor() : with_adjacent_channels(*grad);
  const ClipView gradient = grad == nullptr ? ClipView{} : readable(routed);
  const Conv3dTarget target{writable(result), grad == nullptr ? nullptr : &gradient};

  auto run = [&](Conv3dPool3d part, Conv3dTarget to) {
    ClipView clips = readable(read);
    if (grad == nullptr) join_axes(part, clips, to.out);
    if (packed.has_value()) {
      compute(part, form, x.size(0), clips, *packed, bias, to);
    } else {
      pack_and_compute(part, form, x.size(0), clips, weight, bias, to);
    }
  };
  if (kernels().pools_within(p, form)) {
    run(p, target);
  } else {
    Conv3dPool3d unpooled = p;
    unpooled.relu = false;
    for (int i = 0; i < 3; ++i) unpooled.pool[i] = 1, unpooled.pooled_size[i] = p.out_size[i];
    const Tensor z = empty_clip(x.size(0), p.out_channels, p.out_size, x, true);
    const ClipView convolved = writable(z);
    run(unpooled, {convolved, nullptr});
    const int64_t planes = (p.out_size[0] + p.pool[0] - 1) / p.pool[0];
    parallel_tasks(x.size(0) * planes, 0, [&](int64_t task, void*) { kernels().finish(p, convolved, target, task); });
  }
  if (!as_it_is) convert(result, out);
}

// Checks x, weight and bias of a forward; returns the problem and the bias, dense.
std::tuple<Conv3dPool3d, std::optional<Tensor>> checked(const Tensor& x, const Tensor& weight,
                                                        const std::optional<Tensor>& bias, const Sizes& padding) {
  check(weight.dim() == 5, "weight must be 5-d (out, in, depth, height, width), got shape ", sizes_of(weight));
  check_clips("x", x, weight.size(1), "weight's in-channels");
  check_same("weight", weight, "x", x);
  std::optional<Tensor> dense;
  if (bias.has_value()) {
    check_same("bias", *bias, "x", x);
    check(bias->dim() == 1 && bias->size(0) == weight.size(0), "bias must have shape (", weight.size(0), "), got ",
          sizes_of(*bias));
    dense = torch::stable::contiguous(*bias);
  }
  return {problem(sizes(weight), clip_size(x), padding, x.scalar_type()), dense};
}

Tensor forward(Tensor x, Tensor weight, std::optional<Tensor> bias, Sizes padding, std::string activation, Sizes pool,
               bool ceil_mode, std::string algorithm, std::optional<std::string> impl, std::optional<Tensor> packed) {
  if (auto why = handed_over("conv3d_pool3d", impl, x.scalar_type()))
    return call_reference("vidgen::conv3d_pool3d_reference", x, weight, bias, padding, activation, pool, ceil_mode,
                          *why);
  auto [p, dense_bias] = checked(x, weight, bias, padding);
  add_pooling(p, activation, pool, ceil_mode);
  Tensor y = empty_clip(x.size(0), p.out_channels, p.pooled_size, x, is_channels_last(x));
  if (y.numel() > 0)
    convolve(p, x, weight, packed, dense_bias ? dense_bias->const_data_ptr() : nullptr, y, nullptr,
             direct_only(algorithm));
  return y;
}

Tensor grad_preactivation(Tensor grad_output, Tensor x, Tensor weight, std::optional<Tensor> bias, Sizes padding,
                          std::string activation, Sizes pool, bool ceil_mode, std::string algorithm,
                          std::optional<std::string> impl) {
  if (auto why = handed_over("conv3d_pool3d_grad_preactivation", impl, x.scalar_type()))
    return call_reference("vidgen::conv3d_pool3d_grad_preactivation_reference", grad_output, x, weight, bias, padding,
                          activation, pool, ceil_mode, *why);
  auto [p, dense_bias] = checked(x, weight, bias, padding);
  add_pooling(p, activation, pool, ceil_mode);
  check_clips("grad_output", grad_output, p.out_channels, "weight's out-channels");
  check_same("grad_output", grad_output, "x", x);
  check(grad_output.size(0) == x.size(0) && grad_output.size(2) == p.pooled_size[0] &&
            grad_output.size(3) == p.pooled_size[1] && grad_output.size(4) == p.pooled_size[2],
        "grad_output must have the shape of the output, got ", sizes_of(grad_output));
  Tensor grad = empty_clip(x.size(0), p.out_channels, p.out_size, x, is_channels_last(x));
  if (grad.numel() > 0)
    convolve(p, x, weight, std::nullopt, dense_bias ? dense_bias->const_data_ptr() : nullptr, grad, &grad_output,
             direct_only(algorithm));
  return grad;
}

Tensor grad_input(Tensor grad, Tensor weight, Sizes padding, std::string algorithm, std::optional<std::string> impl) {
  if (auto why = handed_over("conv3d_pool3d_grad_input", impl, grad.scalar_type()))
    return call_reference("vidgen::conv3d_pool3d_grad_input_reference", grad, weight, padding, *why);
  check(weight.dim() == 5, "weight must be 5-d (out, in, depth, height, width), got shape ", sizes_of(weight));
  check_clips("grad", grad, weight.size(0), "weight's out-channels");
  check_same("weight", weight, "grad", grad);
  check(padding.size() == 6, "padding must be six numbers, before and after each axis, got ", padding.size());
  Sizes around(6);
  for (int i = 0; i < 6; ++i) around[i] = weight.size(2 + i / 2) - 1 - padding[i];
  Sizes exchanged = sizes(weight);
  std::swap(exchanged[0], exchanged[1]);
  Conv3dPool3d p = problem(exchanged, clip_size(grad), around, grad.scalar_type());
  p.adjoint = true;
  p.row_channels = p.out_channels;
  Tensor out = empty_clip(grad.size(0), p.out_channels, p.out_size, grad, is_channels_last(grad));
  if (out.numel() > 0) convolve(p, grad, weight, std::nullopt, nullptr, out, nullptr, direct_only(algorithm));
  return out;
}

std::tuple<Tensor, Tensor> grad_weight(Tensor grad, Tensor x, Sizes kernel_size, Sizes padding, std::string algorithm,
                                       std::optional<std::string> impl) {
  direct_only(algorithm);  // there is one form; the argument is here for the double backward to pass on
  if (auto why = handed_over("conv3d_pool3d_grad_weight", impl, x.scalar_type()))
    return call_reference_of_two("vidgen::conv3d_pool3d_grad_weight_reference", grad, x, kernel_size, padding, *why);
  check(kernel_size.size() == 3, "kernel_size must be three numbers, got ", kernel_size.size());
  check(x.dim() == 5 && grad.dim() == 5, "x and grad must be 5-d (N, C, D, H, W), got shapes ", sizes_of(x), " and ",
        sizes_of(grad));
  check_same("grad", grad, "x", x);
  const Sizes weight{grad.size(1), x.size(1), kernel_size[0], kernel_size[1], kernel_size[2]};
  const Conv3dPool3d p = problem(weight, clip_size(x), padding, x.scalar_type());
  check(grad.size(0) == x.size(0) && grad.size(2) == p.out_size[0] && grad.size(3) == p.out_size[1] &&
            grad.size(4) == p.out_size[2],
        "grad must have the shape of the convolution's output, got ", sizes_of(grad));
  Tensor of_weight = torch::stable::empty(weight, x.scalar_type());
  Tensor of_bias = torch::stable::empty({weight[0]}, x.scalar_type());
  if (x.size(0) == 0) return {torch::stable::zero_(of_weight), torch::stable::zero_(of_bias)};
  const Conv3dGradWeightPlan plan = kernels().plan_grad_weight(p, x.size(0));
  const Tensor sums = empty_bytes(plan.sums_bytes);
  const ClipView clips = readable(x), gradient = readable(grad);
  void *bytes = sums.data_ptr(), *weights = of_weight.data_ptr(), *bias = of_bias.data_ptr();
  parallel_tasks(plan.tasks, plan.scratch_bytes, [&](int64_t task, void* memory) {
    kernels().grad_weight(p, plan, x.size(0), clips, gradient, bytes, task, memory);
  });
  parallel_tasks(p.out_channels, plan.scratch_bytes, [&](int64_t task, void* memory) {
    kernels().combine_grad_weight(p, plan, bytes, weights, bias, task, memory);
  });
  return {of_weight, of_bias};
}

// The convolution that a weight is packed for. Where the size of the clips is unknown: deep layers see small ones.
Conv3dPool3d expected(const Sizes& weight, ScalarType dtype, const Sizes& input_size, const Sizes& padding,
                      const Sizes& pool) {
  check(supported(dtype), "weight cannot be packed: ", cpu_supports(dtype));
  check(weight.size() == 5, "weight must be 5-d (out, in, depth, height, width), got ", weight.size(), " dimensions");
  check(input_size.empty() || input_size.size() == 3, "input_size must be (depth, height, width) or empty, got ",
        input_size.size(), " numbers");
  Sizes size = input_size;
  if (size.empty()) {
    const int64_t channels = std::max<int64_t>({weight[0], weight[1], 1});
    const int64_t side = std::clamp<int64_t>(3584 / channels, 7, 112);
    const int64_t padded = padding.size() == 6 ? padding[0] + padding[1] : 0;
    size = {weight[2] == 1 ? 1 : std::max<int64_t>(side / 3, weight[2] - padded), side, side};
  }
  Conv3dPool3d p = problem(weight, size, padding, dtype);
  add_pooling(p, "relu", pool, true);
  return p;
}

int64_t packed_size(Sizes weight_size, ScalarType dtype, Sizes input_size, Sizes padding, Sizes pool,
                    std::string algorithm) {
  const Conv3dPool3d p = expected(weight_size, dtype, input_size, padding, pool);
  const Conv3dForm form = kernels().choose(p, direct_only(algorithm));
  return static_cast<int64_t>(sizeof(PackedHeader) + kernels().packed_bytes(p, form));
}

Tensor pack(Tensor weight, Sizes input_size, Sizes padding, Sizes pool, std::string algorithm) {
  const Conv3dPool3d p = expected(sizes(weight), weight.scalar_type(), input_size, padding, pool);
  return pack_form(p, kernels().choose(p, direct_only(algorithm)), weight);
}

std::tuple<std::string, double> describe_plan(Tensor x, Tensor weight, Sizes padding, Sizes pool, bool ceil_mode,
                                              std::string algorithm) {
  check(weight.dim() == 5, "weight must be 5-d (out, in, depth, height, width), got shape ", sizes_of(weight));
  check_clips("x", x, weight.size(1), "weight's in-channels");
  check(supported(x.scalar_type()), cpu_supports(x.scalar_type()));
  Conv3dPool3d p = problem(sizes(weight), clip_size(x), padding, x.scalar_type());
  add_pooling(p, "relu", pool, ceil_mode);
  const Conv3dForm form = kernels().choose(p, direct_only(algorithm));
  const Conv3dSchedule s = kernels().schedule(p, form, x.size(0), torch::stable::get_num_threads(), cache_bytes());
  std::ostringstream text;
  if (form == Conv3dForm::direct) {
    text << "direct, " << s.block[0] << " x " << s.block[1] << " x " << s.block[2] << " outputs";
  } else {
    const int m = tile_side(p, form);
    text << "Winograd F(";
    if (form == Conv3dForm::planes) {
      text << m << " x " << m << "), " << p.kernel[0] << (p.kernel[0] == 1 ? " tap" : " taps") << " of depth, ";
    } else {
      text << (p.kernel[0] == 1 ? 1 : 2) << " x " << m << " x " << m << "), ";
    }
    text << s.tiles << " tiles of " << s.groups << (s.groups == 1 ? " group" : " groups") << " of output channels";
  }
  text << " per task, " << s.tasks << " tasks, " << isa_name(isa_in_use());
  return {text.str(), 2 * kernels().multiply_adds(p, form)};
}

}  // namespace
}  // namespace vidgen

STABLE_TORCH_LIBRARY_IMPL(vidgen, CPU, m) {
  m.impl("conv3d_pool3d", TORCH_BOX(&vidgen::forward));
  m.impl("conv3d_pool3d_grad_preactivation", TORCH_BOX(&vidgen::grad_preactivation));
  m.impl("conv3d_pool3d_grad_input", TORCH_BOX(&vidgen::grad_input));
  m.impl("conv3d_pool3d_grad_weight", TORCH_BOX(&vidgen::grad_weight));
  m.impl("conv3d_pool3d_pack", TORCH_BOX(&vidgen::pack));
  m.impl("conv3d_pool3d_cpu_plan", TORCH_BOX(&vidgen::describe_plan));
}

STABLE_TORCH_LIBRARY_IMPL(vidgen, CompositeExplicitAutograd, m) {
  m.impl("conv3d_pool3d_packed_bytes", TORCH_BOX(&vidgen::packed_size));
  m.impl("conv3d_pool3d_cpu_supports", TORCH_BOX(&vidgen::cpu_supports));
}
