// The mixers that no other test of this folder runs (MLA, Gated DeltaNet, gated attention), one layer
// at a time: against plain loops in double that follow the papers, not the way the blocks compute; and
// what mixer.h asks of every mixer, over chunks longer than the blocks work through at once.
#include "model/blocks/mixer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <new>

#include "base/random.h"
#include "compute/encode.h"

namespace moraine {
namespace {

constexpr uint64_t kSeed = 4711;
constexpr uint32_t kHidden = 44, kMaxTokens = 300, kMaxPositions = 400;
constexpr float kNormEpsilon = 1e-5f;

using Row = std::vector<double>;

// Random weights of one mixer as f32 tiles.
class MixerWeights final : public DenseSource {
 public:
  MixerWeights(const MixerConfig& mixer, const char* model_type) {
    ModelConfig config;
    config.model_type = model_type;
    const TensorNaming naming(config);
    RoleList list(naming);
    list.set_prefix("layers.0.attention.");
    AppendMixerRoles(mixer, kHidden, &list);
    Random random(kSeed);
    for (const DenseRole& role : list.Take()) {
      const bool norm = role.name.ends_with("norm");
      const bool vector = role.kind == DenseRole::Kind::kVector;
      std::vector<float>& values = values_[role.name];
      values.resize(size_t{role.rows} * role.cols);
      const float scale = vector ? 0.3f : 1.0f / std::sqrt(static_cast<float>(role.cols));
      for (float& value : values) value = (norm ? 1.0f : 0.0f) + scale * random.Normal();
      if (vector) continue;
      const uint64_t bytes = MatrixBytes(Encoding::kF32, role.rows, role.cols);
      storage_.emplace_back(static_cast<std::byte*>(::operator new(bytes, std::align_val_t{64})));
      matrices_[role.name] =
          MatrixView::Plain(storage_.back().get(), Encoding::kF32, role.rows, role.cols);
      const Status status = EncodeRows(matrices_[role.name], 0, role.rows, values.data());
      CHECK(status.ok(), status.message());
    }
  }
  MatrixView Matrix(const std::string& role) const override { return matrices_.at(role); }
  std::span<const float> Vector(const std::string& role) const override {
    return values_.at(role);
  }
  // sum over c of row `row` of a matrix times x.
  double Dot(const std::string& role, size_t row, const double* x) const {
    const std::string name = "layers.0.attention." + role;
    const size_t cols = matrices_.at(name).cols;
    double sum = 0;
    for (size_t c = 0; c < cols; ++c) sum += values_.at(name)[row * cols + c] * x[c];
    return sum;
  }
  Row Product(const std::string& role, const Row& x) const {
    Row y(matrices_.at("layers.0.attention." + role).rows);
    for (size_t r = 0; r < y.size(); ++r) y[r] = Dot(role, r, x.data());
    return y;
  }
  double At(const std::string& role, size_t index) const {
    return values_.at("layers.0.attention." + role)[index];
  }

