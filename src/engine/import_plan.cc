#include "engine/import_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <set>
#include <tuple>

#include "compute/aligned_array.h"
#include "compute/block_repack.h"
#include "compute/encode.h"
#include "engine/role_rows.h"
#include "model/config.h"
#include "model/gguf_config.h"
#include "model/tokenizer/gguf_tokenizer.h"
#include "model/weights.h"
#include "store/gguf.h"

namespace moraine {
namespace {

// Floats held per worker while encoding: 8 MiB, so that memory does not depend on the model.
constexpr uint64_t kStripFloats = 2u << 20;

uint32_t StripRows(uint32_t cols) {
  const uint64_t rows = kStripFloats / std::max(1u, cols) / kTileRows * kTileRows;
  return static_cast<uint32_t>(std::clamp<uint64_t>(rows, kTileRows, 1u << 20));
}

std::optional<BlockFormat> FormatOf(SourceType type) {
  switch (type) {
    case SourceType::kQ4_0: return BlockFormat::kQ4_0;
    case SourceType::kQ5_0: return BlockFormat::kQ5_0;
    case SourceType::kQ8_0: return BlockFormat::kQ8_0;
    case SourceType::kIq4Nl: return BlockFormat::kIq4Nl;
    case SourceType::kInt4: return BlockFormat::kInt4;
    case SourceType::kMxfp4: return BlockFormat::kMxfp4;
    default: return std::nullopt;
  }
}

// Whether an encoding holds what a checkpoint has of a type, to the bit.
bool IsExact(SourceType type, Encoding encoding) {
  if (encoding == Encoding::kF32) return true;
  if (encoding == Encoding::kBf16) return type == SourceType::kBf16;
  const std::optional<BlockFormat> format = FormatOf(type);
  return format && HoldsBlocks(encoding, *format);
}

// The encoding for a type when the user asks for none: what carries it exactly, q8 for what is
// quantised in a way that nothing carries (K-quants, FP8), bf16 for floats.
Encoding NaturalEncoding(SourceType type) {
  if (const std::optional<BlockFormat> format = FormatOf(type)) return EncodingFor(*format);
  return IsQuantised(type) ? Encoding::kQ8 : Encoding::kBf16;
}

// One encoding for matrices that would have two: the finer. Different ones of 4 bits meet in q8.
Encoding Join(Encoding a, Encoding b) {
  if (a == b) return a;
  return std::min({a, b, Encoding::kQ8});
}

// A matrix of a checkpoint: rows first_row, first_row + row_step, .. of a tensor, or such columns of
// a part of it that has tensor_rows of them.
struct SourceMatrix {
  const SourceTensor* tensor;
  uint64_t first_row = 0;
  uint32_t row_step = 1;
  bool transposed = false;
  uint64_t first_element = 0;  // of the part; transposed only
  uint32_t tensor_rows = 0;    // transposed only
};

SourceMatrix MatrixOf(const SourceTensor& tensor, const ExpertSource& source, ExpertId expert) {
  const uint64_t before = source.stacked ? expert.value() : 0;
  SourceMatrix matrix{.tensor = &tensor, .row_step = source.row_step,
                      .transposed = source.transposed, .tensor_rows = source.tensor_rows};
  matrix.first_row = source.first_row;
  if (source.transposed) {
    matrix.first_element = before * source.shape[source.shape.size() - 2] * source.tensor_rows;
  } else {
    matrix.first_row += before * source.tensor_rows;
  }
  return matrix;
}

// Rows [first, first + count) of a matrix of `cols` columns that is not simply stored in this order.
Status ReadScattered(const Checkpoint& checkpoint, const SourceMatrix& matrix, uint32_t first,
                     uint32_t count, uint32_t cols, std::vector<float>* rows) {
  rows->resize(uint64_t{count} * cols);
  const uint32_t step = matrix.row_step;
  if (!matrix.transposed) {
    std::vector<float> all((uint64_t{count - 1} * step + 1) * cols);
    RETURN_IF_ERROR(checkpoint.ReadFloats(
        *matrix.tensor, (matrix.first_row + uint64_t{first} * step) * cols, all));
    for (uint64_t r = 0; r < count; ++r) {
      std::copy_n(&all[r * step * cols], cols, rows->begin() + static_cast<ptrdiff_t>(r * cols));
    }
    return OkStatus();
  }
  const uint32_t lines = std::max(1u, static_cast<uint32_t>(kStripFloats / matrix.tensor_rows));
  std::vector<float> part;
  for (uint32_t c = 0; c < cols; c += lines) {
    const uint32_t line_count = std::min(lines, cols - c);
    part.resize(uint64_t{line_count} * matrix.tensor_rows);
    RETURN_IF_ERROR(checkpoint.ReadFloats(
        *matrix.tensor, matrix.first_element + uint64_t{c} * matrix.tensor_rows, part));
    for (uint64_t r = 0; r < count; ++r) {
      const uint64_t from = matrix.first_row + (first + r) * step;
      for (uint64_t i = 0; i < line_count; ++i) {
        (*rows)[r * cols + c + i] = part[i * matrix.tensor_rows + from];
      }
    }
  }
  return OkStatus();
}

Status ReadRows(const Checkpoint& checkpoint, const SourceMatrix& matrix, uint32_t first,
                uint32_t count, uint32_t cols, std::vector<float>* rows) {
  if (matrix.transposed || matrix.row_step != 1) {
    return ReadScattered(checkpoint, matrix, first, count, cols, rows);
  }
  rows->resize(uint64_t{count} * cols);
  return checkpoint.ReadFloats(*matrix.tensor, (matrix.first_row + first) * cols, *rows);
}

// The same rows as blocks; not of a transposed matrix.
Status ReadBlockRows(const Checkpoint& checkpoint, const SourceMatrix& matrix, uint32_t first,
                     uint32_t count, uint32_t cols, std::vector<std::byte>* blocks) {
  const SourceTensor& tensor = *matrix.tensor;
  const uint64_t row_bytes = SourceBytes(tensor.type, cols), step = matrix.row_step;
  blocks->resize((uint64_t{count - 1} * step + 1) * row_bytes);
  RETURN_IF_ERROR(checkpoint.ReadBlocks(tensor, (matrix.first_row + first * step) * cols, *blocks));
  for (uint64_t r = 1; step > 1 && r < count; ++r) {
    std::memcpy(&(*blocks)[r * row_bytes], &(*blocks)[r * step * row_bytes], row_bytes);
  }
  blocks->resize(count * row_bytes);
  return OkStatus();
}

// Encodes rows [first, first + count) of a matrix into rows of `view` from view_row on.
Status EncodeMatrixRows(const Checkpoint& checkpoint, const SourceMatrix& matrix, uint32_t first,
                        uint32_t count, const MatrixView& view, uint32_t view_row) {
  const SourceTensor& tensor = *matrix.tensor;
  const std::optional<BlockFormat> format = FormatOf(tensor.type);
  Status status;
  if (format && !matrix.transposed && HoldsBlocks(view.encoding, *format)) {
    std::vector<std::byte> blocks;
    RETURN_IF_ERROR(ReadBlockRows(checkpoint, matrix, first, count, view.cols, &blocks));
    status = RepackRows(view, view_row, count, *format, blocks.data());
  } else {
    std::vector<float> rows;
    RETURN_IF_ERROR(ReadRows(checkpoint, matrix, first, count, view.cols, &rows));
    status = EncodeRows(view, view_row, count, rows.data());
  }
  if (status.ok()) return status;
  const uint64_t from = matrix.first_row + first - view_row;
  return status.WithContext(
      fmt::format("{}: tensor '{}'{}", checkpoint.FileOf(tensor), tensor.name,
                  from == 0 ? "" : fmt::format(", counted from its row {}", from)));
}

Status EncodeWhole(const Checkpoint& checkpoint, const SourceMatrix& matrix,
                   const MatrixView& view) {
  // A transposed matrix is read as a whole for each strip.
  const uint32_t step = matrix.transposed ? view.rows : StripRows(view.cols);
  for (uint32_t row = 0; row < view.rows; row += step) {
    RETURN_IF_ERROR(EncodeMatrixRows(checkpoint, matrix, row, std::min(step, view.rows - row), view,
                                     row));
  }
  return OkStatus();
}

const SourceTensor& MustFind(const Checkpoint& checkpoint, const std::string& name) {
  const SourceTensor* tensor = checkpoint.Find(name);
  CHECK(tensor != nullptr, name);  // MakeImportPlan looked
  return *tensor;
}

// What was chosen for matrices of a type, for the notes; and how much was lost, measured on a
// sample: a note must be known before the import begins, and be the same in every import of a source.
class EncodingNotes {
 public:
  explicit EncodingNotes(const char* what) : what_(what) {}

