// A decode step allocates nothing: counted at operator new, over all threads.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "engine/runner.h"
#include "model/sequence_state.h"
#include "test_store.h"

namespace {
std::atomic<uint64_t> allocations{0};
}

[[gnu::noinline]] void* operator new(size_t size) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void* operator new(size_t size, std::align_val_t alignment) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  const size_t align = static_cast<size_t>(alignment);
  if (void* memory = std::aligned_alloc(align, (size + align - 1) / align * align)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }

namespace moraine {
namespace {

class AllocationTest : public testing::TestWithParam<const char*> {};

TEST_P(AllocationTest, DecodeAllocatesNothing) {
  const TestStore store(DemoModelPath(), Encoding::kQ4);
  const auto runner = Runner::Open(TestRunnerOptions(store, GetParam()));
  ASSERT_TRUE(runner.ok()) << runner.status().message();
  float best = 0;
  const Runner::LogitsSink sink = [&](uint32_t, std::span<const float> logits) {
    best = logits[0];
  };
  const Runner::ForwardOptions options{.sink = &sink};
  int32_t token = 300;
  const auto decode = [&](int steps) {
    for (int i = 0; i < steps; ++i) {
      ASSERT_TRUE((*runner)->Forward(std::span(&token, 1), options).ok());
      token = (token * 31 + 7) % 4000;
    }
  };
  decode(100);  // pools reach their high-water mark
  const uint64_t before = allocations.load();
  decode(200);
  EXPECT_EQ(allocations.load() - before, 0u);
  EXPECT_NE(best, 0.0f);
  ::operator delete(::operator new(16));  // a plain new-expression may be optimised away
  EXPECT_GT(allocations.load(), before) << "the counter counts";
}

TEST_P(AllocationTest, DecodingTogetherAllocatesNothing) {
  constexpr uint32_t kSequences = 4;
  const TestStore store(DemoModelPath(), Encoding::kQ4);
  RunnerOptions runner_options = TestRunnerOptions(store, GetParam());
  runner_options.max_sequences = kSequences;
  const auto runner = Runner::Open(runner_options);
  ASSERT_TRUE(runner.ok()) << runner.status().message();
  float best = 0;
  const LogitsSink sink = [&](uint32_t, std::span<const float> logits) { best = logits[0]; };
  std::vector<std::vector<int32_t>> tokens(kSequences, std::vector<int32_t>(1000));
  for (uint32_t s = 0; s < kSequences; ++s) {
    for (size_t i = 0; i < 1000; ++i) tokens[s][i] = static_cast<int32_t>(i * 31 + s * 7) % 4000;
  }
  std::vector<BatchSegment> batch(kSequences);
  const auto decode = [&](int steps) {
    for (int i = 0; i < steps; ++i) {
      for (uint32_t s = 0; s < kSequences; ++s) {
        SequenceState& state = (*runner)->sequence(s);
        batch[s].tokens = std::span(tokens[s]).subspan(state.length(), 1);
        batch[s].state = &state;
        batch[s].sink = &sink;
        batch[s].decode = true;
      }
      (*runner)->Step(batch);
      for (uint32_t s = 0; s < kSequences; ++s) {
        ASSERT_TRUE(batch[s].status.ok());
        (*runner)->sequence(s).Publish(tokens[s]);
      }
    }
  };
  decode(70);
  const uint64_t before = allocations.load();
  decode(130);  // across blocks
  EXPECT_EQ(allocations.load() - before, 0u);
  EXPECT_NE(best, 0.0f);
}

INSTANTIATE_TEST_SUITE_P(Budgets, AllocationTest, testing::Values("100%", "25%", "5%"));

}  // namespace
}  // namespace moraine
