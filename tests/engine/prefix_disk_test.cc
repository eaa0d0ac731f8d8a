// The prefix cache's second tier: over a pool of its own, where every block says which prefix it is the end of,
// and in the engine.
#include "engine/prefix_disk.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <future>

#include "base/random.h"
#include "engine/engine.h"
#include "model/sequence_state.h"
#include "test_store.h"

namespace moraine {
namespace {

constexpr int64_t kLongNs = 60'000'000'000;

void FlipByte(const std::string& path, uint64_t offset) {
  std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
  file.seekg(static_cast<std::streamoff>(offset));
  const int byte = file.get();
  file.seekp(static_cast<std::streamoff>(offset));
  file.put(static_cast<char>(byte ^ 0x10));
  CHECK(file.good(), path);
}

void SaveAll(PrefixDisk& disk) {
  const int64_t end_ns = RealClock().NowNs() + kLongNs;
  for (disk.Save(UINT32_MAX); disk.saving(); disk.Save(UINT32_MAX)) {
    disk.Wait(kLongNs);
    CHECK(RealClock().NowNs() < end_ns, "the disk does not come to an end");
  }
}

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

// --- Engine ---------------------------------------------------------------------------------------

struct Answer {
  std::vector<int32_t> tokens;
  GenerationEvent end;
};

class PrefixDiskEngineTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { store_ = new TestStore(DemoModelPath(), Encoding::kQ4); }
  static void TearDownTestSuite() { delete store_; }
  PrefixDiskEngineTest() : directory_(MakeScratchDirectory("prefix-cache")) {}
  ~PrefixDiskEngineTest() override { std::filesystem::remove_all(directory_); }

  std::unique_ptr<Engine> Open(bool disk, const TestStore& store = *store_) {
    EngineOptions options;
    options.runner = TestRunnerOptions(store, "25%");
    options.runner.threads = 1;
    options.runner.max_sequences = 2;
    options.runner.prefill_chunk = 64;
    options.queue_limit = 16;
    if (disk) options.runner.prefix_disk = {directory_, 64 << 20, before_io_};
    auto engine = Engine::Open(options);
    CHECK(engine.ok(), engine.status().message());
    return std::move(*engine);
  }
  static GenerationRequest Request(std::vector<int32_t> prompt, uint32_t max_tokens) {
    GenerationRequest request;
    request.prompt = std::move(prompt);
    request.max_tokens = max_tokens;
    request.ignore_eos = true;
    return request;
  }
  static Answer Ask(Engine& engine, GenerationRequest request) {
    Answer answer;
    std::promise<void> ended;
    request.on_event = [&](const GenerationEvent& event) {
      if (event.kind == GenerationEvent::Kind::kToken) answer.tokens.push_back(event.token);
      if (event.kind != GenerationEvent::Kind::kFinished) return;
      answer.end = event;
      ended.set_value();
    };
    const auto submitted = engine.Submit(std::move(request));
    CHECK(submitted.ok(), submitted.status().message());
    ended.get_future().wait();
    return answer;
  }
  static std::vector<int32_t> Prompt(size_t count, uint64_t seed) {
    Random random(seed);
    std::vector<int32_t> tokens(count);
    for (int32_t& token : tokens) token = static_cast<int32_t>(random.Below(4000));
    return tokens;
  }
  // All that is wanted there is on disk, and memory has nothing.
  static void Forget(Engine& engine) {
    engine.RunOnEngineThread([](Runner& runner) {
      SaveAll(*runner.prefix_disk());
      runner.kv_pool().DropCached();
      runner.CheckInvariants();
    });
  }

