// Synthetic stores are stores: they verify, run, and depend on nothing but shape, skew and seed.
#include "engine/synthetic_model.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <numeric>
#include <set>

#include "compute/encode.h"
#include "compute/random_tiles.h"
#include "engine/text_model.h"
#include "test_store.h"

namespace moraine {
namespace {

SyntheticModelOptions TinyOptions(Encoding experts = Encoding::kQ4) {
  SyntheticModelOptions options;
  options.shape = *FindPublishedShape("tiny");
  options.shape.layers = 6;
  options.shape.dense_layers = 1;
  options.shape.experts = 32;
  options.shape.top_k = 4;
  options.experts = experts;
  return options;
}

class SyntheticModelTest : public testing::Test {
 protected:
  std::string Make(const SyntheticModelOptions& options) {
    const std::string directory = scratch_ + "/" + std::to_string(made_++);
    const auto model = MakeSyntheticModel(options);
    CHECK(model.ok(), model.status().message());
    ImportOptions import;
    import.store_directory = directory;
    const Status status = Import(*model->checkpoint, *model->plan, import);
    CHECK(status.ok(), status.message());
    return directory;
  }
  void TearDown() override { std::filesystem::remove_all(scratch_); }

  static std::string PackBytes(const std::string& store, const char* pack) {
    std::ifstream file(store + "/packs/" + pack, std::ios::binary);
    CHECK(file.good(), store);
    return std::string(std::istreambuf_iterator<char>(file), {});
  }
  // Greedy decoding: every token and the logits of the last.
  static std::pair<std::vector<int32_t>, std::vector<float>> Decode(const std::string& store,
                                                                    const std::string& budget) {
    RunnerOptions options;
    options.store_directory = store;
    options.ram_budget = *ParseRamBudget(budget);
    options.max_context = 128;
    options.threads = 2;
    const auto runner = Runner::Open(options);
    CHECK(runner.ok(), runner.status().message());
    std::vector<int32_t> tokens = {72, 105};
    std::vector<float> last;
    const Runner::LogitsSink sink = [&](uint32_t, std::span<const float> logits) {
      last.assign(logits.begin(), logits.end());
    };
    std::vector<int32_t> next = tokens;
    for (int step = 0; step < 24; ++step) {
      const Status status = (*runner)->Forward(next, {.sink = &sink});
      CHECK(status.ok(), status.message());
      next = {static_cast<int32_t>(std::max_element(last.begin(), last.end()) - last.begin())};
      tokens.push_back(next[0]);
    }
    return {tokens, last};
  }

