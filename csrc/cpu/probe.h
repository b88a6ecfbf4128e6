// What this machine can reach: the roof that the benchmarks hold a kernel against.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vidgen {

struct ProbeTable {
  // Runs `rounds` rounds of independent fused multiply-adds on registers and returns the FLOPs done (one
  // multiply and one add count as two). `sink` keeps the compiler from dropping the work.
  double (*flops_fp32)(int64_t rounds, float* sink);
  // Same for bf16 dot products with fp32 accumulation; null where the instruction set has none.
  double (*flops_bf16)(int64_t rounds, float* sink);
};

namespace baseline { extern const ProbeTable probe; }
namespace avx2 { extern const ProbeTable probe; }
namespace avx512 { extern const ProbeTable probe; }
namespace avx512_bf16 { extern const ProbeTable probe; }

}  // namespace vidgen
