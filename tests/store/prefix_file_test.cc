#include "store/prefix_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <numeric>

#include "store_test_support.h"

namespace moraine {
namespace {

using testing::HasSubstr;

constexpr uint64_t kPayload = 10'000;  // not whole pages
constexpr uint32_t kTokens = 64;

class PrefixFileTest : public testing::Test {
 protected:
  PrefixFileOptions Options(uint32_t slots, const std::string& identity = "model a") const {
    return {.directory = directory_ / "cache",
            .identity = identity,
            .block_tokens = kTokens,
            .payload_bytes = kPayload,
            .budget_bytes = PrefixFile::kHeadBytes + slots * PrefixFile::SlotBytes(kPayload) + 17};
  }
  std::unique_ptr<PrefixFile> Open(uint32_t slots = 4) {
    auto file = PrefixFile::Open(Options(slots), &found_);
    CHECK(file.ok(), file.status().message());
    return std::move(*file);
  }
  static PrefixFile::Block Block(uint64_t serial, uint64_t parent) {
    PrefixFile::Block block{serial, parent, std::vector<int32_t>(kTokens)};
    std::iota(block.tokens.begin(), block.tokens.end(), static_cast<int32_t>(100 * serial));
    return block;
  }
  std::span<std::byte> Buffer() {
    return {arena_.data(), PrefixFile::SlotBytes(kPayload)};
  }
  void FillPayload(uint64_t seed) {
    Random random(seed);
    for (std::byte& b : Buffer().subspan(PrefixFile::kHeadBytes)) b = std::byte(random.Next());
  }
  Status Write(const PrefixFile& file, uint32_t slot, const PrefixFile::Block& block) {
    FillPayload(block.serial);
    return file.Write(slot, block, Buffer());
  }
  // That it is what Write wrote.
  void ExpectThere(const PrefixFile& file, uint32_t slot, const PrefixFile::Block& block) {
    FillPayload(0);
    const Status status = file.Read(slot, block, Buffer());
    ASSERT_TRUE(status.ok()) << status.message();
    const auto payload = Buffer().subspan(PrefixFile::kHeadBytes, kPayload);
    const std::vector<std::byte> read(payload.begin(), payload.end());
    FillPayload(block.serial);
    EXPECT_TRUE(std::ranges::equal(read, payload));
  }

