// The search of `moraine tune` over made-up machines, and how its result is remembered.
#include "engine/tuning.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>

#include "base/random.h"
#include "engine/tuning_record.h"
#include "test_store.h"

namespace moraine {
namespace {

using testing::HasSubstr;

TuningDimension Threads() {
  return {.name = "threads", .candidates = {"1", "2", "4", "8"}, .start = 3};
}
TuningDimension Chunk() {
  return {.name = "prefill-chunk",
          .candidates = {"256", "512", "1024", "2048"},
          .start = 1,
          .objective = TuningObjective::kPrefill};
}
bool Never() { return false; }

std::string Chosen(const std::vector<TuningDimension>& dimensions, const TuningResult& result,
                   size_t dimension) {
  return dimensions[dimension].candidates[result.best[dimension]];
}

TEST(TuneTest, FindsTheBestAlongEachDimension) {
  const std::vector<TuningDimension> dimensions = {Chunk(), Threads()};
  std::map<std::pair<TuningPoint, TuningObjective>, int> asked;
  const TuningMeasure measure = [&](const TuningPoint& point, TuningObjective objective) {
    ++asked[{point, objective}];
    const double chunk = point[0] == 2 ? 130 : 100 - 5.0 * static_cast<double>(point[0]);
    const double threads = point[1] == 2 ? 50 : 30;
    const double rate = objective == TuningObjective::kPrefill ? chunk : threads;
    return Result<std::vector<double>>({rate - 1, rate, rate + 1});
  };
  const auto result = Tune(dimensions, measure, Never);
  ASSERT_TRUE(result.ok()) << result.status().ToString();
  EXPECT_EQ(Chosen(dimensions, *result, 0), "1024");
  EXPECT_EQ(Chosen(dimensions, *result, 1), "4");
  EXPECT_FALSE(result->stopped);
  for (const auto& [point, times] : asked) EXPECT_LE(times, 3) << "measured, and confirmed once or twice";
  int chosen = 0;
  for (const TuningRow& row : result->rows) {
    chosen += row.chosen ? 1 : 0;
    if (row.chosen && row.dimension == 0) {
      EXPECT_DOUBLE_EQ(row.tok_per_s, 130);
      EXPECT_DOUBLE_EQ(row.spread, 2);
    }
  }
  EXPECT_EQ(chosen, 2);
}

TEST(TuneTest, NoiseLeavesTheDefaults) {
  const std::vector<TuningDimension> dimensions = {Chunk(), Threads()};
  // Three rounds can lie together by chance, and again when they are confirmed: one search in 200 here.
  int moved = 0;
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    Random random(seed);
    const TuningMeasure measure = [&](const TuningPoint&, TuningObjective) {
      std::vector<double> rates;
      for (int i = 0; i < 3; ++i) rates.push_back(100 + 10 * random.Uniform());
      return Result<std::vector<double>>(rates);
    };
    const auto result = Tune(dimensions, measure, Never);
    ASSERT_TRUE(result.ok());
    moved += result->best != TuningPoint{1, 3} ? 1 : 0;
  }
  EXPECT_LE(moved, 4);
}

// Half of the candidates are better by more than their rounds differ, but only when first measured.
TEST(TuneTest, WhatIsNotConfirmedIsNotChosen) {
  const std::vector<TuningDimension> dimensions = {Chunk()};
  std::set<TuningPoint> seen;
  const TuningMeasure measure = [&](const TuningPoint& point, TuningObjective) {
    const bool first = seen.insert(point).second;
    const double rate = first && point[0] == 2 ? 200 : 100;
    return Result<std::vector<double>>({rate, rate, rate});
  };
  const auto result = Tune(dimensions, measure, Never);
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->best, (TuningPoint{1}));
}

TEST(TuneTest, WalksUntilOneIsClearlySlower) {
  const std::vector<TuningDimension> dimensions = {
      {.name = "n", .candidates = {"0", "1", "2", "3", "4", "5", "6"}, .start = 3}};
  std::set<size_t> asked;
  const TuningMeasure measure = [&](const TuningPoint& point, TuningObjective) {
    asked.insert(point[0]);
    const double rate = 100 - 10 * std::fabs(static_cast<double>(point[0]) - 3);
    return Result<std::vector<double>>({rate});
  };
  const auto result = Tune(dimensions, measure, Never);
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->best, (TuningPoint{3}));
  EXPECT_EQ(asked, (std::set<size_t>{2, 3, 4})) << "slower ones hide nothing behind them";
}

