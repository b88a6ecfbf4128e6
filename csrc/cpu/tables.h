// The one place where an instruction set becomes a table of function pointers.
#pragma once

#include "cpu/isa.h"

// VIDGEN_TABLE(warp) is the table `warp` of the instruction set in use. VIDGEN_BF16_TABLE is for kernels that multiply
// bf16, which are compiled for avx512_bf16 too; the others would gain nothing from it, and run as avx512 there.
#if defined(VIDGEN_X86)
#define VIDGEN_TABLE(table)                                                  \
  (::vidgen::isa_in_use() >= ::vidgen::Isa::avx512 ? ::vidgen::avx512::table \
   : ::vidgen::isa_in_use() == ::vidgen::Isa::avx2 ? ::vidgen::avx2::table   \
                                                   : ::vidgen::baseline::table)
#define VIDGEN_BF16_TABLE(table) \
  (::vidgen::isa_in_use() == ::vidgen::Isa::avx512_bf16 ? ::vidgen::avx512_bf16::table : VIDGEN_TABLE(table))
#else
#define VIDGEN_TABLE(table) (::vidgen::baseline::table)
#define VIDGEN_BF16_TABLE(table) VIDGEN_TABLE(table)
#endif
