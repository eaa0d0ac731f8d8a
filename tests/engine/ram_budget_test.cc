// The DRAM budget changes while tokens are computed: no bit changes, memory really goes back.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <future>

#include "base/bytes.h"
#include "engine/engine.h"
#include "memory/topology.h"
#include "test_store.h"

namespace moraine {
namespace {

using testing::HasSubstr;

constexpr uint64_t kAllWork = 1ull << 40;

std::vector<float> LogitsOf(Runner& runner, std::span<const int32_t> tokens) {
  std::vector<float> copy;
  const Runner::LogitsSink sink = [&](uint32_t, std::span<const float> logits) {
    copy.assign(logits.begin(), logits.end());
  };
  const Status status = runner.Forward(tokens, {.sink = &sink});
  CHECK(status.ok(), status.message());
  return copy;
}

// Greedy; the logits of every step, so that a bit that does not change the token is seen, too.
std::vector<std::vector<float>> Decode(Runner& runner, int steps,
                                       const std::function<void(int step)>& before_step) {
  std::vector<std::vector<float>> all = {LogitsOf(runner, std::vector<int32_t>{685, 531, 258, 519})};
  for (int i = 0; i < steps; ++i) {
    before_step(i);
    const auto& logits = all.back();
    const auto token = static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) -
                                            logits.begin());
    all.push_back(LogitsOf(runner, std::span(&token, 1)));
    runner.CheckInvariants();
  }
  return all;
}

TEST(RamBudget, NoBitChangesWhileTheBudgetGoesDownAndUpDuringDecode) {
  const TestStore store(DemoModelPath(), Encoding::kQ8);
  for (const char* io : {"auto", "pread", "simulated"}) {
    RunnerOptions options = TestRunnerOptions(store, "100%");
    options.io.kind = io;
    const auto fixed = Runner::Open(options);
    ASSERT_TRUE(fixed.ok()) << fixed.status().message();
    const auto expected = Decode(**fixed, 60, [](int) {});

    const auto runner = Runner::Open(options);
    ASSERT_TRUE(runner.ok());
    const uint32_t all = (*runner)->Stats().residency.slot_count;
    uint32_t fewest = all;
    const auto changed = Decode(**runner, 60, [&](int step) {
      const char* const budgets[] = {"10%", "50%", "100%", "3%"};
      if (step % 12 == 5) {
        ASSERT_TRUE((*runner)->SetRamBudget(*ParseRamBudget(budgets[step / 12 % 4])).ok());
      }
      fewest = std::min(fewest, (*runner)->Stats().residency.slot_count);
    });
    EXPECT_EQ(changed, expected) << io;
    const EngineStats stats = (*runner)->Stats();
    EXPECT_LT(fewest, all / 9);
    EXPECT_GT(stats.residency.evictions, 0u);
    EXPECT_EQ(stats.residency.slot_count, stats.residency.slot_target);
    EXPECT_EQ(stats.residency.closing_slots, 0u);
  }
}

TEST(RamBudget, RefusalsNameTheLimit) {
  const TestStore store(DemoModelPath(), Encoding::kQ8);
  RunnerOptions options = TestRunnerOptions(store, "20%");
  options.ram_budget_max = *ParseRamBudget("60%");
  const auto runner = Runner::Open(options);
  ASSERT_TRUE(runner.ok()) << runner.status().message();
  EXPECT_THAT((*runner)->SetRamBudget(*ParseRamBudget("0.5%")).message(),
              HasSubstr("the minimum is"));
  EXPECT_THAT((*runner)->SetRamBudget(*ParseRamBudget("1MiB")).message(),
              HasSubstr("the minimum is"));
  EXPECT_THAT((*runner)->SetRamBudget(*ParseRamBudget("61%")).message(),
              HasSubstr("--ram-budget-max"));
  EXPECT_TRUE((*runner)->SetRamBudget(*ParseRamBudget("60%")).ok());
  while ((*runner)->AdvanceResize(kAllWork)) {
  }
  const EngineStats stats = (*runner)->Stats();
  EXPECT_EQ(stats.residency.slot_count, stats.expert_count * 6 / 10);
  const RamBudgetRange range = (*runner)->ram_budget_range();
  EXPECT_EQ(range.current_bytes, range.maximum_bytes);
  RamBudget least{.kind = RamBudget::Kind::kBytes, .bytes = range.minimum_bytes};
  EXPECT_TRUE((*runner)->SetRamBudget(least).ok());
  --least.bytes;
  EXPECT_FALSE((*runner)->SetRamBudget(least).ok());

  options.ram_budget_max = *ParseRamBudget("10%");
  EXPECT_EQ(Runner::Open(options).status().code(), StatusCode::kInvalidArgument);
}

