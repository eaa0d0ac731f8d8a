// Several sequences computed together: each gets, to the bit, what it gets alone, whatever the others are,
// whoever leaves in between, and whatever becomes of keys and values.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <future>
#include <map>
#include <thread>

#include "base/random.h"
#include "engine/engine.h"
#include "io/simulated_reader.h"
#include "model/kv_pool.h"
#include "model/sequence_state.h"
#include "test_store.h"

namespace moraine {
namespace {

using testing::HasSubstr;
using Logits = std::map<uint32_t, std::vector<float>>;  // by position

std::vector<int32_t> RandomTokens(Random* random, size_t count, uint32_t vocab_size) {
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) token = static_cast<int32_t>(random->Below(vocab_size));
  return tokens;
}

// --- Runner: every family ------------------------------------------------------------------------

class BatchedFamilyTest : public testing::TestWithParam<const char*> {};

TEST_P(BatchedFamilyTest, AStepOfManyGivesTheBitsOfStepsOfOne) {
  constexpr uint64_t kSeed = 77;
  constexpr size_t kSequences = 4, kTokens = 90;
  SCOPED_TRACE(testing::Message() << "seed " << kSeed);
  const TestStore store(GoldenPath(std::string("fixtures/") + GetParam()), std::nullopt);
  RunnerOptions options = TestRunnerOptions(store, "60%");
  options.max_context = 512;
  options.max_sequences = kSequences;
  options.prefill_chunk = 64;
  options.io.kind = "simulated";
  const auto opened = Runner::Open(options);
  ASSERT_TRUE(opened.ok()) << opened.status().message();
  Runner& runner = **opened;
  Random random(kSeed);
  std::vector<std::vector<int32_t>> tokens;
  std::vector<Logits> alone(kSequences), together(kSequences);
  std::vector<LogitsSink> sinks;
  for (size_t s = 0; s < kSequences; ++s) {
    tokens.push_back(RandomTokens(&random, kTokens - s, runner.config().vocab_size));
    const LogitsSink keep = [&](uint32_t position, std::span<const float> row) {
      alone[s][position].assign(row.begin(), row.end());
    };
    runner.ResetSequence();
    const Status status =
        runner.Forward(tokens[s], {.logits = LogitsMode::kAll, .sink = &keep});
    ASSERT_TRUE(status.ok()) << status.message();
    sinks.push_back([&together, s](uint32_t position, std::span<const float> row) {
      together[s][position].assign(row.begin(), row.end());
    });
  }
  runner.ResetSequence();
  for (int step = 0;; ++step) {
    std::vector<BatchSegment> batch;
    size_t room = runner.step_tokens();
    for (size_t s = 0; s < kSequences; ++s) {
      SequenceState& state = runner.sequence(static_cast<uint32_t>(s));
      const size_t left = tokens[s].size() - state.length();
      if (left == 0 || (step > 0 && random.Chance(0.1))) continue;
      const size_t most = random.Chance(0.3) ? 20 : 1, count = std::min({left, most, room});
      batch.push_back({.tokens = std::span(tokens[s]).subspan(state.length(), count),
                       .state = &state,
                       .logits = LogitsMode::kAll,
                       .sink = &sinks[s],
                       .decode = count == 1 && step > 0});
      room -= count;
    }
    if (batch.empty()) {
      bool done = true;
      for (size_t s = 0; s < kSequences; ++s) {
        done &= runner.sequence(static_cast<uint32_t>(s)).length() == tokens[s].size();
      }
      if (done) break;
      continue;
    }
    runner.Step(batch);
    for (const BatchSegment& segment : batch) ASSERT_TRUE(segment.status.ok());
    runner.CheckInvariants();
  }
  for (size_t s = 0; s < kSequences; ++s) EXPECT_EQ(together[s], alone[s]) << "sequence " << s;
}

INSTANTIATE_TEST_SUITE_P(Families, BatchedFamilyTest,
                         testing::Values("qwen3_moe", "deepseek_v3", "deepseek_v2_lite", "gpt_oss",
                                         "qwen3_next", "qwen3_5_moe", "glm4_moe"),
                         [](const auto& test) { return std::string(test.param); });

// --- Engine --------------------------------------------------------------------------------------

struct Answer {
  std::vector<int32_t> tokens;
  std::string text;
  GenerationEvent end;
};

// One request and what comes of it. Lives until it has ended.
class Call {
 public:
  void Submit(Engine& engine, GenerationRequest request) {
    request.on_event = [this](const GenerationEvent& event) { OnEvent(event); };
    auto submitted = engine.Submit(std::move(request));
    CHECK(submitted.ok(), submitted.status().message());
    generation_.set_value(*submitted);
  }
  const Answer& Wait() {
    done_.wait();
    return answer_;
  }
  // Engine thread: the request has said `count` tokens.
  std::function<void(size_t count)> on_token;
  std::function<void()> on_start, on_end;
  void Cancel() { cancel_.get()->Cancel(); }

