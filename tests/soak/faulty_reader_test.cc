#include "faulty_reader.h"

#include <gtest/gtest.h>

#include <cerrno>

#include "io/simulated_reader.h"
#include "memory/host_arena.h"

namespace moraine {
namespace {

constexpr uint32_t kRecordBytes = 32768;
constexpr uint32_t kRecords = 8;

// A pack of records of 0x11, 0x22, ...
class FaultyReaderTest : public testing::Test {
 protected:
  FaultyReaderTest() : drive_(Records(), 1) {
    SimulatedReaderOptions options;
    std::vector<std::byte>& pack = options.memory_files["pack"];
    for (uint32_t i = 0; i < kRecords; ++i) pack.insert(pack.end(), kRecordBytes, Filling(i));
    reader_ = CreateFaultyReader(CreateSimulatedReader(std::move(options)), &drive_,
                                 [this] { ++submits_; });
    file_ = *reader_->OpenFile("pack");
    arena_ = *HostArena::Allocate(kRecordBytes, {});
  }
  static std::byte Filling(uint32_t record) { return std::byte{static_cast<uint8_t>(record * 17 + 17)}; }
  static std::vector<FaultyDrive::Record> Records() {
    std::vector<FaultyDrive::Record> records;
    for (uint32_t i = 0; i < kRecords; ++i) records.push_back({"pack", i * kRecordBytes, kRecordBytes});
    return records;
  }

  // One read of a record from beginning to end; its result.
  int32_t Read(uint32_t record) {
    const BlockRead read = {file_, record * kRecordBytes, arena_.data(), kRecordBytes, 7};
    reader_->Submit({&read, 1});
    std::vector<BlockCompletion> completions;
    EXPECT_EQ(reader_->Reap(&completions, -1), 1u);
    EXPECT_EQ(reader_->in_flight(), 0u);
    EXPECT_EQ(completions.at(0).tag, 7u);
    return completions.at(0).result;
  }
  uint32_t WrongBits(uint32_t record) const {
    uint32_t bits = 0;
    for (uint32_t i = 0; i < kRecordBytes; ++i) {
      bits += static_cast<uint32_t>(
          std::popcount(static_cast<uint8_t>(arena_.data()[i] ^ Filling(record))));
    }
    return bits;
  }

  FaultyDrive drive_;
  std::unique_ptr<BlockReader> reader_;
  FileId file_;
  HostArena arena_;
  int submits_ = 0;
};

TEST_F(FaultyReaderTest, ACalmDriveIsTheRealOne) {
  EXPECT_EQ(Read(3), static_cast<int32_t>(kRecordBytes));
  EXPECT_EQ(WrongBits(3), 0u);
  EXPECT_EQ(submits_, 1);
  EXPECT_EQ(drive_.counts().reads, 1u);
}

TEST_F(FaultyReaderTest, ErrorsAndShortReadsAreReportedAndRemembered) {
  drive_.Set({.error = 1});
  EXPECT_EQ(Read(2), -EIO);
  EXPECT_EQ(drive_.suffered(2).errors, 1u);
  EXPECT_EQ(drive_.suffered(1).errors, 0u);
  drive_.Set({.short_read = 1});
  const int32_t result = Read(2);
  EXPECT_GE(result, 4096);
  EXPECT_LT(result, static_cast<int32_t>(kRecordBytes));
  EXPECT_EQ(result % 4096, 0);
  drive_.Set({.broken = {4}});
  EXPECT_EQ(Read(4), -EIO);
  EXPECT_GT(Read(5), 0);
  drive_.Forget();
  EXPECT_EQ(drive_.suffered(4).errors, 0u);
}

TEST_F(FaultyReaderTest, AFlipHealsAndRotDoesNot) {
  drive_.Set({.flip = 1});
  Read(1);
  EXPECT_EQ(WrongBits(1), 1u);
  for (int again = 0; again < 10; ++again) {
    Read(1);
    EXPECT_EQ(WrongBits(1), 0u);
  }
  EXPECT_EQ(drive_.suffered(1).flips, 1u);
  drive_.Set({.rotten = {6}});
  for (int again = 0; again < 3; ++again) {
    Read(6);
    EXPECT_EQ(WrongBits(6), 1u);
  }
}

TEST_F(FaultyReaderTest, AHungReadIsInFlightUntilItIsGivenUp) {
  drive_.Set({.hangs = 1, .hang_ns = 3600'000'000'000});
  const BlockRead read = {file_, 0, arena_.data(), kRecordBytes, 7};
  reader_->Submit({&read, 1});
  std::vector<BlockCompletion> completions;
  EXPECT_EQ(reader_->Reap(&completions, 0), 0u);
  EXPECT_EQ(reader_->Reap(&completions, 1'000'000), 0u);
  EXPECT_EQ(reader_->in_flight(), 1u);
  reader_->Cancel(7);
  EXPECT_EQ(reader_->Reap(&completions, -1), 1u);
  EXPECT_EQ(completions.at(0).result, static_cast<int32_t>(kRecordBytes));
}

}  // namespace
}  // namespace moraine
