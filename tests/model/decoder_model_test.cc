// DecoderModel against a naive decoder in double, and what Forward promises about chunks, logits,
// cancellation and errors.
#include "model/decoder_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <new>
#include <numeric>

#include "base/random.h"
#include "compute/encode.h"
#include "reference_decoder.h"

namespace moraine {
namespace {

using testing::ElementsAre;

constexpr uint64_t kSeed = 31337;
constexpr uint32_t kMaxTokens = 80;  // crosses the 32 rows in which logits are computed, twice
constexpr uint32_t kMaxPositions = 200;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Variant {
  const char* name;
  bool normalize = true, tied = false, bias = false;
  std::vector<FeedForwardKind> layers;
  QkNorm qk_norm = QkNorm::kPerHead;
  uint32_t window = 0;
};

// No dimension is a multiple of a tile, hidden is not heads x head_dim, and groups are of two.
ModelConfig ConfigOf(const Variant& variant) {
  ModelConfig config;
  config.model_type = "qwen3_moe";
  config.hidden = 44;
  config.vocab_size = 71;
  GqaConfig attention{.query_heads = 4, .kv_heads = 2, .head_dim = 18, .rope = {},
                      .qk_norm = variant.qk_norm, .qkv_bias = variant.bias,
                      .output_bias = variant.bias, .sliding_window = variant.window};
  attention.rope.rotary_dim = 18;
  config.max_position = kMaxPositions;
  config.tied_embeddings = variant.tied;
  config.expert_count = 6;
  config.top_k = 3;
  config.router.normalize = variant.normalize;
  for (const FeedForwardKind kind : variant.layers) {
    config.layers.push_back({kind, kind == FeedForwardKind::kMoe ? 20u : 40u, attention});
  }
  return config;
}

// Random weights as plain tensors, and as the f32 tiles that a DenseSource gives.
class TestWeights final : public DenseSource {
 public:
  explicit TestWeights(const ModelConfig& config) {
    Random random(kSeed);
    for (const DenseRole& role : DenseRoles(config)) {
      const bool norm = role.name.ends_with("norm");
      std::vector<float>& tensor = tensors_[role.name];
      tensor.resize(size_t{role.rows} * role.cols);
      const float scale = role.kind == DenseRole::Kind::kVector
                              ? 0.3f
                              : 1.0f / std::sqrt(static_cast<float>(role.cols));
      for (float& value : tensor) value = (norm ? 1.0f : 0.0f) + scale * random.Normal();
      if (role.kind != DenseRole::Kind::kVector) AddMatrix(role, tensor);
    }
    for (size_t layer = 0; layer < config.layers.size(); ++layer) {
      if (config.layers[layer].feed_forward == FeedForwardKind::kDense) continue;
      const size_t n = config.layers[layer].intermediate;
      for (uint32_t e = 0; e < config.expert_count; ++e) {
        for (const char* part : {"gate", "up", "down"}) {
          auto& tensor = tensors_[std::to_string(layer) + "." + std::to_string(e) + "." + part];
          tensor.resize(n * config.hidden);
          for (float& value : tensor) value = 0.3f * random.Normal();
        }
      }
    }
  }

  MatrixView Matrix(const std::string& role) const override { return matrices_.at(role); }
  std::span<const float> Vector(const std::string& role) const override {
    return tensors_.at(role);
  }
  const TensorMap& tensors() const { return tensors_; }

 private:
  struct Free {
    void operator()(std::byte* p) const { ::operator delete(p, std::align_val_t{64}); }
  };
  void AddMatrix(const DenseRole& role, const std::vector<float>& tensor) {
    const uint64_t bytes = MatrixBytes(Encoding::kF32, role.rows, role.cols);
    storage_.emplace_back(static_cast<std::byte*>(::operator new(bytes, std::align_val_t{64})));
    const MatrixView view =
        MatrixView::Plain(storage_.back().get(), Encoding::kF32, role.rows, role.cols);
    const Status status = EncodeRows(view, 0, role.rows, tensor.data());
    CHECK(status.ok(), status.message());
    matrices_[role.name] = view;
  }

