#include "memory/topology.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <set>

#include "memory/host_arena.h"

namespace moraine {
namespace {

TEST(Topology, HasExactlyTheCpusOfTheAffinityMask) {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  ASSERT_EQ(sched_getaffinity(0, sizeof(allowed), &allowed), 0);
  const Topology topology = Topology::Detect();
  ASSERT_FALSE(topology.nodes.empty());
  std::set<int> seen;
  for (const NumaNode& node : topology.nodes) {
    EXPECT_FALSE(node.cpus.empty()) << "node " << node.id;
    EXPECT_GT(node.memory_bytes, 0u);
    for (int cpu : node.cpus) {
      EXPECT_TRUE(CPU_ISSET(cpu, &allowed));
      EXPECT_TRUE(seen.insert(cpu).second) << "cpu " << cpu << " is in two nodes";
    }
  }
  EXPECT_EQ(static_cast<int>(seen.size()), CPU_COUNT(&allowed));
  EXPECT_EQ(topology.cpu_count(), CPU_COUNT(&allowed));
}

TEST(Topology, ANarrowerAffinityMaskIsSeen) {
  cpu_set_t before;
  ASSERT_EQ(sched_getaffinity(0, sizeof(before), &before), 0);
  const int first_cpu = Topology::Detect().nodes.front().cpus.front();
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(first_cpu, &one);
  ASSERT_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
  const Topology narrowed = Topology::Detect();
  ASSERT_EQ(sched_setaffinity(0, sizeof(before), &before), 0);
  ASSERT_EQ(narrowed.nodes.size(), 1u);
  EXPECT_EQ(narrowed.nodes[0].cpus, std::vector<int>{first_cpu});
}

TEST(ProcessMemory, GrowsWithWhatIsTouched) {
  const ProcessMemory before = ReadProcessMemory();
  ASSERT_GT(before.resident_bytes, 0u);
  EXPECT_GE(before.peak_resident_bytes, before.resident_bytes);
  constexpr uint64_t kBytes = 64ull << 20;
  const auto arena = HostArena::Allocate(kBytes, {.huge_pages = false});
  ASSERT_TRUE(arena.ok()) << arena.status().ToString();
  EXPECT_GE(ReadProcessMemory().resident_bytes, before.resident_bytes + kBytes / 2);
}

}  // namespace
}  // namespace moraine
