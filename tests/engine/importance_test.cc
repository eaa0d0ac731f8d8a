#include "engine/importance.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>

#include "base/random.h"
#include "engine/calibration.h"
#include "engine/import_plan.h"
#include "engine/source_matrix.h"
#include "model/weights.h"
#include "test_store.h"

namespace moraine {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class ImportanceTest : public testing::Test {
 protected:
  ImportanceTest() : directory_(MakeScratchDirectory("importance")) {
    WriteSyntheticCheckpoint(directory_, {}, 1);
    auto checkpoint = OpenSafetensors(directory_);
    CHECK(checkpoint.ok(), checkpoint.status().message());
    checkpoint_ = std::move(*checkpoint);
    config_ = *ParseModelConfig(*checkpoint_->ReadFile("config.json"), "config.json");
  }
  ~ImportanceTest() override { std::filesystem::remove_all(directory_); }

  std::string path() const { return directory_ + "/file.importance"; }

  Importance Example() const {
    Importance importance;
    for (auto& [name, shape] : ShapesOfImportance(config_)) {
      uint64_t count = 1;
      for (const uint64_t n : shape) count *= n;
      Importance::Tensor& tensor = importance.tensors()[name];
      tensor.shape = shape;
      for (uint64_t i = 0; i < count; ++i) tensor.values.push_back(static_cast<float>(i) * 0.5f);
    }
    importance.model = "a \"checksum\":\"0000000000000000\" of a name";
    importance.text = "text.txt";
    importance.tokens = 77;
    return importance;
  }

  Status PlanWith(const Importance& importance) {
    ImportPlanOptions options;
    options.experts = Encoding::kQ4;
    options.importance = &importance;
    return MakeImportPlan(*checkpoint_, options).status();
  }

  const std::string directory_;
  std::unique_ptr<Checkpoint> checkpoint_;
  ModelConfig config_;
};

TEST_F(ImportanceTest, SurvivesItsFile) {
  Importance written = Example();
  ASSERT_TRUE(written.Write(path()).ok());
  const auto read = Importance::Read(path());
  ASSERT_TRUE(read.ok()) << read.status().ToString();
  EXPECT_EQ(read->checksum(), written.checksum());
  EXPECT_EQ(read->model, written.model);
  EXPECT_EQ(read->text, "text.txt");
  EXPECT_EQ(read->tokens, 77u);
  ASSERT_EQ(read->tensors().size(), written.tensors().size());
  for (const auto& [name, tensor] : written.tensors()) {
    EXPECT_EQ(read->tensors().at(name).shape, tensor.shape);
    EXPECT_EQ(read->tensors().at(name).values, tensor.values);
  }
  EXPECT_TRUE(PlanWith(*read).ok());
  const ExpertKey key{LayerId(1), ExpertId(3)};
  EXPECT_EQ(read->OfExpert(key, false)[0], 3 * 64 * 0.5f);
  EXPECT_EQ(read->OfExpert(key, true)[1], (3 * 64 + 1) * 0.5f);
}

TEST_F(ImportanceTest, EveryByteThatIsAnotherIsNoticed) {
  Importance written = Example();
  ASSERT_TRUE(written.Write(path()).ok());
  std::ifstream in(path(), std::ios::binary);
  const std::string whole{std::istreambuf_iterator<char>(in), {}};
  for (size_t at = 0; at < whole.size(); at += at < 4096 ? 1 : 997) {
    std::string bytes = whole;
    bytes[at] = static_cast<char>(bytes[at] ^ 0x04);
    std::ofstream(path(), std::ios::binary | std::ios::trunc) << bytes;
    const Status status = Importance::Read(path()).status();
    ASSERT_FALSE(status.ok()) << "byte " << at;
    ASSERT_THAT(status.message(), HasSubstr(path())) << "byte " << at;
  }
}

TEST_F(ImportanceTest, ValuesThatAreNoMeanSquaresAreNamed) {
  for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity(), -1.0f}) {
    Importance written = Example();
    written.tensors().at("layers.1.experts.down").values[64 + 5] = bad;
    ASSERT_TRUE(written.Write(path()).ok());
    const Status status = Importance::Read(path()).status();
    EXPECT_THAT(status.message(), AllOf(HasSubstr(path()), HasSubstr("'layers.1.experts.down'"),
                                        HasSubstr("element 5 of row 1")));
  }
}

