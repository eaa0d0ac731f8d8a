#include "store/packed_checkpoint.h"

#include <simdjson.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "store/packed_weight.h"

namespace moraine {
namespace {

// What config.json says of the packing, as far as names and shapes do not.
struct PackingConfig {
  std::string method;                              // quant_method: "fp8", "gptq", "awq", ...
  uint32_t block_rows = 128, block_cols = 128;     // FP8
  int64_t bits = 4, group_size = 128;              // GPTQ and AWQ; -1: a group is all columns
  bool symmetric = false, act_order = false;
  std::string format;  // checkpoint_format of GPTQ, version of AWQ
};

namespace dom = simdjson::dom;

void ReadBlockSize(const dom::element& value, PackingConfig* config) {
  dom::array sizes;
  uint64_t rows = 0, cols = 0;
  if (value.get(sizes) != simdjson::SUCCESS || sizes.size() != 2) return;
  if (sizes.at(0).get(rows) != simdjson::SUCCESS || sizes.at(1).get(cols) != simdjson::SUCCESS) {
    return;
  }
  if (rows == 0 || cols == 0 || rows > UINT32_MAX || cols > UINT32_MAX) return;
  config->block_rows = static_cast<uint32_t>(rows);
  config->block_cols = static_cast<uint32_t>(cols);
}

PackingConfig ReadConfig(const Checkpoint& raw) {
  PackingConfig config;
  dom::parser parser;
  dom::element root, quantisation;
  const auto text = raw.ReadFile("config.json");
  if (!text || parser.parse(*text).get(root) != simdjson::SUCCESS) return config;
  // Models of text and images keep it with the text model.
  if (root["quantization_config"].get(quantisation) != simdjson::SUCCESS &&
      root["text_config"]["quantization_config"].get(quantisation) != simdjson::SUCCESS) {
    return config;
  }
  const auto string = [&](const char* key) {
    std::string_view value;
    if (quantisation[key].get(value) != simdjson::SUCCESS) value = "";
    return std::string(value);
  };
  config.method = string("quant_method");
  config.format = config.method == "awq" ? string("version") : string("checkpoint_format");
  dom::element blocks;
  if (quantisation["weight_block_size"].get(blocks) == simdjson::SUCCESS ||
      quantisation["config_groups"]["group_0"]["weights"]["block_structure"].get(blocks) ==
          simdjson::SUCCESS) {
    ReadBlockSize(blocks, &config);
  }
  int64_t number = 0;
  bool flag = false;
  if (quantisation["bits"].get(number) == simdjson::SUCCESS) config.bits = number;
  if (quantisation["group_size"].get(number) == simdjson::SUCCESS) config.group_size = number;
  if (quantisation["sym"].get(flag) == simdjson::SUCCESS) config.symmetric = flag;
  if (quantisation["desc_act"].get(flag) == simdjson::SUCCESS) config.act_order = flag;
  return config;
}

std::string Shape(const std::vector<uint64_t>& shape) {
  SourceTensor tensor;
  tensor.shape = shape;
  return tensor.ShapeText();
}

// Finds packed weights among the tensors and what is wrong with them.
class Recogniser {
 public:
  Recogniser(const Checkpoint& raw, PackingConfig config) : raw_(raw), config_(std::move(config)) {}

  Status Run() {
    for (const SourceTensor& tensor : raw_.tensors()) Recognise(tensor);
    for (const SourceTensor& tensor : raw_.tensors()) {
      if (parts_.contains(tensor.name) || IsCalibration(tensor.name)) continue;
      const bool number = InfoOf(tensor.type).decode != nullptr;
      if (number && tensor.type != SourceType::kF8E8M0 && !IsScaleName(tensor.name)) {
        plain_.push_back(&tensor);
      } else {
        problems_.push_back("'" + tensor.name + "' (" + SourceTypeName(tensor.type) + " " +
                            tensor.ShapeText() + ") belongs to no weight");
      }
    }
    if (unsupported_) return Unsupported(Message());
    return problems_.empty() ? OkStatus() : Corruption(Message());
  }

