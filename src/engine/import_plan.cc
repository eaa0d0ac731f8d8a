#include "engine/import_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>
#include <set>

#include "engine/encoding_notes.h"
#include "engine/role_rows.h"
#include "engine/source_matrix.h"
#include "model/config.h"
#include "model/gguf_config.h"
#include "model/tokenizer/gguf_tokenizer.h"
#include "model/weights.h"
#include "store/gguf.h"

namespace moraine {
namespace {

const SourceTensor& MustFind(const Checkpoint& checkpoint, const std::string& name) {
  const SourceTensor* tensor = checkpoint.Find(name);
  CHECK(tensor != nullptr, name);  // MakeImportPlan looked
  return *tensor;
}

class DecoderImportPlan final : public ImportPlan {
 public:
  DecoderImportPlan(const Checkpoint& checkpoint, ModelConfig config, const TensorNaming& naming,
                    const ImportPlanOptions& options, Manifest manifest)
      : config_(std::move(config)),
        roles_(DenseRoles(config_, naming)),
        naming_(naming),
        importance_(options.importance),
        manifest_(std::move(manifest)) {
    for (uint32_t i = 0; i < config_.layers.size(); ++i) AddLayer(checkpoint, LayerId(i), options);
    for (const DenseRole& role : roles_) AddDense(checkpoint, role, options);
  }

  // Once: what is exact, what is lost and by what it was weighted, into the manifest.
  Status AddNotes(const Checkpoint& checkpoint) {
    RETURN_IF_ERROR(expert_notes_.AppendTo(checkpoint, &manifest_.notes));
    RETURN_IF_ERROR(dense_notes_.AppendTo(checkpoint, &manifest_.notes));
    if (importance_ == nullptr) return OkStatus();
    if (weighted_ == 0) {
      return InvalidArgument(importance_->path() +
                             ": importance has nothing to weight: no expert becomes q4 or q8 in this "
                             "import, other than by carrying blocks over");
    }
    const std::string file = std::filesystem::path(importance_->path()).filename().string();
    manifest_.notes.push_back(fmt::format(
        "the quantisation of {} experts' matrices is weighted by {} (checksum {:016x}, {} tokens)",
        weighted_, file, importance_->checksum(), importance_->tokens));
    return OkStatus();
  }

  const Manifest& manifest() const override { return manifest_; }
  Status EncodeExpert(const Checkpoint& checkpoint, ExpertKey key,
                      std::span<std::byte> record) const override {
    const ExpertLayout& layout = layouts_[key.layer.value()];
    const ExpertView view = ViewExpert(layout, record.data());
    const ExpertSources sources = naming_.SourcesOf(config_, key);
    const auto encode = [&](const ExpertSource& source, bool down, const MatrixView& matrix) {
      return EncodeWhole(checkpoint, ExpertMatrix(checkpoint, source, key, down), matrix);
    };
    RETURN_IF_ERROR(encode(sources.gate, false, view.gate));
    RETURN_IF_ERROR(encode(sources.up, false, view.up));
    RETURN_IF_ERROR(encode(sources.down, true, view.down));
    std::memset(record.data() + layout.bias_offset(), 0, record.size() - layout.bias_offset());
    return config_.expert_bias ? CopyBiases(checkpoint, key, sources, view) : OkStatus();
  }

  uint32_t DenseStripCount(size_t index) const override {
    const DenseRole& role = roles_[index];
    if (role.kind == DenseRole::Kind::kVector) return 1;
    const uint32_t step = StripRows(role.cols);
    return (role.rows + step - 1) / step;
  }

  uint64_t DenseStripBytes(size_t index, uint32_t strip) const override {
    const DenseRole& role = roles_[index];
    if (role.kind == DenseRole::Kind::kVector) return manifest_.dense[index].bytes;
    const uint32_t step = StripRows(role.cols);
    return MatrixBytes(EncodingOf(index), std::min(step, role.rows - strip * step), role.cols);
  }

  Status EncodeDenseStrip(const Checkpoint& checkpoint, size_t index, uint32_t strip,
                          std::span<std::byte> bytes) const override {
    const DenseRole& role = roles_[index];
    const SourceTensor& tensor = MustFind(checkpoint, role.source);
    if (role.kind == DenseRole::Kind::kVector) {
      const std::span<float> values(reinterpret_cast<float*>(bytes.data()), role.cols);
      RETURN_IF_ERROR(ReadRoleRows(checkpoint, tensor, role, 0, 1, values));
      for (float& value : values) {
        value = role.log_of_negative ? std::log(-value) : value + role.add;
      }
      return OkStatus();
    }
    const uint32_t step = StripRows(role.cols), first = strip * step;
    const uint32_t count = std::min(step, role.rows - first);
    // The strip as a matrix of its own: row 0 of the view is row `first` of the role.
    const MatrixView view = MatrixView::Plain(bytes.data(), EncodingOf(index), count, role.cols);
    if (IsWholeTensor(role)) return EncodeMatrixRows(checkpoint, {&tensor}, first, count, view, 0);
    return EncodeRoleRows(checkpoint, tensor, role, first, view);
  }

