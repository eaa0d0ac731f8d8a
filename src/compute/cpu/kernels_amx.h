// What AMX adds to the AVX-512 table: q8 and q4 for packed tokens. The table itself is in
// kernels_avx512.cc, whose kernels serve everything else.
#pragma once

#include "compute/cpu/kernel_table.h"

namespace moraine {

void AmxPackedQ8(const PanelArguments& arguments);
void AmxPackedQ4(const PanelArguments& arguments);

}  // namespace moraine
