#include "engine/synthetic_model.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>
#include <unordered_map>

#include "base/random.h"
#include "compute/random_tiles.h"
#include "engine/import_plan.h"
#include "model/config.h"
#include "model/tokenizer/byte_level.h"
#include "model/tokenizer/utf8.h"
#include "model/weights.h"

namespace moraine {
namespace {

// How the constants below came about: docs/synthetic.md.
constexpr double kLayerGrowth = 0.08;     // energy that a layer adds to the residual stream's
constexpr double kAttentionShare = 0.3;   // of that energy, the rest is the experts'
constexpr double kPopularityShare = 0.1;  // of the stream's energy lies along u
constexpr double kRouterDeviation = 1.5;  // of the router's logits between tokens
constexpr double kMaxPopularity = 0.9;    // of one expert
constexpr double kAttentionBias = 2.0;    // of queries and keys, beside projections of deviation 1
constexpr double kNearScore = 16.0;       // attention score of the token itself due to the biases
constexpr double kRopeTheta = 1e6;
// Measured in such models: deviation of an average of values under the attention's weights, of
// silu(a) x b for standard normal a and b, and of the sum of k expert outputs under the router's weights.
constexpr double kAveragedValues = 0.5, kActivation = 0.6, kMixedExperts = 0.55;

uint64_t Mix(uint64_t seed, uint64_t a, uint64_t b = 0, uint64_t c = 0) {
  for (const uint64_t part : {a, b, c}) seed = Random(seed ^ part).Next();
  return seed;
}
// What a seed is for; the values only have to differ.
enum Stream : uint64_t { kExpertStream = 1, kDenseStream, kRouterStream, kOrderStream };

std::string ConfigJson(const PublishedShape& s) {
  nlohmann::ordered_json config = {
      {"model_type", "qwen3_moe"},
      {"hidden_size", s.hidden},
      {"vocab_size", s.vocab},
      {"num_attention_heads", s.query_heads},
      {"num_key_value_heads", s.kv_heads},
      {"head_dim", s.head_dim},
      {"num_hidden_layers", s.layers},
      {"num_experts", s.experts},
      {"num_experts_per_tok", s.top_k},
      {"intermediate_size", s.dense_intermediate},
      {"moe_intermediate_size", s.expert_intermediate},
      {"norm_topk_prob", true},
      {"attention_bias", true},
      {"rope_theta", kRopeTheta},
      {"rms_norm_eps", 1e-6},
      {"max_position_embeddings", 40960},
      {"tie_word_embeddings", false},
      {"eos_token_id", s.vocab - 1}};
  config["mlp_only_layers"] = nlohmann::ordered_json::array();
  for (uint32_t i = 0; i < s.dense_layers; ++i) config["mlp_only_layers"].push_back(i);
  return config.dump(1);
}

// How often each rank of expert is wanted by a token: Zipf, none above kMaxPopularity, top_k in all.
std::vector<double> Popularities(uint32_t experts, uint32_t top_k, double exponent) {
  std::vector<double> zipf(experts), result(experts);
  for (uint32_t r = 0; r < experts; ++r) zipf[r] = std::pow(r + 1.0, -exponent);
  const double cap = std::max(kMaxPopularity, static_cast<double>(top_k) / experts);
  double low = 0, high = top_k * std::pow(experts, exponent);
  for (int i = 0; i < 100; ++i) {
    const double scale = (low + high) / 2;
    for (uint32_t r = 0; r < experts; ++r) result[r] = std::min(cap, scale * zipf[r]);
    (std::accumulate(result.begin(), result.end(), 0.0) < top_k ? low : high) = scale;
  }
  return result;
}

// x with P(normal > -x) = p.
double NormalQuantile(double p) {
  double low = -40, high = 40;
  for (int i = 0; i < 100; ++i) {
    const double middle = (low + high) / 2;
    (std::erfc(-middle * M_SQRT1_2) / 2 < p ? low : high) = middle;
  }
  return low;
}

// The numbers of one synthetic model.
class Formula {
 public:
  Formula(const SyntheticModelOptions& options, ModelConfig config)
      : options_(options), config_(std::move(config)) {}

