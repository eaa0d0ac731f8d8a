// What the machine offers: CPUs by NUMA node, and how much memory this process may use.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"

namespace moraine {

struct NumaNode {
  int id = 0;
  std::vector<int> cpus;  // only those in this process's affinity mask
  uint64_t memory_bytes = 0;
};

struct Topology {
  // Nodes with at least one CPU that this process may run on, in order of id. Never empty; one node
  // where the kernel has no NUMA.
  std::vector<NumaNode> nodes;
  int cpu_count() const;
  // Reads sysfs through libnuma. Falls back to one node with all allowed CPUs.
  static Topology Detect();
};

// The memory this process may use, and what says so.
struct MemoryLimit {
  uint64_t limit_bytes = 0;  // the tightest cgroup limit on the path to the root, or MemTotal
  uint64_t available_bytes =
      0;               // min(MemAvailable, limit - cgroup usage without reclaimable cache)
  std::string source;  // "cgroup v2 memory.max", "cgroup v1 memory.limit_in_bytes", "MemTotal"
};

// root: prefix of /proc and /sys, for tests; "" for the real ones.
Result<MemoryLimit> DetectMemoryLimit(const std::string& root = "");

// Resident set of this process, bytes, from /proc/self/status (VmRSS and VmHWM).
struct ProcessMemory {
  uint64_t resident_bytes = 0;
  uint64_t peak_resident_bytes = 0;
};
ProcessMemory ReadProcessMemory();

}  // namespace moraine