 private:
  SourceMatrix ExpertMatrix(const Checkpoint& checkpoint, const ExpertSource& source, ExpertKey key,
                            bool down) const {
    SourceMatrix matrix = MatrixOf(MustFind(checkpoint, source.tensor), source, key.expert);
    if (importance_ != nullptr) matrix.importance = importance_->OfExpert(key, down);
    return matrix;
  }

  Status CopyBiases(const Checkpoint& checkpoint, ExpertKey key, const ExpertSources& sources,
                    const ExpertView& view) const {
    const auto copy = [&](const ExpertSource& source, const float* bias, uint32_t count) -> Status {
      const SourceTensor& tensor = MustFind(checkpoint, source.tensor);
      std::vector<float> values;
      const SourceMatrix column = MatrixOf(tensor, source, key.expert);
      RETURN_IF_ERROR(ReadRows(checkpoint, column, 0, count, 1, &values));
      std::ranges::copy(values, const_cast<float*>(bias));  // of the record that is being filled
      return OkStatus();
    };
    RETURN_IF_ERROR(copy(sources.gate_bias, view.gate_bias, view.gate.rows));
    RETURN_IF_ERROR(copy(sources.up_bias, view.up_bias, view.up.rows));
    return copy(sources.down_bias, view.down_bias, view.down.rows);
  }

  void AddLayer(const Checkpoint& checkpoint, LayerId id, const ImportPlanOptions& options) {
    const LayerConfig& layer = config_.layers[id.value()];
    if (layer.feed_forward != FeedForwardKind::kMoe) {
      layouts_.emplace_back();
      manifest_.layers.emplace_back();
      return;
    }
    // All experts of a layer have one layout, gate and up one encoding: that which holds them all.
    ExpertLayout layout = {.hidden = config_.hidden, .intermediate = layer.intermediate,
                           .biases = config_.expert_bias};
    const auto wanted = [&](const ExpertSource& source) {
      return options.experts.value_or(NaturalEncoding(MustFind(checkpoint, source.tensor).type));
    };
    std::vector<ExpertSources> all;
    for (uint32_t e = 0; e < config_.expert_count; ++e) {
      all.push_back(naming_.SourcesOf(config_, {id, ExpertId(e)}));
      const ExpertSources& sources = all.back();
      const Encoding gate_up = Join(wanted(sources.gate), wanted(sources.up));
      layout.gate_up = e == 0 ? gate_up : Join(layout.gate_up, gate_up);
      layout.down = e == 0 ? wanted(sources.down) : Join(layout.down, wanted(sources.down));
      if (sources.gate.stacked) break;
    }
    for (uint32_t e = 0; e < all.size(); ++e) {
      const ExpertKey key{id, ExpertId(e)};
      for (const ExpertSource* source : {&all[e].gate, &all[e].up}) {
        const SourceMatrix matrix = ExpertMatrix(checkpoint, *source, key, false);
        expert_notes_.Add("gate and up", matrix, layout.gate_up, layout.intermediate,
                          layout.hidden);
        CountWeighted(matrix, *source, layout.gate_up);
      }
      const SourceMatrix down = ExpertMatrix(checkpoint, all[e].down, key, true);
      expert_notes_.Add("down", down, layout.down, layout.hidden, layout.intermediate);
      CountWeighted(down, all[e].down, layout.down);
    }
    layouts_.push_back(layout);
    manifest_.layers.push_back({config_.expert_count, layout.record_bytes(),
                                EncodingName(layout.gate_up), EncodingName(layout.down),
                                config_.hidden, layer.intermediate});
  }

  void CountWeighted(const SourceMatrix& matrix, const ExpertSource& source, Encoding encoding) {
    if (importance_ == nullptr || !IsQuantised(encoding) || CarriesBlocks(matrix, encoding)) return;
    weighted_ += source.stacked ? config_.expert_count : 1;
  }

