// What machine this is, as far as the best settings of a model depend on it: for `moraine tune` and whoever uses
// what it has found. Names of people's disks do not leave the machine: they are in the store's own catalogue.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "doctor/system_tree.h"

namespace moraine {

// Names and values, in order: CPU, its count that this process may use, memory to the GiB, the drive below
// `directory`, and, where it is wanted and there is one, the GPU and its VRAM to the GiB. What the machine does not
// tell is "unknown". A GPU takes a quarter of a second: CUDA starts.
std::vector<std::pair<std::string, std::string>> IdentifyMachine(const SystemTree& tree,
                                                                 const std::string& directory,
                                                                 bool with_gpu);

// Cores of the CPUs that this process may use; its CPUs where the machine does not tell.
int PhysicalCoreCount(const SystemTree& tree);

}  // namespace moraine
