// Gated linear attention over the threads: the short convolution and the gated delta rule. Internal
// to compute; recurrent_kernels.h has the formulas and why the work is cut as it is.
#pragma once

#include "compute/cpu/kernel_table.h"
#include "compute/cpu_backend.h"

namespace moraine {

void RunCausalConv(const KernelTable& kernels, ThreadPool& pool, const CausalConvCall& call);
void RunGatedDelta(const KernelTable& kernels, ThreadPool& pool, const GatedDeltaCall& call);

}  // namespace moraine
