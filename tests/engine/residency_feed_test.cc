#include "engine/residency_feed.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

namespace moraine {
namespace {

std::unique_ptr<ResidencySnapshot> Snapshot(uint32_t top_k) {
  auto snapshot = std::make_unique<ResidencySnapshot>();
  snapshot->top_k = top_k;
  return snapshot;
}

TEST(ResidencyFeedTest, TheFirstWatcherAsksForASnapshotAndTheOthersDoNot) {
  const auto feed = std::make_shared<ResidencyFeed>();
  int asked = 0;
  feed->SetWanted([&] { ++asked; });
  EXPECT_FALSE(feed->watched());
  auto first = feed->TryWatch(2);
  auto second = feed->TryWatch(2);
  EXPECT_EQ(asked, 1);
  EXPECT_TRUE(feed->watched());
  EXPECT_EQ(feed->TryWatch(2), nullptr);
  first.reset();
  EXPECT_TRUE(feed->watched());
  second.reset();
  EXPECT_FALSE(feed->watched());
  second = feed->TryWatch(2);
  EXPECT_EQ(asked, 2);
  second.reset();
  feed->SetWanted(nullptr);  // the engine is gone
  second = feed->TryWatch(2);
  EXPECT_EQ(asked, 2);
}

TEST(ResidencyFeedTest, WatchersSeeTheNewestSnapshotAndNoneFromBeforeThem) {
  const auto feed = std::make_shared<ResidencyFeed>();
  feed->Publish(Snapshot(1));  // nobody watches
  auto first = feed->TryWatch(8);
  EXPECT_EQ(first->Latest(), nullptr);
  feed->Publish(Snapshot(2));
  feed->Publish(Snapshot(3));
  auto second = feed->TryWatch(8);
  for (const auto* watch : {&first, &second}) {
    ASSERT_NE((*watch)->Latest(), nullptr);
    EXPECT_EQ((*watch)->Latest()->top_k, 3u);
    EXPECT_EQ((*watch)->Latest()->sequence, 2u);
  }
}

TEST(ResidencyFeedTest, ASnapshotIsNotKeptWhenTheLastWatcherHasGone) {
  const auto feed = std::make_shared<ResidencyFeed>();
  auto watch = feed->TryWatch(8);
  feed->Publish(Snapshot(1));
  watch.reset();
  watch = feed->TryWatch(8);
  EXPECT_EQ(watch->Latest(), nullptr);
  feed->Publish(Snapshot(2));
  EXPECT_EQ(watch->Latest()->sequence, 2u);  // numbers are not used twice
}

// For the thread sanitizer: readers come, look and go while the engine publishes.
TEST(ResidencyFeedTest, ReadersAndTheEngineDoNotMeet) {
  const auto feed = std::make_shared<ResidencyFeed>();
  std::atomic<bool> done{false};
  std::thread engine([&] {
    for (uint32_t i = 1; i <= 2000; ++i) {
      if (feed->watched()) feed->Publish(Snapshot(i));
    }
    done = true;
  });
  uint64_t last = 0;
  while (!done) {
    const auto watch = feed->TryWatch(8);
    const auto latest = watch->Latest();
    if (latest == nullptr) continue;
    EXPECT_GE(latest->sequence, last);
    last = latest->sequence;
  }
  engine.join();
}

}  // namespace
}  // namespace moraine