 private:
  struct Free {
    void operator()(std::byte* p) const { ::operator delete(p, std::align_val_t{64}); }
  };
  std::map<std::string, std::vector<float>> values_;
  std::map<std::string, MatrixView> matrices_;
  std::vector<std::unique_ptr<std::byte, Free>> storage_;
};

struct Rig {
  Rig(const MixerConfig& mixer_config, const char* model_type, KvFormat kv_format = KvFormat::kF32)
      : config(mixer_config),
        weights(config, model_type),
        pool(Topology::Detect(), {.thread_count = 2, .pin = false}),
        backend(*ChooseIsa(), pool, kMaxTokens, 512),
        scratch(MixerScratchFloats(config, kHidden, kMaxTokens)),
        rope(RopeOf(config) != nullptr ? std::make_unique<RopeTable>(*RopeOf(config), kMaxTokens)
                                       : nullptr),
        mixer(MakeMixer(config,
                        {.backend = &backend, .scratch = &scratch, .rope = rope.get(),
                         .hidden = kHidden, .layer = 0, .norm_epsilon = kNormEpsilon},
                        weights, "layers.0.attention.")),
        state(NewState(kv_format)) {
    Random random(kSeed + 1);
    x.resize(size_t{kMaxTokens} * kHidden);
    for (float& value : x) value = random.Normal();
  }
  SequenceState NewState(KvFormat format) const {
    auto allocated = SequenceState::Allocate(std::vector{StateShapeOf(config, format)}, kMaxPositions, format);
    CHECK(allocated.ok(), allocated.status().message());
    return std::move(*allocated);
  }
  void Run(uint32_t first, uint32_t count, float* out, bool commit = true) {
    CHECK(state.length() == first && state.Reserve(count));
    if (rope != nullptr) rope->Prepare(first, count);
    scratch.Clear();
    const MixerSegment segment = {0, count, &state};
    const MixerInput input = {.x = x.data() + size_t{first} * kHidden, .token_count = count,
                              .segments = {&segment, 1}};
    std::visit([&](auto& block) { block.Run(input, out); }, mixer);
    if (commit) state.Commit(count);
  }
  std::vector<float> RunInChunks(uint32_t count, const std::vector<uint32_t>& sizes) {
    state.Reset();
    std::vector<float> out(size_t{count} * kHidden);
    size_t next = 0;
    for (uint32_t t = 0; t < count; ++next) {
      const uint32_t size = std::min(sizes[std::min(next, sizes.size() - 1)], count - t);
      Run(t, size, out.data() + size_t{t} * kHidden);
      t += size;
    }
    return out;
  }
  // Tokens [first, first + count) of x for a sequence; their outputs go to the same rows of *out.
  struct Piece {
    SequenceState* state;
    uint32_t first, count;
  };
  void RunBatch(const std::vector<Piece>& pieces, std::vector<float>* out) {
    std::vector<float> in;
    std::vector<MixerSegment> segments;
    uint32_t rows = 0;
    for (const Piece& piece : pieces) {
      CHECK(piece.state->Reserve(piece.count));
      if (rope != nullptr) rope->Prepare(rows, piece.state->length(), piece.count);
      segments.push_back({rows, piece.count, piece.state});
      in.insert(in.end(), &x[size_t{piece.first} * kHidden],
                &x[size_t{piece.first} * kHidden] + size_t{piece.count} * kHidden);
      rows += piece.count;
    }
    scratch.Clear();
    std::vector<float> result(in.size());
    const MixerInput input = {.x = in.data(), .token_count = rows, .segments = segments};
    std::visit([&](auto& block) { block.Run(input, result.data()); }, mixer);
    for (size_t i = 0; i < pieces.size(); ++i) {
      pieces[i].state->Commit(pieces[i].count);
      std::copy_n(&result[size_t{segments[i].first} * kHidden], size_t{pieces[i].count} * kHidden,
                  &(*out)[size_t{pieces[i].first} * kHidden]);
    }
  }
  Row Input(uint32_t t) const {
    return Row(x.begin() + size_t{t} * kHidden, x.begin() + size_t{t + 1} * kHidden);
  }