  // role: what the matrix is for, "gate and up".
  void Add(const std::string& role, const SourceMatrix& matrix, Encoding encoding, uint32_t rows,
           uint32_t cols) {
    const SourceTensor& tensor = *matrix.tensor;
    Choice& choice = chosen_[{std::string(tensor.packing), tensor.type, encoding}];
    std::vector<Sample>& samples = choice.samples_of_role[role];
    if (!IsExact(tensor.type, encoding) && samples.size() < kSampledMatrices) {
      samples.push_back({matrix, rows, cols});
    }
  }

  // "experts are q4, exactly the checkpoint's Q4_0"; nothing of what is plainly exact.
  Status AppendTo(const Checkpoint& checkpoint, std::vector<std::string>* notes) const {
    for (const auto& [key, choice] : chosen_) {
      const auto& [packing, type, encoding] = key;
      const char* name = EncodingName(encoding);
      const std::string source = packing.empty() ? SourceTypeName(type) : packing;
      if (IsExact(type, encoding)) {
        if (!IsQuantised(type)) continue;
        notes->push_back(
            fmt::format("{} are {}, exactly the checkpoint's {}", what_, name, source));
        continue;
      }
      std::string losses;
      for (const auto& [role, samples] : choice.samples_of_role) {
        const Result<double> loss = MeasureLoss(checkpoint, samples, encoding);
        // A synthetic model has nothing that could be lost.
        if (loss.status().code() == StatusCode::kUnsupported) continue;
        RETURN_IF_ERROR(loss.status());
        losses += fmt::format("{}{} {:.2g} %", losses.empty() ? "" : ", ", role, 100 * *loss);
      }
      if (!losses.empty()) losses.insert(0, "; relative RMS error of a sample: ");
      notes->push_back(fmt::format("{} are {}, made from {}: lossy{}", what_, name, source, losses));
    }
    return OkStatus();
  }