 private:
  void OnEvent(const GenerationEvent& event) {
    if (event.kind == GenerationEvent::Kind::kStarted && on_start) on_start();
    answer_.text += event.text;
    if (event.kind == GenerationEvent::Kind::kToken) {
      answer_.tokens.push_back(event.token);
      if (on_token) on_token(answer_.tokens.size());
    }
    if (event.kind != GenerationEvent::Kind::kFinished) return;
    answer_.end = event;
    if (on_end) on_end();
    ended_.set_value();
  }

  Answer answer_;
  std::promise<void> ended_;
  std::shared_future<void> done_ = ended_.get_future().share();
  std::promise<std::shared_ptr<Generation>> generation_;
  std::shared_future<std::shared_ptr<Generation>> cancel_ = generation_.get_future().share();
};

class BatchedEngineTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { store_ = new TestStore(DemoModelPath(), Encoding::kQ4); }
  static void TearDownTestSuite() { delete store_; }

  struct Options {
    uint32_t sequences = 8, context = 1024, prefill_chunk = 64;
    std::function<int32_t(const BlockRead&)> script = {};
  };
  static std::unique_ptr<Engine> Open(const Options& o) {
    EngineOptions options;
    options.runner = TestRunnerOptions(*store_, "25%");
    options.runner.threads = 1;
    options.runner.max_sequences = o.sequences;
    options.runner.max_context = o.context;
    options.runner.prefill_chunk = o.prefill_chunk;
    options.queue_limit = 64;
    if (o.script) {
      options.runner.reader_factory = [script = o.script] {
        SimulatedReaderOptions reader;
        reader.faults.script = script;
        return Result<std::unique_ptr<BlockReader>>(CreateSimulatedReader(std::move(reader)));
      };
    }
    auto engine = Engine::Open(options);
    CHECK(engine.ok(), engine.status().message());
    return std::move(*engine);
  }
  static Answer Ask(Engine& engine, const GenerationRequest& request) {
    Call call;
    call.Submit(engine, request);
    return call.Wait();
  }
  static GenerationRequest Request(std::vector<int32_t> prompt, uint32_t max_tokens) {
    GenerationRequest request;
    request.prompt = std::move(prompt);
    request.max_tokens = max_tokens;
    request.ignore_eos = true;
    return request;
  }
  static std::vector<int32_t> Prompt(size_t count, uint64_t seed) {
    Random random(seed);
    return RandomTokens(&random, count, 4000);
  }
  // Nothing is held any more, and nothing is lost.
  static void ExpectAllIsGivenBack(Engine& engine) {
    engine.RunOnEngineThread([](Runner& runner) {
      runner.CheckInvariants();
      EXPECT_EQ(runner.kv_pool().available(), runner.kv_pool().block_count());
      EXPECT_TRUE(runner.Settle(5'000'000'000).ok());
    });
    EXPECT_EQ(engine.Stats().running, 0u);
    EXPECT_EQ(engine.Stats().kv.held, 0u);
  }

  static TestStore* store_;
};
TestStore* BatchedEngineTest::store_ = nullptr;

// 64 requests that meet in every way: greedy and sampled, with common beginnings and without, some cancelled
// at some token, some with listeners that take their time, and not blocks for all of them at once.
TEST_F(BatchedEngineTest, SixtyFourRequestsEachGetWhatTheyGetAlone) {
  constexpr uint64_t kSeed = 2024;
  constexpr size_t kRequests = 64;
  SCOPED_TRACE(testing::Message() << "seed " << kSeed);
  Random random(kSeed);
  const std::vector<int32_t> common = Prompt(150, 5);
  std::vector<GenerationRequest> requests;
  std::vector<size_t> cancel_at(kRequests);
  for (size_t i = 0; i < kRequests; ++i) {
    std::vector<int32_t> prompt = Prompt(1 + random.Below(60), random.Next());
    if (random.Chance(0.4)) {
      prompt.insert(prompt.begin(), common.begin(),
                    common.begin() + static_cast<ptrdiff_t>(random.Below(common.size())));
    }
    const uint64_t longest = random.Chance(0.1) ? 350 : 30;
    requests.push_back(Request(std::move(prompt), 1 + static_cast<uint32_t>(random.Below(longest))));
    if (random.Chance(0.3)) requests.back().sampling = {.temperature = 0.9f, .seed = random.Next()};
    if (random.Chance(0.25)) cancel_at[i] = 1 + random.Below(12);
  }
  std::vector<Answer> expected;
  {
    const auto engine = Open({.sequences = 1, .context = 512});
    for (const GenerationRequest& request : requests) expected.push_back(Ask(*engine, request));
  }
  const auto engine = Open({.sequences = 8, .context = 512});
  std::vector<Call> calls(kRequests);
  std::vector<std::thread> clients;
  for (size_t c = 0; c < 8; ++c) {
    clients.emplace_back([&, c] {
      for (size_t i = c; i < kRequests; i += 8) {
        calls[i].on_token = [&, i](size_t count) {
          for (int n = 0; i % 5 == 0 && n < 5; ++n) std::this_thread::yield();
          if (count == cancel_at[i]) calls[i].Cancel();
        };
        calls[i].Submit(*engine, requests[i]);
      }
    });
  }
  for (std::thread& client : clients) client.join();
  size_t cancelled = 0;
  for (size_t i = 0; i < kRequests; ++i) {
    const Answer& answer = calls[i].Wait();
    const Answer& wanted = expected[i];
    if (cancel_at[i] > 0 && cancel_at[i] < wanted.tokens.size()) {
      ++cancelled;
      EXPECT_EQ(answer.end.finish_reason, FinishReason::kCancelled) << i;
      ASSERT_EQ(answer.tokens.size(), cancel_at[i]) << i;
      EXPECT_TRUE(std::equal(answer.tokens.begin(), answer.tokens.end(), wanted.tokens.begin()))
          << i;
      continue;
    }
    EXPECT_EQ(answer.tokens, wanted.tokens) << i;
    EXPECT_EQ(answer.text, wanted.text) << i;
    if (cancel_at[i] > 0) continue;  // the last token can be the one
    EXPECT_EQ(answer.end.finish_reason, wanted.end.finish_reason) << i;
  }
  EXPECT_GT(cancelled, 3u);
  const EngineStats stats = engine->Stats();
  EXPECT_EQ(stats.requests, kRequests);
  EXPECT_GT(stats.kv.reused_tokens, 0u);
  EXPECT_LT(4 * stats.decode.steps, 3 * stats.decode.tokens) << "they were not computed together";
  ExpectAllIsGivenBack(*engine);
}

TEST_F(BatchedEngineTest, AnotherAnswerGoesOnWhileALongPromptIsPrefilled) {
  const auto engine = Open({.prefill_chunk = 256});
  Call answering, prompt;
  size_t said = 0, said_before = 0, said_after = 0;
  std::promise<void> begun, submitted;
  answering.on_token = [&](size_t count) {
    said = count;
    if (count != 3) return;
    begun.set_value();
    submitted.get_future().wait();
  };
  prompt.on_start = [&] { said_before = said; };
  prompt.on_token = [&](size_t count) {
    if (count == 1) said_after = said;
  };
  answering.Submit(*engine, Request({685, 531, 258, 519}, 200));
  begun.get_future().wait();
  prompt.Submit(*engine, Request(Prompt(640, 1), 2));
  submitted.set_value();
  prompt.Wait();
  answering.Wait();
  // Pieces of 64 tokens, a quarter of 256.
  EXPECT_GE(said_after, said_before + 9);
  EXPECT_LE(said_after, said_before + 11);
}

TEST_F(BatchedEngineTest, ARepeatedPromptWithAnotherTailPrefillsOnlyTheTail) {
  std::vector<int32_t> prompt = Prompt(700, 9);
  const auto fresh = Open({.sequences = 1});
  const auto engine = Open({.sequences = 2});
  for (int round = 0; round < 4; ++round) {
    const Answer expected = Ask(*fresh, Request(prompt, 20));
    fresh->RunOnEngineThread([](Runner& runner) { runner.kv_pool().DropCached(); });
    const uint64_t before = engine->Stats().prefill.tokens;
    const Answer answer = Ask(*engine, Request(prompt, 20));
    EXPECT_EQ(answer.tokens, expected.tokens);
    EXPECT_EQ(expected.end.timings.cached_tokens, 0u);
    // 680 tokens are the same: ten blocks.
    const uint32_t cached = round == 0 ? 0 : 640;
    EXPECT_EQ(answer.end.timings.cached_tokens, cached);
    EXPECT_EQ(answer.end.timings.prompt_tokens, 700u);
    EXPECT_EQ(engine->Stats().prefill.tokens - before, 700 - cached);
    for (size_t i = 680; i < prompt.size(); ++i) prompt[i] = static_cast<int32_t>(i) + round;
  }
  // And the answer is a prefix, too, for what follows on it.
  const Answer answer = Ask(*engine, Request(prompt, 100));
  prompt.insert(prompt.end(), answer.tokens.begin(), answer.tokens.end());
  EXPECT_EQ(Ask(*engine, Request(prompt, 2)).end.timings.cached_tokens, 768u);
  ExpectAllIsGivenBack(*engine);
}

TEST_F(BatchedEngineTest, ChoicesOfOnePromptComputeItOnce) {
  const auto engine = Open({});
  const std::vector<int32_t> prompt = Prompt(330, 3);
  std::vector<Call> calls(4);
  for (Call& call : calls) call.Submit(*engine, Request(prompt, 4));
  for (Call& call : calls) EXPECT_EQ(call.Wait().tokens, calls[0].Wait().tokens);
  // The first computes all, the others what is no whole block.
  EXPECT_LE(engine->Stats().prefill.tokens, 330u + 3 * 10);
}

TEST_F(BatchedEngineTest, WhoDoesNotFitWaitsAndIsNotOvertaken) {
  const auto engine = Open({.context = 512});  // 8 blocks
  std::mutex mutex;
  std::vector<std::string> log;
  const auto note = [&](const char* what) {
    return [&log, &mutex, what] {
      std::lock_guard lock(mutex);
      log.push_back(what);
    };
  };
  std::promise<void> all_there;
  std::shared_future<void> wait = all_there.get_future().share();
  Call first, large, small;
  first.on_start = [&, wait] {
    note("first begins")();
    wait.wait();
  };
  first.on_end = note("first ends");
  large.on_start = note("large begins");
  small.on_start = note("small begins");
  first.Submit(*engine, Request(Prompt(200, 1), 30));  // 4 blocks
  large.Submit(*engine, Request(Prompt(300, 2), 3));   // 5
  small.Submit(*engine, Request(Prompt(5, 3), 3));     // 1
  all_there.set_value();
  for (Call* call : {&first, &large, &small}) call->Wait();
  EXPECT_THAT(log, testing::ElementsAre("first begins", "first ends", "large begins",
                                        "small begins"));
  ExpectAllIsGivenBack(*engine);
}

TEST_F(BatchedEngineTest, AnswersThatNeedMoreThanThereIsTakeTurnsAndComeOutRight) {
  const auto engine = Open({.sequences = 3, .context = 640});
  std::vector<Answer> expected;
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    expected.push_back(Ask(*engine, Request(Prompt(60, seed), 330)));
  }
  EXPECT_EQ(engine->Stats().kv.preempted, 0u);
  EXPECT_EQ(engine->Stats().steps.longest_preempted_ns, 0);
  std::vector<Call> calls(3);
  std::promise<void> submitted;
  calls[0].on_start = [&] { submitted.get_future().wait(); };
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    calls[seed - 1].Submit(*engine, Request(Prompt(60, seed), 330));
  }
  submitted.set_value();
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(calls[i].Wait().tokens, expected[i].tokens);
    EXPECT_EQ(calls[i].Wait().tokens.size(), 330u);
  }
  EXPECT_GT(engine->Stats().kv.preempted, 0u);
  EXPECT_GT(engine->Stats().steps.longest_preempted_ns, 0);
  ExpectAllIsGivenBack(*engine);
}

