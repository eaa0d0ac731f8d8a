#include "engine/import_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "compute/encode.h"
#include "model/config.h"
#include "model/weights.h"

namespace moraine {
namespace {

// Floats held per worker while encoding: 8 MiB, so that memory does not depend on the model.
constexpr uint64_t kStripFloats = 2u << 20;

uint32_t StripRows(uint32_t cols) {
  const uint64_t rows = kStripFloats / std::max(1u, cols) / kTileRows * kTileRows;
  return static_cast<uint32_t>(std::clamp<uint64_t>(rows, kTileRows, 1u << 20));
}

// Encodes rows [first, first + count) of a tensor into the panels of `view`.
Status EncodeTensorRows(const Checkpoint& checkpoint, const SourceTensor& tensor,
                        const MatrixView& view, uint32_t first, uint32_t count) {
  std::vector<float> rows(uint64_t{count} * view.cols);
  RETURN_IF_ERROR(checkpoint.ReadFloats(tensor, uint64_t{first} * view.cols, rows));
  const Status status = EncodeRows(view, first, count, rows.data());
  if (status.ok()) return status;
  return status.WithContext(checkpoint.FileOf(tensor) + ": tensor '" + tensor.name + "'");
}

Status EncodeWhole(const Checkpoint& checkpoint, const std::string& name, const MatrixView& view) {
  const SourceTensor* tensor = checkpoint.Find(name);
  CHECK(tensor != nullptr, name);  // MakeImportPlan looked
  const uint32_t step = StripRows(view.cols);
  for (uint32_t row = 0; row < view.rows; row += step) {
    RETURN_IF_ERROR(
        EncodeTensorRows(checkpoint, *tensor, view, row, std::min(step, view.rows - row)));
  }
  return OkStatus();
}

class DecoderImportPlan final : public ImportPlan {
 public:
  DecoderImportPlan(const ModelConfig& config, const ImportPlanOptions& options,
                    Manifest manifest)
      : roles_(DenseRoles(config)), manifest_(std::move(manifest)) {
    const Encoding dense = options.dense.value_or(
        options.experts == Encoding::kBf16 ? Encoding::kBf16 : Encoding::kQ8);
    for (const LayerConfig& layer : config.layers) {
      LayerManifest entry;
      ExpertLayout layout;
      if (layer.feed_forward == FeedForwardKind::kMoe) {
        layout = {options.experts, options.experts, config.hidden, layer.intermediate};
        entry = {config.expert_count, layout.record_bytes(), EncodingName(options.experts),
                 EncodingName(options.experts), config.hidden, layer.intermediate};
      }
      layouts_.push_back(layout);
      manifest_.layers.push_back(entry);
    }
    for (const DenseRole& role : roles_) {
      DenseTensor tensor{.name = role.name, .encoding = "vector", .rows = role.rows,
                         .cols = role.cols};
      tensor.bytes = uint64_t{role.cols} * sizeof(float);
      if (role.kind != DenseRole::Kind::kVector) {
        const Encoding encoding =
            role.kind == DenseRole::Kind::kExactMatrix ? Encoding::kF32 : dense;
        tensor.encoding = EncodingName(encoding);
        tensor.bytes = MatrixBytes(encoding, role.rows, role.cols);
      }
      manifest_.dense.push_back(std::move(tensor));
    }
    if (options.experts != Encoding::kBf16) {
      manifest_.notes.push_back(fmt::format("experts are {}: lossy", EncodingName(options.experts)));
    }
    if (dense == Encoding::kQ8 || dense == Encoding::kQ4) {
      manifest_.notes.push_back(fmt::format("dense matrices are {}: lossy", EncodingName(dense)));
    }
  }

  const Manifest& manifest() const override { return manifest_; }
  Manifest& mutable_manifest() { return manifest_; }

  Status EncodeExpert(const Checkpoint& checkpoint, ExpertKey key,
                      std::span<std::byte> record) const override {
    const ExpertLayout& layout = layouts_[key.layer.value()];
    const ExpertView view = ViewExpert(layout, record.data());
    const ExpertTensorNames names = NamesOfExpert(key);
    RETURN_IF_ERROR(EncodeWhole(checkpoint, names.gate, view.gate));
    RETURN_IF_ERROR(EncodeWhole(checkpoint, names.up, view.up));
    RETURN_IF_ERROR(EncodeWhole(checkpoint, names.down, view.down));
    std::memset(record.data() + layout.payload_bytes(), 0,
                record.size() - layout.payload_bytes());
    return OkStatus();
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
    const SourceTensor* tensor = checkpoint.Find(role.source);
    CHECK(tensor != nullptr, role.source);
    if (role.kind == DenseRole::Kind::kVector) {
      return checkpoint.ReadFloats(*tensor, 0,
                                   {reinterpret_cast<float*>(bytes.data()), role.cols});
    }
    const uint32_t step = StripRows(role.cols), first = strip * step;
    const uint32_t count = std::min(step, role.rows - first);
    // The strip as a matrix of its own: row 0 of the view is row `first` of the tensor.
    const MatrixView view = MatrixView::Plain(bytes.data(), EncodingOf(index), count, role.cols);
    std::vector<float> rows(uint64_t{count} * role.cols);
    RETURN_IF_ERROR(checkpoint.ReadFloats(*tensor, uint64_t{first} * role.cols, rows));
    const Status status = EncodeRows(view, 0, count, rows.data());
    if (status.ok()) return status;
    return status.WithContext(fmt::format("{}: tensor '{}' from row {}",
                                          checkpoint.FileOf(*tensor), tensor->name, first));
  }

