#include "cpu/isa.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace vidgen {
namespace {

constexpr const char* kNames[] = {"baseline", "avx2", "avx512", "avx512_bf16"};

bool processor_has(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::baseline:
      return true;
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    case Isa::avx512:
      return processor_has(Isa::avx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    case Isa::avx512_bf16:
      return processor_has(Isa::avx512) && __builtin_cpu_supports("avx512bf16");
  }
#endif
  return isa == Isa::baseline;
}

// Bf16 widened to float is twice as fast as bf16 products on the Intel processor that was measured (Xeon of the fourth
// generation, two cores: 172 GFLOP/s of bf16 products, 348 of float ones); others of Intel's are taken to be alike. On
// AMD's Zen 4 it is the other way round.
bool multiplies_bf16_slowly() {
#if defined(__x86_64__)
  return __builtin_cpu_is("intel");
#else
  return false;
#endif
}

Isa requested_cap() {
  const char* wish = std::getenv("VIDGEN_CPU_ISA");
  for (int level = 0; wish != nullptr && level < 4; ++level)
    if (std::strcmp(wish, kNames[level]) == 0) return static_cast<Isa>(level);
  return multiplies_bf16_slowly() ? Isa::avx512 : Isa::avx512_bf16;
}

Isa choose() {
  const Isa cap = requested_cap();
  Isa best = Isa::baseline;
  for (Isa isa : isa_compiled())
    if (isa <= cap && processor_has(isa)) best = isa;
  return best;
}

}  // namespace

Isa isa_in_use() {
  static const Isa chosen = choose();
  return chosen;
}

std::vector<Isa> isa_compiled() {
#if defined(VIDGEN_X86)
  return {Isa::baseline, Isa::avx2, Isa::avx512, Isa::avx512_bf16};
#else
  return {Isa::baseline};
#endif
}

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

std::string isa_unknown_request() {
  const char* wish = std::getenv("VIDGEN_CPU_ISA");
  if (wish == nullptr || *wish == '\0') return "";
  const bool known = std::any_of(std::begin(kNames), std::end(kNames),
                                 [wish](const char* name) { return std::strcmp(wish, name) == 0; });
  return known ? "" : wish;
}

}  // namespace vidgen