  const ModelConfig& config() const { return config_; }
  bool skewed() const { return options_.config.empty(); }
  uint64_t seed() const { return options_.seed; }

  // Deviation of one element of the residual stream's random part before layer `layer`.
  static double Stream(uint32_t layer) { return std::pow(1 + kLayerGrowth, layer / 2.0); }
  static double AttentionOutput(uint32_t layer) {
    return Stream(layer) * std::sqrt(kLayerGrowth * kAttentionShare);
  }
  static double ExpertOutput(uint32_t layer) {
    return Stream(layer) * std::sqrt(kLayerGrowth * (1 - kAttentionShare));
  }

  float ProjectionDeviation() const {  // of matrices that read a normalised stream
    return static_cast<float>(1 / std::sqrt(static_cast<double>(config_.hidden)));
  }
  float AttentionOutputDeviation(uint32_t layer) const {
    const GqaConfig& attention = std::get<GqaConfig>(config_.layers[layer].mixer);
    const double width = static_cast<double>(attention.query_heads) * attention.head_dim;
    return static_cast<float>(AttentionOutput(layer) / (kAveragedValues * std::sqrt(width)));
  }
  float ExpertDownDeviation(uint32_t layer) const {
    if (skewed()) return DownDeviation(layer);
    return 1 / std::sqrt(static_cast<float>(config_.layers[layer].intermediate));
  }
  float DownDeviation(uint32_t layer) const {
    const LayerConfig& l = config_.layers[layer];
    const double mixed = l.feed_forward == FeedForwardKind::kMoe ? kMixedExperts : 1.0;
    return static_cast<float>(ExpertOutput(layer) /
                              (mixed * kActivation * std::sqrt(static_cast<double>(l.intermediate))));
  }
  float MatrixDeviation(const DenseRole& dense, uint32_t layer) const {
    const std::string& role = dense.name;
    if (role == "embedding") return 1;
    if (!skewed()) return 1 / std::sqrt(static_cast<float>(dense.cols));
    if (role.ends_with("attention.o")) return AttentionOutputDeviation(layer);
    if (role.ends_with("mlp.down")) return DownDeviation(layer);
    return ProjectionDeviation();
  }

  // +1 or -1: u is this by 1 / sqrt(hidden).
  float Sign(uint32_t i) const { return Random(options_.seed ^ i).Next() & 1 ? 1.0f : -1.0f; }

  void FillVector(const std::string& role, uint32_t layer, std::span<float> values) const {
    if (!skewed()) {
      const bool norm = role.ends_with("norm"), convolution = role.ends_with("conv");
      std::fill(values.begin(), values.end(), norm ? 1.0f : convolution ? 0.5f : 0.0f);
      return;
    }
    double value = 1;  // norms
    if (role.ends_with("v_bias")) value = 0;
    if (role.ends_with("q_bias") || role.ends_with("k_bias")) value = kAttentionBias;
    if (role.ends_with("q_norm")) {
      // Queries and keys are normalised to sqrt(head_dim); this share of their energy is the bias.
      const double share = kAttentionBias * kAttentionBias / (1 + kAttentionBias * kAttentionBias);
      const double head_dim = std::get<GqaConfig>(config_.layers[layer].mixer).head_dim;
      value = kNearScore / (share * std::sqrt(head_dim));
    }
    std::fill(values.begin(), values.end(), static_cast<float>(value));
    if (!role.ends_with("o_bias")) return;
    // Keeps u's share of the stream's energy as the stream grows.
    const double ratio = std::sqrt(kPopularityShare / (1 - kPopularityShare));
    const double before = layer == 0 ? 0 : ratio * Stream(layer - 1);
    for (uint32_t i = 0; i < values.size(); ++i) {
      values[i] = Sign(i) * static_cast<float>(ratio * Stream(layer) - before);
    }
  }