  std::vector<PackedWeight> packed() { return std::move(packed_); }
  const std::vector<const SourceTensor*>& plain() const { return plain_; }

 private:
  static std::string_view NameOf(PackingKind kind) {
    switch (kind) {
      case PackingKind::kGptq: return "GPTQ";
      case PackingKind::kAwq: return "AWQ";
      default: return "";  // as its type is called
    }
  }
  // Scales of activations and of keys and values, for kernels that quantise those.
  static bool IsCalibration(const std::string& name) {
    return name.ends_with(".input_scale") || name.ends_with(".k_scale") ||
           name.ends_with(".v_scale");
  }
  static bool IsScaleName(const std::string& name) {
    return name.ends_with("_scale_inv") || name.ends_with(".weight_scale") ||
           name.ends_with(".qzeros");
  }

  std::string Message() const {
    const size_t shown = std::min<size_t>(problems_.size(), 10);
    std::string text = raw_.identity().description + ": tensors do not make whole weights (" +
                       std::to_string(problems_.size()) + "):";
    for (size_t i = 0; i < shown; ++i) text += "\n  " + problems_[i];
    return shown < problems_.size() ? text + "\n  ..." : text;
  }

  // A part of the weight that is being looked at; null, noted, if it is missing.
  const SourceTensor* Part(const std::string& name, bool needed = true) {
    const SourceTensor* part = raw_.Find(name);
    if (part != nullptr) {
      parts_.insert(name);
    } else if (needed) {
      problems_.push_back("'" + name + "' is missing");
    }
    return part;
  }
  bool Expect(const SourceTensor& part, bool type_fits, const char* types,
              const std::vector<uint64_t>& shape) {
    if (type_fits && part.shape == shape) return true;
    problems_.push_back("'" + part.name + "' is " + SourceTypeName(part.type) + " " +
                        part.ShapeText() + ", expected " + types + " " + Shape(shape));
    return false;
  }
  bool Refuse(const SourceTensor& part, const std::string& what) {
    problems_.push_back("'" + part.name + "' " + what);
    return false;
  }
  bool RefuseKind(const SourceTensor& part, const std::string& what) {
    unsupported_ = true;
    return Refuse(part, what);
  }

  void Recognise(const SourceTensor& tensor) {
    PackedWeight weight;
    weight.codes = &tensor;
    bool whole = false;
    const auto ends = [&](std::string_view suffix) {
      if (!tensor.name.ends_with(suffix)) return false;
      weight.tensor.name = tensor.name.substr(0, tensor.name.size() - suffix.size());
      return true;
    };
    if (tensor.type == SourceType::kF8E4M3) {
      weight.tensor.name = tensor.name;
      whole = RecogniseFp8(&weight);
    } else if (ends("_packed")) {
      whole = RecogniseInt4(&weight);
    } else if (tensor.type == SourceType::kU8 && ends("_blocks")) {
      whole = RecogniseMxfp4(&weight);
    } else if (ends(".qweight")) {
      weight.tensor.name += ".weight";
      whole = RecogniseGrouped(&weight);
    } else {
      return;
    }
    parts_.insert(tensor.name);
    if (whole && weight.tensor.element_count() == 0) whole = Refuse(tensor, "is empty");
    if (!whole) return;
    weight.tensor.file_index = tensor.file_index;
    weight.tensor.offset = tensor.offset;
    weight.tensor.packing = NameOf(weight.kind);
    weight.tensor.bytes = SourceBytes(weight.tensor.type, weight.tensor.element_count());
    packed_.push_back(std::move(weight));
  }

