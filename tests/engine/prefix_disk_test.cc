// The prefix cache's second tier over a pool of its own, where every block says which prefix it is the end of.
#include "engine/prefix_disk.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <future>

#include "base/random.h"
#include "model/sequence_state.h"
#include "prefix_disk_support.h"
#include "test_store.h"

namespace moraine {
namespace {

class PrefixDiskTest : public testing::Test {
 protected:
  static constexpr uint32_t kPoolBlocks = 8;

  PrefixDiskTest() { MakePool(); }
  ~PrefixDiskTest() override {
    disk_.reset();
    std::filesystem::remove_all(options_.directory);
  }
  void MakePool() {
    state_.reset();
    pool_ = std::move(KvPool::Create(shapes_, KvFormat::kF32, kPoolBlocks)).value();
    state_.emplace(std::move(SequenceState::Create(shapes_, pool_.get(), kPoolBlocks * 64)).value());
  }
  void Open(uint32_t slots) {
    disk_.reset();
    options_.budget_bytes =
        PrefixFile::kHeadBytes + slots * PrefixFile::SlotBytes(pool_->content_bytes());
    auto disk = PrefixDisk::Open(options_, "test", *pool_);
    CHECK(disk.ok(), disk.status().message());
    disk_ = std::move(*disk);
    disk_->CheckInvariants();
  }
  // Blocks whose first tokens are these.
  static std::vector<int32_t> Prompt(std::initializer_list<int32_t> firsts) {
    std::vector<int32_t> tokens;
    for (const int32_t first : firsts) {
      tokens.push_back(first);
      for (int32_t i = 1; i < 64; ++i) tokens.push_back(i);
    }
    return tokens;
  }
  // What the first float of a prefix's last block says.
  static float SumOf(std::span<const int32_t> tokens, size_t blocks) {
    float sum = 0;
    for (size_t b = 0; b < blocks; ++b) sum = 3 * sum + static_cast<float>(1 + tokens[b * 64]);
    return sum;
  }
  // Into the pool, and noted.
  void Compute(const std::vector<int32_t>& tokens) {
    state_->Reset();
    const uint32_t rest = static_cast<uint32_t>(tokens.size()) - state_->TakePrefix(tokens);
    CHECK(state_->Reserve(rest), "no room in the pool");
    for (size_t b = state_->length() / 64; b < tokens.size() / 64; ++b) {
      const float sum = SumOf(tokens, b + 1);
      for (uint32_t layer = 0; layer < shapes_.size(); ++layer) {
        std::memcpy(state_->positions(layer).BlockOf(static_cast<uint32_t>(b * 64)), &sum,
                    sizeof(sum));
      }
    }
    state_->Commit(rest);
    state_->Publish(tokens);
    disk_->Note(tokens);
    state_->Reset();
  }
  // Blocks that came from the disk, each what it should be. `tokens` and one more.
  size_t Restore(std::vector<int32_t> tokens) {
    tokens.push_back(5);
    for (; disk_->reading(); disk_->Save(0)) disk_->Wait(kLongNs);  // of one before
    if (!disk_->Begin(tokens, 0)) return 0;
    size_t blocks = 0;
    const int64_t end_ns = RealClock().NowNs() + kLongNs;
    while (disk_->restoring()) {
      const auto content = disk_->Next();
      if (content.empty()) {
        if (disk_->restoring()) disk_->Wait(kLongNs);
        CHECK(RealClock().NowNs() < end_ns, "the disk does not come to an end");
        continue;
      }
      float sums[2];
      std::memcpy(&sums[0], content.data(), sizeof(float));
      std::memcpy(&sums[1], content.data() + pool_->block_bytes(0), sizeof(float));
      ++blocks;
      EXPECT_EQ(sums[0], SumOf(tokens, blocks));
      EXPECT_EQ(sums[1], SumOf(tokens, blocks));
    }
    disk_->EndRestore();
    disk_->CheckInvariants();
    return blocks;
  }

