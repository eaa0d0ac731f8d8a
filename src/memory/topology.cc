#include "memory/topology.h"

#include <numa.h>
#include <sched.h>

#include <algorithm>
#include <thread>

namespace moraine {
namespace {

// CPU numbers of this process's affinity mask; never empty.
std::vector<int> AllowedCpus() {
  std::vector<int> cpus;
  // numa_allocate_cpumask is as wide as the kernel's mask; cpu_set_t stops at 1024 CPUs.
  bitmask* mask = numa_allocate_cpumask();
  if (numa_sched_getaffinity(0, mask) >= 0) {
    for (unsigned cpu = 0; cpu < mask->size; ++cpu) {
      if (numa_bitmask_isbitset(mask, cpu)) cpus.push_back(static_cast<int>(cpu));
    }
  }
  numa_free_cpumask(mask);
  if (cpus.empty()) {
    const unsigned count = std::max(1u, std::thread::hardware_concurrency());
    for (unsigned cpu = 0; cpu < count; ++cpu) cpus.push_back(static_cast<int>(cpu));
  }
  return cpus;
}

uint64_t PhysicalMemoryBytes() {
  const Result<MemoryLimit> limit = DetectMemoryLimit();
  return limit.ok() ? limit->limit_bytes : 0;
}

}  // namespace

int Topology::cpu_count() const {
  size_t count = 0;
  for (const NumaNode& node : nodes) count += node.cpus.size();
  return static_cast<int>(count);
}

Topology Topology::Detect() {
  Topology topology;
  const std::vector<int> allowed = AllowedCpus();
  if (numa_available() >= 0) {
    for (int id = 0; id <= numa_max_node(); ++id) {
      if (!numa_bitmask_isbitset(numa_all_nodes_ptr, static_cast<unsigned>(id))) continue;
      NumaNode node;
      node.id = id;
      for (int cpu : allowed) {
        if (numa_node_of_cpu(cpu) == id) node.cpus.push_back(cpu);
      }
      // A node that none of our threads may run on would only ever be remote memory.
      if (node.cpus.empty()) continue;
      const long long size_bytes = numa_node_size64(id, nullptr);
      node.memory_bytes = size_bytes > 0 ? static_cast<uint64_t>(size_bytes) : 0;
      topology.nodes.push_back(std::move(node));
    }
  }
  // No NUMA in the kernel, or sysfs that does not place every allowed CPU (some containers).
  if (topology.cpu_count() != static_cast<int>(allowed.size())) {
    topology.nodes = {NumaNode{0, allowed, PhysicalMemoryBytes()}};
  }
  return topology;
}

}  // namespace moraine
