#include "memory/link_schedule.h"

#include <gtest/gtest.h>

namespace moraine {
namespace {

constexpr int64_t kStart = 7'000'000'000;

TEST(LinkScheduleTest, CopiesFollowOneAnother) {
  LinkSchedule link(25e9);  // 25 bytes a nanosecond
  EXPECT_EQ(link.EndOf(kStart, 2500), kStart + 100);
  EXPECT_EQ(link.EndOf(kStart, 5000), kStart + 300) << "ready, but the link is not";
}

TEST(LinkScheduleTest, IdleTimeIsLost) {
  LinkSchedule link(1e9);
  EXPECT_EQ(link.EndOf(kStart, 1000), kStart + 1000);
  const int64_t later = kStart + 50'000'000;
  EXPECT_EQ(link.EndOf(later, 1000), later + 1000) << "a link gives nothing back";
}

TEST(LinkScheduleTest, WhatCallbacksTakeIsNotTheLinks) {
  LinkSchedule link(10e9);
  int64_t end = link.EndOf(kStart, 1'000'000);
  for (int i = 1; i < 100; ++i) end = link.EndOf(end + 40'000, 1'000'000);
  EXPECT_EQ(end, kStart + 100 * 100'000);
}

TEST(LinkScheduleTest, PartsOfNanosecondsAddUp) {
  LinkSchedule link(3e9);
  int64_t end = 0;
  for (int i = 0; i < 3000; ++i) end = link.EndOf(kStart, 1);
  EXPECT_NEAR(static_cast<double>(end - kStart), 1000, 1);
}

}  // namespace
}  // namespace moraine
