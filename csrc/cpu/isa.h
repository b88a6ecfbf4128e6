// Which instruction set the kernels use, decided once per process.
#pragma once

#include <string>
#include <vector>

namespace vidgen {

// Ordered: each level runs on every machine that runs a later one.
enum class Isa : int { baseline, avx2, avx512, avx512_bf16 };

// The best level that was compiled in, that this processor has and that VIDGEN_CPU_ISA (a level's name, read
// once) does not rule out. Where bf16 products are slower than float ones, avx512_bf16 runs only if it is named.
Isa isa_in_use();

// Levels that this build contains, lowest first.
std::vector<Isa> isa_compiled();

const char* isa_name(Isa isa);

// The name in VIDGEN_CPU_ISA when it names no level (the variable is then ignored), else "".
std::string isa_unknown_request();

}  // namespace vidgen
