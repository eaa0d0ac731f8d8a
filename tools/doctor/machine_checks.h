// The checks of `moraine doctor` that concern the machine and what this process may do on it.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "doctor/finding.h"
#include "doctor/system_tree.h"
#include "doctor/target.h"

namespace moraine {

// What is learnt by trying, not by reading files.
struct ProcessFacts {
  // Of setting an io_uring up: 0, or the errno; unset: not tried.
  std::optional<int> io_uring_error;
  std::vector<std::string> isas;  // of the kernels that this CPU can run, narrowest first
  std::string chosen_isa;         // what the engine would take
  std::string isa_error;          // why it would take none (a wrong MORAINE_ISA)
};

ProcessFacts ProbeProcess();

Finding CheckIoUring(const SystemTree& tree, const ProcessFacts& facts);
// RLIMIT_MEMLOCK: registered buffers count against it.
Finding CheckMemlock(const SystemTree& tree);
// What this process may use, by cgroup or by the machine.
Finding CheckMemory(const SystemTree& tree);
Finding CheckSwap(const SystemTree& tree);
Finding CheckGovernor(const SystemTree& tree);
Finding CheckHugePages(const SystemTree& tree);
// Nodes, and whether this process may run near the drive.
Finding CheckNuma(const SystemTree& tree, const Target& target);
Finding CheckSimd(const ProcessFacts& facts);

std::vector<Finding> CheckMachine(const SystemTree& tree, const Target& target,
                                  const ProcessFacts& facts);

}  // namespace moraine