  TensorMap tensors_;
  std::map<std::string, MatrixView> matrices_;
  std::vector<std::unique_ptr<std::byte, Free>> storage_;
};

// Computes experts in double, in router order; `before` may fail a layer or cancel the request.
class TestExecutor final : public MoeExecutor {
 public:
  TestExecutor(const ModelConfig& config, const TensorMap& tensors)
      : config_(config), tensors_(tensors) {}

  Status RunExperts(LayerId layer, const RoutingDecision& routing, const float* x,
                    float* out) override {
    layers_seen.push_back(layer.value());
    if (before) RETURN_IF_ERROR(before(layer.value()));
    EXPECT_EQ(routing.top_k, config_.top_k);
    const size_t hidden = config_.hidden;
    for (uint32_t i = 0; broken && i < routing.token_count * routing.top_k; ++i) {
      if (!broken(layer.value(), routing.experts[i])) continue;
      failed = ExpertId(routing.experts[i]);
      return Corruption("an expert cannot be had");
    }
    for (uint32_t t = 0; t < routing.token_count; ++t) {
      const moraine::Vector row(x + t * hidden, x + (t + 1) * hidden);
      moraine::Vector sum(hidden);
      for (uint32_t rank = 0; rank < routing.top_k; ++rank) {
        const size_t i = size_t{t} * routing.top_k + rank;
        const std::string expert =
            std::to_string(layer.value()) + "." + std::to_string(routing.experts[i]) + ".";
        const moraine::Vector y = SwiGlu(tensors_.at(expert + "gate"), tensors_.at(expert + "up"),
                                         tensors_.at(expert + "down"), row);
        for (size_t c = 0; c < hidden; ++c) sum[c] += routing.weights[i] * y[c];
      }
      for (size_t c = 0; c < hidden; ++c) out[t * hidden + c] = static_cast<float>(sum[c]);
    }
    return OkStatus();
  }

  std::optional<ExpertId> failed_expert() const override { return failed; }

  std::function<Status(uint32_t layer)> before;
  std::function<bool(uint32_t layer, uint32_t expert)> broken;  // experts that cannot be had
  std::optional<ExpertId> failed;
  std::vector<uint32_t> layers_seen;

 private:
  const ModelConfig& config_;
  const TensorMap& tensors_;
};

using Logits = std::map<uint32_t, std::vector<float>>;  // by position

constexpr FeedForwardKind kMoe = FeedForwardKind::kMoe, kDense = FeedForwardKind::kDense;

struct Fixture {
  explicit Fixture(const Variant& variant, Isa isa = *ChooseIsa())
      : config(ConfigOf(variant)),
        weights(config),
        pool(Topology::Detect(), {.thread_count = 2, .pin = false}),
        backend(isa, pool, kMaxTokens, 128),
        model(config, weights, backend, kMaxTokens),
        executor(config, weights.tensors()),
        state(NewState()) {
    Random random(kSeed + 1);
    for (int i = 0; i < 150; ++i) {
      tokens.push_back(static_cast<int32_t>(random.Below(config.vocab_size)));
    }
  }
  SequenceState NewState() {
    auto allocated = SequenceState::Allocate(config, kMaxPositions);
    CHECK(allocated.ok(), allocated.status().message());
    return std::move(*allocated);
  }
  // The positions that the sink is given are appended to `positions`.
  Status Run(std::span<const int32_t> chunk, DecoderModel::LogitsMode mode, Logits* logits,
             const std::atomic<bool>* cancelled = nullptr) {
    const DecoderModel::LogitsSink sink = [&](uint32_t position, std::span<const float> row) {
      positions.push_back(position);
      EXPECT_EQ(row.size(), config.vocab_size);
      (*logits)[position].assign(row.begin(), row.end());
    };
    return model.Forward(chunk, state, executor,
                         {.logits = mode, .sink = &sink, .cancelled = cancelled});
  }
  // All logits of the first `count` tokens, in chunks of the sizes given, the last one repeated.
  Logits RunInChunks(size_t count, std::vector<size_t> sizes) {
    state.Reset();
    Logits logits;
    size_t next = 0;
    for (size_t begin = 0; begin < count; ++next) {
      const size_t size = std::min(sizes[std::min(next, sizes.size() - 1)], count - begin);
      const Status status = Run(std::span(tokens).subspan(begin, size),
                                DecoderModel::LogitsMode::kAll, &logits);
      EXPECT_TRUE(status.ok()) << status.message();
      begin += size;
      EXPECT_EQ(state.length(), begin);
    }
    return logits;
  }