TEST_F(ImportanceTest, AnotherModelsIsRefusedByTensorFoundAndExpected) {
  const auto expect = [&](auto&& edit, const std::string& found) {
    Importance importance = Example();
    edit(importance.tensors());
    ASSERT_TRUE(importance.Write(path()).ok());
    const auto read = Importance::Read(path());
    ASSERT_TRUE(read.ok()) << read.status().ToString();
    EXPECT_THAT(PlanWith(*read).message(),
                AllOf(HasSubstr(path()), HasSubstr("layers.1.experts.gate_up"), HasSubstr(found)));
  };
  const std::string name = "layers.1.experts.gate_up";
  expect([&](auto& tensors) { tensors[name].shape = {16, 32}; }, "expected [8, 64], found [16, 32]");
  expect([&](auto& tensors) { tensors.erase(name); }, "expected [8, 64], found nothing");
  expect([&](auto& tensors) { tensors[name + "2"] = {{1}, {0.0f}}; }, "expected nothing, found [1]");
}

TEST_F(ImportanceTest, AnImportThatQuantisesNothingRefusesIt) {
  Importance importance = Example();
  ASSERT_TRUE(importance.Write(path()).ok());
  ImportPlanOptions options;
  options.importance = &importance;
  EXPECT_THAT(MakeImportPlan(*checkpoint_, options).status().message(),
              AllOf(HasSubstr(path()), HasSubstr("nothing to weight")));
}

TEST_F(ImportanceTest, AResumeWithAnotherFileIsRefused) {
  const auto import = [&](const Importance* importance) {
    ImportPlanOptions plan_options;
    plan_options.experts = Encoding::kQ4;
    plan_options.importance = importance;
    const auto plan = MakeImportPlan(*checkpoint_, plan_options);
    CHECK(plan.ok(), plan.status().message());
    ImportOptions options;
    options.store_directory = directory_ + "/store";
    return Import(*checkpoint_, **plan, options);
  };
  Importance one = Example(), other = Example();
  other.tensors().at("layers.0.experts.down").values[3] += 1;
  ASSERT_TRUE(one.Write(path()).ok());
  ASSERT_TRUE(other.Write(directory_ + "/other").ok());
  ASSERT_TRUE(import(&one).ok());
  EXPECT_TRUE(import(&one).ok());
  EXPECT_THAT(import(&other).message(),
              AllOf(HasSubstr("by file.importance"), HasSubstr("by other"), HasSubstr("now")));
  EXPECT_THAT(import(nullptr).message(), HasSubstr("by file.importance"));
}

// The experts of layer 1 of a checkpoint, in double.
struct ReferenceExpert {
  std::vector<float> gate, up, down, gate_bias, up_bias, down_bias;  // no biases: zeros
};

class CalibrationTest : public testing::TestWithParam<const char*> {
 protected:
  static constexpr uint32_t kTokens = 6, kTopK = 2;

  CalibrationTest()
      : directory_(CheckpointDirectory()), checkpoint_(Open(directory_)),
        config_(*ParseModelConfig(*checkpoint_->ReadFile("config.json"), "config.json")),
        store_(directory_, Encoding::kBf16), hidden_(config_.hidden),
        intermediate_(config_.layers[1].intermediate), x_(kTokens * hidden_) {
    auto calibration = Calibration::Open(store_.directory(), 1);
    CHECK(calibration.ok(), calibration.status().ToString());
    calibration_ = std::move(*calibration);
    Random random(11);
    for (float& value : x_) value = random.Normal();
    // So that half of what the activation clamps is beyond its limit of 7.
    for (float& value : x_) value *= clamped() ? 10.0f : 1.0f;
  }
  ~CalibrationTest() override {
    if (GetParam() == std::string("synthetic")) std::filesystem::remove_all(directory_);
  }