TEST(RamBudget, SettlingFinishesAChangeOrTellsWhatIsLeft) {
  const TestStore store(DemoModelPath(), Encoding::kQ8);
  const auto runner = Runner::Open(TestRunnerOptions(store, "100%"));
  ASSERT_TRUE(runner.ok()) << runner.status().message();
  LogitsOf(**runner, std::vector<int32_t>{685, 531, 258, 519});
  ASSERT_TRUE((*runner)->SetRamBudget(*ParseRamBudget("10%")).ok());
  (*runner)->AdvanceResize(1);
  const Status early = (*runner)->Settle(0);
  EXPECT_EQ(early.code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(early.message(), HasSubstr("slots of 25 wanted"));
  const Status settled = (*runner)->Settle(10'000'000'000);
  EXPECT_TRUE(settled.ok()) << settled.message();
  EXPECT_EQ((*runner)->Stats().residency.slot_count, 25u);
}

// 3 x 64 experts of 1.5 MiB, as in memory_test.
TEST(RamBudget, TheResidentSetFallsAndRisesAgain) {
  const std::string checkpoint = MakeScratchDirectory("checkpoint");
  WriteSyntheticCheckpoint(checkpoint, {.layers = 3, .experts = 64, .top_k = 4, .hidden = 512,
                                        .intermediate = 512, .heads = 4, .kv_heads = 2,
                                        .head_dim = 64, .vocab = 256}, 3);
  const TestStore store(checkpoint, Encoding::kBf16);
  for (const char* io : {"auto", "pread"}) {
    RunnerOptions options = TestRunnerOptions(store, "100%");
    options.io.kind = io;
    const auto runner = Runner::Open(options);
    ASSERT_TRUE(runner.ok()) << runner.status().message();
    std::vector<int32_t> prompt(200);
    for (size_t i = 0; i < prompt.size(); ++i) prompt[i] = static_cast<int32_t>(i * 7 % 250);
    const auto resident_after = [&](const char* budget) {
      CHECK((*runner)->SetRamBudget(*ParseRamBudget(budget)).ok());
      while ((*runner)->AdvanceResize(kAllWork)) {
      }
      (*runner)->ResetSequence();
      LogitsOf(**runner, prompt);
      (*runner)->CheckInvariants();
      return ReadProcessMemory().resident_bytes;
    };
    const uint64_t all = resident_after("100%"), tenth = resident_after("10%"),
                   half = resident_after("50%");
    std::printf("%s: resident %s, %s, %s at 100, 10, 50 %%\n", (*runner)->Stats().io.c_str(),
                FormatByteSize(all).c_str(), FormatByteSize(tenth).c_str(),
                FormatByteSize(half).c_str());
    // Of 288 MiB of experts; 10 MiB for what else a process does between two looks.
    EXPECT_LT(tenth + 249 * kMiB, all);
    EXPECT_GT(half, tenth + 105 * kMiB);
  }
}

// From another thread, while a request runs, and again when none does.
TEST(RamBudget, ARunningRequestIsNotDisturbed) {
  const TestStore store(DemoModelPath(), Encoding::kQ8);
  const auto generate = [&](bool change) {
    EngineOptions options;
    options.runner = TestRunnerOptions(store, "100%");
    auto engine = Engine::Open(options);
    CHECK(engine.ok(), engine.status().message());
    std::vector<int32_t> tokens;
    std::promise<GenerationEvent> finished;
    GenerationRequest request;
    request.prompt = {685, 531, 258, 519};
    request.max_tokens = 60;
    request.ignore_eos = true;
    request.on_event = [&](const GenerationEvent& event) {
      if (event.kind == GenerationEvent::Kind::kToken) tokens.push_back(event.token);
      if (event.kind == GenerationEvent::Kind::kFinished) finished.set_value(event);
      const char* const budgets[] = {"10%", "50%", "4%", "100%"};
      if (change && tokens.size() % 10 == 9) {
        std::thread([&] {
          CHECK((*engine)->SetRamBudget(*ParseRamBudget(budgets[tokens.size() / 10 % 4])).ok());
        }).join();
      }
    };
    CHECK((*engine)->Submit(std::move(request)).ok());
    EXPECT_EQ(finished.get_future().get().finish_reason, FinishReason::kLength);
    if (change) {
      EXPECT_TRUE((*engine)->SetRamBudget(*ParseRamBudget("5%")).ok());
      (*engine)->RunOnEngineThread([&](Runner& runner) {
        while (runner.AdvanceResize(kAllWork)) {
        }
        EXPECT_EQ(runner.Stats().residency.slot_count, runner.Stats().expert_count * 5 / 100);
        runner.CheckInvariants();
      });
    }
    return tokens;
  };
  const auto expected = generate(false);
  EXPECT_EQ(generate(true), expected);
}

}  // namespace
}  // namespace moraine