  bool RecogniseFp8(PackedWeight* weight) {
    const SourceTensor& codes = *weight->codes;
    weight->kind = PackingKind::kFp8;
    weight->tensor.type = SourceType::kFp8;
    weight->tensor.shape = codes.shape;
    weight->scales = Part(codes.name + "_scale", false);  // compressed-tensors' name
    if (weight->scales == nullptr) weight->scales = Part(codes.name + "_scale_inv");
    if (weight->scales == nullptr) return false;
    const SourceTensor& scales = *weight->scales;
    const SourceTypeInfo& type = InfoOf(scales.type);
    const bool number = type.decode != nullptr && !type.quantised;
    if (number && scales.element_count() == 1) return true;
    if (codes.shape.size() < 2) return Refuse(codes, "is FP8 " + codes.ShapeText());
    const size_t last = codes.shape.size() - 1;
    const uint64_t rows = codes.shape[last - 1], cols = codes.shape[last];
    std::vector<uint64_t> by_row = codes.shape, by_block = codes.shape;
    by_row[last] = 1;
    if (number && scales.shape == by_row) {
      weight->block_cols = static_cast<uint32_t>(cols);
      return cols <= UINT32_MAX;
    }
    weight->block_rows = config_.block_rows;
    weight->block_cols = config_.block_cols;
    by_block[last - 1] = (rows + weight->block_rows - 1) / weight->block_rows;
    by_block[last] = (cols + weight->block_cols - 1) / weight->block_cols;
    return Expect(scales, number, "numbers", by_block);
  }

  bool RecogniseInt4(PackedWeight* weight) {
    const SourceTensor& codes = *weight->codes;
    const std::string& name = weight->tensor.name;
    weight->kind = PackingKind::kInt4;
    weight->scales = Part(name + "_scale");
    const SourceTensor* shape = Part(name + "_shape", false);
    for (const char* suffix : {"_zero_point", "_g_idx"}) {
      if (const SourceTensor* part = Part(name + suffix, false)) {
        return RefuseKind(*part, "asks for zero points or a group index: symmetric INT4 in order "
                                 "is read");
      }
    }
    if (weight->scales == nullptr) return false;
    const SourceTensor& scales = *weight->scales;
    if (codes.type != SourceType::kI32 || codes.shape.size() != 2) {
      return Refuse(codes, std::string("is ") + SourceTypeName(codes.type) + " " +
                               codes.ShapeText() + ", expected I32 [rows, columns / 8]");
    }
    const uint64_t rows = codes.shape[0], cols = codes.shape[1] * 8;
    weight->tensor.shape = {rows, cols};
    if (shape != nullptr && !CheckShape(*shape, {rows, cols})) return false;
    const uint64_t groups = scales.shape.size() == 2 ? scales.shape[1] : 0;
    if (groups == 0 || cols % groups != 0 || cols / groups % 32 != 0 || cols > UINT32_MAX) {
      return Refuse(scales, "is " + scales.ShapeText() + ", expected [" + std::to_string(rows) +
                                ", groups] with groups of a multiple of 32 of the " +
                                std::to_string(cols) + " columns");
    }
    weight->block_cols = static_cast<uint32_t>(cols / groups);
    weight->tensor.type =
        scales.type == SourceType::kF16 ? SourceType::kQ4_0 : SourceType::kInt4;
    return Expect(scales, scales.type == SourceType::kF16 || scales.type == SourceType::kBf16,
                  "BF16 or F16", {rows, groups});
  }

  // weight_shape says what the packed words hold; other numbers mean another packing.
  bool CheckShape(const SourceTensor& part, const std::vector<uint64_t>& expected) {
    const uint32_t bytes = BlockOf(part.type).bytes;
    if (!Expect(part, part.type == SourceType::kI64 || part.type == SourceType::kI32,
                "I64 or I32", {expected.size()})) {
      return false;
    }
    std::vector<std::byte> contents(expected.size() * bytes);
    const Status status = raw_.ReadBlocks(part, 0, contents);
    if (!status.ok()) return Refuse(part, status.message());
    std::vector<uint64_t> found(expected.size());
    for (size_t i = 0; i < found.size(); ++i) {
      std::memcpy(&found[i], contents.data() + i * bytes, bytes);
    }
    if (found == expected) return true;
    return RefuseKind(part, "says " + Shape(found) + ", but four bits a weight make " +
                                Shape(expected) + " of the packed words");
  }