TEST(TuneTest, ACandidateThatFailsIsNotChosenAndTheOthersAreTried) {
  const std::vector<TuningDimension> dimensions = {Chunk()};
  const TuningMeasure measure = [&](const TuningPoint& point,
                                    TuningObjective) -> Result<std::vector<double>> {
    if (point[0] == 2) return ResourceExhausted("no memory for a chunk of 1024");
    return std::vector<double>{point[0] == 0 ? 150.0 : 100.0};
  };
  const auto result = Tune(dimensions, measure, Never);
  ASSERT_TRUE(result.ok()) << result.status().ToString();
  EXPECT_EQ(result->best, (TuningPoint{0}));
  EXPECT_THAT(result->rows[2].error, HasSubstr("1024"));

  const TuningMeasure broken = [](const TuningPoint&, TuningObjective) -> Result<std::vector<double>> {
    return IoError("the drive has gone");
  };
  EXPECT_THAT(Tune(dimensions, broken, Never).status().message(), HasSubstr("the drive has gone"));
}

TEST(TuneTest, EndsWhenTimeIsUpWithWhatItHas) {
  const std::vector<TuningDimension> dimensions = {Chunk(), Threads()};
  for (uint32_t most = 0; most < 12; ++most) {
    uint32_t measured = 0;
    const TuningMeasure measure = [&](const TuningPoint& point, TuningObjective) {
      ++measured;
      return Result<std::vector<double>>({100 + 50.0 * static_cast<double>(point[0])});
    };
    const auto result = Tune(dimensions, measure, [&] { return measured >= most; });
    ASSERT_TRUE(result.ok());
    EXPECT_EQ(measured, std::min(most, result->measurements));
    EXPECT_EQ(result->rows.size(), 8u);
    if (most < 3) {
      EXPECT_EQ(result->best, (TuningPoint{1, 3})) << "nothing was confirmed in " << most;
    }
  }
}

class TuningRecordTest : public testing::Test {
 protected:
  static TuningRecord Record(const std::string& cpu, int threads, int64_t when) {
    TuningRecord record;
    record.key.fields = {{"CPU", cpu}, {"RAM budget", "8.00 GiB"}};
    record.settings.threads = threads;
    record.prefill_tok_per_s = 123.5;
    record.saved_unix_s = when;
    return record;
  }
};

TEST_F(TuningRecordTest, ComesBackAsItWas) {
  TuningRecord record = Record("Xeon", 7, 5);
  record.settings = {.threads = 7, .prefill_chunk = 2048, .lookahead = false, .io = "pread",
                     .gpu_prefill_tokens = 128};
  const auto back = DecodeTuning(EncodeTuning({&record, 1}), "here");
  ASSERT_TRUE(back.ok()) << back.status().ToString();
  ASSERT_EQ(back->size(), 1u);
  EXPECT_EQ((*back)[0].key, record.key);
  EXPECT_EQ((*back)[0].settings, record.settings);
  EXPECT_EQ((*back)[0].prefill_tok_per_s, 123.5);
  EXPECT_EQ((*back)[0].saved_unix_s, 5);
  EXPECT_EQ(record.settings.ToText(),
            "threads 7, prefill chunk 2048, no lookahead, io pread, prompts from 128 tokens on the GPU");
}

TEST_F(TuningRecordTest, WhatIsDamagedIsNamed) {
  const TuningRecord record = Record("Xeon", 7, 5);
  const std::string good = EncodeTuning({&record, 1});
  const auto replaced = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    text.replace(text.find(from), from.size(), to);
    return DecodeTuning(text, "here").status();
  };
  EXPECT_THAT(replaced("\"threads\":7", "\"threads\":\"7\"").message(),
              HasSubstr("here: record 0: settings: threads: expected a number, found \"7\""));
  EXPECT_THAT(replaced("\"threads\":7", "\"threads\":7000").message(), HasSubstr("1 to 1024"));
  EXPECT_EQ(replaced("\"version\":1", "\"version\":2").code(), StatusCode::kUnsupported);
  EXPECT_EQ(replaced("\"settings\"", "\"setting\"").code(), StatusCode::kCorruption);
  EXPECT_EQ(DecodeTuning("", "here").status().code(), StatusCode::kCorruption);
  // Cut or altered anywhere: an error, or the same kinds of values; never a crash.
  Random random(7);
  for (int i = 0; i < 2000; ++i) {
    std::string text = good.substr(0, random.Below(good.size() + 1));
    for (int k = 0; k < 3 && !text.empty(); ++k) {
      text[random.Below(text.size())] = static_cast<char>(random.Below(256));
    }
    const auto decoded = DecodeTuning(text, "here");
    if (!decoded.ok()) {
      EXPECT_THAT(decoded.status().message(), HasSubstr("here"));
    }
  }
}