  void AddDense(const Checkpoint& checkpoint, const DenseRole& role,
                const ImportPlanOptions& options) {
    DenseTensor tensor{.name = role.name, .encoding = "vector", .rows = role.rows,
                       .cols = role.cols};
    tensor.bytes = uint64_t{role.cols} * sizeof(float);
    if (role.kind != DenseRole::Kind::kVector) {
      const SourceTensor& source = MustFind(checkpoint, role.source);
      const bool small_experts = options.experts && IsQuantised(*options.experts);
      Encoding wanted = small_experts && !IsQuantised(source.type) ? Encoding::kQ8
                                                                   : NaturalEncoding(source.type);
      // A matrix whose blocks cannot be carried, where they should be, or that is transposed: to
      // quantise twice would cost more.
      const bool in_order = HasBlocksInOrder(role, BlockOf(source.type).elements);
      if (IsQuantised(source.type) &&
          (role.transposed || (!in_order && IsExact(source.type, wanted)))) {
        wanted = Encoding::kBf16;
      }
      const Encoding encoding = role.kind == DenseRole::Kind::kExactMatrix
                                    ? Encoding::kF32
                                    : options.dense.value_or(wanted);
      // Sampled as the tensor has it, whichever rows of it the role is.
      const uint64_t cols = role.source_shape.back();
      dense_notes_.Add(PartOf(role.name), {&source}, encoding,
                       static_cast<uint32_t>(source.element_count() / cols),
                       static_cast<uint32_t>(cols));
      tensor.encoding = EncodingName(encoding);
      tensor.bytes = MatrixBytes(encoding, role.rows, role.cols);
    }
    manifest_.dense.push_back(std::move(tensor));
  }

  // "layers.3.attention.q" is of "attention", "embedding" of itself.
  static std::string PartOf(const std::string& role) {
    if (!role.starts_with("layers.")) return role;
    const size_t begin = role.find('.', 7) + 1;
    return role.substr(begin, role.find('.', begin) - begin);
  }

  Encoding EncodingOf(size_t index) const {
    return *ParseEncoding(manifest_.dense[index].encoding);
  }

  const ModelConfig config_;
  const std::vector<DenseRole> roles_;
  const TensorNaming naming_;
  const Importance* const importance_;
  uint64_t weighted_ = 0;  // matrices
  std::vector<ExpertLayout> layouts_;
  EncodingNotes expert_notes_{"experts"}, dense_notes_{"dense matrices"};
  Manifest manifest_;
};

// Collects what is wrong with a checkpoint's tensors, so that one error tells all of it.
class TensorAudit {
 public:
  TensorAudit(const Checkpoint& checkpoint, const TensorNaming& naming)
      : checkpoint_(checkpoint), naming_(naming) {}

  void Expect(const std::string& name, const std::vector<uint64_t>& shape) {
    if (!expected_.insert(name).second) return;
    const SourceTensor* tensor = checkpoint_.Find(name);
    if (tensor == nullptr) {
      missing_.push_back(name);
      return;
    }
    if (Squeezed(tensor->shape) != Squeezed(shape)) {
      misshapen_.push_back(fmt::format("{}: tensor '{}' has shape {}, expected [{}]",
                                       checkpoint_.FileOf(*tensor), name, tensor->ShapeText(),
                                       fmt::join(shape, ", ")));
    }
  }

  Status Finish() {
    for (const SourceTensor& tensor : checkpoint_.tensors()) {
      if (!expected_.contains(tensor.name) && !naming_.Ignores(tensor.name)) {
        unknown_.push_back(tensor.name);
      }
    }
    std::string message = List("missing tensors", missing_) + List("unknown tensors", unknown_) +
                          List("tensors of the wrong shape", misshapen_);
    if (message.empty()) return OkStatus();
    return InvalidArgument(checkpoint_.identity().description +
                           ": the tensors do not fit the model's config" + message);
  }

 private:
  // Dimensions of 1 say nothing, and llama.cpp's converter leaves them out.
  static std::vector<uint64_t> Squeezed(std::vector<uint64_t> shape) {
    std::erase(shape, 1u);
    return shape;
  }
  static std::string List(const char* title, const std::vector<std::string>& names) {
    if (names.empty()) return "";
    const size_t shown = std::min<size_t>(names.size(), 10);
    std::string text = fmt::format("\n  {} ({}):", title, names.size());
    for (size_t i = 0; i < shown; ++i) text += "\n    " + names[i];
    if (shown < names.size()) text += "\n    ...";
    return text;
  }