  bool RecogniseMxfp4(PackedWeight* weight) {
    const SourceTensor& codes = *weight->codes;
    weight->kind = PackingKind::kMxfp4;
    weight->tensor.type = SourceType::kMxfp4;
    weight->block_cols = 32;
    weight->scales = Part(weight->tensor.name + "_scales");
    if (weight->scales == nullptr) return false;
    // gpt-oss has [.., inputs, outputs] under the plain name where weights are floats, and square
    // matrices, whose shape would not tell.
    weight->tensor.name = codes.name;
    if (codes.shape.size() < 3 || codes.shape.back() != 16) {
      return Refuse(codes, "is " + codes.ShapeText() + ", expected [.., rows, columns / 32, 16]");
    }
    std::vector<uint64_t> shape(codes.shape.begin(), codes.shape.end() - 1);
    const SourceType type = weight->scales->type;
    if (!Expect(*weight->scales, type == SourceType::kU8 || type == SourceType::kF8E8M0,
                "U8 or F8_E8M0", shape)) {
      return false;
    }
    shape.back() *= 32;
    weight->tensor.shape = std::move(shape);
    return true;
  }

  bool RecogniseGrouped(PackedWeight* weight) {
    const SourceTensor& codes = *weight->codes;
    const std::string base = codes.name.substr(0, codes.name.size() - std::strlen("qweight"));
    const bool awq = config_.method == "awq";
    weight->kind = awq ? PackingKind::kAwq : PackingKind::kGptq;
    weight->zeros = Part(base + "qzeros");
    weight->scales = Part(base + "scales");
    weight->group_index = Part(base + "g_idx", false);
    if (weight->zeros == nullptr || weight->scales == nullptr) return false;
    if (!awq && config_.method != "gptq") {
      return RefuseKind(codes, "is of quant_method '" + config_.method +
                                   "' in config.json, expected 'gptq' or 'awq'");
    }
    const std::string& format = config_.format;
    const bool known = awq ? format == "gemm" || format.empty()
                           : format == "gptq" || format == "gptq_v2" || format.empty();
    if (config_.bits != 4 || !known) {
      return RefuseKind(codes, "has " + std::to_string(config_.bits) + " bits in format '" +
                                   format + "', expected 4 in " +
                                   (awq ? "'gemm'" : "'gptq' or 'gptq_v2'"));
    }
    weight->zero_bias = !awq && format != "gptq_v2" ? 1 : 0;
    if (codes.type != SourceType::kI32 || codes.shape.size() != 2) {
      return Refuse(codes, std::string("is ") + SourceTypeName(codes.type) + " " +
                               codes.ShapeText() + ", expected a matrix of I32");
    }
    const uint64_t cols = awq ? codes.shape[0] : codes.shape[0] * 8;
    const uint64_t rows = awq ? codes.shape[1] * 8 : codes.shape[1];
    return FitGroups(rows, cols, weight);
  }

  bool FitGroups(uint64_t rows, uint64_t cols, PackedWeight* weight) {
    const uint64_t group =
        config_.group_size == -1 ? cols : static_cast<uint64_t>(config_.group_size);
    if (group == 0 || group % 32 != 0 || cols % group != 0 || cols > UINT32_MAX) {
      return RefuseKind(*weight->codes, "has " + std::to_string(cols) + " columns in groups of " +
                                            std::to_string(config_.group_size) +
                                            ", expected whole groups of a multiple of 32");
    }
    weight->block_cols = static_cast<uint32_t>(group);
    weight->tensor.shape = {rows, cols};
    // Another order matters only if there is more than one group.
    const bool ordered = weight->group_index == nullptr || !config_.act_order || group == cols;
    const bool q4_0 = weight->kind == PackingKind::kGptq && config_.symmetric;
    weight->tensor.type = !ordered ? SourceType::kInt4Unordered
                          : q4_0   ? SourceType::kQ4_0
                                   : SourceType::kQ8_0;
    const uint64_t groups = cols / group;
    bool fits = Expect(*weight->zeros, weight->zeros->type == SourceType::kI32, "I32",
                       {groups, rows / 8});
    fits &= Expect(*weight->scales, weight->scales->type == SourceType::kF16, "F16",
                   {groups, rows});
    if (weight->group_index != nullptr) {
      fits &= Expect(*weight->group_index, weight->group_index->type == SourceType::kI32, "I32",
                     {cols});
    }
    return fits;
  }

