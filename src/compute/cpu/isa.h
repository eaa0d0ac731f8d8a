// From an Isa to its kernels. Internal to compute and its tests and benchmarks.
#pragma once

#include "compute/cpu/kernel_table.h"
#include "compute/cpu_backend.h"

namespace moraine {

const KernelTable& KernelsOf(Isa isa);
// Whether this CPU and this build have it.
bool IsaSupported(Isa isa);
// The widest supported one, whatever the environment says.
Isa BestIsa();

}  // namespace moraine