  TempDirectory directory_;
  HostArena arena_ =
      std::move(HostArena::Allocate(PrefixFile::SlotBytes(kPayload), {.huge_pages = false})).value();
  std::vector<PrefixFile::Found> found_;
};

TEST_F(PrefixFileTest, WhatIsWrittenIsFoundBySerial) {
  {
    const auto file = Open();
    EXPECT_EQ(file->slot_count(), 4u);
    EXPECT_TRUE(found_.empty());
    ASSERT_TRUE(Write(*file, 2, Block(7, 0)).ok());
    ASSERT_TRUE(Write(*file, 0, Block(9, 7)).ok());
    ExpectThere(*file, 2, Block(7, 0));
  }
  const auto file = Open();
  ASSERT_EQ(found_.size(), 2u);
  EXPECT_EQ(found_[0].slot, 2u);
  EXPECT_EQ(found_[0].block.serial, 7u);
  EXPECT_EQ(found_[1].slot, 0u);
  EXPECT_EQ(found_[1].block.parent, 7u);
  EXPECT_EQ(found_[1].block.tokens, Block(9, 7).tokens);
  for (const auto& found : found_) ExpectThere(*file, found.slot, found.block);
}

TEST_F(PrefixFileTest, ASlotThatHasAnotherBlockIsNotTakenForIt) {
  const auto file = Open();
  ASSERT_TRUE(Write(*file, 1, Block(7, 3)).ok());
  PrefixFile::Block other = Block(7, 3);
  other.tokens[40] += 1;
  for (const auto& wanted : {Block(8, 3), Block(7, 2), other}) {
    const Status status = file->Read(1, wanted, Buffer());
    EXPECT_EQ(status.code(), StatusCode::kCorruption);
    EXPECT_THAT(status.message(), HasSubstr(file->path() + " at offset"));
  }
}

TEST_F(PrefixFileTest, EveryFlippedBitIsNoticed) {
  constexpr uint64_t kSeed = 11;
  SCOPED_TRACE(testing::Message() << "seed " << kSeed);
  Random random(kSeed);
  std::string path;
  {
    const auto file = Open();
    path = file->path();
    for (uint32_t slot = 0; slot < 4; ++slot) {
      ASSERT_TRUE(Write(*file, slot, Block(slot + 1, slot)).ok());
    }
  }
  for (int round = 0; round < 60; ++round) {
    // In slot 2: its head as often as its payload.
    const uint64_t at = random.Below(random.Chance(0.5) ? PrefixFile::kHeadBytes
                                                        : PrefixFile::kHeadBytes + kPayload);
    const uint64_t offset = PrefixFile::kHeadBytes + 2 * PrefixFile::SlotBytes(kPayload) + at;
    FlipBit(path, offset);
    {
      const auto file = Open();
      EXPECT_EQ(found_.size(), at < PrefixFile::kHeadBytes ? 3u : 4u) << at;
      EXPECT_EQ(file->Read(2, Block(3, 2), Buffer()).code(), StatusCode::kCorruption) << at;
      ExpectThere(*file, 3, Block(4, 3));
    }
    FlipBit(path, offset);  // back
  }
  const auto file = Open();
  ExpectThere(*file, 2, Block(3, 2));
}

TEST_F(PrefixFileTest, AFileThatWasCutAnywhereOpens) {
  std::string path;
  {
    const auto file = Open();
    path = file->path();
    for (uint32_t slot = 0; slot < 4; ++slot) {
      ASSERT_TRUE(Write(*file, slot, Block(slot + 1, slot)).ok());
    }
  }
  const uint64_t slot_bytes = PrefixFile::SlotBytes(kPayload);
  for (const uint64_t size : {PrefixFile::kHeadBytes + 4 * slot_bytes - 1,
                              PrefixFile::kHeadBytes + 3 * slot_bytes + 4096,
                              PrefixFile::kHeadBytes + 2 * slot_bytes,
                              PrefixFile::kHeadBytes + 100, uint64_t{4000}, uint64_t{0}}) {
    std::filesystem::resize_file(path, size);
    const auto file = Open();
    EXPECT_EQ(found_.size(), size < PrefixFile::kHeadBytes ? 0 : (size - 4096) / slot_bytes) << size;
    ASSERT_TRUE(Write(*file, 3, Block(100, 0)).ok());
    ExpectThere(*file, 3, Block(100, 0));
    std::filesystem::resize_file(path, size);
  }
}

TEST_F(PrefixFileTest, AnotherModelsFileIsLeftAloneAndNamed) {
  std::string mine, others;
  {
    const auto file = Open();
    mine = file->path();
    std::vector<PrefixFile::Found> found;
    const auto other = PrefixFile::Open(Options(4, "model b"), &found);
    ASSERT_TRUE(other.ok());
    others = (*other)->path();
    EXPECT_NE(mine, others);
    ASSERT_TRUE(Write(**other, 0, Block(1, 0)).ok());
  }
  std::filesystem::copy_file(others, mine, std::filesystem::copy_options::overwrite_existing);
  const auto file = PrefixFile::Open(Options(4), &found_);
  EXPECT_EQ(file.status().code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(file.status().message(), testing::AllOf(HasSubstr("model a"), HasSubstr("model b")));
  EXPECT_EQ(ReadBytes(mine), ReadBytes(others));
}

TEST_F(PrefixFileTest, WhatIsNoPrefixFileBeginsAnew) {
  const std::string path = Open()->path();
  WriteText(path, std::string(50'000, 'x'));
  const auto file = Open();
  EXPECT_TRUE(found_.empty());
  EXPECT_EQ(std::filesystem::file_size(path), PrefixFile::kHeadBytes);
}

TEST_F(PrefixFileTest, OneProcessAtATime) {
  const auto file = Open();
  const auto second = PrefixFile::Open(Options(4), &found_);
  EXPECT_EQ(second.status().code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(second.status().message(), HasSubstr(file->path() + ": another process"));
}

TEST_F(PrefixFileTest, TheFileStaysWithinItsBudget) {
  std::string path;
  {
    const auto file = Open(4);
    path = file->path();
    for (uint32_t slot = 0; slot < 4; ++slot) {
      ASSERT_TRUE(Write(*file, slot, Block(slot + 1, slot)).ok());
    }
    EXPECT_LE(std::filesystem::file_size(path), Options(4).budget_bytes);
  }
  const auto file = Open(2);
  EXPECT_EQ(found_.size(), 2u);
  EXPECT_LE(std::filesystem::file_size(path), Options(2).budget_bytes);
  const auto none = PrefixFile::Open(Options(0, "model c"), &found_);
  EXPECT_EQ(none.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(none.status().message(), HasSubstr("no room for a block"));
}

TEST_F(PrefixFileTest, ADirectoryThatCannotBeMadeIsNamed) {
  PrefixFileOptions options = Options(4);
  options.directory = directory_ / "absent/cache";
  const auto file = PrefixFile::Open(options, &found_);
  EXPECT_EQ(file.status().code(), StatusCode::kIoError);
  EXPECT_THAT(file.status().message(), HasSubstr(options.directory));
}

// The limit acts where a full disk does. In a process of its own.
TEST_F(PrefixFileTest, AFullDiskIsSaidAndWhatIsThereStays) {
  const auto in_child = [&] {
    signal(SIGXFSZ, SIG_IGN);
    const uint64_t bytes = PrefixFile::kHeadBytes + 2 * PrefixFile::SlotBytes(kPayload);
    const rlimit limit = {bytes, bytes};
    const auto file = Open();
    if (setrlimit(RLIMIT_FSIZE, &limit) != 0) return 1;
    if (!Write(*file, 1, Block(1, 0)).ok()) return 2;
    if (Write(*file, 2, Block(2, 1)).code() != StatusCode::kResourceExhausted) return 3;
    return file->Read(1, Block(1, 0), Buffer()).ok() ? 0 : 4;
  };
  EXPECT_EXIT(_exit(in_child()), testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace moraine