  void FillRouter(uint32_t layer, uint32_t first_row, std::span<float> values) const {
    const uint32_t hidden = config_.hidden, experts = config_.expert_count;
    if (!skewed()) {
      Random random(Mix(options_.seed, kRouterStream, layer, first_row));
      const float deviation = 1 / std::sqrt(static_cast<float>(hidden));
      for (float& value : values) value = deviation * random.Normal();
      return;
    }
    const double exponent = options_.skew * layer / (layer + 2.0);
    const std::vector<double> popularity = Popularities(experts, config_.top_k, exponent);
    std::vector<uint32_t> rank(experts);
    std::iota(rank.begin(), rank.end(), 0u);
    Random order(Mix(options_.seed, kOrderStream, layer));
    for (uint32_t e = experts; e > 1; --e) std::swap(rank[e - 1], rank[order.Below(e)]);
    const double along = kRouterDeviation / (std::sqrt(kPopularityShare) * hidden);
    const double across = kRouterDeviation / std::sqrt(hidden * (1 - kPopularityShare));
    for (size_t begin = 0; begin < values.size(); begin += hidden, ++first_row) {
      const std::span<float> row = values.subspan(begin, hidden);
      Random random(Mix(options_.seed, kRouterStream, layer, first_row));
      // The random part has nothing along u: popularity is what the other part says.
      double sum = 0;
      for (uint32_t i = 0; i < hidden; ++i) sum += Sign(i) * (row[i] = random.Normal());
      const double u = NormalQuantile(popularity[rank[first_row]]) * along - across * sum / hidden;
      for (uint32_t i = 0; i < hidden; ++i) {
        row[i] = static_cast<float>(across * row[i] + u * Sign(i));
      }
    }
  }

 private:
  const SyntheticModelOptions options_;
  const ModelConfig config_;
};

// "layers.12.mlp.down" -> 12; 0 for what belongs to no layer.
uint32_t LayerOfRole(const std::string& role) {
  constexpr std::string_view kPrefix = "layers.";
  return role.starts_with(kPrefix)
             ? static_cast<uint32_t>(std::strtoul(role.c_str() + kPrefix.size(), nullptr, 10))
             : 0;
}

class SyntheticCheckpoint final : public Checkpoint {
 public:
  SyntheticCheckpoint(const SyntheticModelOptions& options, std::string config_json,
                      std::shared_ptr<const Formula> formula)
      : formula_(std::move(formula)), roles_(DenseRoles(formula_->config())) {
    files_["config.json"] = std::move(config_json);
    files_["tokenizer.json"] = SyntheticTokenizerJson(formula_->config().vocab_size);
    files_["tokenizer_config.json"] =
        R"({"eos_token":"<|end|>","tokenizer_class":"Qwen2Tokenizer","chat_template":)"
        R"("{%- for message in messages %}{{- message['content'] + '\\n' }}{%- endfor %}"})";
    identity_.format = "synthetic";
    identity_.description = formula_->skewed() ? options.shape.name : options.name;
    const std::string text =
        fmt::format("{} {} {}", files_["config.json"], options.seed, options.skew);
    identity_.fingerprint = XXH3_64bits(text.data(), text.size());
    for (const DenseRole& role : roles_) {
      Add(role.source, role.source_shape);
      role_of_tensor_.resize(tensors_.size(), &role);
    }
    const ModelConfig& config = formula_->config();
    const TensorNaming naming(config);
    const std::vector<uint32_t> experts = config.experts_per_layer();
    for (uint32_t layer = 0; layer < experts.size(); ++layer) {
      for (uint32_t e = 0; e < experts[layer]; ++e) {
        const ExpertSources sources = naming.SourcesOf(config, {LayerId(layer), ExpertId(e)});
        for (const ExpertSource* source :
             {&sources.gate, &sources.up, &sources.down, &sources.gate_bias, &sources.up_bias,
              &sources.down_bias}) {
          if (!source->tensor.empty()) Add(source->tensor, source->shape);
        }
      }
    }
  }

  const SourceIdentity& identity() const override { return identity_; }
  std::optional<std::string> ReadFile(const std::string& name) const override {
    const auto found = files_.find(name);
    if (found == files_.end()) return std::nullopt;
    return found->second;
  }
  const std::vector<SourceTensor>& tensors() const override { return tensors_; }
  const SourceTensor* Find(const std::string& name) const override {
    const auto found = by_name_.find(name);
    return found == by_name_.end() ? nullptr : &tensors_[found->second];
  }
  std::string FileOf(const SourceTensor&) const override { return identity_.description; }

