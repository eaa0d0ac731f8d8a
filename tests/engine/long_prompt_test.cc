// An agent's prompt of 20,000 tokens that comes again with another tail: only the tail is computed, whether its
// beginning is in memory or, after a restart, on disk.
#include <gtest/gtest.h>

#include <filesystem>
#include <future>

#include "base/random.h"
#include "engine/engine.h"
#include "model/kv_pool.h"
#include "test_store.h"

namespace moraine {
namespace {

constexpr uint32_t kPromptTokens = 20'000, kTailTokens = 500;

// Small but for its context; with the demo model's tokenizer, which the engine wants.
std::string Checkpoint() {
  const std::string directory = MakeScratchDirectory("long-checkpoint");
  WriteSyntheticCheckpoint(directory, {.vocab = 4096, .max_position = 32768}, 7);
  for (const char* file : {"tokenizer.json", "tokenizer_config.json"}) {
    std::filesystem::copy_file(DemoModelPath() + "/" + file, directory + "/" + file);
  }
  return directory;
}

struct Answer {
  std::vector<int32_t> tokens;
  uint32_t cached = 0;
};

Answer Ask(Engine& engine, const std::vector<int32_t>& prompt) {
  Answer answer;
  std::promise<void> ended;
  GenerationRequest request;
  request.prompt = prompt;
  request.max_tokens = 8;
  request.ignore_eos = true;
  request.on_event = [&](const GenerationEvent& event) {
    if (event.kind == GenerationEvent::Kind::kToken) answer.tokens.push_back(event.token);
    if (event.kind != GenerationEvent::Kind::kFinished) return;
    answer.cached = event.timings.cached_tokens;
    ended.set_value();
  };
  const auto submitted = engine.Submit(std::move(request));
  CHECK(submitted.ok(), submitted.status().message());
  ended.get_future().wait();
  return answer;
}

TEST(LongPromptTest, AChangedTailIsAllThatIsComputed) {
  const TestStore store(Checkpoint(), Encoding::kQ8);
  const std::string disk = MakeScratchDirectory("prefix-cache");
  const auto open = [&] {
    EngineOptions options;
    options.runner = TestRunnerOptions(store, "100%");
    options.runner.max_context = kPromptTokens + 1024;
    options.runner.prefix_disk.directory = disk;
    auto engine = Engine::Open(options);
    CHECK(engine.ok(), engine.status().message());
    return std::move(*engine);
  };
  Random random(3);
  std::vector<int32_t> prompt(kPromptTokens);
  for (int32_t& token : prompt) token = static_cast<int32_t>(random.Below(4096));
  constexpr uint32_t kSame = (kPromptTokens - kTailTokens) / kKvBlockPositions * kKvBlockPositions;
  std::vector<int32_t> first, second;
  {
    const auto engine = open();
    first = Ask(*engine, prompt).tokens;
    EXPECT_EQ(engine->Stats().prefill.tokens, kPromptTokens);
    for (size_t i = prompt.size() - kTailTokens; i < prompt.size(); ++i) prompt[i] ^= 1;
    const Answer answer = Ask(*engine, prompt);
    second = answer.tokens;
    EXPECT_EQ(answer.cached, kSame);
    EXPECT_EQ(engine->Stats().prefill.tokens, 2 * kPromptTokens - kSame);
    EXPECT_EQ(engine->Stats().kv.restored_tokens, 0u);
  }
  for (size_t i = prompt.size() - kTailTokens; i < prompt.size(); ++i) prompt[i] ^= 1;
  const auto engine = open();
  const Answer answer = Ask(*engine, prompt);
  EXPECT_EQ(answer.tokens, first);
  EXPECT_EQ(engine->Stats().kv.restored_tokens, answer.cached);
  EXPECT_GE(answer.cached, kSame);
  EXPECT_EQ(engine->Stats().prefill.tokens, kPromptTokens - answer.cached);
  EXPECT_NE(first, second) << "the tails do not matter, so this test would see no mistake";
  std::filesystem::remove_all(disk);
}

}  // namespace
}  // namespace moraine