  bool clamped() const { return config_.activation.kind == ActivationKind::kClampedSwiGlu; }

  ReferenceExpert Reference(uint32_t expert) const {
    const TensorNaming naming(config_, [&](const std::string& name) {
      return checkpoint_->Find(name) != nullptr;
    });
    const ExpertSources sources = naming.SourcesOf(config_, {LayerId(1), ExpertId(expert)});
    const auto read = [&](const ExpertSource& source, uint32_t rows, uint32_t cols) {
      std::vector<float> values(rows * cols);
      if (source.tensor.empty()) return values;
      const SourceMatrix matrix =
          MatrixOf(*checkpoint_->Find(source.tensor), source, ExpertId(expert));
      const Status status = ReadRows(*checkpoint_, matrix, 0, rows, cols, &values);
      CHECK(status.ok(), status.ToString());
      return values;
    };
    return {.gate = read(sources.gate, intermediate_, hidden_),
            .up = read(sources.up, intermediate_, hidden_),
            .down = read(sources.down, hidden_, intermediate_),
            .gate_bias = read(sources.gate_bias, intermediate_, 1),
            .up_bias = read(sources.up_bias, intermediate_, 1),
            .down_bias = read(sources.down_bias, hidden_, 1)};
  }

  double Activate(double g, double u) const {
    if (!clamped()) return g / (1 + std::exp(-g)) * u;
    const double limit = config_.activation.limit;
    g = std::min(g, limit);
    return g / (1 + std::exp(-1.702 * g)) * (std::clamp(u, -limit, limit) + 1);
  }

  // What an expert makes of a row of x_.
  std::vector<double> Intermediate(uint32_t expert, uint32_t token) const {
    const ReferenceExpert w = Reference(expert);
    std::vector<double> intermediate;
    for (uint32_t r = 0; r < intermediate_; ++r) {
      double g = w.gate_bias[r], u = w.up_bias[r];
      for (uint32_t c = 0; c < hidden_; ++c) {
        g += double{w.gate[r * hidden_ + c]} * x_[token * hidden_ + c];
        u += double{w.up[r * hidden_ + c]} * x_[token * hidden_ + c];
      }
      intermediate.push_back(Activate(g, u));
    }
    return intermediate;
  }
  std::vector<double> Output(uint32_t expert, uint32_t token) const {
    const ReferenceExpert w = Reference(expert);
    const std::vector<double> intermediate = Intermediate(expert, token);
    std::vector<double> out(w.down_bias.begin(), w.down_bias.end());
    for (uint32_t r = 0; r < hidden_; ++r) {
      for (uint32_t c = 0; c < intermediate_; ++c) {
        out[r] += w.down[r * intermediate_ + c] * intermediate[c];
      }
    }
    return out;
  }

  // (expert, token) pairs -> the mean squares that are expected of them.
  using Pairs = std::vector<std::pair<uint32_t, uint32_t>>;
  void ExpectExpert(uint32_t expert, const Pairs& pairs) const {
    const Importance importance = calibration_->Take();
    for (const bool down : {false, true}) {
      std::vector<double> expected(down ? intermediate_ : hidden_);
      for (const auto& [e, token] : pairs) {
        const std::vector<double> intermediate = Intermediate(e, token);
        for (uint32_t c = 0; c < expected.size(); ++c) {
          const double value = down ? intermediate[c] : x_[token * hidden_ + c];
          expected[c] += value * value / static_cast<double>(pairs.size());
        }
      }
      const auto found = importance.OfExpert({LayerId(1), ExpertId(expert)}, down);
      ASSERT_EQ(found.size(), expected.size());
      // Sums of up to 128 products in float32, whose largest are about the sum: 128 eps, and the
      // square doubles it.
      for (uint32_t c = 0; c < expected.size(); ++c) {
        ASSERT_NEAR(found[c], expected[c], 4e-5 * (expected[c] + 1))
            << "expert " << expert << " down " << down << " column " << c;
      }
    }
  }