  // Vectors and routers; the plan fills all else without asking for floats, of which there are none.
  Status ReadFloats(const SourceTensor& tensor, uint64_t first,
                    std::span<float> destination) const override {
    const size_t index = static_cast<size_t>(&tensor - tensors_.data());
    if (index >= role_of_tensor_.size() ||
        role_of_tensor_[index]->kind == DenseRole::Kind::kMatrix) {
      return NoBytes(tensor);
    }
    const DenseRole& role = *role_of_tensor_[index];
    const uint32_t layer = LayerOfRole(role.name);
    if (role.kind == DenseRole::Kind::kVector) {
      formula_->FillVector(role.name, layer, destination);
      for (float& value : destination) value -= role.add;
    } else {
      formula_->FillRouter(layer, static_cast<uint32_t>(first / role.cols), destination);
    }
    return OkStatus();
  }
  Status ReadBlocks(const SourceTensor& tensor, uint64_t, std::span<std::byte>) const override {
    return NoBytes(tensor);
  }

 private:
  Status NoBytes(const SourceTensor& tensor) const {
    return Unsupported(identity_.description + ": tensor '" + tensor.name + "' has no bytes");
  }
  // Roles that are parts of a tensor name it each, stacked experts too.
  void Add(std::string name, std::vector<uint64_t> shape) {
    if (!by_name_.emplace(name, tensors_.size()).second) return;
    SourceTensor tensor;
    tensor.name = std::move(name);
    tensor.shape = std::move(shape);
    tensor.bytes = SourceBytes(tensor.type, tensor.element_count());
    tensors_.push_back(std::move(tensor));
  }

  const std::shared_ptr<const Formula> formula_;
  const std::vector<DenseRole> roles_;
  std::vector<const DenseRole*> role_of_tensor_;  // of the first tensors: one of their roles
  SourceIdentity identity_;
  std::map<std::string, std::string> files_;
  std::vector<SourceTensor> tensors_;
  std::unordered_map<std::string, size_t> by_name_;
};

// The ordinary plan, with random tiles where it would encode floats.
class SyntheticPlan final : public ImportPlan {
 public:
  SyntheticPlan(std::unique_ptr<ImportPlan> plan, std::shared_ptr<const Formula> formula,
                const std::string& what)
      : plan_(std::move(plan)),
        formula_(std::move(formula)),
        roles_(DenseRoles(formula_->config())),
        manifest_(plan_->manifest()) {
    manifest_.notes.push_back("synthetic: random weights, " + what);
  }

  const Manifest& manifest() const override { return manifest_; }
  uint32_t DenseStripCount(size_t index) const override { return plan_->DenseStripCount(index); }
  uint64_t DenseStripBytes(size_t index, uint32_t strip) const override {
    return plan_->DenseStripBytes(index, strip);
  }

  Status EncodeExpert(const Checkpoint&, ExpertKey key,
                      std::span<std::byte> record) const override {
    const uint32_t layer = key.layer.value();
    const LayerManifest& entry = manifest_.layers[layer];
    const ExpertLayout layout = {*ParseEncoding(entry.gate_up_encoding),
                                 *ParseEncoding(entry.down_encoding), entry.hidden,
                                 entry.intermediate, formula_->config().expert_bias};
    const uint64_t seed = Mix(formula_->seed(), kExpertStream, layer, key.expert.value());
    FillRandomTiles(layout.gate_up, formula_->ProjectionDeviation(), seed,
                    record.first(layout.down_offset()));
    FillRandomTiles(layout.down, formula_->ExpertDownDeviation(layer), seed + 1,
                    record.subspan(layout.down_offset(),
                                   layout.bias_offset() - layout.down_offset()));
    const std::span<std::byte> padding = record.subspan(layout.bias_offset());  // biases are zero
    std::fill(padding.begin(), padding.end(), std::byte{0});
    return OkStatus();
  }

  Status EncodeDenseStrip(const Checkpoint& checkpoint, size_t index, uint32_t strip,
                          std::span<std::byte> bytes) const override {
    const DenseRole& role = roles_[index];
    if (role.kind != DenseRole::Kind::kMatrix) {
      return plan_->EncodeDenseStrip(checkpoint, index, strip, bytes);
    }
    FillRandomTiles(*ParseEncoding(manifest_.dense[index].encoding),
                    formula_->MatrixDeviation(role, LayerOfRole(role.name)),
                    Mix(formula_->seed(), kDenseStream, index, strip), bytes);
    return OkStatus();
  }