  const ModelConfig config;
  const TestWeights weights;
  ThreadPool pool;
  CpuBackend backend;
  DecoderModel model;
  TestExecutor executor;
  SequenceState state;
  std::vector<int32_t> tokens;
  std::vector<uint32_t> positions;
};

class DecoderModelVariantTest : public testing::TestWithParam<Variant> {};

TEST_P(DecoderModelVariantTest, MatchesTheReferenceAtEveryPosition) {
  SCOPED_TRACE(testing::Message() << "seed " << kSeed);
  for (const Isa isa : {Isa::kScalar, *ChooseIsa()}) {
    Fixture f(GetParam(), isa);
    const std::span<const int32_t> prompt = std::span(f.tokens).first(70);
    const std::vector<Vector> expected = ReferenceLogits(f.config, f.weights.tensors(), prompt);
    const Logits logits = f.RunInChunks(prompt.size(), {prompt.size()});
    ASSERT_EQ(logits.size(), prompt.size());
    double error = 0, largest = 0;
    for (uint32_t t = 0; t < prompt.size(); ++t) {
      for (size_t i = 0; i < f.config.vocab_size; ++i) {
        error = std::max(error, std::abs(logits.at(t)[i] - expected[t][i]));
        largest = std::max(largest, std::abs(expected[t][i]));
      }
    }
    EXPECT_LT(error, 1e-4) << IsaName(isa);
    EXPECT_GT(largest, 1.0) << "the logits are not all near zero";
  }
}

TEST_P(DecoderModelVariantTest, ChunksDoNotChangeABit) {
  Fixture f(GetParam());
  constexpr size_t kCount = 70;
  const Logits whole = f.RunInChunks(kCount, {kCount});
  EXPECT_EQ(f.RunInChunks(kCount, {1}), whole);
  EXPECT_EQ(f.RunInChunks(kCount, {16}), whole);
  EXPECT_EQ(f.RunInChunks(kCount, {33, 1, 5, 2, 40}), whole);
}

INSTANTIATE_TEST_SUITE_P(
    Variants, DecoderModelVariantTest,
    testing::Values(Variant{"plain", true, false, false, {kMoe, kMoe}},
                    Variant{"not_normalized", false, false, false, {kMoe, kMoe}},
                    Variant{"tied", true, true, false, {kMoe, kMoe}},
                    Variant{"biased", true, false, true, {kMoe, kMoe}},
                    Variant{"dense_first", true, false, false, {kDense, kMoe}},
                    Variant{"dense_last", false, true, true, {kMoe, kDense}},
                    Variant{"all_dense", true, false, false, {kDense, kDense}},
                    Variant{"norm_of_the_row", true, false, false, {kMoe}, QkNorm::kWholeRow},
                    Variant{"no_norm", true, false, true, {kMoe}, QkNorm::kNone},
                    Variant{"window", true, false, false, {kMoe, kMoe}, QkNorm::kPerHead, 11}),
    [](const auto& variant) { return variant.param.name; });

const Variant kThreeSparse = {"three_sparse", true, false, false, {kMoe, kMoe, kMoe}};

TEST(DecoderModelTest, ALongPromptInChunksEqualsTokenByToken) {
  Fixture f(kThreeSparse);
  const Logits chunks = f.RunInChunks(150, {kMaxTokens});
  ASSERT_EQ(chunks.size(), 150u);
  EXPECT_EQ(f.RunInChunks(150, {1}), chunks);
}

TEST(DecoderModelTest, EveryVariantOfTheWeightsMatters) {
  // Guards the comparisons above: a flag that neither side read would pass them.
  const auto logits = [](const Variant& variant) { return Fixture(variant).RunInChunks(5, {5}); };
  const Variant base{"", true, false, false, {kMoe, kMoe}};
  const Logits plain = logits(base);
  Variant other = base;
  other.normalize = false;
  EXPECT_NE(logits(other), plain);
  other = base;
  other.bias = true;
  EXPECT_NE(logits(other), plain);
  other = base;
  other.window = 4;
  EXPECT_NE(logits(other), plain);
}

TEST(DecoderModelTest, LogitsModesCallTheSinkForTheRightPositions) {
  Fixture f(kThreeSparse);
  using Mode = DecoderModel::LogitsMode;
  Logits none, last, all;
  ASSERT_TRUE(f.Run(std::span(f.tokens).first(3), Mode::kNone, &none).ok());
  EXPECT_THAT(f.positions, ElementsAre());
  ASSERT_TRUE(f.Run(std::span(f.tokens).subspan(3, 66), Mode::kLast, &last).ok());
  EXPECT_THAT(f.positions, ElementsAre(68));
  f.positions.clear();
  ASSERT_TRUE(f.state.Truncate(3).ok());
  ASSERT_TRUE(f.Run(std::span(f.tokens).subspan(3, 66), Mode::kAll, &all).ok());
  std::vector<uint32_t> expected(66);
  std::iota(expected.begin(), expected.end(), 3);
  EXPECT_EQ(f.positions, expected);
  EXPECT_EQ(last.at(68), all.at(68));
  // Without a sink nothing is computed and nothing fails.
  const DecoderModel::ForwardOptions no_sink{.logits = Mode::kAll};
  EXPECT_TRUE(f.model.Forward(std::span(f.tokens).first(1), f.state, f.executor, no_sink).ok());
  EXPECT_EQ(f.state.length(), 70u);
}

TEST(DecoderModelTest, CancellationStopsBetweenLayersAndKeepsTheLength) {
  Fixture f(kThreeSparse);
  const Logits expected = f.RunInChunks(20, {10});
  ASSERT_TRUE(f.state.Truncate(10).ok());
  std::atomic<bool> cancelled{false};
  f.executor.layers_seen.clear();
  f.executor.before = [&](uint32_t layer) {
    if (layer == 1) cancelled = true;
    return OkStatus();
  };
  Logits logits;
  const std::span<const int32_t> chunk = std::span(f.tokens).subspan(10, 10);
  const Status status = f.Run(chunk, DecoderModel::LogitsMode::kAll, &logits, &cancelled);
  EXPECT_EQ(status.code(), StatusCode::kCancelled);
  EXPECT_THAT(f.executor.layers_seen, ElementsAre(0, 1));
  EXPECT_EQ(f.state.length(), 10u);
  EXPECT_TRUE(logits.empty());
  // What the cancelled chunk wrote behind the length is overwritten by the next.
  f.executor.before = nullptr;
  ASSERT_TRUE(f.Run(chunk, DecoderModel::LogitsMode::kAll, &logits).ok());
  EXPECT_EQ(f.state.length(), 20u);
  for (uint32_t t = 10; t < 20; ++t) EXPECT_EQ(logits.at(t), expected.at(t)) << t;
}

TEST(DecoderModelTest, ACancelledRequestDoesNotStart) {
  Fixture f(kThreeSparse);
  const std::atomic<bool> cancelled{true};
  Logits logits;
  const Status status =
      f.Run(std::span(f.tokens).first(4), DecoderModel::LogitsMode::kLast, &logits, &cancelled);
  EXPECT_EQ(status.code(), StatusCode::kCancelled);
  EXPECT_TRUE(f.executor.layers_seen.empty());
  EXPECT_EQ(f.state.length(), 0u);
}

TEST(DecoderModelTest, ExecutorErrorsArriveAndKeepTheLength) {
  Fixture f(kThreeSparse);
  const Logits expected = f.RunInChunks(12, {6});
  for (const uint32_t failing : {0u, 1u, 2u}) {
    ASSERT_TRUE(f.state.Truncate(6).ok());
    f.executor.layers_seen.clear();
    f.executor.before = [&](uint32_t layer) {
      return layer == failing ? Corruption("expert 3 of this layer") : OkStatus();
    };
    Logits logits;
    const std::span<const int32_t> chunk = std::span(f.tokens).subspan(6, 6);
    const Status status = f.Run(chunk, DecoderModel::LogitsMode::kAll, &logits);
    EXPECT_EQ(status.code(), StatusCode::kCorruption);
    EXPECT_EQ(status.message(), "expert 3 of this layer");
    EXPECT_EQ(f.executor.layers_seen.size(), failing + 1);
    EXPECT_EQ(f.state.length(), 6u);
    EXPECT_TRUE(logits.empty());
    f.executor.before = nullptr;
    ASSERT_TRUE(f.Run(chunk, DecoderModel::LogitsMode::kAll, &logits).ok());
    EXPECT_EQ(logits.at(11), expected.at(11));
  }
}

// A few sequences, each with the tokens of f from an offset of its own on.
class BatchTest : public testing::TestWithParam<Variant> {
 protected:
  static constexpr size_t kOffsets[] = {0, 30, 60, 75};
  static constexpr size_t kSequences = 4, kLength = 40;