  const std::string directory_;
  const std::unique_ptr<Checkpoint> checkpoint_;
  const ModelConfig config_;
  const TestStore store_;
  const uint32_t hidden_, intermediate_;
  std::unique_ptr<Calibration> calibration_;
  std::vector<float> x_;

 private:
  static std::string CheckpointDirectory() {
    if (GetParam() != std::string("synthetic")) {
      return GoldenPath(std::string("fixtures/") + GetParam());
    }
    const std::string directory = MakeScratchDirectory("calibration");
    WriteSyntheticCheckpoint(directory, {}, 1);
    return directory;
  }
  static std::unique_ptr<Checkpoint> Open(const std::string& directory) {
    auto checkpoint = OpenCheckpoint(directory);
    CHECK(checkpoint.ok(), checkpoint.status().message());
    return std::move(*checkpoint);
  }
};

TEST_P(CalibrationTest, MeasuresEachExpertOverItsTokensAndGivesTheLayersMeanToTheRest) {
  const uint32_t experts[kTokens * kTopK] = {3, 6, 0, 3, 6, 0, 3, 0, 0, 6, 6, 3};
  std::vector<float> weights, out(kTokens * hidden_);
  for (uint32_t i = 0; i < kTokens * kTopK; ++i) weights.push_back(0.1f * static_cast<float>(i + 1));
  RoutingDecision routing;
  routing.token_count = kTokens;
  routing.top_k = kTopK;
  routing.experts = experts;
  routing.weights = weights.data();
  const uint64_t all_experts = 8 * config_.layers.size();
  EXPECT_EQ(calibration_->unreached_experts(), all_experts);
  ASSERT_TRUE(calibration_->RunExperts(LayerId(1), routing, x_.data(), out.data()).ok());
  EXPECT_EQ(calibration_->unreached_experts(), all_experts - 3);
  Pairs all;
  for (const uint32_t expert : {0u, 3u, 6u}) {
    Pairs pairs;
    for (uint32_t i = 0; i < kTokens * kTopK; ++i) {
      if (experts[i] == expert) pairs.push_back({expert, i / kTopK});
    }
    ExpectExpert(expert, pairs);
    all.insert(all.end(), pairs.begin(), pairs.end());
  }
  ExpectExpert(5, all);
  for (uint32_t t = 0; t < kTokens; ++t) {
    std::vector<double> expected(hidden_);
    for (uint32_t rank = 0; rank < kTopK; ++rank) {
      const uint32_t i = t * kTopK + rank;
      const std::vector<double> output = Output(experts[i], t);
      for (uint32_t c = 0; c < hidden_; ++c) expected[c] += weights[i] * output[c];
    }
    double power = 0;
    for (const double value : expected) power += value * value / hidden_;
    for (uint32_t c = 0; c < hidden_; ++c) {
      ASSERT_NEAR(out[t * hidden_ + c], expected[c], 2e-5 * (1 + std::sqrt(power))) << t << " " << c;
    }
  }
}