  const std::string scratch_ = MakeScratchDirectory("synthetic");
  int made_ = 0;
};

TEST_F(SyntheticModelTest, VerifiesAndDecodesTheSameWhateverTheBudget) {
  for (const Encoding experts : {Encoding::kQ4, Encoding::kQ8, Encoding::kBf16}) {
    const std::string store = Make(TinyOptions(experts));
    const auto report = VerifyStore(store, nullptr);
    ASSERT_TRUE(report.ok()) << report.status().message();
    EXPECT_TRUE(report->problems.empty()) << report->problems.front();
    EXPECT_EQ(report->records, 5 * 32u);  // layer 0 is dense
    const auto resident = Decode(store, "100%"), streaming = Decode(store, "20%");
    EXPECT_EQ(resident, streaming) << EncodingName(experts);
    for (const float logit : resident.second) ASSERT_TRUE(std::isfinite(logit));
    // A model that repeats one token for ever would be no measure of streaming.
    const std::set<int32_t> distinct(resident.first.begin(), resident.first.end());
    EXPECT_GT(distinct.size(), 8u) << EncodingName(experts);
  }
}

TEST_F(SyntheticModelTest, TheSeedDecidesEveryByte) {
  const std::string first = Make(TinyOptions()), same = Make(TinyOptions());
  SyntheticModelOptions other_seed = TinyOptions();
  other_seed.seed = 2;
  const std::string other = Make(other_seed);
  for (const char* pack : {"dense-000.pack", "experts-000.pack"}) {
    EXPECT_TRUE(PackBytes(first, pack) == PackBytes(same, pack)) << pack;
    EXPECT_FALSE(PackBytes(first, pack) == PackBytes(other, pack)) << pack;
  }
}

TEST_F(SyntheticModelTest, ARepeatedMakeFindsItFinishedAndAnotherSkewIsRefused) {
  const std::string store = Make(TinyOptions());
  SyntheticModelOptions options = TinyOptions();
  for (const double skew : {options.skew, 0.5}) {
    options.skew = skew;
    const auto model = MakeSyntheticModel(options);
    ASSERT_TRUE(model.ok());
    ImportOptions import;
    import.store_directory = store;
    const Status status = Import(*model->checkpoint, *model->plan, import);
    EXPECT_EQ(status.ok(), skew == TinyOptions().skew) << status.message();
  }
}

TEST_F(SyntheticModelTest, SkewMakesFewExpertsPopular) {
  // Of the heat in the deepest layer, the share of its four hottest experts of 32.
  const auto share = [&](double skew) {
    SyntheticModelOptions options = TinyOptions();
    options.skew = skew;
    RunnerOptions runner_options;
    runner_options.store_directory = Make(options);
    runner_options.max_context = 256;
    const auto runner = Runner::Open(runner_options);
    CHECK(runner.ok(), runner.status().message());
    for (int32_t i = 0; i < 200; ++i) {
      const int32_t token = i * 17;
      const Status status = (*runner)->Forward({&token, 1}, {});
      CHECK(status.ok(), status.message());
    }
    std::vector<float> heat = (*runner)->Snapshot().heat;
    const auto deepest = heat.end() - 32;
    std::sort(deepest, heat.end(), std::greater<>());
    return std::accumulate(deepest, deepest + 4, 0.0) / std::accumulate(deepest, heat.end(), 0.0);
  };
  // All alike: 4/32, and some chance. Zipf with the last layer's exponent 2 x 5/7: two thirds.
  const double uniform = share(0), skewed = share(2);
  EXPECT_LT(uniform, 0.35);
  EXPECT_GT(skewed, 0.5);
}

TEST(SyntheticShapes, EveryPublishedShapeHasAPlanOfItsSize) {
  for (const PublishedShape& shape : PublishedShapes()) {
    SyntheticModelOptions options;
    options.shape = shape;
    options.shape.layers = shape.dense_layers + 1;
    const auto model = MakeSyntheticModel(options);
    ASSERT_TRUE(model.ok()) << shape.name << ": " << model.status().message();
    const Manifest& manifest = model->plan->manifest();
    EXPECT_EQ(manifest.expert_count(), shape.experts) << shape.name;
    // 4.5 bits a weight and padding.
    const double weights = 3.0 * shape.hidden * shape.expert_intermediate;
    EXPECT_NEAR(static_cast<double>(manifest.max_record_bytes()), weights * 4.5 / 8, 4096);
    EXPECT_TRUE(TextModel::Load(manifest).ok()) << shape.name;
  }
}

TEST(SyntheticShapes, AShapeThatWouldNeedPaddingIsRefused) {
  SyntheticModelOptions options = TinyOptions();
  options.shape.expert_intermediate = 72;
  const auto model = MakeSyntheticModel(options);
  ASSERT_FALSE(model.ok());
  EXPECT_EQ(model.status().code(), StatusCode::kInvalidArgument);
  EXPECT_NE(model.status().message().find("72"), std::string::npos) << model.status().message();
}

TEST(RandomTiles, HaveTheDeviationAskedForAndNoMean) {
  for (const Encoding encoding :
       {Encoding::kQ4, Encoding::kQ8, Encoding::kBf16, Encoding::kF32}) {
    for (const float wanted : {0.02f, 1.0f}) {
      constexpr uint32_t kRows = 64, kCols = 1024;
      std::vector<std::byte> bytes(MatrixBytes(encoding, kRows, kCols));
      FillRandomTiles(encoding, wanted, /*seed=*/7, bytes);
      const MatrixView view = MatrixView::Plain(bytes.data(), encoding, kRows, kCols);
      std::vector<float> row(kCols);
      double sum = 0, squares = 0;
      for (uint32_t r = 0; r < kRows; ++r) {
        DecodeRow(view, r, row.data());
        for (const float value : row) {
          sum += value;
          squares += double{value} * value;
        }
      }
      const double count = kRows * kCols, deviation = std::sqrt(squares / count);
      // The mean of n values is within 5 deviations / sqrt(n) but once in a million.
      EXPECT_LT(std::abs(sum / count), 5 * deviation / std::sqrt(count)) << EncodingName(encoding);
      const double tolerance = encoding == Encoding::kBf16 ? std::sqrt(2.0) : 1.02;
      EXPECT_LT(deviation, wanted * tolerance) << EncodingName(encoding);
      EXPECT_GT(deviation, wanted / tolerance) << EncodingName(encoding);
    }
  }
}

}  // namespace
}  // namespace moraine