 private:
  Encoding EncodingOf(size_t index) const {
    return *ParseEncoding(manifest_.dense[index].encoding);
  }

  const std::vector<DenseRole> roles_;
  std::vector<ExpertLayout> layouts_;
  Manifest manifest_;
};

// Collects what is wrong with a checkpoint's tensors, so that one error tells all of it.
class TensorAudit {
 public:
  explicit TensorAudit(const Checkpoint& checkpoint) : checkpoint_(checkpoint) {}

  void Expect(const std::string& name, uint32_t rows, uint32_t cols, bool vector) {
    expected_.insert(name);
    const SourceTensor* tensor = checkpoint_.Find(name);
    if (tensor == nullptr) {
      missing_.push_back(name);
      return;
    }
    const std::vector<uint64_t> shape =
        vector ? std::vector<uint64_t>{cols} : std::vector<uint64_t>{rows, cols};
    if (tensor->shape != shape) {
      misshapen_.push_back(fmt::format("{}: tensor '{}' has shape {}, expected [{}]",
                                       checkpoint_.FileOf(*tensor), name, tensor->ShapeText(),
                                       fmt::join(shape, ", ")));
    }
  }

  Status Finish() {
    for (const SourceTensor& tensor : checkpoint_.tensors()) {
      if (!expected_.contains(tensor.name) && !IsIgnoredTensor(tensor.name)) {
        unknown_.push_back(tensor.name);
      }
    }
    std::string message = List("missing tensors", missing_) + List("unknown tensors", unknown_) +
                          List("tensors of the wrong shape", misshapen_);
    if (message.empty()) return OkStatus();
    return InvalidArgument(checkpoint_.identity().description +
                           ": the tensors do not fit config.json" + message);
  }

 private:
  static std::string List(const char* title, const std::vector<std::string>& names) {
    if (names.empty()) return "";
    const size_t shown = std::min<size_t>(names.size(), 10);
    std::string text = fmt::format("\n  {} ({}):", title, names.size());
    for (size_t i = 0; i < shown; ++i) text += "\n    " + names[i];
    if (shown < names.size()) text += "\n    ...";
    return text;
  }

  const Checkpoint& checkpoint_;
  std::set<std::string> expected_;
  std::vector<std::string> missing_, unknown_, misshapen_;
};

Status CheckTensors(const Checkpoint& checkpoint, const ModelConfig& config) {
  TensorAudit audit(checkpoint);
  for (const DenseRole& role : DenseRoles(config)) {
    audit.Expect(role.source, role.rows, role.cols, role.kind == DenseRole::Kind::kVector);
  }
  for (uint32_t i = 0; i < config.layers.size(); ++i) {
    const LayerConfig& layer = config.layers[i];
    if (layer.feed_forward != FeedForwardKind::kMoe) continue;
    for (uint32_t e = 0; e < config.expert_count; ++e) {
      const ExpertTensorNames names = NamesOfExpert({LayerId(i), ExpertId(e)});
      audit.Expect(names.gate, layer.intermediate, config.hidden, false);
      audit.Expect(names.up, layer.intermediate, config.hidden, false);
      audit.Expect(names.down, config.hidden, layer.intermediate, false);
    }
  }
  return audit.Finish();
}

void NoteSourceTypes(const Checkpoint& checkpoint, const ImportPlanOptions& options,
                     Manifest* manifest) {
  if (options.experts != Encoding::kBf16) return;
  for (const SourceTensor& tensor : checkpoint.tensors()) {
    // Vectors and routers stay float32.
    const bool rounded = tensor.shape.size() == 2 && !tensor.name.ends_with(".mlp.gate.weight");
    if (tensor.type == SourceType::kBf16 || !rounded) continue;
    manifest->notes.push_back(fmt::format("checkpoint holds {} weights, rounded to bf16: lossy",
                                          SourceTypeName(tensor.type)));
    return;
  }
}

}  // namespace

Result<std::unique_ptr<ImportPlan>> MakeImportPlan(const Checkpoint& checkpoint,
                                                   const ImportPlanOptions& options) {
  const std::string& where = checkpoint.identity().description;
  const std::optional<std::string> config_json = checkpoint.ReadFile("config.json");
  if (!config_json) return NotFound(where + ": config.json is missing");
  ASSIGN_OR_RETURN(const ModelConfig config,
                   ParseModelConfig(*config_json, where + "/config.json"));
  RETURN_IF_ERROR(CheckTensors(checkpoint, config));

  Manifest manifest;
  manifest.created_by = "moraine " MORAINE_VERSION;
  manifest.source = checkpoint.identity();
  manifest.model_config = *config_json;
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
                           "generation_config.json"}) {
    if (auto contents = checkpoint.ReadFile(name)) manifest.files[name] = std::move(*contents);
  }
  NoteSourceTypes(checkpoint, options, &manifest);
  return std::unique_ptr<ImportPlan>(
      std::make_unique<DecoderImportPlan>(config, options, std::move(manifest)));
}

}  // namespace moraine