 private:
  const std::unique_ptr<ImportPlan> plan_;
  const std::shared_ptr<const Formula> formula_;
  const std::vector<DenseRole> roles_;
  Manifest manifest_;
};

Status CheckWholeTiles(const ModelConfig& config) {
  for (const DenseRole& role : DenseRoles(config)) {
    if (role.kind != DenseRole::Kind::kMatrix) continue;
    if (role.rows % kTileRows == 0 && role.cols % kTileCols == 0) continue;
    return InvalidArgument(fmt::format("synthetic model: {} is {} x {}, expected multiples of {} x {}",
                                       role.name, role.rows, role.cols, kTileRows, kTileCols));
  }
  for (const LayerConfig& layer : config.layers) {
    if (layer.intermediate % kTileCols == 0) continue;
    return InvalidArgument(fmt::format("synthetic model: experts are {} wide, expected a multiple of {}",
                                       layer.intermediate, kTileCols));
  }
  return OkStatus();
}

}  // namespace

std::string SyntheticTokenizerJson(uint32_t vocab) {
  // Not ordered_json: it finds a key by looking at all before it.
  nlohmann::json tokens;
  nlohmann::ordered_json merges = nlohmann::ordered_json::array();
  const auto spell = [](int byte) {
    std::string spelling;
    AppendUtf8(ByteSpellings()[byte], spelling);
    return spelling;
  };
  uint32_t id = 0;
  for (int byte = 0; byte < 256; ++byte) tokens[spell(byte)] = id++;
  // Pairs of letters and spaces, so that a text has more than a handful of different tokens.
  constexpr std::string_view kPaired = " abcdefghijklmnopqrstuvwxyz";
  for (const char first : kPaired) {
    for (const char second : kPaired) {
      if (id + 1 >= vocab) break;
      tokens[spell(first) + spell(second)] = id++;
      merges.push_back(spell(first) + " " + spell(second));
    }
  }
  for (; id + 1 < vocab; ++id) tokens[spell(' ') + "w" + std::to_string(id)] = id;
  const nlohmann::ordered_json end = {{"id", vocab - 1}, {"content", "<|end|>"},
                                      {"special", true}, {"normalized", false},
                                      {"lstrip", false}, {"rstrip", false}, {"single_word", false}};
  const nlohmann::ordered_json root = {
      {"added_tokens", {end}},
      {"normalizer", nullptr},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}},
      {"post_processor", nullptr},
      {"decoder", {{"type", "ByteLevel"}}},
      {"model", {{"type", "BPE"}, {"vocab", std::move(tokens)}, {"merges", std::move(merges)}}}};
  return root.dump();
}

Result<SyntheticModel> MakeSyntheticModel(const SyntheticModelOptions& options) {
  const bool of_shape = options.config.empty();
  const PublishedShape& shape = options.shape;
  std::string config_json = of_shape ? ConfigJson(shape) : options.config;
  ASSIGN_OR_RETURN(ModelConfig config,
                   ParseModelConfig(config_json, of_shape ? shape.name : options.name));
  RETURN_IF_ERROR(CheckWholeTiles(config));
  const auto formula = std::make_shared<const Formula>(options, std::move(config));
  SyntheticModel model;
  model.checkpoint =
      std::make_unique<SyntheticCheckpoint>(options, std::move(config_json), formula);
  ASSIGN_OR_RETURN(std::unique_ptr<ImportPlan> plan,
                   MakeImportPlan(*model.checkpoint, {options.experts, options.dense}));
  const std::string what =
      !of_shape ? "architecture and dimensions of " + options.name
                : fmt::format("{} of {}",
                              shape.whole_model ? "dimensions"
                                                : "Qwen3-MoE architecture with the expert geometry",
                              shape.name);
  model.plan = std::make_unique<SyntheticPlan>(std::move(plan), formula, what);
  return model;
}

}  // namespace moraine