  const Checkpoint& raw_;
  const PackingConfig config_;
  std::vector<PackedWeight> packed_;
  std::vector<const SourceTensor*> plain_;
  std::unordered_set<std::string> parts_;
  std::vector<std::string> problems_;
  bool unsupported_ = false;
};

class PackedCheckpoint final : public Checkpoint {
 public:
  PackedCheckpoint(std::unique_ptr<Checkpoint> raw, std::vector<PackedWeight> packed,
                   const std::vector<const SourceTensor*>& plain)
      : raw_(std::move(raw)), packed_(std::move(packed)) {
    for (const PackedWeight& weight : packed_) tensors_.push_back(weight.tensor);
    for (const SourceTensor* tensor : plain) tensors_.push_back(*tensor);
    for (size_t i = 0; i < tensors_.size(); ++i) by_name_.emplace(tensors_[i].name, i);
  }
  bool NamesAreUnique() const { return by_name_.size() == tensors_.size(); }

  const SourceIdentity& identity() const override { return raw_->identity(); }
  std::optional<std::string> ReadFile(const std::string& name) const override {
    return raw_->ReadFile(name);
  }
  const std::vector<SourceTensor>& tensors() const override { return tensors_; }
  const SourceTensor* Find(const std::string& name) const override {
    const auto found = by_name_.find(name);
    return found == by_name_.end() ? nullptr : &tensors_[found->second];
  }
  std::string FileOf(const SourceTensor& tensor) const override { return raw_->FileOf(tensor); }

  Status ReadFloats(const SourceTensor& tensor, uint64_t first,
                    std::span<float> destination) const override {
    const PackedWeight* weight = PackingOf(tensor);
    if (weight == nullptr) return raw_->ReadFloats(tensor, first, destination);
    return ReadPackedFloats(*raw_, *weight, RowOf(*weight, first, destination.size()), destination);
  }
  Status ReadBlocks(const SourceTensor& tensor, uint64_t first,
                    std::span<std::byte> destination) const override {
    const PackedWeight* weight = PackingOf(tensor);
    if (weight == nullptr) return raw_->ReadBlocks(tensor, first, destination);
    const SourceBlock block = BlockOf(tensor.type);
    CHECK(destination.size() % block.bytes == 0, tensor.name);
    const uint64_t count = destination.size() / block.bytes * block.elements;
    return ReadPackedBlocks(*raw_, *weight, RowOf(*weight, first, count), destination);
  }

 private:
  const PackedWeight* PackingOf(const SourceTensor& tensor) const {
    const size_t index = by_name_.at(tensor.name);
    return index < packed_.size() ? &packed_[index] : nullptr;
  }
  static uint64_t RowOf(const PackedWeight& weight, uint64_t first, uint64_t count) {
    const uint64_t cols = weight.cols();
    CHECK(first % cols == 0 && count % cols == 0, weight.tensor.name + ": whole rows are read");
    CHECK(first + count <= weight.tensor.element_count(), weight.tensor.name);
    return first / cols;
  }

  const std::unique_ptr<Checkpoint> raw_;
  const std::vector<PackedWeight> packed_;
  std::vector<SourceTensor> tensors_;  // the packed ones first, in their order
  std::unordered_map<std::string, size_t> by_name_;
};

}  // namespace

Result<std::unique_ptr<Checkpoint>> UnpackCheckpoint(std::unique_ptr<Checkpoint> raw) {
  Recogniser recogniser(*raw, ReadConfig(*raw));
  RETURN_IF_ERROR(recogniser.Run());
  std::vector<PackedWeight> packed = recogniser.packed();
  if (packed.empty()) return raw;
  const std::string where = raw->identity().description;
  auto checkpoint = std::make_unique<PackedCheckpoint>(std::move(raw), std::move(packed),
                                                       recogniser.plain());
  if (!checkpoint->NamesAreUnique()) {
    return Corruption(where + ": a weight is there both packed and plain");
  }
  return std::unique_ptr<Checkpoint>(std::move(checkpoint));
}

}  // namespace moraine
