#include "engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <condition_variable>
#include <future>
#include <mutex>
#include <nlohmann/json.hpp>
#include <numeric>
#include <thread>

#include "test_store.h"

namespace moraine {
namespace {

using testing::HasSubstr;

// Collects the events of one request; waits without sleeping.
class Collector {
 public:
  std::function<void(const GenerationEvent&)> Listener() {
    return [this](const GenerationEvent& event) {
      std::lock_guard lock(mutex_);
      events_.push_back(event);
      if (on_event) on_event(event);
      wake_.notify_all();
    };
  }
  std::vector<GenerationEvent> WaitForEnd() {
    return WaitFor([](const GenerationEvent& e) {
      return e.kind == GenerationEvent::Kind::kFinished;
    });
  }
  template <typename Predicate>
  std::vector<GenerationEvent> WaitFor(Predicate&& predicate) {
    std::unique_lock lock(mutex_);
    wake_.wait(lock, [&] { return std::any_of(events_.begin(), events_.end(), predicate); });
    return events_;
  }
  std::function<void(const GenerationEvent&)> on_event;  // on the engine thread

 private:
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<GenerationEvent> events_;
};

std::string TextOf(const std::vector<GenerationEvent>& events) {
  std::string text;
  for (const GenerationEvent& event : events) text += event.text;
  return text;
}

class EngineTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { store_ = new TestStore(DemoModelPath(), Encoding::kBf16); }
  static void TearDownTestSuite() { delete store_; }

  std::unique_ptr<Engine> Open(uint32_t queue_limit = 8) {
    EngineOptions options;
    options.runner = TestRunnerOptions(*store_, "25%");
    options.queue_limit = queue_limit;
    auto engine = Engine::Open(options);
    CHECK(engine.ok(), engine.status().message());
    return std::move(*engine);
  }
  GenerationRequest Story(Collector* collector, uint32_t max_tokens) {
    GenerationRequest request;
    request.prompt = {685, 531, 258, 519};  // Once upon a time
    request.max_tokens = max_tokens;
    request.on_event = collector->Listener();
    return request;
  }

