// What every op's CPU binding decides alike: the dtypes its kernel computes, and whether a call is handed over to eager
// PyTorch.
#pragma once

#include <cstdlib>
#include <tuple>

#include "bind/tensors.h"
#include "cpu/views.h"

namespace vidgen {

inline bool supported(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::BFloat16 || dtype == ScalarType::Double;
}

inline std::string cpu_supports(ScalarType dtype) {
  return supported(dtype) ? "" : "the CPU kernel computes float32, bfloat16 and float64 only";
}

inline Dtype kernel_dtype(ScalarType dtype) {
  return dtype == ScalarType::Float ? Dtype::f32 : dtype == ScalarType::BFloat16 ? Dtype::bf16 : Dtype::f64;
}

inline void check_same(const char* name, const Tensor& t, const char* like_name, const Tensor& like) {
  check(t.is_cpu(), name, " must be on the CPU like ", like_name);
  check(t.scalar_type() == like.scalar_type(), name, " must have the dtype of ", like_name);
}

inline bool direct_only(const std::string& algorithm) {
  check(algorithm == "auto" || algorithm == "direct", "algorithm must be 'auto' or 'direct', got '", algorithm, "'");
  return algorithm == "direct";
}

// Which backend a call asked for: `impl`, else VIDGEN_IMPL, else the kernel unless `why_not` says why it cannot.
// Returns the reason to warn with when the reference stands in, "" when it was asked for, nothing when the kernel runs.
inline std::optional<std::string> handed_over(const char* op, const std::optional<std::string>& impl,
                                              const std::string& why_not) {
  const char* process_wide = std::getenv("VIDGEN_IMPL");
  const std::string choice = impl.has_value() ? *impl : process_wide != nullptr ? process_wide : "";
  if (choice == "reference") return "";
  if (choice.empty()) return why_not.empty() ? std::nullopt : std::optional(why_not);
  check(choice == "cpu", op, ": impl='", choice,
        "' cannot run here: the tensors are on the CPU; impl must be 'cpu' or ", "'reference'");
  check(why_not.empty(), op, ": impl='cpu' cannot run here: ", why_not);
  return std::nullopt;
}

inline std::optional<std::string> handed_over(const char* op, const std::optional<std::string>& impl,
                                              ScalarType dtype) {
  return handed_over(op, impl, cpu_supports(dtype));
}

// The stack holds the arguments, then the results.
template <typename Result = Tensor, typename... Args>
Result call_reference(const char* op, const Args&... args) {
  StableIValue stack[] = {torch::stable::detail::from(args)...};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(op, "", stack, TORCH_ABI_VERSION));
  return torch::stable::detail::to<Result>(stack[0]);
}

template <typename... Args>
std::tuple<Tensor, Tensor> call_reference_of_two(const char* op, const Args&... args) {
  StableIValue stack[] = {torch::stable::detail::from(args)...};
  static_assert(sizeof...(args) >= 2);
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(op, "", stack, TORCH_ABI_VERSION));
  return {torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1])};
}

}  // namespace vidgen