TEST_F(TuningRecordTest, KeysTellMachinesAndBudgetsApart) {
  RunnerOptions options;
  options.ram_budget = {.kind = RamBudget::Kind::kBytes, .bytes = 8'000'000'000};
  const std::vector<std::pair<std::string, std::string>> machine = {{"CPU", "Xeon"}};
  const TuningKey key = KeyOf(machine, options);
  RunnerOptions other = options;
  other.ram_budget.bytes = 8'100'000'000;
  EXPECT_EQ(KeyOf(machine, other), key) << "of the same quarter octave";
  other.ram_budget.bytes = 16'000'000'000;
  EXPECT_THAT(key.DifferenceTo(KeyOf(machine, other)), HasSubstr("RAM budget is"));
  EXPECT_THAT(key.DifferenceTo(KeyOf({{"CPU", "Epyc"}}, options)), HasSubstr("CPU is Xeon, here Epyc"));
  EXPECT_EQ(key.DifferenceTo(key), "");
  other = options;
  other.gpu_prefill = true;
  other.kv_format = KvFormat::kBf16;
  EXPECT_THAT(key.DifferenceTo(KeyOf(machine, other)), HasSubstr("mode is CPU"));
  other = options;
  other.max_context = 32768;
  EXPECT_THAT(key.DifferenceTo(KeyOf(machine, other)), HasSubstr("context is default, here 32768"));
}

TEST_F(TuningRecordTest, IsKeptInTheStoreOrBesideIt) {
  const TestStore made(DemoModelPath(), Encoding::kQ4);
  const std::string cache = testing::TempDir() + "/tuning_cache_" + std::to_string(getpid());
  const TuningRecord first = Record("Xeon", 4, 10), second = Record("Epyc", 16, 20);
  {
    const auto store = Store::Open(made.directory(), StoreMode::kReadWrite);
    ASSERT_TRUE(store.ok()) << store.status().ToString();
    EXPECT_TRUE(LoadTuning(**store, cache)->empty());
    ASSERT_TRUE(SaveTuning(**store, cache, first).ok());
    ASSERT_TRUE(SaveTuning(**store, cache, Record("Xeon", 5, 11)).ok());
    EXPECT_FALSE(std::filesystem::exists(cache)) << "the store can be written";
  }
  {
    const auto store = Store::Open(made.directory(), StoreMode::kReadOnly);
    ASSERT_TRUE(store.ok());
    ASSERT_TRUE(SaveTuning(**store, cache, second).ok());
    EXPECT_EQ(SaveTuning(**store, "", second).code(), StatusCode::kFailedPrecondition);
    const auto records = LoadTuning(**store, cache);
    ASSERT_TRUE(records.ok()) << records.status().ToString();
    ASSERT_EQ(records->size(), 2u) << "one of each key";
    EXPECT_EQ(FindTuning(*records, first.key)->settings.threads, 5);
    EXPECT_EQ(FindTuning(*records, second.key)->settings.threads, 16);
    EXPECT_EQ(FindTuning(*records, Record("Alpha", 1, 1).key), nullptr);
    // A damaged file is named, and replaced by the next save.
    std::ofstream(TuningFile(cache, **store)) << "{\"version\":1,\"records\":[{}]}";
    EXPECT_THAT(LoadTuning(**store, cache).status().message(), HasSubstr(TuningFile(cache, **store)));
    ASSERT_TRUE(SaveTuning(**store, cache, second).ok());
    EXPECT_EQ(LoadTuning(**store, cache)->size(), 2u);
  }
  const auto store = Store::Open(made.directory(), StoreMode::kReadWrite);
  ASSERT_TRUE(store.ok());
  const auto forgotten = ForgetTuning(**store, cache);
  ASSERT_TRUE(forgotten.ok()) << forgotten.status().ToString();
  EXPECT_EQ(*forgotten, 2u);
  EXPECT_TRUE(LoadTuning(**store, cache)->empty());
  EXPECT_EQ(*ForgetTuning(**store, cache), 0u);
  std::filesystem::remove_all(cache);
}

// Tuned settings stand in for the options; those that the model cannot be opened with are left out.
TEST_F(TuningRecordTest, ARunnerTakesThemUpOrGoesOnWithout) {
  const TestStore made(DemoModelPath(), Encoding::kQ4);
  RunnerOptions options = TestRunnerOptions(made, "100%");
  options.tuned.threads = 1;
  options.tuned.prefill_chunk = 64;
  const auto tuned = Runner::Open(options);
  ASSERT_TRUE(tuned.ok()) << tuned.status().ToString();
  EXPECT_EQ((*tuned)->Stats().threads, 1);
  EXPECT_EQ((*tuned)->prefill_chunk(), 64u);

  const RunnerOptions plain = TestRunnerOptions(made, "100%");
  const auto untuned = Runner::Open(plain);
  ASSERT_TRUE(untuned.ok());
  options.tuned = {};
  options.tuned.io = "no such reader";
  const auto without = Runner::Open(options);
  ASSERT_TRUE(without.ok()) << without.status().ToString();
  EXPECT_EQ((*without)->Stats().io, (*untuned)->Stats().io);
}

}  // namespace
}  // namespace moraine
