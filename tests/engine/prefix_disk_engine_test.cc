// The prefix cache's second tier in the engine: restarts, prompts that others overtake, cancels, damage.
#include <gtest/gtest.h>

#include <filesystem>
#include <future>

#include "base/random.h"
#include "engine/engine.h"
#include "engine/prefix_disk.h"
#include "prefix_disk_support.h"
#include "test_store.h"

namespace moraine {
namespace {

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
