// The decode loop allocates nothing: counted over a random workload without faults (a failure
// message is a string).
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <new>

#include "residency_world.h"

namespace {
std::atomic<uint64_t> allocation_count{0};
}  // namespace

// Not inlined: GCC takes malloc and free seen apart for a mismatch of new and free.
[[gnu::noinline]] void* operator new(size_t bytes) {
  ++allocation_count;
  if (void* memory = std::malloc(bytes)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace moraine {
namespace {

class ResidencyAllocationTest : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(All, ResidencyAllocationTest, ::testing::Values("heat", "sieve", "lru"),
                         [](const auto& param) { return std::string(param.param); });

TEST_P(ResidencyAllocationTest, ARandomWorkloadAllocatesNothing) {
  constexpr uint64_t kSeed = 5;
  WorldOptions options;
  options.slot_count = 14;
  options.policy = GetParam();
  options.faults.max_latency_ns = 100'000;
  World world(options);
  Random random(kSeed);
  std::array<Lease, 4> leases;
  const auto step = [&](bool prefill) {
    world.manager().BeginStep(prefill ? 32 : 1);
    for (uint32_t layer = 0; layer < 4; ++layer) {
      const uint32_t first = static_cast<uint32_t>(random.Below(8));
      const ExpertId ids[] = {ExpertId(first), ExpertId((first + 3) % 8)};
      const ExpertId next[] = {ExpertId((first + 1) % 8)};
      const size_t given = world.manager().Acquire(
          LayerId(layer), ids, {}, prefill ? AcquireMode::kTransient : AcquireMode::kCached,
          leases);
      world.manager().Prefetch(LayerId((layer + 1) % 4), next, PrefetchReason::kLookahead);
      for (size_t i = 0; i < given; ++i) {
        while (leases[i].state() == Lease::State::kPending) world.manager().Poll(-1);
        leases[i].Release();
      }
    }
  };
  // The simulated device and the scheduler's pool grow to their high-water marks first.
  for (int i = 0; i < 500; ++i) step(i % 3 == 0);
  const uint64_t bytes_read = world.manager().stats().bytes_read;
  const uint64_t before = allocation_count;
  for (int i = 0; i < 500; ++i) step(i % 3 == 0);
  const uint64_t after = allocation_count;
  EXPECT_GT(world.manager().stats().bytes_read, bytes_read) << "the workload must read";
  EXPECT_EQ(after - before, 0u) << "seed " << kSeed;
}

}  // namespace
}  // namespace moraine
