// LinkPacer on a GPU: what copies take, against bytes over rate. Skipped, saying so, where there is none.
#include "memory/cuda/link_pacer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <vector>

#include "base/bytes.h"
#include "base/clock.h"

namespace moraine::gpu {
namespace {

constexpr uint64_t kBytes = 256 * kMiB;

class LinkPacerTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto gpu = QueryGpu();
    if (!gpu.ok()) GTEST_SKIP() << gpu.status().ToString();
    stream_ = Need(OwnedStream::Create());
    other_stream_ = Need(OwnedStream::Create());
    from_ = Need(PinnedMemory::Allocate(kBytes));
    to_ = Need(DeviceMemory::Allocate(kBytes, "test"));
    for (uint64_t i = 0; i < kBytes; ++i) from_.data()[i] = static_cast<std::byte>(i * 37 >> 3);
    // The first copies are slower than those that follow.
    for (int i = 0; i < 3; ++i) ASSERT_TRUE(Copy(to_.data(), from_.data(), kBytes, stream_.get()).ok());
    ASSERT_TRUE(stream_.Synchronize().ok());
  }

  template <typename T>
  static T Need(Result<T> result) {
    if (!result.ok()) ADD_FAILURE() << result.status().ToString();
    return result.ok() ? std::move(*result) : T();
  }

  // Milliseconds by events of `copies` pieces one after the other.
  float Ms(LinkPacer* pacer, uint64_t piece_bytes, int copies) {
    const Event before = Need(Event::Create()), after = Need(Event::Create());
    EXPECT_TRUE(before.Record(stream_.get()).ok());
    for (int i = 0; i < copies; ++i) {
      const uint64_t at = static_cast<uint64_t>(i) * piece_bytes % (kBytes - piece_bytes + 1);
      const Status copied = pacer != nullptr
                                ? pacer->Copy(to_.data() + at, from_.data() + at, piece_bytes)
                                : Copy(to_.data() + at, from_.data() + at, piece_bytes, stream_.get());
      EXPECT_TRUE(copied.ok()) << copied.ToString();
    }
    EXPECT_TRUE(after.Record(stream_.get()).ok());
    EXPECT_TRUE(after.Synchronize().ok());
    return Need(Event::Elapsed(before, after));
  }

  OwnedStream stream_, other_stream_;
  PinnedMemory from_;
  DeviceMemory to_;
};

TEST_F(LinkPacerTest, BytesTakeWhatTheRateSays) {
  const float whole_ms = Ms(nullptr, kBytes, 1);
  std::printf("the link itself: %.1f GB/s\n", kBytes * 1e-6 / whole_ms);
  for (const double gb_per_s : {4.0, 12.5, 25.0}) {
    // A layer, records of the 30B and the 235B shape, and what falls between.
    for (const uint64_t piece : {kBytes, 21 * kMiB, 10 * kMiB + 4096, 2 * kMiB + 655360}) {
      LinkPacer pacer(std::make_shared<LinkSchedule>(gb_per_s * 1e9), stream_.get());
      const int copies = static_cast<int>(std::max<uint64_t>(1, kBytes / piece));
      const double expected_ms = static_cast<double>(piece) * copies * 1e-6 / gb_per_s;
      const double ms = Ms(&pacer, piece, copies);
      std::printf("%4.1f GB/s, %3d x %9llu bytes: %7.2f ms, expected %7.2f (%+.1f %%)\n", gb_per_s,
                  copies, static_cast<unsigned long long>(piece), ms, expected_ms,
                  100 * (ms / expected_ms - 1));
      EXPECT_NEAR(ms, expected_ms, 0.05 * expected_ms) << gb_per_s << " GB/s, pieces of " << piece;
    }
  }
}

TEST_F(LinkPacerTest, BytesArrive) {
  ASSERT_TRUE(FillBytes(to_.data(), 0xEE, kBytes, stream_.get()).ok());
  LinkPacer pacer(std::make_shared<LinkSchedule>(20e9), stream_.get());
  for (uint64_t at = 0; at < kBytes; at += 32 * kMiB) {
    ASSERT_TRUE(pacer.Copy(to_.data() + at, from_.data() + at, 32 * kMiB).ok());
  }
  PinnedMemory back = Need(PinnedMemory::Allocate(kBytes));
  ASSERT_TRUE(Copy(back.data(), to_.data(), kBytes, stream_.get()).ok());
  ASSERT_TRUE(stream_.Synchronize().ok());
  EXPECT_EQ(std::memcmp(back.data(), from_.data(), kBytes), 0);
}

TEST_F(LinkPacerTest, TwoStreamsShareOneLink) {
  const auto link = std::make_shared<LinkSchedule>(10e9);
  LinkPacer first(link, stream_.get()), second(link, other_stream_.get());
  const uint64_t piece = 16 * kMiB;
  const int64_t begin_ns = RealClock().NowNs();
  for (int i = 0; i < 8; ++i) {
    ASSERT_TRUE(first.Copy(to_.data(), from_.data(), piece).ok());
    ASSERT_TRUE(second.Copy(to_.data() + piece, from_.data() + piece, piece).ok());
  }
  ASSERT_TRUE(stream_.Synchronize().ok());
  ASSERT_TRUE(other_stream_.Synchronize().ok());
  const double ms = static_cast<double>(RealClock().NowNs() - begin_ns) * 1e-6;
  const double expected_ms = 16.0 * piece * 1e-6 / 10;
  std::printf("two streams at 10 GB/s: %.2f ms, expected %.2f\n", ms, expected_ms);
  EXPECT_NEAR(ms, expected_ms, 0.05 * expected_ms);
}

}  // namespace
}  // namespace moraine::gpu