  static TestStore* store_;
  const std::string directory_;
  std::function<void()> before_io_;
};
TestStore* PrefixDiskEngineTest::store_ = nullptr;

TEST_F(PrefixDiskEngineTest, WhatIsNotInMemoryAnyMoreIsReadAndTheAnswerIsTheSame) {
  const std::vector<int32_t> prompt = Prompt(700, 1);
  const Answer expected = Ask(*Open(false), Request(prompt, 20));
  for (int start = 0; start < 3; ++start) {
    const auto engine = Open(true);
    for (int round = 0; round < 2; ++round) {
      const uint64_t before = engine->Stats().prefill.tokens;
      const Answer answer = Ask(*engine, Request(prompt, 20));
      EXPECT_EQ(answer.tokens, expected.tokens);
      const uint32_t cached = start + round == 0 ? 0 : 640;
      EXPECT_EQ(answer.end.timings.cached_tokens, cached);
      EXPECT_EQ(engine->Stats().prefill.tokens - before, 700 - cached);
      Forget(*engine);
    }
    const KvStats kv = engine->Stats().kv;
    EXPECT_EQ(kv.restored_tokens, start == 0 ? 640u : 1280u);
    EXPECT_EQ(kv.disk_blocks, 11u) << "704 tokens of prompt and answer";
    EXPECT_EQ(kv.disk_failures, 0u);
  }
}

TEST_F(PrefixDiskEngineTest, WhoComesInBetweenIsAnsweredWhileAPromptIsRead) {
  const std::vector<int32_t> prompt = Prompt(640, 2);
  const Answer expected = Ask(*Open(false), Request(prompt, 20));
  Ask(*Open(true), Request(prompt, 20));  // written at the end
  // The first read waits until somebody else has been answered.
  std::promise<void> answered;
  before_io_ = [wait = answered.get_future().share()] { wait.wait(); };
  const auto engine = Open(true);
  GenerationRequest other = Request({5, 6}, 200);
  std::promise<void> begun;
  other.on_event = [&, tokens = 0](const GenerationEvent& event) mutable {
    if (event.kind != GenerationEvent::Kind::kToken) return;
    ++tokens;
    if (tokens == 1) begun.set_value();
    if (tokens == 40) answered.set_value();
  };
  ASSERT_TRUE(engine->Submit(std::move(other)).ok());
  begun.get_future().wait();
  const Answer answer = Ask(*engine, Request(prompt, 20));
  EXPECT_EQ(answer.tokens, expected.tokens);
}

TEST_F(PrefixDiskEngineTest, ADiskThatHangsIsNotWaitedFor) {
  const std::vector<int32_t> prompt = Prompt(640, 3);
  const Answer expected = Ask(*Open(false), Request(prompt, 20));
  Ask(*Open(true), Request(prompt, 20));
  std::promise<void> never;
  before_io_ = [wait = never.get_future().share()] { wait.wait(); };
  const auto engine = Open(true);
  const Answer answer = Ask(*engine, Request(prompt, 20));
  EXPECT_EQ(answer.tokens, expected.tokens);
  EXPECT_EQ(answer.end.timings.cached_tokens, 0u);
  never.set_value();
}

TEST_F(PrefixDiskEngineTest, ARequestIsCancelledWhileItsPromptIsRead) {
  const std::vector<int32_t> prompt = Prompt(640, 4);
  const Answer expected = Ask(*Open(true), Request(prompt, 20));
  std::promise<void> reading, go;
  before_io_ = [&, wait = go.get_future().share(), first = true]() mutable {
    if (std::exchange(first, false)) reading.set_value();
    wait.wait();
  };
  const auto engine = Open(true);
  std::promise<FinishReason> ended;
  GenerationRequest request = Request(prompt, 20);
  request.on_event = [&](const GenerationEvent& event) {
    if (event.kind == GenerationEvent::Kind::kFinished) ended.set_value(event.finish_reason);
  };
  const auto generation = engine->Submit(std::move(request));
  reading.get_future().wait();
  (*generation)->Cancel();
  EXPECT_EQ(ended.get_future().get(), FinishReason::kCancelled);
  go.set_value();
  EXPECT_EQ(Ask(*engine, Request(prompt, 20)).tokens, expected.tokens);
  engine->RunOnEngineThread([](Runner& runner) {
    runner.CheckInvariants();
    EXPECT_EQ(runner.kv_pool().available(), runner.kv_pool().block_count());
  });
}

TEST_F(PrefixDiskEngineTest, DamageOnDiskIsComputed) {
  constexpr uint64_t kSeed = 5;
  SCOPED_TRACE(testing::Message() << "seed " << kSeed);
  Random random(kSeed);
  const std::vector<int32_t> prompt = Prompt(640, 5);
  const Answer expected = Ask(*Open(true), Request(prompt, 20));
  uint32_t least = 640;
  for (int round = 0; round < 6; ++round) {
    for (const auto& file : std::filesystem::directory_iterator(directory_)) {
      for (int flips = 0; flips < 1 + round; ++flips) {
        FlipByte(file.path(), 4096 + random.Below(file.file_size() - 4096));
      }
    }
    const auto engine = Open(true);
    const Answer answer = Ask(*engine, Request(prompt, 20));
    EXPECT_EQ(answer.tokens, expected.tokens);
    least = std::min(least, answer.end.timings.cached_tokens);
    Forget(*engine);
    EXPECT_EQ(engine->Stats().kv.disk_blocks, 10u) << "what was damaged is written again";
  }
  EXPECT_LT(least, 576u) << "nothing was damaged";
}

// Two models, one directory; then a process that finds it taken.
TEST_F(PrefixDiskEngineTest, AnotherModelsBlocksAreNotTaken) {
  const TestStore other(DemoModelPath(), Encoding::kQ8);
  const std::vector<int32_t> prompt = Prompt(640, 6);
  const Answer q4 = Ask(*Open(true), Request(prompt, 20));
  const Answer q8 = Ask(*Open(true, other), Request(prompt, 20));
  EXPECT_EQ(q8.end.timings.cached_tokens, 0u);
  EXPECT_EQ(q8.tokens, Ask(*Open(false, other), Request(prompt, 20)).tokens);
  const auto first = Open(true), second = Open(true);
  EXPECT_EQ(Ask(*first, Request(prompt, 20)).end.timings.cached_tokens, 576u);
  EXPECT_EQ(Ask(*second, Request(prompt, 20)).tokens, q4.tokens);
  second->RunOnEngineThread([](Runner& runner) { EXPECT_EQ(runner.prefix_disk(), nullptr); });
}

}  // namespace
}  // namespace moraine
