// What AMX adds to the AVX-512 table: quantised weights for packed tokens. The table itself is in
// kernels_avx512.cc, whose kernels serve everything else.
#pragma once

#include "compute/cpu/kernel_table.h"

namespace moraine {

void AmxPackedQ8(const PanelArguments& arguments);
void AmxPackedQ4(const PanelArguments& arguments);
void AmxPackedQ4Bf16(const PanelArguments& arguments);
void AmxPackedMxfp4(const PanelArguments& arguments);
void AmxPackedIq4Nl(const PanelArguments& arguments);

}  // namespace moraine
