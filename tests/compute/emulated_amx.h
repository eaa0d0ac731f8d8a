// The kernels of amx_gemm.h over plain loops in place of AMX's tile unit: for CPUs without it. They
// need AVX-512.
#pragma once

#include "compute/cpu/kernel_table.h"

namespace moraine {

void EmulatedAmxQ8(const PanelArguments& arguments);
void EmulatedAmxQ4(const PanelArguments& arguments);
void EmulatedAmxQ4Bf16(const PanelArguments& arguments);
void EmulatedAmxMxfp4(const PanelArguments& arguments);
void EmulatedAmxIq4Nl(const PanelArguments& arguments);

}  // namespace moraine