  const Checkpoint& checkpoint_;
  const TensorNaming& naming_;
  std::set<std::string> expected_;
  std::vector<std::string> missing_, unknown_, misshapen_;
};

Status CheckTensors(const Checkpoint& checkpoint, const ModelConfig& config,
                    const TensorNaming& naming) {
  TensorAudit audit(checkpoint, naming);
  for (const DenseRole& role : DenseRoles(config, naming)) {
    audit.Expect(role.source, role.source_shape);
  }
  const std::vector<uint32_t> experts = config.experts_per_layer();
  for (uint32_t i = 0; i < experts.size(); ++i) {
    for (uint32_t e = 0; e < experts[i]; ++e) {
      const ExpertSources sources = naming.SourcesOf(config, {LayerId(i), ExpertId(e)});
      for (const ExpertSource* source :
           {&sources.gate, &sources.up, &sources.down, &sources.gate_bias, &sources.up_bias,
            &sources.down_bias}) {
        if (!source->tensor.empty()) audit.Expect(source->tensor, source->shape);
      }
      if (sources.gate.stacked) break;
    }
  }
  return audit.Finish();
}

// What a store keeps of a model beside its weights, in the dialect of published checkpoints.
struct ModelFiles {
  bool gguf = false;
  std::string config_json;
  std::map<std::string, std::string> files;  // Manifest::files
};

Result<ModelFiles> FilesOfGguf(const Checkpoint& checkpoint, const std::string& metadata) {
  const std::string& where = checkpoint.identity().description;
  ModelFiles model;
  model.gguf = true;
  const auto has_tensor = [&](const std::string& name) { return checkpoint.Find(name) != nullptr; };
  ASSIGN_OR_RETURN(model.config_json, ConfigFromGguf(metadata, has_tensor, where));
  Result<TokenizerFiles> tokenizer = TokenizerFromGguf(metadata, where);
  if (tokenizer.status().code() == StatusCode::kNotFound) return model;  // weights only
  RETURN_IF_ERROR(tokenizer.status());
  model.files = {{"tokenizer.json", std::move(tokenizer->tokenizer_json)},
                 {"tokenizer_config.json", std::move(tokenizer->tokenizer_config_json)},
                 {"generation_config.json", std::move(tokenizer->generation_config_json)}};
  return model;
}

Result<ModelFiles> ReadModelFiles(const Checkpoint& checkpoint) {
  if (const auto metadata = checkpoint.ReadFile(kGgufMetadataName)) {
    return FilesOfGguf(checkpoint, *metadata);
  }
  ModelFiles model;
  std::optional<std::string> config_json = checkpoint.ReadFile("config.json");
  if (!config_json) return NotFound(checkpoint.identity().description + ": config.json is missing");
  model.config_json = std::move(*config_json);
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
                           "generation_config.json"}) {
    if (auto contents = checkpoint.ReadFile(name)) model.files[name] = std::move(*contents);
  }
  if (!model.files.contains("tokenizer.json")) {  // Kimi
    if (auto contents = checkpoint.ReadFile("tiktoken.model")) {
      model.files["tiktoken.model"] = std::move(*contents);
    }
  }
  return model;
}

}  // namespace

Result<std::unique_ptr<ImportPlan>> MakeImportPlan(const Checkpoint& checkpoint,
                                                   const ImportPlanOptions& options) {
  ASSIGN_OR_RETURN(ModelFiles model, ReadModelFiles(checkpoint));
  ASSIGN_OR_RETURN(const ModelConfig config,
                   ParseModelConfig(model.config_json,
                                    checkpoint.identity().description + "/config.json"));
  const auto has_tensor = [&](const std::string& name) { return checkpoint.Find(name) != nullptr; };
  const TensorNaming naming =
      model.gguf ? TensorNaming::Gguf(config, has_tensor) : TensorNaming(config, has_tensor);
  RETURN_IF_ERROR(CheckTensors(checkpoint, config, naming));
  if (options.importance != nullptr) RETURN_IF_ERROR(options.importance->CheckFits(config));

  Manifest manifest;
  manifest.created_by = "moraine " MORAINE_VERSION;
  manifest.source = checkpoint.identity();
  if (!options.name.empty()) manifest.source.description = options.name;
  manifest.model_config = std::move(model.config_json);
  manifest.files = std::move(model.files);
  auto plan = std::make_unique<DecoderImportPlan>(checkpoint, config, naming, options,
                                                  std::move(manifest));
  RETURN_IF_ERROR(plan->AddNotes(checkpoint));
  return std::unique_ptr<ImportPlan>(std::move(plan));
}

}  // namespace moraine