  static TestStore* store_;
};
TestStore* EngineTest::store_ = nullptr;

TEST_F(EngineTest, StreamsTheReferenceStory) {
  const auto engine = Open();
  Collector collector;
  ASSERT_TRUE(engine->Submit(Story(&collector, 12)).ok());
  const auto events = collector.WaitForEnd();
  EXPECT_EQ(events.front().kind, GenerationEvent::Kind::kStarted);
  EXPECT_EQ(TextOf(events).substr(0, 18), " there was a quiet");
  EXPECT_EQ(events.back().finish_reason, FinishReason::kLength);
  EXPECT_EQ(events.back().timings.prompt_tokens, 4u);
  EXPECT_EQ(events.back().timings.completion_tokens, 12u);
  EXPECT_EQ(engine->Stats().requests, 1u);
  EXPECT_EQ(engine->Stats().decode.tokens, 11u);
}

TEST_F(EngineTest, TheTimeBetweenTokensIsSplitIntoPartsThatSumToIt) {
  const auto engine = Open();
  Collector collector;
  ASSERT_TRUE(engine->Submit(Story(&collector, 12)).ok());
  collector.WaitForEnd();
  const StepStats steps = engine->Stats().steps;
  // The last token's step has not ended when the statistics of the request's end are made.
  EXPECT_EQ(steps.turns.total(), 11u);
  EXPECT_EQ(steps.waits.total(), 11u);
  EXPECT_EQ(std::accumulate(steps.part_ns.begin(), steps.part_ns.end(), int64_t{0}),
            steps.turns.sum_ns);
  EXPECT_EQ(std::accumulate(steps.caused.begin(), steps.caused.end(), uint64_t{0}), 11u);
  const auto part_ns = [&](StepPart part) { return steps.part_ns[static_cast<size_t>(part)]; };
  EXPECT_GT(part_ns(StepPart::kPrompt), 0);
  EXPECT_GT(part_ns(StepPart::kDecode), 0);
  EXPECT_GT(part_ns(StepPart::kDrive), 0) << "a quarter of the experts is in memory";
  EXPECT_EQ(part_ns(StepPart::kMixed), 0) << "nobody else is there";
  EXPECT_EQ(part_ns(StepPart::kResize) + part_ns(StepPart::kRestore), 0);
  EXPECT_EQ(steps.longest_preempted_ns, 0);
}

TEST_F(EngineTest, AnswersThroughTheChatTemplateAndStopsAtEos) {
  const auto engine = Open();
  const auto ids = engine->text().EncodeChat(
      {{"messages", {{{"role", "user"}, {"content", "Name the capital of Germany."}}}},
       {"add_generation_prompt", true}});
  ASSERT_TRUE(ids.ok());
  Collector collector;
  GenerationRequest request;
  request.prompt = *ids;
  request.on_event = collector.Listener();
  ASSERT_TRUE(engine->Submit(std::move(request)).ok());
  const auto events = collector.WaitForEnd();
  EXPECT_EQ(TextOf(events), "The capital of Germany is Berlin.");
  EXPECT_EQ(events.back().finish_reason, FinishReason::kStop);
}

TEST_F(EngineTest, StopStringEndsTheAnswer) {
  const auto engine = Open();
  Collector collector;
  GenerationRequest request = Story(&collector, 40);
  request.stop = {"Rosa"};
  ASSERT_TRUE(engine->Submit(std::move(request)).ok());
  const auto events = collector.WaitForEnd();
  EXPECT_EQ(TextOf(events), " there was a quiet crow named ");
  EXPECT_EQ(events.back().finish_reason, FinishReason::kStop);
  EXPECT_EQ(events.back().stop_string, "Rosa");
}

TEST_F(EngineTest, TheSameSeedGivesTheSameTokensAndAnotherSeedOthers) {
  const auto engine = Open();
  const auto sample = [&](uint64_t seed) {
    Collector collector;
    GenerationRequest request = Story(&collector, 24);
    request.sampling.temperature = 1.5f;
    request.sampling.seed = seed;
    CHECK(engine->Submit(std::move(request)).ok());
    return TextOf(collector.WaitForEnd());
  };
  EXPECT_EQ(sample(7), sample(7));
  EXPECT_NE(sample(7), sample(8));
}

TEST_F(EngineTest, LogprobsAreOfTheChosenToken) {
  const auto engine = Open();
  Collector collector;
  GenerationRequest request = Story(&collector, 3);
  request.top_logprobs = 2;
  ASSERT_TRUE(engine->Submit(std::move(request)).ok());
  for (const GenerationEvent& event : collector.WaitForEnd()) {
    if (event.kind != GenerationEvent::Kind::kToken) continue;
    ASSERT_TRUE(event.logprobs.has_value());
    ASSERT_EQ(event.logprobs->top.size(), 2u);
    EXPECT_EQ(event.logprobs->top[0].token, event.token);  // greedy
    EXPECT_EQ(event.logprobs->top[0].logprob, event.logprobs->chosen);
    EXPECT_LT(event.logprobs->top[1].logprob, event.logprobs->chosen);
  }
}

TEST_F(EngineTest, BadRequestsAreRefusedByName) {
  const auto engine = Open();
  Collector collector;
  const auto refuse = [&](auto&& edit, const char* message) {
    GenerationRequest request = Story(&collector, 1);
    edit(request);
    const auto result = engine->Submit(std::move(request));
    ASSERT_FALSE(result.ok());
    EXPECT_EQ(result.status().code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(result.status().message(), HasSubstr(message));
  };
  refuse([](auto& r) { r.prompt.clear(); }, "no tokens");
  refuse([](auto& r) { r.prompt[1] = 4096; }, "prompt token 4096");
  refuse([](auto& r) { r.prompt.assign(1024, 5); }, "context length exceeded");
  refuse([](auto& r) { r.sampling.top_p = 0; }, "top_p is 0");
  refuse([](auto& r) { r.sampling.logit_bias = {{9999, 1.0f}}; }, "token 9999");
}

TEST_F(EngineTest, AFullQueueRefusesAndTheRestIsServedInOrder) {
  const auto engine = Open(/*queue_limit=*/1);
  Collector first, second, third;
  std::promise<void> release;
  std::shared_future<void> released = release.get_future().share();
  first.on_event = [released](const GenerationEvent& event) {
    if (event.kind == GenerationEvent::Kind::kStarted) released.wait();
  };
  ASSERT_TRUE(engine->Submit(Story(&first, 2)).ok());
  // Once the first is running the queue is empty again; it is held there by its own listener.
  while (engine->queue_length() > 0) std::this_thread::yield();
  ASSERT_TRUE(engine->Submit(Story(&second, 2)).ok());
  const auto refused = engine->Submit(Story(&third, 2));
  EXPECT_EQ(refused.status().code(), StatusCode::kResourceExhausted);
  release.set_value();
  EXPECT_EQ(TextOf(first.WaitForEnd()), TextOf(second.WaitForEnd()));
}

TEST_F(EngineTest, CancelStopsARunningAndAQueuedRequest) {
  const auto engine = Open();
  Collector running, queued;
  std::shared_ptr<Generation> queued_generation;
  const auto first = engine->Submit(Story(&running, 0));
  ASSERT_TRUE(first.ok());
  running.WaitFor([](const auto& e) { return e.kind == GenerationEvent::Kind::kToken; });
  queued_generation = *engine->Submit(Story(&queued, 0));
  queued_generation->Cancel();
  (*first)->Cancel();
  EXPECT_EQ(running.WaitForEnd().back().finish_reason, FinishReason::kCancelled);
  EXPECT_EQ(queued.WaitForEnd().back().finish_reason, FinishReason::kCancelled);
  EXPECT_EQ(engine->Stats().requests_cancelled, 2u);
}

TEST_F(EngineTest, CancelInPrefillTakesEffectWithinALayer) {
  const auto engine = Open();
  Collector collector;
  GenerationRequest request = Story(&collector, 4);
  request.prompt.assign(1000, 300);
  std::shared_ptr<Generation> generation;
  std::mutex mutex;
  std::unique_lock lock(mutex);  // the listener waits until `generation` is known
  collector.on_event = [&](const GenerationEvent& event) {
    if (event.kind != GenerationEvent::Kind::kStarted) return;
    std::lock_guard wait(mutex);
    generation->Cancel();
  };
  generation = *engine->Submit(std::move(request));
  lock.unlock();
  const auto events = collector.WaitForEnd();
  EXPECT_EQ(events.back().finish_reason, FinishReason::kCancelled);
  EXPECT_EQ(engine->Stats().prefill.tokens, 0u) << "no chunk was completed";
}

TEST_F(EngineTest, ShutdownFinishesEveryRequestWithReadsInFlight) {
  Collector running, queued;
  {
    const auto engine = Open();
    ASSERT_TRUE(engine->Submit(Story(&running, 0)).ok());
    ASSERT_TRUE(engine->Submit(Story(&queued, 0)).ok());
    running.WaitFor([](const auto& e) { return e.kind == GenerationEvent::Kind::kToken; });
  }
  EXPECT_EQ(running.WaitForEnd().back().finish_reason, FinishReason::kCancelled);
  EXPECT_EQ(queued.WaitForEnd().back().finish_reason, FinishReason::kCancelled);
}

TEST_F(EngineTest, TheProfileIsSavedInTheMiddleOfAGeneration) {
  EngineOptions options;
  options.runner = TestRunnerOptions(*store_, "25%");
  options.runner.store_mode = StoreMode::kReadWrite;
  options.runner.profile = "mid";
  options.profile_save_interval_ns = 0;  // at every token
  const auto engine = Engine::Open(options);
  ASSERT_TRUE(engine.ok());
  const auto reader = Store::Open(store_->directory(), StoreMode::kReadOnly);
  ASSERT_TRUE(reader.ok());
  Collector collector;
  Status saved = NotFound("no token");
  collector.on_event = [&](const GenerationEvent& event) {
    // Holds the third token back until what the tokens before it taught is in the store.
    if (event.timings.completion_tokens != 3) return;
    const int64_t deadline_ns = RealClock().NowNs() + 30'000'000'000;
    do {
      saved = (*reader)->LoadProfileSection("mid", "heat").status();
    } while (!saved.ok() && RealClock().NowNs() < deadline_ns);
  };
  ASSERT_TRUE((*engine)->Submit(Story(&collector, 8)).ok());
  collector.WaitForEnd();
  EXPECT_TRUE(saved.ok()) << saved.message();
}

// With snapshots as often as they can be: each layer of the prompt's one chunk makes one, and each step has its
// times in the last of them.
TEST_F(EngineTest, WhoWatchesSeesTheLayersOfAChunkAndEveryStep) {
  EngineOptions options;
  options.runner = TestRunnerOptions(*store_, "25%");
  options.stats_interval_ns = 0;
  const auto engine = Engine::Open(options);
  ASSERT_TRUE(engine.ok());
  const auto watch = (*engine)->residency_feed()->TryWatch(1);
  Collector collector;
  uint64_t at_start = 0, at_first_token = 0;
  collector.on_event = [&](const GenerationEvent& event) {
    const auto latest = watch->Latest();
    const uint64_t sequence = latest ? latest->sequence : 0;
    if (event.kind == GenerationEvent::Kind::kStarted) at_start = sequence;
    if (event.kind == GenerationEvent::Kind::kToken && at_first_token == 0) at_first_token = sequence;
  };
  ASSERT_TRUE((*engine)->Submit(Story(&collector, 12)).ok());
  collector.WaitForEnd();
  const size_t layers = (*engine)->Stats().layers.size();
  EXPECT_GE(layers, 4u);
  EXPECT_GE(at_first_token, at_start + layers);
  (*engine)->RunOnEngineThread([](Runner&) {});  // what ended is published
  const auto last = watch->Latest();
  ASSERT_NE(last, nullptr);
  EXPECT_EQ(last->step_count, 12u);  // the prompt's chunk and 11 tokens
  ASSERT_EQ(last->steps.size(), 12u);
  EXPECT_FALSE(last->steps[0].decode);
  for (size_t i = 1; i < 12; ++i) {
    EXPECT_TRUE(last->steps[i].decode) << i;
    EXPECT_EQ(last->steps[i].tokens, 1u) << i;
  }
}

TEST_F(EngineTest, TheProfileSurvivesARestart) {
  EngineOptions options;
  options.runner = TestRunnerOptions(*store_, "25%");
  options.runner.store_mode = StoreMode::kReadWrite;
  {
    const auto engine = Engine::Open(options);
    ASSERT_TRUE(engine.ok());
    Collector collector;
    ASSERT_TRUE((*engine)->Submit(Story(&collector, 8)).ok());
    collector.WaitForEnd();
  }
  const auto store = Store::Open(store_->directory(), StoreMode::kReadOnly);
  ASSERT_TRUE(store.ok());
  const auto profile = WorkloadProfile::Load(**store, kDefaultProfile,
                                             IdentityOf((*store)->manifest(), 4));
  ASSERT_TRUE(profile.ok()) << profile.status().message();
  EXPECT_EQ(profile->heat.size(), 256u);
  EXPECT_GT(*std::max_element(profile->heat.begin(), profile->heat.end()), 0.0f);
  EXPECT_GE(profile->tokens, 11u);
  EXPECT_GT(profile->warm_set.size(), 4u);
}

}  // namespace
}  // namespace moraine
