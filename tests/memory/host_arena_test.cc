#include "memory/host_arena.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "base/bytes.h"
#include "memory/topology.h"

namespace moraine {
namespace {

bool AllEqual(std::span<const std::byte> bytes, std::byte value) {
  return std::all_of(bytes.begin(), bytes.end(), [value](std::byte b) { return b == value; });
}

class HostArenaTest : public testing::TestWithParam<bool> {  // huge pages
 protected:
  HostArena Allocate(uint64_t bytes, int numa_node = -1, bool populate = true) {
    auto arena = HostArena::Allocate(
        bytes, {.numa_node = numa_node, .huge_pages = GetParam(), .populate = populate});
    EXPECT_TRUE(arena.ok()) << arena.status().ToString();
    return arena.ok() ? std::move(*arena) : HostArena();
  }
};

TEST_P(HostArenaTest, IsAlignedZeroedAndWritable) {
  for (const bool populate : {true, false}) {
    HostArena arena = Allocate(5 * kMiB + 1, -1, populate);
    const uint64_t page_bytes = GetParam() ? 2 * kMiB : 4096;
    EXPECT_EQ(arena.size_bytes(), AlignUp(5 * kMiB + 1, page_bytes));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(arena.data()) % page_bytes, 0u);
    EXPECT_TRUE(AllEqual(arena.span(), std::byte{0}));
    std::memset(arena.data(), 0x5A, arena.size_bytes());
    EXPECT_TRUE(AllEqual(arena.span(), std::byte{0x5A}));
    if (!GetParam()) {
      EXPECT_EQ(arena.page_kind(), PageKind::kSmall);
    }
  }
}

TEST_P(HostArenaTest, BindsToANodeThatExists) {
  const int node = Topology::Detect().nodes.front().id;
  EXPECT_EQ(Allocate(4 * kMiB, node).numa_node(), node);
  const auto absent = HostArena::Allocate(4 * kMiB, {.numa_node = 900, .huge_pages = GetParam()});
  EXPECT_EQ(absent.status().code(), StatusCode::kInvalidArgument);
}

TEST_P(HostArenaTest, MovesTheMappingAndFreesTheOldOne) {
  HostArena first = Allocate(4 * kMiB);
  std::byte* const address = first.data();
  HostArena second(std::move(first));
  EXPECT_EQ(second.data(), address);
  EXPECT_EQ(first.data(), nullptr);  // NOLINT: the moved-from state is what is tested
  HostArena third = Allocate(64 * kMiB);
  const bool counted = third.page_kind() != PageKind::kHugeTlb;
  const uint64_t before_bytes = ReadProcessMemory().resident_bytes;
  third = std::move(second);
  EXPECT_EQ(third.data(), address);
  if (counted) {
    EXPECT_LE(ReadProcessMemory().resident_bytes, before_bytes - 60 * kMiB);
  }
}

TEST_P(HostArenaTest, WhatDoesNotFitFailsAtOnce) {
  const auto limit = DetectMemoryLimit();
  ASSERT_TRUE(limit.ok());
  for (const uint64_t bytes : {limit->limit_bytes + kGiB, uint64_t{1} << 60}) {
    const auto arena = HostArena::Allocate(bytes, {.huge_pages = GetParam()});
    ASSERT_FALSE(arena.ok());
    EXPECT_EQ(arena.status().code(), StatusCode::kResourceExhausted) << arena.status().ToString();
  }
  EXPECT_EQ(HostArena::Allocate(0, {}).status().code(), StatusCode::kInvalidArgument);
}

INSTANTIATE_TEST_SUITE_P(Pages, HostArenaTest, testing::Bool(), [](const auto& param_info) {
  return param_info.param ? "Huge" : "Small";
});

}  // namespace
}  // namespace moraine
