#include "compute/thread_pool.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <atomic>
#include <thread>
#include <vector>

#include "compute_test_support.h"

namespace moraine {
namespace {

class ThreadPoolTest : public testing::TestWithParam<int> {};

TEST_P(ThreadPoolTest, RunsEveryTaskOnceAndPublishesItsWrites) {
  // Two CPUs by hand: 5 threads are oversubscribed, which takes the path without spinning.
  ThreadPool pool(TopologyOf(2), {.thread_count = GetParam(), .pin = false});
  ASSERT_EQ(pool.thread_count(), GetParam());
  std::vector<uint32_t> runs(300);  // plain memory: a missing happens-before is a race under TSan
  for (uint32_t region = 1; region <= 2000; ++region) {
    const uint32_t count = region % 300;
    pool.ParallelFor(count, [&](uint32_t task, uint32_t thread) {
      ASSERT_LT(thread, static_cast<uint32_t>(GetParam()));
      runs[task] += task + 1;
    });
    for (uint32_t task = 0; task < 300; ++task) {
      ASSERT_EQ(runs[task], task < count ? task + 1 : 0) << "region " << region;
      runs[task] = 0;
    }
  }
}

TEST_P(ThreadPoolTest, WakesWorkersThatWentToSleep) {
  ThreadPool pool(TopologyOf(2), {.thread_count = GetParam(), .pin = false});
  // Every task waits for all others: the region ends only if every thread was woken.
  for (int region = 0; region < 20; ++region) {
    const uint32_t count = static_cast<uint32_t>(pool.thread_count());
    std::atomic<uint32_t> arrived{0};
    pool.ParallelFor(count, [&](uint32_t, uint32_t) {
      arrived.fetch_add(1);
      while (arrived.load() < count) std::this_thread::yield();
    });
    EXPECT_EQ(arrived.load(), count);
    // Longer than the workers spin, measured by the clock they measure it with.
    const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(300);
    while (std::chrono::steady_clock::now() < end) std::this_thread::yield();
  }
}

TEST_P(ThreadPoolTest, StartsAndStopsWithoutWork) {
  for (int i = 0; i < 50; ++i) {
    ThreadPool pool(TopologyOf(1), {.thread_count = GetParam()});
    if (i % 2 == 0) pool.ParallelFor(3, [](uint32_t, uint32_t) {});
  }
}

// A worker that wakes for the last region must not take the stop after it for that region and sleep on.
TEST_P(ThreadPoolTest, StopsRightAfterARegion) {
  for (int i = 0; i < 3000; ++i) {
    ThreadPool pool(TopologyOf(2), {.thread_count = GetParam(), .pin = false});
    for (int region = 0; region < i % 3; ++region) pool.ParallelFor(2, [](uint32_t, uint32_t) {});
  }
}

INSTANTIATE_TEST_SUITE_P(Threads, ThreadPoolTest, testing::Values(1, 2, 5));

TEST(ThreadPool, DefaultsToOneThreadPerCpu) {
  EXPECT_EQ(ThreadPool(TopologyOf(3), {.pin = false}).thread_count(), 3);
}

TEST(ThreadPool, AWorkerMayRunOnAllCpusOfItsNode) {
  const Topology topology = Topology::Detect();
  ThreadPool pool(topology, {.thread_count = 2});
  std::atomic<int> arrived{0}, cpus_of_worker{0};
  pool.ParallelFor(2, [&](uint32_t, uint32_t thread) {
    if (thread == 1) {
      cpu_set_t set;
      ASSERT_EQ(sched_getaffinity(0, sizeof(set), &set), 0);
      cpus_of_worker = CPU_COUNT(&set);
    }
    // Each thread takes one task: the first is not done before the second has begun.
    for (++arrived; arrived < 2;) std::this_thread::yield();
  });
  const size_t worker_node = topology.nodes[0].cpus.size() > 1 ? 0 : 1 % topology.nodes.size();
  EXPECT_EQ(static_cast<size_t>(cpus_of_worker), topology.nodes[worker_node].cpus.size());
}

TEST(ThreadPoolDeathTest, RefusesNestedRegions) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        ThreadPool pool(TopologyOf(1), {.thread_count = 1});
        pool.ParallelFor(1, [&](uint32_t, uint32_t) {
          pool.ParallelFor(1, [](uint32_t, uint32_t) {});
        });
      },
      "not reentrant");
}

}  // namespace
}  // namespace moraine