// An expert that cannot be read fails those who want it, by name; the others do not notice.
TEST_F(BatchedEngineTest, AnExpertThatCannotBeReadFailsOnlyThoseWhoWantIt) {
  constexpr size_t kRequests = 6;
  std::vector<Answer> expected;
  const auto request = [](size_t i) { return Request(Prompt(2 + i, 100 + i), 3); };
  {
    const auto engine = Open({});
    for (size_t i = 0; i < kRequests; ++i) expected.push_back(Ask(*engine, request(i)));
  }
  const auto store = Store::Open(store_->directory(), StoreMode::kReadOnly);
  ASSERT_TRUE(store.ok());
  size_t failed = 0, survived = 0;
  for (uint32_t expert = 0; expert < 12; ++expert) {
    const RecordLocation& place = (*store)->Locate({LayerId(3), ExpertId(expert)});
    const auto engine = Open({.script = [&](const BlockRead& read) {
      const bool hit = read.offset < place.offset + place.bytes &&
                       place.offset < read.offset + read.length;
      return hit ? -EIO : 1 << 30;
    }});
    std::vector<Call> calls(kRequests);
    for (size_t i = 0; i < kRequests; ++i) calls[i].Submit(*engine, request(i));
    for (size_t i = 0; i < kRequests; ++i) {
      const Answer& answer = calls[i].Wait();
      if (answer.end.finish_reason == FinishReason::kError) {
        ++failed;
        EXPECT_EQ(answer.end.error.code(), StatusCode::kIoError);
        EXPECT_THAT(answer.end.error.message(), HasSubstr("expert " + std::to_string(expert)));
        ASSERT_LE(answer.tokens.size(), expected[i].tokens.size());
        EXPECT_TRUE(std::equal(answer.tokens.begin(), answer.tokens.end(),
                               expected[i].tokens.begin()));
      } else {
        ++survived;
        EXPECT_EQ(answer.tokens, expected[i].tokens);
      }
    }
    ExpectAllIsGivenBack(*engine);
  }
  EXPECT_GT(failed, 5u);
  EXPECT_GT(survived, 5u);
}

TEST_F(BatchedEngineTest, ACallWaitsForWhatRuns) {
  const auto engine = Open({.sequences = 2});
  Call a, b;
  std::promise<void> running;
  a.on_token = [&](size_t count) {
    if (count == 2) running.set_value();
  };
  std::atomic<int> ended{0};
  a.on_end = b.on_end = [&] { ++ended; };
  a.Submit(*engine, Request({5, 6}, 60));
  b.Submit(*engine, Request({7, 8}, 80));
  running.get_future().wait();
  engine->RunOnEngineThread([&](Runner& runner) {
    EXPECT_EQ(ended, 2);
    EXPECT_EQ(runner.kv_pool().stats().held, 0u);
  });
}

}  // namespace
}  // namespace moraine