 private:
  struct Sample {
    SourceMatrix matrix;
    uint32_t rows, cols;
  };
  struct Choice {
    std::map<std::string, std::vector<Sample>> samples_of_role;
  };

  // Matrices of a role that are looked at, one panel of rows of each: enough for two digits, and
  // less than the import does in a second.
  static constexpr size_t kSampledMatrices = 8;

  static Result<double> MeasureLoss(const Checkpoint& checkpoint,
                                    const std::vector<Sample>& samples, Encoding encoding) {
    double error = 0, power = 0;
    for (const auto& [matrix, rows, cols] : samples) {
      const uint32_t count = std::min(kTileRows, rows);
      const uint32_t first = (rows - count) / 2 / kTileRows * kTileRows;
      std::vector<float> values, decoded(cols);
      RETURN_IF_ERROR(ReadRows(checkpoint, matrix, first, count, cols, &values));
      const AlignedArray<std::byte> tiles(MatrixBytes(encoding, count, cols));
      const MatrixView view = MatrixView::Plain(tiles.data(), encoding, count, cols);
      // What cannot be encoded is the import's to refuse, with its place.
      if (!EncodeRows(view, 0, count, values.data()).ok()) continue;
      for (uint32_t r = 0; r < count; ++r) {
        DecodeRow(view, r, decoded.data());
        for (uint32_t c = 0; c < cols; ++c) {
          const double value = values[size_t{r} * cols + c], difference = decoded[c] - value;
          error += difference * difference;
          power += value * value;
        }
      }
    }
    return power > 0 ? std::sqrt(error / power) : 0.0;
  }

