// Sampler: which tokens can be drawn and how often, against hand-computed sets and a naive formula.
#include "model/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <limits>
#include <map>
#include <new>
#include <numeric>

namespace {
std::atomic<uint64_t> allocations{0};
}

// Not inlined: gcc would pair the free in here with the new it sees and warn of a mismatch.
[[gnu::noinline]] void* operator new(size_t size) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void* operator new(size_t size, const std::nothrow_t&) noexcept {
  allocations.fetch_add(1, std::memory_order_relaxed);
  return std::malloc(size);
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace moraine {
namespace {

TEST(SamplerTest, ForbiddenTokensAreNeverPicked) {
  const std::vector<float> logits = {5, 4, 3, 2};
  const uint64_t allowed[] = {0b1100};
  Sampler greedy({.logit_bias = {{0, 100.0f}}}, 4);
  EXPECT_EQ(greedy.Sample(logits, allowed), 2);
  EXPECT_EQ(greedy.Sample(logits), 0);
  Sampler drawn({.temperature = 100.0f, .repetition_penalty = 2.0f, .seed = 3}, 4);
  for (int i = 0; i < 100; ++i) EXPECT_GE(drawn.Sample(logits, allowed), 2);
  // Beyond the mask nothing is allowed.
  std::vector<float> many(100, 1.0f);
  Sampler wide({.temperature = 1.0f, .seed = 3}, 100);
  for (int i = 0; i < 100; ++i) EXPECT_LT(wide.Sample(many, allowed), 64);
}

using testing::ElementsAre;
using testing::HasSubstr;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Probabilities by token: best first it is 3 (0.4), 0 (0.3), 4 (0.15), 1 (0.1), 2 (0.05).
const std::vector<float> kProbabilities = {0.3f, 0.1f, 0.05f, 0.4f, 0.15f};

std::vector<float> LogitsOf(std::vector<float> values) {
  // The offset must not matter: softmax is invariant to it.
  for (float& value : values) value = std::log(value) + 3.0f;
  return values;
}

int32_t SampleOnce(const SamplingOptions& options, const std::vector<float>& logits) {
  return Sampler(options, static_cast<uint32_t>(logits.size())).Sample(logits);
}

// How often each token is drawn; tokens that never are do not appear.
std::map<int32_t, int> Draw(SamplingOptions options, const std::vector<float>& logits, int draws) {
  options.seed = 20240607;
  Sampler sampler(options, static_cast<uint32_t>(logits.size()));
  std::map<int32_t, int> counts;
  for (int i = 0; i < draws; ++i) ++counts[sampler.Sample(logits)];
  return counts;
}

// Draws from kProbabilities and expects exactly the tokens of `expected`, in proportion to its
// values: within 5 standard deviations, and a token of 5 % is not missed in 20,000 draws.
void ExpectDistribution(const SamplingOptions& options, const std::map<int32_t, double>& expected) {
  constexpr int kDraws = 20000;
  const std::map<int32_t, int> counts = Draw(options, LogitsOf(kProbabilities), kDraws);
  double total = 0;
  for (const auto& [token, weight] : expected) total += weight;
  for (const auto& [token, count] : counts) EXPECT_TRUE(expected.contains(token)) << token;
  for (const auto& [token, weight] : expected) {
    ASSERT_TRUE(counts.contains(token)) << token;
    const double p = weight / total;
    EXPECT_NEAR(counts.at(token), kDraws * p, 5 * std::sqrt(kDraws * p * (1 - p)) + 1e-9)
        << "token " << token;
  }
}

TEST(SamplerTest, GreedyTakesTheLowestIdOnATie) {
  EXPECT_EQ(SampleOnce({}, {1, 5, 2, 5, 5}), 1);
  EXPECT_EQ(SampleOnce({}, {0, 0, 0}), 0);
  EXPECT_EQ(SampleOnce({}, {-3, -2, -1}), 2);
  EXPECT_EQ(SampleOnce({}, {-kInfinity, -kInfinity, -1e30f}), 2);
}

TEST(SamplerTest, NanLogitsAreNotChosen) {
  const std::vector<float> logits = {kNan, -kInfinity, 1, kNan, 2};
  EXPECT_EQ(SampleOnce({}, logits), 4);
  EXPECT_EQ(SampleOnce({}, {kNan, -kInfinity}), 1);
  const std::map<int32_t, int> counts = Draw({.temperature = 1}, logits, 1000);
  EXPECT_EQ(counts.size(), 2u);
  EXPECT_GT(counts.at(2), 0);
  EXPECT_GT(counts.at(4), counts.at(2));
  EXPECT_EQ(SampleOnce({.temperature = 1}, {kNan, kNan}), 0);
}

TEST(SamplerTest, LogitBiasIsAdded) {
  SamplingOptions options;
  options.logit_bias = {{2, 3.5f}, {0, -100.0f}};
  EXPECT_EQ(SampleOnce(options, {9, 1, 0, 3}), 2);  // -91, 1, 3.5, 3
  options.logit_bias = {{2, 2.5f}, {0, -100.0f}};
  EXPECT_EQ(SampleOnce(options, {9, 1, 0, 3}), 3);
}

TEST(SamplerTest, LogitsAreLeftAsTheyWere) {
  const std::vector<float> logits = {1, 2, 3};
  std::vector<float> copy = logits;
  SamplingOptions options{.temperature = 1, .repetition_penalty = 2, .presence_penalty = 1};
  options.logit_bias = {{0, 5.0f}};
  Sampler sampler(options, 3);
  for (int i = 0; i < 5; ++i) sampler.Sample(copy);
  EXPECT_EQ(copy, logits);
}

TEST(SamplerTest, RepetitionPenaltyDividesPositiveAndMultipliesNegativeLogits) {
  const auto pick = [](float penalty, const std::vector<float>& logits) {
    Sampler sampler({.repetition_penalty = penalty}, static_cast<uint32_t>(logits.size()));
    const int32_t prompt[] = {1, 1};  // a second occurrence changes nothing
    sampler.AcceptPrompt(prompt);
    return sampler.Sample(logits);
  };
  EXPECT_EQ(pick(1.4f, {2, 3}), 1);    // 3 / 1.4 = 2.14
  EXPECT_EQ(pick(1.6f, {2, 3}), 0);    // 3 / 1.6 = 1.875
  EXPECT_EQ(pick(1.2f, {-2, -1.5f}), 1);  // -1.5 * 1.2 = -1.8
  EXPECT_EQ(pick(1.4f, {-2, -1.5f}), 0);  // -1.5 * 1.4 = -2.1
  EXPECT_EQ(pick(0.5f, {5, 3}), 1);    // below one it rewards: 3 / 0.5 = 6
}

std::vector<int32_t> SampleMany(const SamplingOptions& options, const std::vector<float>& logits,
                                std::vector<int32_t> prompt, int count) {
  Sampler sampler(options, static_cast<uint32_t>(logits.size()));
  sampler.AcceptPrompt(prompt);
  std::vector<int32_t> tokens;
  for (int i = 0; i < count; ++i) tokens.push_back(sampler.Sample(logits));
  return tokens;
}

TEST(SamplerTest, PresencePenaltyCountsOnceAndOnlyOutput) {
  // 1 (the prompt does not count) -> 0.8 against 0.95 -> 0.8 against 0.75 and so it stays.
  EXPECT_THAT(SampleMany({.presence_penalty = 0.2f}, {1.0f, 0.95f}, {0, 0}, 5),
              ElementsAre(0, 1, 0, 0, 0));
}

TEST(SamplerTest, FrequencyPenaltyGrowsWithEachOutput) {
  // 1/.95 -> .9/.95 -> .9/.85 -> .8/.85 -> .8/.75 -> .7/.75
  EXPECT_THAT(SampleMany({.frequency_penalty = 0.1f}, {1.0f, 0.95f}, {0, 0}, 6),
              ElementsAre(0, 1, 0, 1, 0, 1));
}

// All of bias and penalties at once, as the header states them, in double.
TEST(SamplerTest, GreedyMatchesTheFormulasOnRandomInput) {
  constexpr uint64_t kSeed = 7;
  SCOPED_TRACE(testing::Message() << "seed " << kSeed);
  Random random(kSeed);
  int compared = 0;
  for (int round = 0; round < 200; ++round) {
    constexpr uint32_t kVocab = 12;
    SamplingOptions options;
    options.repetition_penalty = static_cast<float>(0.5 + 1.5 * random.Uniform());
    options.presence_penalty = static_cast<float>(4 * random.Uniform() - 2);
    options.frequency_penalty = static_cast<float>(4 * random.Uniform() - 2);
    options.logit_bias = {{3, random.Normal()}, {7, random.Normal()}};
    Sampler sampler(options, kVocab);
    std::vector<int32_t> prompt = {static_cast<int32_t>(random.Below(kVocab)), 5};
    sampler.AcceptPrompt(prompt);
    std::map<int32_t, int> output;
    for (int step = 0; step < 8; ++step) {
      std::vector<float> logits(kVocab);
      for (float& logit : logits) logit = 3 * random.Normal();
      std::vector<double> expected(logits.begin(), logits.end());
      for (const auto& [token, bias] : options.logit_bias) {
        expected[static_cast<size_t>(token)] += bias;
      }
      for (int32_t token = 0; token < static_cast<int32_t>(kVocab); ++token) {
        double& value = expected[static_cast<size_t>(token)];
        const bool seen = output.contains(token) ||
                          std::find(prompt.begin(), prompt.end(), token) != prompt.end();
        if (seen) {
          value = value > 0 ? value / options.repetition_penalty
                            : value * options.repetition_penalty;
        }
        if (output.contains(token)) {
          value -= options.presence_penalty + options.frequency_penalty * output[token];
        }
      }
      const auto best = std::max_element(expected.begin(), expected.end());
      const int32_t token = sampler.Sample(logits);
      // A float tie may fall either way; anything else may not.
      EXPECT_NEAR(expected[static_cast<size_t>(token)], *best, 1e-4);
      compared += token == best - expected.begin();
      ++output[token];
    }
  }
  EXPECT_GE(compared, 1595) << "of 1600";
}

TEST(SamplerTest, TemperatureOneDrawsFromTheSoftmax) {
  ExpectDistribution({.temperature = 1}, {{3, .4}, {0, .3}, {4, .15}, {1, .1}, {2, .05}});
}

TEST(SamplerTest, TemperatureTwoIsTheSquareRoot) {
  ExpectDistribution({.temperature = 2}, {{3, std::sqrt(.4)},
                                          {0, std::sqrt(.3)},
                                          {4, std::sqrt(.15)},
                                          {1, std::sqrt(.1)},
                                          {2, std::sqrt(.05)}});
}

TEST(SamplerTest, TopKKeepsTheBestK) {
  ExpectDistribution({.temperature = 1, .top_k = 2}, {{3, .4}, {0, .3}});
  ExpectDistribution({.temperature = 1, .top_k = 4}, {{3, .4}, {0, .3}, {4, .15}, {1, .1}});
  // As many as there are, and more than that: all.
  for (const uint32_t top_k : {5u, 4000000000u}) {
    ExpectDistribution({.temperature = 1, .top_k = top_k},
                       {{3, .4}, {0, .3}, {4, .15}, {1, .1}, {2, .05}});
  }
}

TEST(SamplerTest, TopKPrefersTheLowerIdOnATie) {
  const std::map<int32_t, int> counts = Draw({.temperature = 1, .top_k = 2}, {0, 1, 1, 1}, 1000);
  EXPECT_EQ(counts.size(), 2u);
  EXPECT_TRUE(counts.contains(1) && counts.contains(2));
}

TEST(SamplerTest, TopPKeepsTheShortestPrefixThatReachesIt) {
  ExpectDistribution({.temperature = 1, .top_p = 0.39f}, {{3, .4}});
  ExpectDistribution({.temperature = 1, .top_p = 0.41f}, {{3, .4}, {0, .3}});
  ExpectDistribution({.temperature = 1, .top_p = 0.69f}, {{3, .4}, {0, .3}});
  ExpectDistribution({.temperature = 1, .top_p = 0.71f}, {{3, .4}, {0, .3}, {4, .15}});
  ExpectDistribution({.temperature = 1, .top_p = 1e-30f}, {{3, .4}});
}

TEST(SamplerTest, TopPCountsTheMassThatTopKLeft) {
  // Of 0.85: 0.4 + 0.3 is 82 %; of everything it would be 70 % and need a third token.
  ExpectDistribution({.temperature = 1, .top_k = 3, .top_p = 0.8f}, {{3, .4}, {0, .3}});
}

TEST(SamplerTest, MinPIsRelativeToTheBest) {
  ExpectDistribution({.temperature = 1, .min_p = 0.76f}, {{3, .4}});
  ExpectDistribution({.temperature = 1, .min_p = 0.74f}, {{3, .4}, {0, .3}});
  ExpectDistribution({.temperature = 1, .min_p = 0.3f}, {{3, .4}, {0, .3}, {4, .15}});
  ExpectDistribution({.temperature = 1, .min_p = 0.999f}, {{3, .4}});
}

TEST(SamplerTest, MinPSeesTheTemperedDistribution) {
  // sqrt(0.15 / 0.4) = 0.61 passes 0.55 and sqrt(0.1 / 0.4) = 0.5 does not; untempered only 0 would.
  ExpectDistribution({.temperature = 2, .min_p = 0.55f},
                     {{3, std::sqrt(.4)}, {0, std::sqrt(.3)}, {4, std::sqrt(.15)}});
}

// The cuts select; a full sort says what they have to leave. Logits of few values, so that many are equal.
TEST(SamplerTest, CutsOfRandomLogitsLeaveWhatSortingLeaves) {
  Random random(11);
  for (int round = 0; round < 60; ++round) {
    std::vector<float> logits(1 + random.Below(400));
    for (float& logit : logits) logit = static_cast<float>(random.Below(12)) / 4;
    const SamplingOptions options = {.temperature = 1,
                                     .top_k = std::array{0u, 3u, 40u, 1000u}[random.Below(4)],
                                     .top_p = std::array{0.2f, 0.6f, 0.93f, 1.0f}[random.Below(4)],
                                     .min_p = std::array{0.0f, 0.2f}[random.Below(2)]};
    std::vector<int32_t> order(logits.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
    });
    if (options.top_k > 0 && options.top_k < order.size()) order.resize(options.top_k);
    const float best = logits[static_cast<size_t>(order[0])];
    const auto weight = [&](int32_t token) { return std::exp(logits[static_cast<size_t>(token)] - best); };
    double total = 0, mass = 0;
    for (const int32_t token : order) total += weight(token);
    std::vector<int32_t> kept;
    for (const int32_t token : order) {
      if (!kept.empty() && (mass >= options.top_p * total || weight(token) < options.min_p)) break;
      mass += weight(token);
      kept.push_back(token);
    }
    const int draws = 40 * static_cast<int>(kept.size());
    const std::map<int32_t, int> counts = Draw(options, logits, draws);
    for (const auto& [token, count] : counts) {
      EXPECT_THAT(kept, testing::Contains(token)) << "round " << round;
    }
    for (const int32_t token : kept) {
      const double expected = weight(token) / mass * draws;
      if (expected < 20) continue;
      EXPECT_TRUE(counts.contains(token)) << "round " << round << " token " << token;
    }
  }
}

TEST(SamplerTest, TopKOneAndColdTemperaturesAreGreedy) {
  constexpr uint64_t kSeed = 11;
  SCOPED_TRACE(testing::Message() << "seed " << kSeed);
  Random random(kSeed);
  Sampler greedy({}, 64);
  Sampler top_one({.temperature = 5, .top_k = 1, .seed = 1}, 64);
  Sampler tiny_top_p({.temperature = 5, .top_p = 1e-20f, .seed = 2}, 64);
  Sampler cold({.temperature = 1e-40f, .seed = 3}, 64);
  for (int i = 0; i < 300; ++i) {
    std::vector<float> logits(64);
    for (float& logit : logits) logit = random.Normal();
    const int32_t expected = greedy.Sample(logits);
    EXPECT_EQ(top_one.Sample(logits), expected);
    EXPECT_EQ(tiny_top_p.Sample(logits), expected);
    EXPECT_EQ(cold.Sample(logits), expected);
  }
}

TEST(SamplerTest, TheHighestTemperatureIsNearlyUniform) {
  constexpr int kDraws = 20000;
  const auto counts = Draw({.temperature = 100}, LogitsOf(kProbabilities), kDraws);
  ASSERT_EQ(counts.size(), 5u);
  // (0.4 / 0.05)^(1 / 100) = 1.02: each within 1.2 % of a fifth, and 5 standard deviations.
  for (const auto& [token, count] : counts) {
    EXPECT_NEAR(count, kDraws / 5, 0.012 * kDraws / 5 + 5 * std::sqrt(kDraws * 0.16)) << token;
  }
}

TEST(SamplerTest, HugeLogitsDoNotOverflow) {
  const auto counts = Draw({.temperature = 1}, {1e30f, -1e30f, 1e30f, -kInfinity}, 1000);
  ASSERT_EQ(counts.size(), 2u);
  EXPECT_NEAR(counts.at(0), 500, 80);
  EXPECT_NEAR(counts.at(2), 500, 80);
}

TEST(SamplerTest, ASeedDeterminesTheTokens) {
  const std::vector<float> logits(50, 0.0f);
  const auto draw = [&](uint64_t seed) {
    return SampleMany({.temperature = 1, .seed = seed}, logits, {}, 40);
  };
  EXPECT_EQ(draw(5), draw(5));
  EXPECT_NE(draw(5), draw(6));
}

TEST(SamplerTest, SampleAllocatesNothing) {
  constexpr uint32_t kVocab = 5000;
  std::vector<float> logits(kVocab);
  Random random(3);
  for (float& logit : logits) logit = random.Normal();
  SamplingOptions options{.temperature = 1.5f, .top_k = 4000, .top_p = 0.99f, .min_p = 0.001f,
                          .repetition_penalty = 1.1f, .presence_penalty = 0.1f,
                          .frequency_penalty = 0.1f};
  options.logit_bias = {{17, 1.0f}};
  Sampler sampler(options, kVocab);
  const uint64_t before = allocations.load();
  for (int i = 0; i < 20; ++i) sampler.Sample(logits);
  EXPECT_EQ(allocations.load(), before);
  const Sampler another(options, kVocab);
  EXPECT_GT(allocations.load(), before) << "the counter counts";
}

struct BadOption {
  const char* field;
  const char* found;
  const char* range;
  std::function<void(SamplingOptions&)> set;
};

TEST(SamplingOptionsTest, ErrorsNameTheFieldTheValueAndTheRange) {
  const BadOption cases[] = {
      {"temperature", "-0.5", "0 to 100", [](auto& o) { o.temperature = -0.5f; }},
      {"temperature", "101", "0 to 100", [](auto& o) { o.temperature = 101; }},
      {"temperature", "nan", "0 to 100", [](auto& o) { o.temperature = kNan; }},
      {"temperature", "inf", "0 to 100", [](auto& o) { o.temperature = kInfinity; }},
      {"top_p", "0", "above 0, at most 1", [](auto& o) { o.top_p = 0; }},
      {"top_p", "1.5", "above 0, at most 1", [](auto& o) { o.top_p = 1.5f; }},
      {"top_p", "nan", "above 0, at most 1", [](auto& o) { o.top_p = kNan; }},
      {"min_p", "1", "from 0, below 1", [](auto& o) { o.min_p = 1; }},
      {"min_p", "-0.5", "from 0, below 1", [](auto& o) { o.min_p = -0.5f; }},
      {"min_p", "nan", "from 0, below 1", [](auto& o) { o.min_p = kNan; }},
      {"repetition_penalty", "0", "above 0", [](auto& o) { o.repetition_penalty = 0; }},
      {"repetition_penalty", "nan", "above 0", [](auto& o) { o.repetition_penalty = kNan; }},
      {"presence_penalty", "-2.5", "-2 to 2", [](auto& o) { o.presence_penalty = -2.5f; }},
      {"presence_penalty", "nan", "-2 to 2", [](auto& o) { o.presence_penalty = kNan; }},
      {"frequency_penalty", "2.5", "-2 to 2", [](auto& o) { o.frequency_penalty = 2.5f; }},
      {"frequency_penalty", "nan", "-2 to 2", [](auto& o) { o.frequency_penalty = kNan; }},
      {"logit_bias", "token 50", "0 to 49", [](auto& o) { o.logit_bias = {{50, 1.0f}}; }},
      {"logit_bias", "token -1", "0 to 49", [](auto& o) { o.logit_bias = {{-1, 1.0f}}; }},
      {"logit_bias", "101", "-100 to 100", [](auto& o) { o.logit_bias = {{3, 101.0f}}; }},
      {"logit_bias", "nan", "-100 to 100", [](auto& o) { o.logit_bias = {{3, kNan}}; }},
  };
  for (const BadOption& bad : cases) {
    SamplingOptions options;
    bad.set(options);
    const Status status = options.Validate(50);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << bad.field << " " << bad.found;
    EXPECT_THAT(status.message(), HasSubstr(bad.field));
    EXPECT_THAT(status.message(), HasSubstr(bad.found));
    EXPECT_THAT(status.message(), HasSubstr(bad.range));
  }
}

TEST(SamplingOptionsTest, TheEndsOfEachRangeAreAccepted) {
  EXPECT_TRUE(SamplingOptions{}.Validate(50).ok());
  SamplingOptions low{.temperature = 0, .top_p = 1e-6f, .min_p = 0, .repetition_penalty = 1e-3f,
                      .presence_penalty = -2, .frequency_penalty = -2};
  low.logit_bias = {{0, -100.0f}};
  EXPECT_TRUE(low.Validate(50).ok()) << low.Validate(50).message();
  SamplingOptions high{.temperature = 100, .top_k = 4294967295u, .top_p = 1, .min_p = 0.999f,
                       .repetition_penalty = 100, .presence_penalty = 2, .frequency_penalty = 2};
  high.logit_bias = {{49, 100.0f}};
  EXPECT_TRUE(high.Validate(50).ok()) << high.Validate(50).message();
}

TEST(LogprobsTest, MatchADoubleComputation) {
  constexpr uint64_t kSeed = 19;
  SCOPED_TRACE(testing::Message() << "seed " << kSeed);
  Random random(kSeed);
  for (int round = 0; round < 20; ++round) {
    std::vector<float> logits(500);
    for (float& logit : logits) logit = 8 * random.Normal() + 40;
    double sum = 0;
    for (const float logit : logits) sum += std::exp(static_cast<double>(logit));
    const double log_sum = std::log(sum);
    std::vector<int32_t> order(logits.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
    });
    const int32_t token = static_cast<int32_t>(random.Below(500));
    const Logprobs result = ComputeLogprobs(logits, token, 20);
    EXPECT_NEAR(result.chosen, logits[static_cast<size_t>(token)] - log_sum, 1e-5);
    ASSERT_EQ(result.top.size(), 20u);
    for (size_t i = 0; i < 20; ++i) {
      EXPECT_EQ(result.top[i].token, order[i]);
      EXPECT_NEAR(result.top[i].logprob, logits[static_cast<size_t>(order[i])] - log_sum, 1e-5);
    }
  }
}

TEST(LogprobsTest, TiesAndCounts) {
  const std::vector<float> logits = {1, 2, 2, 2, 0};
  const auto tokens = [&](uint32_t count) {
    std::vector<int32_t> ids;
    for (const TokenLogprob& entry : ComputeLogprobs(logits, 0, count).top) ids.push_back(entry.token);
    return ids;
  };
  EXPECT_THAT(tokens(0), ElementsAre());
  EXPECT_THAT(tokens(2), ElementsAre(1, 2));
  EXPECT_THAT(tokens(4), ElementsAre(1, 2, 3, 0));
  EXPECT_THAT(tokens(99), ElementsAre(1, 2, 3, 0, 4));
  // Uniform: log(1/5) each, also far from zero.
  EXPECT_NEAR(ComputeLogprobs(std::vector<float>(5, 1e6f), 3, 0).chosen, -std::log(5.0), 1e-6);
}

}  // namespace
}  // namespace moraine
