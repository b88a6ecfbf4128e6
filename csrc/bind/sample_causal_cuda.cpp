// sample_causal_cuda: the persistent CUDA C++ kernel, and what it is given: a script of the moments to run, and weights
// in its layout. The executor "persistent" of vidgen.sampling calls them. Built even where torch has no CUDA, loaded
// only where it has.
#include "bind/cuda_tensors.h"
#include "bind/sample_causal_checks.h"
#include "cuda/sample_causal.h"
#include "cuda/sample_causal_pack.h"
#include "cuda/sample_causal_writer.h"

namespace vidgen {
namespace {

void check_numbers_dtype(ScalarType dtype) {
  check(dtype == ScalarType::Float || dtype == ScalarType::Double,
        "numbers must be float32 or float64: the CUDA kernel draws from no other networks");
}

Tensor pack(Tensor program, Tensor numbers) {
  DecodedProgram decoded = decoded_program(program);
  check_numbers_dtype(numbers.scalar_type());
  check_numbers(decoded, numbers);
  const int64_t size[] = {cuda::place_weights(decoded.instructions())};
  Tensor packed = torch::stable::empty({size, 1}, numbers.scalar_type());
  const auto pack_as = [&]<class T>(T*) {
    cuda::pack_weights(decoded.instructions(), static_cast<const T*>(numbers.const_data_ptr()),
                       static_cast<T*>(packed.mutable_data_ptr()));
  };
  numbers.scalar_type() == ScalarType::Double ? pack_as(static_cast<double*>(nullptr))
                                              : pack_as(static_cast<float*>(nullptr));
  return packed;
}

Tensor script(Tensor program, int64_t first, int64_t last, bool whole_rows, int64_t top) {
  DecodedProgram decoded = decoded_program(program);
  decoded.check_moments(first, last, whole_rows, top);
  cuda::place_weights(decoded.instructions());
  cuda::ScriptWriter writer(decoded.program());
  writer.write(first, last, whole_rows, top);
  const std::vector<char> bytes = writer.bytes();
  Tensor script = empty_bytes(bytes.size());
  std::memcpy(script.mutable_data_ptr(), bytes.data(), bytes.size());
  return script;
}

// The script is believed: it must be what `script` has written for this program.
void run(Tensor program, Tensor script, Tensor packed, Tensor state, Tensor canvas, Tensor known, Tensor noise,
         std::optional<Tensor> parameters, int64_t levels, int64_t mixtures, double temperature, bool quantize) {
  DecodedProgram decoded = decoded_program(program);
  const SamplingProgram& p = decoded.program();
  check(canvas.is_cuda(), "canvas must be a CUDA tensor");
  check_numbers_dtype(canvas.scalar_type());
  check_images(decoded, state, canvas, known, noise, parameters);
  check_like("packed", packed, canvas, canvas.scalar_type(), {cuda::place_weights(decoded.instructions())});
  check_like("script", script, canvas, ScalarType::Byte, {script.numel()});
  const SamplingHead head = checked_head(p, levels, mixtures, temperature, quantize);
  const torch::stable::accelerator::DeviceGuard guard(canvas.get_device_index());
  const int64_t one[] = {4};
  Tensor meetings = torch::stable::empty({one, 1}, ScalarType::Byte, std::nullopt, canvas.device());
  const cuda::SampleCausal problem{static_cast<const char*>(script.const_data_ptr()),
                                   packed.const_data_ptr(),
                                   state.mutable_data_ptr(),
                                   canvas.mutable_data_ptr(),
                                   static_cast<const bool*>(known.const_data_ptr()),
                                   static_cast<const double*>(noise.const_data_ptr()),
                                   parameters.has_value() ? parameters->mutable_data_ptr() : nullptr,
                                   canvas.size(0),
                                   p.channels,
                                   p.height,
                                   p.width,
                                   p.steps,
                                   p.parameters,
                                   head,
                                   canvas.scalar_type() == ScalarType::Double};
  const cudaError_t error =
      cuda::sample_causal(problem, static_cast<unsigned*>(meetings.mutable_data_ptr()), stream_of(canvas));
  check(error != cudaErrorNotSupported,
        "the persistent kernel of sample_causal needs a device with cooperative launches, whose multiprocessors hold "
        "one of its blocks");
  check(error == cudaSuccess, "the CUDA kernel of sample_causal did not start: ", cudaGetErrorString(error));
}

}  // namespace
}  // namespace vidgen

STABLE_TORCH_LIBRARY_FRAGMENT(vidgen, m) {
  m.def("sample_causal_cuda_pack(Tensor program, Tensor numbers) -> Tensor");
  m.def("sample_causal_cuda_script(Tensor program, int first, int last, bool whole_rows, int top) -> Tensor");
  m.def(
      "sample_causal_cuda(Tensor program, Tensor script, Tensor packed, Tensor(a!) state, Tensor(b!) canvas, "
      "Tensor known, Tensor noise, Tensor(c!)? parameters, int levels, int mixtures, float temperature, "
      "bool quantize) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(vidgen, CPU, m) {
  m.impl("sample_causal_cuda_pack", TORCH_BOX(&vidgen::pack));
  m.impl("sample_causal_cuda_script", TORCH_BOX(&vidgen::script));
}

STABLE_TORCH_LIBRARY_IMPL(vidgen, CUDA, m) { m.impl("sample_causal_cuda", TORCH_BOX(&vidgen::run)); }
