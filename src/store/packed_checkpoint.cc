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
  int64_t bits = 4, group_size = 128;              // of integers; group_size only of GPTQ and AWQ,
                                                   // -1: a group is all columns
  bool symmetric = false, act_order = false;
  std::string format;  // checkpoint_format of GPTQ, version of AWQ, format of compressed-tensors
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
  if (quantisation["bits"].get(number) == simdjson::SUCCESS ||
      quantisation["config_groups"]["group_0"]["weights"]["num_bits"].get(number) ==
          simdjson::SUCCESS) {
    config.bits = number;
  }
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
    static constexpr std::string_view kNames[] = {
        ".input_scale",  ".input_zero_point", ".input_global_scale", ".output_scale",
        ".k_scale",      ".v_scale",          ".q_scale"};
    return std::ranges::any_of(kNames, [&](std::string_view end) { return name.ends_with(end); });
  }
  static bool IsScaleName(const std::string& name) {
    static constexpr std::string_view kNames[] = {"_scale_inv", ".weight_scale", ".weight_scale_2",
                                                  ".weight_global_scale", ".qzeros"};
    return std::ranges::any_of(kNames, [&](std::string_view end) { return name.ends_with(end); });
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
    // The scales of NVFP4 are FP8 numbers, too.
    const bool is_scale = tensor.name.ends_with(".weight_scale");
    if (tensor.type == SourceType::kF8E4M3 && !is_scale) {
      weight.tensor.name = tensor.name;
      whole = RecogniseFp8(&weight);
    } else if (ends("_packed")) {
      whole = tensor.type == SourceType::kU8 ? RecogniseFp4(&weight) : RecognisePacked(&weight);
    } else if (tensor.type == SourceType::kI8 && tensor.name.ends_with(".weight")) {
      weight.tensor.name = tensor.name;
      whole = RecogniseInt8(&weight);
    } else if (tensor.type == SourceType::kU8 && tensor.name.ends_with(".weight")) {
      weight.tensor.name = tensor.name;
      whole = RecogniseFp4(&weight);
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
    if (weight.tensor.packing.empty()) weight.tensor.packing = NameOf(weight.kind);
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
    const bool by_vector = last == 1 && scales.shape == std::vector<uint64_t>{rows};
    if (number && (scales.shape == by_row || by_vector)) {
      weight->block_cols = static_cast<uint32_t>(cols);
      return cols <= UINT32_MAX;
    }
    weight->block_rows = config_.block_rows;
    weight->block_cols = config_.block_cols;
    by_block[last - 1] = (rows + weight->block_rows - 1) / weight->block_rows;
    by_block[last] = (cols + weight->block_cols - 1) / weight->block_cols;
    return Expect(scales, number, "numbers", by_block);
  }

  // compressed-tensors' "pack-quantized": 4 or 8 bits in words.
  bool RecognisePacked(PackedWeight* weight) {
    const SourceTensor& codes = *weight->codes;
    const std::string& name = weight->tensor.name;
    weight->kind = PackingKind::kPackedIntegers;
    FindIntegerParts(name, weight);
    if (weight->scales == nullptr) return false;
    if (codes.type != SourceType::kI32 || codes.shape.size() != 2) {
      return Refuse(codes, std::string("is ") + SourceTypeName(codes.type) + " " +
                               codes.ShapeText() + ", expected I32 [rows, words]");
    }
    const SourceTensor* shape = Part(name + "_shape", false);
    if (config_.bits == 4 || config_.bits == 8) weight->bits = static_cast<uint32_t>(config_.bits);
    weight->tensor.shape = {codes.shape[0], codes.shape[1] * (32 / weight->bits)};
    if (shape != nullptr && !ReadShape(*shape, weight)) return false;
    if (!FitIntegers(weight)) return false;
    // Nibbles under 16 bits of scale are blocks as they are.
    const SourceType scale = weight->scales->type;
    const bool nibbles = weight->bits == 4 && weight->zeros == nullptr &&
                         weight->group_index == nullptr && weight->scales->element_count() != 1;
    if (nibbles && (scale == SourceType::kF16 || scale == SourceType::kBf16)) {
      weight->kind = PackingKind::kInt4;
      weight->tensor.type = scale == SourceType::kF16 ? SourceType::kQ4_0 : SourceType::kInt4;
    }
    return true;
  }

  // compressed-tensors' "int-quantized": a byte for each.
  bool RecogniseInt8(PackedWeight* weight) {
    const SourceTensor& codes = *weight->codes;
    weight->kind = PackingKind::kInt8;
    weight->bits = 8;
    weight->tensor.shape = codes.shape;
    FindIntegerParts(codes.name, weight);
    if (weight->scales == nullptr) return false;
    if (codes.shape.size() != 2) {
      return Refuse(codes, "is I8 " + codes.ShapeText() + ", expected [rows, columns]");
    }
    return FitIntegers(weight);
  }

  void FindIntegerParts(const std::string& name, PackedWeight* weight) {
    weight->scales = Part(name + "_scale");
    weight->zeros = Part(name + "_zero_point", false);
    weight->group_index = Part(name + "_g_idx", false);
  }

  // Groups, zero points and order of a weight of compressed-tensors whose shape and bits are known; its
  // type.
  bool FitIntegers(PackedWeight* weight) {
    const SourceTensor& scales = *weight->scales;
    const uint64_t rows = weight->tensor.shape[0], cols = weight->tensor.shape[1];
    const bool one = scales.element_count() == 1;
    const bool by_row = scales.shape == std::vector<uint64_t>{rows};
    const uint64_t groups = one || by_row ? 1 : scales.shape.size() == 2 ? scales.shape[1] : 0;
    if (groups == 0 || cols % groups != 0 || cols / groups % 32 != 0 || cols > UINT32_MAX) {
      return Refuse(scales, "is " + scales.ShapeText() + ", expected [" + std::to_string(rows) +
                                ", groups] with groups of a multiple of 32 of the " +
                                std::to_string(cols) + " columns");
    }
    weight->block_cols = static_cast<uint32_t>(cols / groups);
    const bool number = scales.type == SourceType::kF16 || scales.type == SourceType::kBf16 ||
                        scales.type == SourceType::kF32;
    bool fits = one || by_row ? number || Expect(scales, false, "BF16, F16 or F32", scales.shape)
                              : Expect(scales, number, "BF16, F16 or F32", {rows, groups});
    if (const SourceTensor* zeros = weight->zeros) {
      const uint64_t in_word = 32 / weight->bits;
      fits &= zeros->type == SourceType::kI8
                  ? Expect(*zeros, true, "I8", {rows, groups})
                  : Expect(*zeros, zeros->type == SourceType::kI32, "I32 or I8",
                           {(rows + in_word - 1) / in_word, groups});
    }
    if (const SourceTensor* index = weight->group_index) {
      fits &= Expect(*index, index->type == SourceType::kI32, "I32", {cols});
    }
    SetIntegerType(weight, weight->group_index != nullptr && groups > 1, weight->zeros != nullptr);
    if (weight->bits == 4) {
      weight->tensor.packing = weight->zeros != nullptr ? "INT4 with zero points" : "INT4";
    }
    return fits;
  }

  // kInt8 has room for all but 8 bits less a zero point.
  static void SetIntegerType(PackedWeight* weight, bool reordered, bool zero_points) {
    const bool eight = weight->bits == 8;
    weight->tensor.type = reordered ? (eight ? SourceType::kInt8Unordered : SourceType::kInt4Unordered)
                          : eight && zero_points ? SourceType::kInt8Asymmetric
                                                 : SourceType::kInt8;
  }

  // weight_shape says what the packed words hold, and so how many bits each has.
  bool ReadShape(const SourceTensor& part, PackedWeight* weight) {
    const uint32_t bytes = BlockOf(part.type).bytes;
    if (!Expect(part, part.type == SourceType::kI64 || part.type == SourceType::kI32,
                "I64 or I32", {2})) {
      return false;
    }
    std::vector<std::byte> contents(2 * bytes);
    const Status status = raw_.ReadBlocks(part, 0, contents);
    if (!status.ok()) return Refuse(part, status.message());
    std::vector<uint64_t> found(2);
    for (size_t i = 0; i < found.size(); ++i) {
      std::memcpy(&found[i], contents.data() + i * bytes, bytes);
    }
    const uint64_t rows = weight->codes->shape[0], words = weight->codes->shape[1];
    for (const uint32_t bits : {4u, 8u}) {
      // Rows are padded to whole words.
      if (found[0] != rows || found[1] > words * (32 / bits)) continue;
      if (found[1] + 32 / bits <= words * (32 / bits)) continue;
      weight->bits = bits;
      weight->tensor.shape = found;
      return true;
    }
    return RefuseKind(part, "says " + Shape(found) + ", expected " + Shape({rows, words * 8}) +
                                " of 4 bits a weight or " + Shape({rows, words * 4}) +
                                " of 8 in the packed words");
  }

  // Two numbers of four bits in a byte: compressed-tensors' and NVIDIA's MXFP4 and NVFP4.
  bool RecogniseFp4(PackedWeight* weight) {
    const SourceTensor& codes = *weight->codes;
    const std::string& name = weight->tensor.name;
    weight->scales = Part(name + "_scale");
    if (weight->scales == nullptr) return false;
    if (codes.shape.size() != 2) {
      return Refuse(codes, "is U8 " + codes.ShapeText() + ", expected [rows, columns / 2]");
    }
    const SourceTensor& scales = *weight->scales;
    const uint64_t rows = codes.shape[0], cols = codes.shape[1] * 2;
    weight->tensor.shape = {rows, cols};
    const bool nvidia = scales.type == SourceType::kF8E4M3;
    weight->block_cols = nvidia ? 16 : 32;
    weight->kind = nvidia ? PackingKind::kNvfp4 : PackingKind::kMxfp4;
    weight->tensor.type = nvidia ? SourceType::kNvfp4 : SourceType::kMxfp4;
    if (cols % weight->block_cols != 0 || cols > UINT32_MAX) {
      return Refuse(codes, "has " + std::to_string(cols) + " columns, expected a multiple of " +
                               std::to_string(weight->block_cols));
    }
    const bool mx = scales.type == SourceType::kU8 || scales.type == SourceType::kF8E8M0;
    if (!Expect(scales, nvidia || mx, "U8, F8_E8M0 or F8_E4M3",
                {rows, cols / weight->block_cols})) {
      return false;
    }
    if (!nvidia) return true;
    weight->global_scale = Part(name + "_global_scale", false);
    weight->divides_by_global = weight->global_scale != nullptr;
    if (!weight->divides_by_global) weight->global_scale = Part(name + "_scale_2");
    if (weight->global_scale == nullptr) return false;
    const SourceTensor& global = *weight->global_scale;
    return (global.type == SourceType::kF32 && global.element_count() == 1) ||
           Expect(global, false, "F32", {1});
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
    if ((config_.bits != 4 && config_.bits != 8) || !known) {
      return RefuseKind(codes, "has " + std::to_string(config_.bits) + " bits in format '" +
                                   format + "', expected 4 or 8 in " +
                                   (awq ? "'gemm'" : "'gptq' or 'gptq_v2'"));
    }
    weight->bits = static_cast<uint32_t>(config_.bits);
    const uint64_t in_word = 32 / weight->bits;
    weight->zero_bias = !awq && format != "gptq_v2" ? 1 : 0;
    if (codes.type != SourceType::kI32 || codes.shape.size() != 2) {
      return Refuse(codes, std::string("is ") + SourceTypeName(codes.type) + " " +
                               codes.ShapeText() + ", expected a matrix of I32");
    }
    const uint64_t cols = awq ? codes.shape[0] : codes.shape[0] * in_word;
    const uint64_t rows = awq ? codes.shape[1] * in_word : codes.shape[1];
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
    const bool reordered = weight->group_index != nullptr && config_.act_order && group != cols;
    const bool symmetric = weight->kind == PackingKind::kGptq && config_.symmetric;
    SetIntegerType(weight, reordered, !symmetric);
    if (symmetric && !reordered) weight->symmetric_zero = weight->bits == 8 ? 128 : 8;
    // A scale of 16 bits stays as it is where the blocks of other formats have such a one.
    const bool half = weight->scales->type == SourceType::kF16;
    if (weight->tensor.type == SourceType::kInt8) {
      if (symmetric && weight->bits == 4) {
        weight->tensor.type = half ? SourceType::kQ4_0 : SourceType::kInt4;
      } else if (half) {
        weight->tensor.type = SourceType::kQ8_0;
      }
    }
    const uint64_t groups = cols / group;
    bool fits = Expect(*weight->zeros, weight->zeros->type == SourceType::kI32, "I32",
                       {groups, (rows + 32 / weight->bits - 1) / (32 / weight->bits)});
    fits &= Expect(*weight->scales, half || weight->scales->type == SourceType::kBf16,
                   "F16 or BF16", {groups, rows});
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
  int64_t reading_ns() const override { return raw_->reading_ns(); }

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
