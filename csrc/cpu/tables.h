// The one place where an instruction set becomes a table of function pointers.
#pragma once

#include "cpu/isa.h"

// VIDGEN_TABLE(masked_conv2d) is the table `masked_conv2d` of the instruction set in use.
#if defined(VIDGEN_X86)
#define VIDGEN_TABLE(table)                                                            \
  (::vidgen::isa_in_use() == ::vidgen::Isa::avx512_bf16 ? ::vidgen::avx512_bf16::table \
   : ::vidgen::isa_in_use() == ::vidgen::Isa::avx512    ? ::vidgen::avx512::table      \
   : ::vidgen::isa_in_use() == ::vidgen::Isa::avx2      ? ::vidgen::avx2::table        \
                                                        : ::vidgen::baseline::table)
#else
#define VIDGEN_TABLE(table) (::vidgen::baseline::table)
#endif