  explicit BatchTest(const Variant& variant) : f(variant) {
    for (size_t s = 0; s < kSequences; ++s) {
      states.push_back(f.NewState());
      std::rotate(f.tokens.begin(), f.tokens.begin() + kOffsets[s], f.tokens.end());
      expected.push_back(f.RunInChunks(kLength, {kLength}));
      sequences.push_back({f.tokens.begin(), f.tokens.begin() + kLength});
      std::rotate(f.tokens.begin(), f.tokens.end() - kOffsets[s], f.tokens.end());
      sinks.push_back([this, s](uint32_t position, std::span<const float> row) {
        logits[s][position].assign(row.begin(), row.end());
      });
    }
  }
  BatchTest() : BatchTest(GetParam()) {}

  // Pieces of sequences, all logits wanted; a size of 0 is left out. The statuses, of those left out ok.
  std::vector<Status> Run(const std::vector<size_t>& sizes,
                          std::vector<const std::atomic<bool>*> cancelled = {}) {
    std::vector<BatchSegment> batch;
    for (size_t s = 0; s < kSequences; ++s) {
      if (sizes[s] == 0) continue;
      batch.push_back({.tokens = std::span(sequences[s]).subspan(states[s].length(), sizes[s]),
                       .state = &states[s],
                       .logits = LogitsMode::kAll,
                       .sink = &sinks[s],
                       .cancelled = cancelled.empty() ? nullptr : cancelled[s]});
    }
    f.model.Forward(batch, f.executor);
    std::vector<Status> statuses(kSequences);
    for (size_t s = 0, i = 0; s < kSequences; ++s) {
      if (sizes[s] > 0) statuses[s] = batch[i++].status;
    }
    return statuses;
  }
  // To the end, one token a step.
  void Finish() {
    for (size_t s = 0; s < kSequences; ++s) {
      while (states[s].length() < kLength) {
        std::vector<size_t> sizes(kSequences);
        for (size_t i = s; i < kSequences; ++i) sizes[i] = states[i].length() < kLength;
        for (const Status& status : Run(sizes)) ASSERT_TRUE(status.ok()) << status.message();
      }
      EXPECT_EQ(logits[s], expected[s]) << "sequence " << s;
    }
  }

