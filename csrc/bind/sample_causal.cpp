// Drawing from a causal network on the CPU: checks, packing, the team of threads, registration.
#include <algorithm>
#include <chrono>

#include "bind/cpu_backend.h"
#include "bind/sample_causal_checks.h"
#include "cpu/isa.h"
#include "cpu/sample_causal.h"
#include "cpu/tables.h"

namespace vidgen {
namespace {

const SampleCausalTable& sampling_kernels() { return VIDGEN_TABLE(sample_causal); }

SamplingNumbers numbers_of(ScalarType dtype, bool narrow_weights) {
  check(dtype == ScalarType::Float || dtype == ScalarType::Double,
        "numbers must be float32 or float64: the CPU kernel draws from no other networks");
  check(!narrow_weights || dtype == ScalarType::Float, "narrow_weights: bfloat16 weights need float32 numbers");
  return {kernel_dtype(dtype), narrow_weights};
}

// Where each instruction's numbers lie; returns the bytes of all.
int64_t place_weights(DecodedProgram& decoded, SamplingNumbers numbers) {
  int64_t bytes = 0;
  for (SamplingInstruction& i : decoded.instructions()) {
    if (!i.linear) continue;
    i.weight_at = bytes;
    bytes += sampling_kernels().packed_bytes(i, numbers);
  }
  return bytes;
}

// Memory for numbers that kernels find at a multiple of 64 bytes.
constexpr int64_t kAlignment = 64;
char* aligned(const void* p) {
  return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(p) + kAlignment - 1) / kAlignment * kAlignment);
}

Tensor sample_causal_pack(Tensor program, Tensor numbers, bool narrow_weights) {
  DecodedProgram decoded = decoded_program(program);
  const SamplingNumbers types = numbers_of(numbers.scalar_type(), narrow_weights);
  check_numbers(decoded, numbers);
  Tensor packed = empty_bytes(size_t(place_weights(decoded, types) + kAlignment));
  const char* from = static_cast<const char*>(numbers.const_data_ptr());
  char* to = aligned(packed.data_ptr());
  std::vector<const char*> sources;
  for (const SamplingInstruction& i : decoded.instructions()) {
    sources.push_back(from);
    from += DecodedProgram::numbers(i) * static_cast<int64_t>(numbers.element_size());
  }
  const std::vector<SamplingInstruction>& all = decoded.instructions();
  parallel_tasks(int64_t(all.size()), 0, [&](int64_t k, void*) {
    if (all[k].linear) sampling_kernels().pack(all[k], types, sources[k], to + all[k].weight_at);
  });
  return packed;
}

// Who has not come by then draws no more in this call: long against the time in which a thread awakes.
constexpr auto kRollCall = std::chrono::milliseconds(2);

// Multiply-adds (two microseconds) for which meeting before and after them pays.
constexpr int64_t kWorkOfMember = 64 * 1024;

// Rows of a member that draws images of its own: with fewer, weights are read too often for too little.
constexpr int64_t kRowsOfMember = 12;

struct Members {
  int64_t count;
  bool by_images;
};

// Members that draw images of their own, where there are enough of them. Else as many as have enough to do between two
// meetings: the mean work of a linear instruction, for all images, at the places of a moment.
Members members_for(DecodedProgram& decoded, int64_t images) {
  const SamplingProgram& p = decoded.program();
  int64_t work = 0, count = 0;
  for (const SamplingInstruction& i : decoded.instructions()) {
    if (!i.linear || i.by_row) continue;
    work += int64_t(i.depth) * i.channels;
    ++count;
  }
  const int64_t threads = torch::stable::get_num_threads();
  // how many pixels a time of the wavefront has
  const int64_t places = p.wave == 0 ? 1 : std::max<int64_t>(1, p.height * p.width / (p.width + p.wave * p.height));
  if (images / threads * places >= kRowsOfMember) return {threads, true};
  const int64_t members = count == 0 ? 1 : work / count * images * places / kWorkOfMember;
  return {std::clamp<int64_t>(members, 1, threads), false};
}

// Runs work(team, member) on `wanted` of torch's threads, or those of them that come in time.
template <class Work>
void with_team(int64_t wanted, size_t scratch_bytes, const Work& work) {
  Team team;
  std::atomic<int64_t> called{0};
  torch::stable::parallel_for(0, wanted, 1, [&](int64_t begin, int64_t end) {
    void* memory = scratch(scratch_bytes);
    const int member = memory == nullptr ? -1 : team.enroll();
    called += end - begin;
    if (member < 0) return;
    const auto until = std::chrono::steady_clock::now() + kRollCall;
    for (int spins = 0; !team.closed(); pause_briefly(spins))
      if (member == 0 && (called == wanted || std::chrono::steady_clock::now() > until)) team.close();
    if (poison_scratch()) std::memset(memory, 0xff, scratch_bytes);
    work(team, member);
  });
  check(team.members() > 0, "out of memory: a thread needs ", scratch_bytes, " bytes of scratch");
}

void sample_causal(Tensor program, Tensor packed, bool narrow_weights, Tensor state, Tensor canvas, Tensor known,
                   Tensor noise, std::optional<Tensor> parameters, int64_t first, int64_t last, bool whole_rows,
                   int64_t top, int64_t levels, int64_t mixtures, double temperature, bool quantize) {
  DecodedProgram decoded = decoded_program(program);
  const SamplingNumbers types = numbers_of(canvas.scalar_type(), narrow_weights);
  const int64_t bytes = place_weights(decoded, types) + kAlignment;
  const SamplingProgram& p = decoded.program();
  check_images(decoded, state, canvas, known, noise, parameters);
  check_like("packed", packed, canvas, ScalarType::Byte, {bytes});
  const SamplingHead head = checked_head(p, levels, mixtures, temperature, quantize);
  const int64_t n = canvas.size(0);
  decoded.check_moments(first, last, whole_rows, top);
  if (n == 0) return;
  const Members members = members_for(decoded, n);
  const SamplingCall call{p,
                          head,
                          types,
                          aligned(packed.const_data_ptr()),
                          state.data_ptr(),
                          canvas.data_ptr(),
                          static_cast<const bool*>(known.const_data_ptr()),
                          static_cast<const double*>(noise.const_data_ptr()),
                          parameters.has_value() ? parameters->data_ptr() : nullptr,
                          n,
                          first,
                          last,
                          top,
                          whole_rows,
                          members.by_images};
  with_team(members.count, sampling_kernels().scratch_bytes(call),
            [&](Team& team, int member) { sampling_kernels().run(call, team, member, scratch(0)); });
}

}  // namespace
}  // namespace vidgen

STABLE_TORCH_LIBRARY_IMPL(vidgen, CPU, m) {
  m.impl("sample_causal_pack", TORCH_BOX(&vidgen::sample_causal_pack));
  m.impl("sample_causal", TORCH_BOX(&vidgen::sample_causal));
}