  const char* what_;
  std::map<std::tuple<std::string, SourceType, Encoding>, Choice> chosen_;
};

// Encodes rows from `first` on of a role that is not simply its tensor.
Status EncodeRoleRows(const Checkpoint& checkpoint, const SourceTensor& tensor,
                      const DenseRole& role, uint32_t first, const MatrixView& view) {
  const std::optional<BlockFormat> format = FormatOf(tensor.type);
  Status status;
  if (format && HasBlocksInOrder(role) && HoldsBlocks(view.encoding, *format)) {
    std::vector<std::byte> blocks(SourceBytes(tensor.type, uint64_t{view.rows} * view.cols));
    RETURN_IF_ERROR(ReadRoleBlocks(checkpoint, tensor, role, first, view.rows, blocks));
    status = RepackRows(view, 0, view.rows, *format, blocks.data());
  } else {
    std::vector<float> rows(uint64_t{view.rows} * view.cols);
    RETURN_IF_ERROR(ReadRoleRows(checkpoint, tensor, role, first, view.rows, rows));
    status = EncodeRows(view, 0, view.rows, rows.data());
  }
  if (status.ok()) return status;
  return status.WithContext(fmt::format("{}: '{}' of tensor '{}', counted from its row {}",
                                        checkpoint.FileOf(tensor), role.name, tensor.name, first));
}

class DecoderImportPlan final : public ImportPlan {
 public:
  DecoderImportPlan(const Checkpoint& checkpoint, ModelConfig config, const TensorNaming& naming,
                    const ImportPlanOptions& options, Manifest manifest)
      : config_(std::move(config)),
        roles_(DenseRoles(config_, naming)),
        naming_(naming),
        manifest_(std::move(manifest)) {
    for (uint32_t i = 0; i < config_.layers.size(); ++i) AddLayer(checkpoint, LayerId(i), options);
    for (const DenseRole& role : roles_) AddDense(checkpoint, role, options);
  }

  // Once: what is exact and what is lost, into the manifest.
  Status AddNotes(const Checkpoint& checkpoint) {
    RETURN_IF_ERROR(expert_notes_.AppendTo(checkpoint, &manifest_.notes));
    return dense_notes_.AppendTo(checkpoint, &manifest_.notes);
  }

  const Manifest& manifest() const override { return manifest_; }
  Status EncodeExpert(const Checkpoint& checkpoint, ExpertKey key,
                      std::span<std::byte> record) const override {
    const ExpertLayout& layout = layouts_[key.layer.value()];
    const ExpertView view = ViewExpert(layout, record.data());
    const ExpertSources sources = naming_.SourcesOf(config_, key);
    const auto encode = [&](const ExpertSource& source, const MatrixView& matrix) {
      const SourceTensor& tensor = MustFind(checkpoint, source.tensor);
      return EncodeWhole(checkpoint, MatrixOf(tensor, source, key.expert), matrix);
    };
    RETURN_IF_ERROR(encode(sources.gate, view.gate));
    RETURN_IF_ERROR(encode(sources.up, view.up));
    RETURN_IF_ERROR(encode(sources.down, view.down));
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
      RETURN_IF_ERROR(checkpoint.ReadFloats(tensor, 0, values));
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
    for (size_t e = 0; e < all.size(); ++e) {
      const auto matrix_of = [&](const ExpertSource& source) {
        return MatrixOf(MustFind(checkpoint, source.tensor), source,
                        ExpertId(static_cast<uint32_t>(e)));
      };
      for (const ExpertSource* source : {&all[e].gate, &all[e].up}) {
        expert_notes_.Add("gate and up", matrix_of(*source), layout.gate_up, layout.intermediate,
                          layout.hidden);
      }
      expert_notes_.Add("down", matrix_of(all[e].down), layout.down, layout.hidden,
                        layout.intermediate);
    }
    layouts_.push_back(layout);
    manifest_.layers.push_back({config_.expert_count, layout.record_bytes(),
                                EncodingName(layout.gate_up), EncodingName(layout.down),
                                config_.hidden, layer.intermediate});
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
      // A transposed matrix has no blocks to carry, and to quantise twice would cost more.
      if (role.transposed && IsQuantised(source.type)) wanted = Encoding::kBf16;
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

  Manifest manifest;
  manifest.created_by = "moraine " MORAINE_VERSION;
  manifest.source = checkpoint.identity();
  manifest.model_config = std::move(model.config_json);
  manifest.files = std::move(model.files);
  auto plan = std::make_unique<DecoderImportPlan>(checkpoint, config, naming, options,
                                                  std::move(manifest));
  RETURN_IF_ERROR(plan->AddNotes(checkpoint));
  return std::unique_ptr<ImportPlan>(std::move(plan));
}

}  // namespace moraine