  const std::vector<LayerStateShape> shapes_ = {{4, 0}, {12, 0}};
  std::unique_ptr<KvPool> pool_;
  std::optional<SequenceState> state_;
  PrefixDiskOptions options_ = {.directory = MakeScratchDirectory("prefix-cache"),
                                .before_io = nullptr};
  std::unique_ptr<PrefixDisk> disk_;
};

TEST_F(PrefixDiskTest, WhatWasComputedIsReadAfterARestart) {
  Open(16);
  EXPECT_EQ(Restore(Prompt({1})), 0u);
  Compute(Prompt({1, 2, 3}));
  Compute(Prompt({1, 2, 4, 5}));
  SaveAll(*disk_);
  EXPECT_EQ(disk_->stats().blocks, 5u) << "a common beginning is written once";
  EXPECT_EQ(disk_->stats().saved, 5u);
  for (int round = 0; round < 2; ++round) {
    EXPECT_EQ(Restore(Prompt({1, 2, 3})), 3u);
    EXPECT_EQ(Restore(Prompt({1, 2, 4, 5})), 4u);
    EXPECT_EQ(Restore(Prompt({1, 2, 5})), 2u);
    EXPECT_EQ(Restore(Prompt({2, 2, 3})), 0u) << "the same block behind another is another";
    MakePool();
    Open(16);
  }
  // Only what is behind the part that memory has; and all but the last token.
  std::vector<int32_t> tokens = Prompt({1, 2, 4, 5});
  ASSERT_TRUE(disk_->Begin(tokens, 128));
  EXPECT_EQ(disk_->restoring_blocks(), 1u) << "the last token's logits are wanted";
  disk_->EndRestore();
  // Nothing new to write.
  Compute(tokens);
  SaveAll(*disk_);
  EXPECT_EQ(disk_->stats().saved, 0u);
}

TEST_F(PrefixDiskTest, TheOldestGoFirstAndNeverBeforeWhatIsBehindThem) {
  Open(5);
  Compute(Prompt({1, 2}));
  SaveAll(*disk_);
  Compute(Prompt({3, 4}));
  SaveAll(*disk_);
  EXPECT_EQ(Restore(Prompt({1, 2})), 2u);  // used last now
  Compute(Prompt({5, 6}));
  SaveAll(*disk_);
  EXPECT_EQ(disk_->stats().evicted, 1u);
  EXPECT_EQ(Restore(Prompt({1, 2})), 2u);
  EXPECT_EQ(Restore(Prompt({3, 4})), 1u);
  EXPECT_EQ(Restore(Prompt({5, 6})), 2u);
  // A prompt that is larger than the disk: its beginning.
  Compute(Prompt({7, 8, 9, 10, 11, 12, 13}));
  SaveAll(*disk_);
  EXPECT_EQ(Restore(Prompt({7, 8, 9, 10, 11, 12, 13})), 5u);
  EXPECT_LE(std::filesystem::file_size(disk_->file().path()), options_.budget_bytes);
}

TEST_F(PrefixDiskTest, WhatThePoolHasLostIsNotWritten) {
  std::promise<void> go;
  options_.before_io = [wait = go.get_future().share()] { wait.wait(); };
  Open(32);
  // More than there are buffers while the disk is held up.
  for (int32_t i = 0; i < 12; ++i) Compute(Prompt({i, 100}));
  disk_->Save(UINT32_MAX);
  Compute(Prompt({50, 51, 52, 53, 54, 55, 56, 57}));  // takes the whole pool
  go.set_value();
  SaveAll(*disk_);
  EXPECT_LT(disk_->stats().saved, 24u);
  size_t there = 0;
  for (int32_t i = 0; i < 12; ++i) there += Restore(Prompt({i, 100}));
  EXPECT_EQ(there + Restore(Prompt({50, 51, 52, 53, 54, 55, 56, 57})), disk_->stats().saved);
}

TEST_F(PrefixDiskTest, ADamagedBlockIsForgottenWithWhatIsBehindIt) {
  Open(16);
  Compute(Prompt({1, 2, 3, 4}));
  Compute(Prompt({1, 2, 5}));
  SaveAll(*disk_);
  const uint64_t slot_bytes = disk_->file().slot_bytes();
  // The second block of the first prompt: slots are given in order.
  FlipByte(disk_->file().path(), PrefixFile::kHeadBytes + slot_bytes + PrefixFile::kHeadBytes + 9);
  EXPECT_EQ(Restore(Prompt({1, 2, 3, 4})), 1u);
  EXPECT_EQ(disk_->stats().failed, 1u);
  EXPECT_EQ(disk_->stats().blocks, 1u);
  EXPECT_EQ(Restore(Prompt({1, 2, 5})), 1u);
  Compute(Prompt({1, 2, 5}));
  SaveAll(*disk_);
  EXPECT_EQ(Restore(Prompt({1, 2, 5})), 3u) << "written once more";
}

TEST_F(PrefixDiskTest, ADiskThatHangsCanBeLeft) {
  Open(16);
  Compute(Prompt({1, 2, 3}));
  Compute(Prompt({4, 5}));
  SaveAll(*disk_);
  std::promise<void> go;
  options_.before_io = [wait = go.get_future().share()] { wait.wait(); };
  Open(16);
  std::vector<int32_t> tokens = Prompt({1, 2, 3, 9});
  ASSERT_TRUE(disk_->Begin(tokens, 0));
  EXPECT_FALSE(disk_->Begin(tokens, 0)) << "one at a time";
  EXPECT_TRUE(disk_->Next().empty());
  EXPECT_TRUE(disk_->restoring());
  disk_->EndRestore();
  EXPECT_FALSE(disk_->Begin(tokens, 0)) << "it is waited for once";
  go.set_value();
  EXPECT_EQ(Restore(Prompt({4, 5})), 2u) << "and not what was asked for before";
  EXPECT_EQ(Restore(Prompt({1, 2, 3})), 3u);
}

// Whatever happens, what comes from the disk is the prefix that was asked for.
TEST_F(PrefixDiskTest, RandomUseKeepsTheInvariants) {
  constexpr uint64_t kSeed = 20251122;
  SCOPED_TRACE(testing::Message() << "seed " << kSeed);
  Random random(kSeed);
  Open(12);
  uint64_t restored = 0, failed = 0, evicted = 0;
  for (int step = 0; step < 3000; ++step) {
    std::vector<int32_t> tokens;
    for (size_t b = 1 + random.Below(6); b > 0; --b) {
      const std::vector<int32_t> block = Prompt({static_cast<int32_t>(random.Below(2))});
      tokens.insert(tokens.end(), block.begin(), block.end());
    }
    const double what = random.Uniform();
    if (what < 0.5) {
      Compute(tokens);
      disk_->Save(static_cast<uint32_t>(random.Below(4)));
    } else if (what < 0.9) {
      restored += Restore(tokens);
    } else if (what < 0.95) {
      SaveAll(*disk_);
      FlipByte(disk_->file().path(), random.Below(std::filesystem::file_size(disk_->file().path()) -
                                                  4096) + 4096);
    } else {
      failed += disk_->stats().failed;
      evicted += disk_->stats().evicted;
      if (random.Chance(0.5)) pool_->DropCached();
      if (random.Chance(0.2)) MakePool();
      Open(12);
    }
    disk_->CheckInvariants();
  }
  EXPECT_GT(restored, 500u);
  EXPECT_GT(failed, 5u);
  EXPECT_GT(evicted, 20u);
}

}  // namespace
}  // namespace moraine