TEST_P(CalibrationTest, AWindowReachesAllLayersAndSumsUpWithOthers) {
  std::vector<int32_t> tokens;
  for (int i = 0; i < 50; ++i) tokens.push_back(i * 5 % 256);
  ASSERT_TRUE(calibration_->Read(tokens).ok());
  const Importance once = calibration_->Take();
  EXPECT_EQ(once.tokens, 50u);
  EXPECT_TRUE(once.CheckFits(config_).ok());
  for (const auto& [name, tensor] : once.tensors()) {
    EXPECT_THAT(tensor.values, testing::Each(testing::Gt(0.0f))) << name;
  }
  ASSERT_TRUE(calibration_->Read(tokens).ok());  // the same text again: the same means
  const Importance twice = calibration_->Take();
  EXPECT_EQ(twice.tokens, 100u);
  for (const auto& [name, tensor] : once.tensors()) {
    EXPECT_THAT(twice.tensors().at(name).values,
                testing::Pointwise(testing::FloatEq(), tensor.values)) << name;
  }
  const int32_t last = static_cast<int32_t>(config_.vocab_size);
  EXPECT_THAT(calibration_->Read(std::vector<int32_t>{1, last}).message(),
              HasSubstr("found " + std::to_string(last)));
}

// gpt-oss has biases and the clamped activation.
INSTANTIATE_TEST_SUITE_P(Experts, CalibrationTest, testing::Values("synthetic", "gpt_oss"),
                         [](const auto& checkpoint) { return std::string(checkpoint.param); });

// The other blocks: MLA, shared experts, linear attention, layers without experts.
class CalibrationOfFamilyTest : public testing::TestWithParam<const char*> {};

TEST_P(CalibrationOfFamilyTest, WeightsAnImport) {
  const std::string fixture = GoldenPath(std::string("fixtures/") + GetParam());
  const TestStore exact(fixture, Encoding::kBf16);
  auto calibration = Calibration::Open(exact.directory(), 1);
  ASSERT_TRUE(calibration.ok()) << calibration.status().ToString();
  std::vector<int32_t> tokens;
  for (int i = 0; i < 100; ++i) tokens.push_back(i * 7 % 250);
  ASSERT_TRUE((*calibration)->Read(tokens).ok());
  Importance importance = (*calibration)->Take();
  const std::string directory = MakeScratchDirectory("family");
  ASSERT_TRUE(importance.Write(directory + "/file.importance").ok());
  const auto checkpoint = OpenCheckpoint(fixture);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().ToString();
  ImportPlanOptions options;
  options.experts = Encoding::kQ4;
  const auto plain = MakeImportPlan(**checkpoint, options);
  options.importance = &importance;
  const auto weighted = MakeImportPlan(**checkpoint, options);
  ASSERT_TRUE(plain.ok() && weighted.ok()) << weighted.status().ToString();
  const Manifest& manifest = (*weighted)->manifest();
  ASSERT_EQ(manifest.notes.size(), (*plain)->manifest().notes.size() + 1);
  EXPECT_THAT(manifest.notes.back(),
              AllOf(HasSubstr(std::to_string(3 * manifest.expert_count()) + " experts' matrices"),
                    HasSubstr("weighted by file.importance"), HasSubstr("100 tokens")));
  uint32_t layer = 0;
  while (manifest.layers[layer].expert_count == 0) ++layer;
  const ExpertKey key{LayerId(layer), ExpertId(2)};
  std::vector<std::byte> record(manifest.layers[layer].record_bytes), other(record.size());
  ASSERT_TRUE((*plain)->EncodeExpert(**checkpoint, key, record).ok());
  ASSERT_TRUE((*weighted)->EncodeExpert(**checkpoint, key, other).ok());
  EXPECT_NE(record, other);
  std::filesystem::remove_all(directory);
}

INSTANTIATE_TEST_SUITE_P(Families, CalibrationOfFamilyTest,
                         testing::Values("deepseek_v2", "deepseek_v2_lite", "deepseek_v3",
                                         "glm4_moe", "gpt_oss", "kimi_k2", "minimax_m2", "olmoe",
                                         "qwen3_5_moe", "qwen3_moe", "qwen3_moe_mixed",
                                         "qwen3_next"),
                         [](const auto& fixture) { return std::string(fixture.param); });

}  // namespace
}  // namespace moraine
