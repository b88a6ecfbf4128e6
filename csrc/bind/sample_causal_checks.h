// What every backend of sample_causal asks of its arguments.
#pragma once

#include "bind/sample_causal_program.h"
#include "bind/tensors.h"

namespace vidgen {

inline DecodedProgram decoded_program(const Tensor& words) {
  check(words.is_cpu() && words.dim() == 1 && words.scalar_type() == ScalarType::Long && words.is_contiguous(),
        "program must be a contiguous 1-d int64 tensor on the CPU");
  return DecodedProgram(static_cast<const int64_t*>(words.const_data_ptr()), words.numel());
}

// The weights and biases of all linear instructions, as the packing reads them.
inline void check_numbers(DecodedProgram& decoded, const Tensor& numbers) {
  check(numbers.is_cpu() && numbers.dim() == 1 && numbers.is_contiguous(),
        "numbers must be contiguous, 1-d, on the CPU");
  int64_t expected = 0;
  for (const SamplingInstruction& i : decoded.instructions()) expected += DecodedProgram::numbers(i);
  check(numbers.numel() == expected, "numbers must be ", expected, ", got ", numbers.numel());
}

// `canvas` says on which device all have to be.
inline void check_like(const char* name, const Tensor& t, const Tensor& canvas, ScalarType dtype,
                       std::initializer_list<int64_t> size) {
  const bool there = canvas.is_cpu() ? t.is_cpu() : t.is_cuda() && t.get_device_index() == canvas.get_device_index();
  bool same = there && t.scalar_type() == dtype && t.is_contiguous() && t.dim() == int64_t(size.size());
  std::ostringstream text;
  int64_t d = 0;
  for (int64_t n : size) {
    same = same && t.size(d) == n;
    text << (d++ > 0 ? ", " : "") << n;
  }
  check(same, name, " must be contiguous, on the ", canvas.is_cpu() ? "CPU" : "canvas's device", " and of shape (",
        text.str(), ") and the dtype that belongs to it, ", "got shape ", sizes_of(t));
}

// What is drawn, from which noise, on which state.
inline void check_images(const DecodedProgram& decoded, const Tensor& state, const Tensor& canvas, const Tensor& known,
                         const Tensor& noise, const std::optional<Tensor>& parameters) {
  const SamplingProgram& p = decoded.program();
  check(canvas.dim() == 4, "canvas must be 4-d (N, C, H, W), got shape ", sizes_of(canvas));
  const int64_t n = canvas.size(0);
  check_like("canvas", canvas, canvas, canvas.scalar_type(), {n, p.channels, p.height, p.width});
  check_like("known", known, canvas, ScalarType::Bool, {n, p.channels, p.height, p.width});
  check_like("noise", noise, canvas, ScalarType::Double, {n, p.channels, p.height, p.width, 2});
  check_like("state", state, canvas, canvas.scalar_type(), {decoded.state_numel(n)});
  if (parameters.has_value())
    check_like("parameters", *parameters, canvas, canvas.scalar_type(), {n, p.parameters, p.steps, p.height, p.width});
}

inline SamplingHead checked_head(const SamplingProgram& p, int64_t levels, int64_t mixtures, double temperature,
                                 bool quantize) {
  check(temperature > 0, "temperature must be positive, got ", temperature);
  check(levels >= 2, "levels must be at least 2, got ", levels);
  const int64_t c = p.channels / p.steps;
  if (mixtures > 0) {
    check(c <= 3 && p.parameters == mixtures * (1 + 2 * c + c * (c - 1) / 2), "mixtures: ", mixtures, " logistics of ",
          c, " channels do not have ", p.parameters, " parameters");
  } else {
    check(c == 1 && p.parameters == levels, "levels: a softmax over ", levels, " does not have ", p.parameters,
          " parameters for ", c, " channels");
  }
  return {mixtures > 0, mixtures, levels, temperature, quantize};
}

}  // namespace vidgen