  const MixerConfig config;
  const MixerWeights weights;
  ThreadPool pool;
  CpuBackend backend;
  Scratch scratch;
  std::unique_ptr<RopeTable> rope;
  Mixer mixer;
  SequenceState state;
  std::vector<float> x;
};

// No dimension is a multiple of a tile; heads are more than one and no power of two.
MlaConfig SmallMla(uint32_t q_rank) {
  MlaConfig mla{.heads = 3, .q_rank = q_rank, .kv_rank = 21, .nope_dim = 13, .rope_dim = 6,
                .value_dim = 11, .rope = {}};
  mla.rope.rotary_dim = 6;
  mla.rope.interleaved = true;
  mla.scale = 0.25f;
  return mla;
}
GatedDeltaConfig SmallDelta(bool by_key_head) {
  return {.key_heads = 2, .value_heads = 6, .key_dim = 9, .value_dim = 19, .taps = 4,
          .by_key_head = by_key_head};
}
GqaConfig SmallGated() {
  GqaConfig gqa{.query_heads = 4, .kv_heads = 2, .head_dim = 18, .rope = {},
                .qk_norm = QkNorm::kPerHead};
  gqa.rope.rotary_dim = 4;
  gqa.output_gate = true;
  return gqa;
}

double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
void Normalize(double* x, size_t size, const std::function<double(size_t)>& weight, double epsilon) {
  double sum = 0;
  for (size_t i = 0; i < size; ++i) sum += x[i] * x[i];
  const double scale = 1 / std::sqrt(sum / static_cast<double>(size) + epsilon);
  for (size_t i = 0; i < size; ++i) x[i] *= scale * weight(i);
}
void Rotate(double* x, uint32_t dim, bool interleaved, uint32_t position) {
  for (uint32_t i = 0; i < dim / 2; ++i) {
    const double angle = position * std::pow(10000.0, -2.0 * i / dim);
    double& a = x[interleaved ? 2 * i : i];
    double& b = x[interleaved ? 2 * i + 1 : i + dim / 2];
    const double first = a * std::cos(angle) - b * std::sin(angle);
    b = b * std::cos(angle) + a * std::sin(angle);
    a = first;
  }
}
// Softmax(scale q.k) v over all positions so far, of one head.
Row Attend(const double* q, const std::vector<Row>& keys, const std::vector<Row>& values,
           double scale) {
  Row scores, out(values[0].size());
  double largest = -1e300, sum = 0;
  for (const Row& key : keys) {
    double score = 0;
    for (size_t i = 0; i < key.size(); ++i) score += q[i] * key[i] * scale;
    scores.push_back(score);
    largest = std::max(largest, score);
  }
  for (size_t p = 0; p < keys.size(); ++p) {
    const double weight = std::exp(scores[p] - largest);
    sum += weight;
    for (size_t i = 0; i < out.size(); ++i) out[i] += weight * values[p][i];
  }
  for (double& value : out) value /= sum;
  return out;
}

// Every head's keys and values from the latent, as the paper has it.
std::vector<Row> NaiveMla(const Rig& rig, uint32_t count) {
  const MlaConfig& c = std::get<MlaConfig>(rig.config);
  const MixerWeights& w = rig.weights;
  const uint32_t head_dim = c.nope_dim + c.rope_dim;
  // Parts of a stack begin at whole panels.
  const uint32_t k_part = PanelCount(c.kv_rank) * 16, v_part = PanelCount(c.value_dim) * 16;
  std::vector<std::vector<Row>> keys(c.heads), values(c.heads);
  std::vector<Row> out;
  for (uint32_t t = 0; t < count; ++t) {
    const Row x = rig.Input(t);
    Row q;
    if (c.q_rank > 0) {
      Row low = w.Product("q_a", x);
      Normalize(low.data(), low.size(), [&](size_t i) { return w.At("q_a_norm", i); },
                c.norm_epsilon);
      q = w.Product("q_b", low);
    } else {
      q = w.Product("q", x);
    }
    Row latent = w.Product("kv_a", x);
    Normalize(latent.data(), c.kv_rank, [&](size_t i) { return w.At("kv_a_norm", i); },
              c.norm_epsilon);
    Rotate(&latent[c.kv_rank], c.rope_dim, c.rope.interleaved, t);
    Row attended;
    for (uint32_t h = 0; h < c.heads; ++h) {
      Row key(c.nope_dim), value(c.value_dim);
      for (uint32_t d = 0; d < c.nope_dim; ++d) {
        for (uint32_t r = 0; r < c.kv_rank; ++r) {
          key[d] += w.At("k_up", (size_t{h} * k_part + r) * c.nope_dim + d) * latent[r];
        }
      }
      for (uint32_t d = 0; d < c.value_dim; ++d) {
        value[d] = w.Dot("v_up", h * v_part + d, latent.data());
      }
      key.insert(key.end(), latent.begin() + c.kv_rank, latent.end());
      keys[h].push_back(key);
      values[h].push_back(value);
      Rotate(&q[h * head_dim + c.nope_dim], c.rope_dim, c.rope.interleaved, t);
      const Row head = Attend(&q[h * head_dim], keys[h], values[h], c.scale);
      attended.insert(attended.end(), head.begin(), head.end());
    }
    out.push_back(w.Product("o", attended));
  }
  return out;
}

std::vector<Row> NaiveGated(const Rig& rig, uint32_t count) {
  const GqaConfig& c = std::get<GqaConfig>(rig.config);
  const MixerWeights& w = rig.weights;
  std::vector<std::vector<Row>> keys(c.kv_heads), values(c.kv_heads);
  std::vector<Row> out;
  const auto prepare = [&](double* head, const char* norm, uint32_t t) {
    Normalize(head, c.head_dim, [&](size_t i) { return w.At(norm, i); }, kNormEpsilon);
    Rotate(head, c.rope.rotary_dim, false, t);
  };
  for (uint32_t t = 0; t < count; ++t) {
    const Row x = rig.Input(t), gate = w.Product("gate", x), v = w.Product("v", x);
    Row q = w.Product("q", x), k = w.Product("k", x), attended;
    for (uint32_t h = 0; h < c.kv_heads; ++h) {
      prepare(&k[h * c.head_dim], "k_norm", t);
      keys[h].emplace_back(&k[h * c.head_dim], &k[h * c.head_dim] + c.head_dim);
      values[h].emplace_back(&v[h * c.head_dim], &v[h * c.head_dim] + c.head_dim);
    }
    for (uint32_t h = 0; h < c.query_heads; ++h) {
      prepare(&q[h * c.head_dim], "q_norm", t);
      const uint32_t kv = h / (c.query_heads / c.kv_heads);
      const Row head = Attend(&q[h * c.head_dim], keys[kv], values[kv],
                              1 / std::sqrt(static_cast<double>(c.head_dim)));
      attended.insert(attended.end(), head.begin(), head.end());
    }
    for (size_t i = 0; i < attended.size(); ++i) attended[i] *= Sigmoid(gate[i]);
    out.push_back(w.Product("o", attended));
  }
  return out;
}

std::vector<Row> NaiveDelta(const Rig& rig, uint32_t count) {
  const GatedDeltaConfig& c = std::get<GatedDeltaConfig>(rig.config);
  const MixerWeights& w = rig.weights;
  const size_t keys = c.key_heads * c.key_dim;
  std::vector<Row> inputs, out;  // of the convolution
  std::vector<Row> memory(c.value_heads, Row(size_t{c.key_dim} * c.value_dim));
  const auto unit = [&](double* x) {
    double sum = 1e-6;
    for (uint32_t i = 0; i < c.key_dim; ++i) sum += x[i] * x[i];
    for (uint32_t i = 0; i < c.key_dim; ++i) x[i] /= std::sqrt(sum);
  };
  for (uint32_t t = 0; t < count; ++t) {
    const Row x = rig.Input(t), z = w.Product("delta_z", x);
    const Row a = w.Product("delta_a", x), b = w.Product("delta_b", x);
    Row input = w.Product("delta_q", x);
    for (const char* role : {"delta_k", "delta_v"}) {
      const Row more = w.Product(role, x);
      input.insert(input.end(), more.begin(), more.end());
    }
    inputs.push_back(input);
    Row mixed(input.size());
    for (size_t i = 0; i < mixed.size(); ++i) {
      for (uint32_t tap = 0; tap < c.taps && tap <= t; ++tap) {
        mixed[i] += w.At("delta_conv", i * c.taps + c.taps - 1 - tap) * inputs[t - tap][i];
      }
      mixed[i] *= Sigmoid(mixed[i]);
    }
    for (uint32_t h = 0; h < 2 * c.key_heads; ++h) unit(&mixed[h * c.key_dim]);
    Row values;
    for (uint32_t h = 0; h < c.value_heads; ++h) {
      const size_t group = h / (c.value_heads / c.key_heads);
      const double *q = &mixed[group * c.key_dim], *k = &mixed[keys + group * c.key_dim];
      const double* v = &mixed[2 * keys + h * c.value_dim];
      const double step = std::log1p(std::exp(a[h] + w.At("delta_decay_bias", h)));
      const double decay = std::exp(-std::exp(w.At("delta_decay_log", h)) * step);
      Row head(c.value_dim);
      for (uint32_t d = 0; d < c.value_dim; ++d) {
        const auto cell = [&](uint32_t i) -> double& { return memory[h][i * c.value_dim + d]; };
        double recalled = 0;
        for (uint32_t i = 0; i < c.key_dim; ++i) recalled += k[i] * (cell(i) *= decay);
        const double delta = Sigmoid(b[h]) * (v[d] - recalled);
        for (uint32_t i = 0; i < c.key_dim; ++i) {
          cell(i) += k[i] * delta;
          head[d] += q[i] / std::sqrt(static_cast<double>(c.key_dim)) * cell(i);
        }
      }
      Normalize(head.data(), head.size(), [&](size_t i) { return w.At("delta_norm", i); },
                kNormEpsilon);
      for (uint32_t d = 0; d < c.value_dim; ++d) {
        const double gate = z[h * c.value_dim + d];
        values.push_back(head[d] * gate * Sigmoid(gate));
      }
    }
    out.push_back(w.Product("delta_o", values));
  }
  return out;
}

struct Case {
  const char* name;
  MixerConfig config;
  const char* model_type;
  std::vector<Row> (*naive)(const Rig& rig, uint32_t count);
};

class MixerTest : public testing::TestWithParam<Case> {};

TEST_P(MixerTest, MatchesPlainLoopsInDouble) {
  Rig rig(GetParam().config, GetParam().model_type);
  constexpr uint32_t kCount = 60;
  const std::vector<Row> expected = GetParam().naive(rig, kCount);
  const std::vector<float> out = rig.RunInChunks(kCount, {kCount});
  double error = 0, largest = 0;
  for (uint32_t t = 0; t < kCount; ++t) {
    for (uint32_t i = 0; i < kHidden; ++i) {
      error = std::max(error, std::abs(out[size_t{t} * kHidden + i] - expected[t][i]));
      largest = std::max(largest, std::abs(expected[t][i]));
    }
  }
  // A few hundred roundings of 6e-8 of values of about 1; RmsNorm of a short head multiplies them.
  EXPECT_LT(error, 2e-5) << "seed " << kSeed;
  EXPECT_GT(largest, 0.5) << "the outputs are not all near zero";
}

TEST_P(MixerTest, ChunksDoNotChangeABit) {
  Rig rig(GetParam().config, GetParam().model_type);
  const std::vector<float> whole = rig.RunInChunks(kMaxTokens, {kMaxTokens});
  EXPECT_EQ(rig.RunInChunks(kMaxTokens, {1}), whole);
  EXPECT_EQ(rig.RunInChunks(kMaxTokens, {2, 1, 129, 3, 140}), whole);
}

TEST_P(MixerTest, AChunkThatWasNotCommittedLeavesNothingBehind) {
  Rig rig(GetParam().config, GetParam().model_type);
  const std::vector<float> whole = rig.RunInChunks(80, {80});
  rig.state.Reset();
  std::vector<float> out(whole.size()), dropped(whole.size());
  rig.Run(0, 30, out.data());
  std::swap_ranges(rig.x.begin() + 30 * kHidden, rig.x.begin() + 50 * kHidden,
                   rig.x.begin() + 100 * kHidden);  // other tokens, which are then given up
  rig.Run(30, 50, dropped.data(), /*commit=*/false);
  rig.Run(30, 1, dropped.data(), /*commit=*/false);
  std::swap_ranges(rig.x.begin() + 30 * kHidden, rig.x.begin() + 50 * kHidden,
                   rig.x.begin() + 100 * kHidden);
  rig.Run(30, 50, out.data() + 30 * kHidden);
  EXPECT_EQ(out, whole);
}

// Three sequences of different lengths, in batches in which each has pieces of its own size, some more than a
// block of any kind takes at once.
TEST_P(MixerTest, SequencesOfABatchDoNotChangeABitOfOneAnother) {
  constexpr uint32_t kFirst[] = {0, 30, 170}, kCount[] = {30, 140, 100};
  constexpr uint32_t kPieces[][3] = {{20, 1, 0}, {1, 90, 100}, {9, 1, 0}, {0, 48, 0}};
  Rig rig(GetParam().config, GetParam().model_type);
  std::vector<float> alone(size_t{kMaxTokens} * kHidden);
  std::vector<SequenceState> states;
  for (int s = 0; s < 3; ++s) {
    states.push_back(rig.NewState(KvFormat::kF32));
    rig.RunBatch({{&states[s], kFirst[s], kCount[s]}}, &alone);
    states[s].Reset();
  }
  std::vector<float> together(alone.size());
  for (const auto& pieces : kPieces) {
    std::vector<Rig::Piece> batch;
    for (const int s : {2, 0, 1}) {
      if (pieces[s] == 0) continue;
      batch.push_back({&states[s], kFirst[s] + states[s].length(), pieces[s]});
    }
    rig.RunBatch(batch, &together);
  }
  for (int s = 0; s < 3; ++s) EXPECT_EQ(states[s].length(), kCount[s]);
  EXPECT_EQ(together, alone);
}

INSTANTIATE_TEST_SUITE_P(
    Kinds, MixerTest,
    testing::Values(Case{"mla", SmallMla(17), "deepseek_v3", NaiveMla},
                    Case{"mla_without_q_rank", SmallMla(0), "deepseek_v2", NaiveMla},
                    Case{"gated_delta", SmallDelta(false), "qwen3_5_moe", NaiveDelta},
                    Case{"gated_delta_by_key_head", SmallDelta(true), "qwen3_next", NaiveDelta},
                    Case{"gated_attention", SmallGated(), "qwen3_next", NaiveGated}),
    [](const auto& kind) { return kind.param.name; });

// Lossy caches are near the exact one; q8 and fp8 are bf16 here (mla_attention.h).
TEST(MlaCache, PackedFormats) {
  Rig exact(SmallMla(17), "deepseek_v3");
  const std::vector<float> expected = exact.RunInChunks(60, {60});
  std::vector<std::vector<float>> packed;
  for (const KvFormat format : {KvFormat::kBf16, KvFormat::kQ8, KvFormat::kFp8}) {
    Rig rig(SmallMla(17), "deepseek_v3", format);
    packed.push_back(rig.RunInChunks(60, {60}));
    EXPECT_EQ(rig.RunInChunks(60, {7}), packed.back()) << KvFormatName(format);
    double error = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
      error = std::max<double>(error, std::abs(packed.back()[i] - expected[i]));
    }
    // bf16 keeps 8 bits of latents of about 1, of which a value is a mean.
    EXPECT_LT(error, 0.03) << KvFormatName(format);
    EXPECT_GT(error, 1e-5) << KvFormatName(format);
  }
  EXPECT_EQ(packed[0], packed[1]);
  EXPECT_EQ(packed[0], packed[2]);
  const MixerConfig config = SmallMla(17);
  EXPECT_EQ(StateShapeOf(config, KvFormat::kF32).position_bytes, (21u + 6) * 4);
  EXPECT_EQ(StateShapeOf(config, KvFormat::kQ8).position_bytes, (21u + 6) * 2);
}

}  // namespace
}  // namespace moraine