  Fixture f;
  std::vector<SequenceState> states;
  std::vector<std::vector<int32_t>> sequences;
  std::vector<LogitsSink> sinks;
  std::vector<Logits> expected;
  Logits logits[kSequences];
};

TEST_P(BatchTest, EachSequenceGetsTheBitsThatItGetsAlone) {
  for (const std::vector<size_t>& sizes :
       {std::vector<size_t>{1, 1, 1, 1}, {30, 1, 0, 39}, {1, 0, 7, 0}, {0, 20, 1, 0}}) {
    for (const Status& status : Run(sizes)) ASSERT_TRUE(status.ok()) << status.message();
    if (states[3].length() == kLength) states[3].Reset();
  }
  logits[3].clear();
  Finish();
}

INSTANTIATE_TEST_SUITE_P(
    Variants, BatchTest,
    testing::Values(Variant{"plain", true, false, false, {kMoe, kMoe}},
                    Variant{"dense_first", true, false, true, {kDense, kMoe}},
                    Variant{"window", true, true, false, {kMoe, kMoe}, QkNorm::kPerHead, 11}),
    [](const auto& variant) { return variant.param.name; });

class BatchFaultTest : public BatchTest {
 protected:
  BatchFaultTest() : BatchTest(kThreeSparse) {}
};

TEST_F(BatchFaultTest, ACancelledSequenceLeavesTheBatchAndTheOthersGoOn) {
  for (const uint32_t layer : {0u, 1u}) {
    for (SequenceState& state : states) state.Reset();
    for (Logits& of : logits) of.clear();
    for (const Status& status : Run({3, 5, 1, 1})) ASSERT_TRUE(status.ok());
    std::atomic<bool> cancelled{false};
    f.executor.before = [&](uint32_t at) {
      if (at == layer) cancelled = true;
      return OkStatus();
    };
    const std::vector<Status> statuses =
        Run({4, 4, 1, 2}, {nullptr, &cancelled, nullptr, &cancelled});
    f.executor.before = nullptr;
    EXPECT_TRUE(statuses[0].ok() && statuses[2].ok());
    EXPECT_EQ(statuses[1].code(), StatusCode::kCancelled);
    EXPECT_EQ(statuses[3].code(), StatusCode::kCancelled);
    EXPECT_EQ(states[0].length(), 7u);
    EXPECT_EQ(states[1].length(), 5u);
    EXPECT_EQ(states[3].length(), 1u);
    Finish();
  }
}

TEST_F(BatchFaultTest, AnExpertThatCannotBeHadFailsOnlyThoseWhoWantIt) {
  size_t failed = 0, survived = 0;
  for (uint32_t layer = 0; layer < 3; ++layer) {
    for (uint32_t expert = 0; expert < f.config.expert_count; ++expert) {
      for (SequenceState& state : states) state.Reset();
      for (Logits& of : logits) of.clear();
      ASSERT_TRUE(Run({1, 2, 3, 4})[0].ok());
      f.executor.broken = [&](uint32_t l, uint32_t e) { return l == layer && e == expert; };
      const std::vector<Status> statuses = Run({1, 1, 1, 1});
      for (size_t s = 0; s < kSequences; ++s) {
        // Alone it fails just if it failed among the others.
        if (!statuses[s].ok()) {
          EXPECT_EQ(statuses[s].code(), StatusCode::kCorruption);
          std::vector<size_t> alone(kSequences);
          alone[s] = 1;
          EXPECT_FALSE(Run(alone)[s].ok());
        }
        (statuses[s].ok() ? survived : failed) += 1;
        EXPECT_EQ(states[s].length(), s + 1 + statuses[s].ok());
      }
      f.executor.broken = nullptr;
      Finish();
    }
  }
  EXPECT_GT(failed, 10u);
  EXPECT_GT(survived, 10u);
}

TEST_F(BatchFaultTest, AnErrorOfNoExpertFailsAll) {
  f.executor.before = [](uint32_t layer) { return layer == 1 ? Internal("why") : OkStatus(); };
  for (const Status& status : Run({1, 1, 1, 1})) EXPECT_EQ(status.message(), "why");
  for (const SequenceState& state : states) EXPECT_EQ(state.length(), 0u);
}

TEST_F(BatchFaultTest, WhoGetsNoBlockIsLeftOut) {
  const std::vector<LayerStateShape> shapes = StateShapesOf(f.config, KvFormat::kF32);
  const auto pool = std::move(KvPool::Create(shapes, KvFormat::kF32, 2)).value();
  SequenceState first = std::move(SequenceState::Create(shapes, pool.get(), 128)).value();
  SequenceState second = std::move(SequenceState::Create(shapes, pool.get(), 128)).value();
  BatchSegment batch[] = {{.tokens = std::span(f.tokens).first(65), .state = &first},
                          {.tokens = std::span(f.tokens).first(2), .state = &second}};
  f.model.Forward(batch, f.executor);
  EXPECT_TRUE(batch[0].status.ok());
  EXPECT_EQ(batch[1].status.code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(first.length(), 65u);
  EXPECT_EQ(second.length(), 0u);
}

TEST(DecoderModelDeathTest, MoreThanTheCallerMayAskForIsABug) {
  Fixture f(kThreeSparse);
  Logits logits;
  const auto run = [&](size_t count) {
    (void)f.Run(std::span(f.tokens).first(count), DecoderModel::LogitsMode::kLast, &logits);
  };
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(run(kMaxTokens + 1), "max_tokens");
  EXPECT_DEATH(run(0), "count > 0");
  f.state.Commit(kMaxPositions);
  EXPECT_DEATH(run(1), "max_positions");
}

struct Routed {
  std::vector<uint32_t> experts;
  std::vector<float> weights;
};

Routed Route(const std::vector<float>& logits, uint32_t top_k, bool normalize) {
  Routed routed{std::vector<uint32_t>(top_k), std::vector<float>(top_k)};
  ExpertChooser chooser({.normalize = normalize}, static_cast<uint32_t>(logits.size()), top_k);
  chooser.Choose(logits.data(), routed.experts.data(), routed.weights.data());
  return routed;
}

TEST(RouteTokenTest, TiesGoToTheLowerIndex) {
  EXPECT_THAT(Route({1, 2, 2, 1, 2}, 4, true).experts, ElementsAre(1, 2, 4, 0));
  EXPECT_THAT(Route({0, 0, 0}, 2, false).experts, ElementsAre(0, 1));
}

TEST(RouteTokenTest, WeightsAreTheSoftmaxAndSumToOneIfAskedFor) {
  // Probabilities 0.5, 0.3, 0.2.
  const std::vector<float> logits = {std::log(0.3f), std::log(0.5f), std::log(0.2f)};
  const Routed plain = Route(logits, 2, false);
  EXPECT_THAT(plain.experts, ElementsAre(1, 0));
  EXPECT_NEAR(plain.weights[0], 0.5, 1e-6);
  EXPECT_NEAR(plain.weights[1], 0.3, 1e-6);
  const Routed normalized = Route(logits, 2, true);
  EXPECT_THAT(normalized.experts, ElementsAre(1, 0));
  EXPECT_NEAR(normalized.weights[0], 0.625, 1e-6);
  EXPECT_NEAR(normalized.weights[1], 0.375, 1e-6);
}

TEST(RouteTokenTest, AllExpertsCanBeChosen) {
  for (const bool normalize : {false, true}) {
    const Routed routed = Route({std::log(2.0f), 0, std::log(5.0f)}, 3, normalize);
    EXPECT_THAT(routed.experts, ElementsAre(2, 0, 1));
    EXPECT_NEAR(routed.weights[0], 5.0 / 8, 1e-6);
    EXPECT_NEAR(routed.weights[1], 2.0 / 8, 1e-6);
    EXPECT_NEAR(routed.weights[2], 1.0 / 8, 1e-6);
  }
}

TEST(RouteTokenTest, ExtremeLogitsGiveNoNan) {
  const std::vector<std::vector<float>> cases = {
      {1e30f, -1e30f, 1e30f, 0},
      {-1e30f, -1e30f, -1e30f, -1e30f},
      {1e30f, 1e30f, 1e30f, 1e30f},
      {-kInfinity, 3, -kInfinity, -kInfinity},
      {-kInfinity, -1e30f, 1e30f, -kInfinity},
      {88, -88, 200, -200},
  };
  for (const std::vector<float>& logits : cases) {
    for (const bool normalize : {false, true}) {
      for (uint32_t top_k = 1; top_k <= 4; ++top_k) {
        const Routed routed = Route(logits, top_k, normalize);
        float sum = 0;
        for (const float weight : routed.weights) {
          EXPECT_GE(weight, 0.0f);
          sum += weight;
        }
        EXPECT_LE(sum, 1.0f + 1e-6f);
        if (normalize) {
          EXPECT_NEAR(sum, 1.0f, 1e-6f);
        }
        std::vector<uint32_t> distinct = routed.experts;
        std::sort(distinct.begin(), distinct.end());
        EXPECT_EQ(std::unique(distinct.begin(), distinct.end()), distinct.end());
        EXPECT_EQ(logits[routed.experts[0]], *std::max_element(logits.begin(), logits.end()));
      }
    }
  }
  // The impossible ones come last, in order, with no weight.
  const Routed routed = Route({-kInfinity, 3, -kInfinity, -kInfinity}, 3, true);
  EXPECT_THAT(routed.experts, ElementsAre(1, 0, 2));
  EXPECT_THAT(routed.weights, ElementsAre(1, 0, 0));
}

TEST(RouteTokenTest, NanStillChoosesDistinctExperts) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  for (const std::vector<float>& logits :
       {std::vector<float>{kNan, kNan, kNan}, {1, kNan, 2}, {kInfinity, 0, kInfinity}}) {
    std::vector<uint32_t> experts = Route(logits, 3, true).experts;
    std::sort(experts.begin(), experts.end());
    EXPECT_THAT(experts, ElementsAre(0, 1, 2));
  }
}

}  // namespace
}  // namespace moraine
