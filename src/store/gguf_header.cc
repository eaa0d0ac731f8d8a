#include <simdjson.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstring>
#include <map>
#include <string_view>
#include <unordered_set>

#include "base/bytes.h"
#include "store/gguf.h"

namespace moraine {
namespace {

constexpr uint32_t kOldestVersion = 2, kNewestVersion = 3;
constexpr uint64_t kMaxHeaderBytes = 256 * kMiB;
constexpr uint64_t kDefaultAlignment = 32;
constexpr uint64_t kMaxAlignment = kMiB;
// The specification's limits.
constexpr uint64_t kMaxKeyBytes = 65535, kMaxTensorNameBytes = 64;
constexpr uint32_t kMaxDimensions = 4;
// Arrays of arrays are allowed and have not been seen.
constexpr int kMaxArrayDepth = 4;
// The least that an entry takes: empty name, type, a byte; empty name, one dimension, type, offset.
constexpr uint64_t kMinKeyBytes = 8 + 4 + 1, kMinTensorBytes = 8 + 4 + 8 + 4 + 8;

enum class ValueType : uint32_t {
  kUint8, kInt8, kUint16, kInt16, kUint32, kInt32, kFloat32, kBool, kString, kArray, kUint64,
  kInt64, kFloat64
};
constexpr uint32_t kValueTypeCount = 13;

// The least bytes of a value: an empty string is its length, an empty array its type and count.
constexpr uint64_t MinValueBytes(ValueType type) {
  constexpr std::array<uint8_t, kValueTypeCount> kBytes = {1, 1, 2, 2, 4, 4, 4, 1, 8, 12, 8, 8, 8};
  return kBytes[static_cast<uint32_t>(type)];
}

// ggml's numbers of tensor types; what has no name here has been withdrawn or is newer.
std::string TensorTypeName(uint32_t type) {
  constexpr const char* kNames[] = {
      "F32",     "F16",    "Q4_0",   "Q4_1",  "",        "",      "Q5_0",  "Q5_1",
      "Q8_0",    "Q8_1",   "Q2_K",   "Q3_K",  "Q4_K",    "Q5_K",  "Q6_K",  "Q8_K",
      "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS",
      "I8",      "I16",    "I32",    "I64",   "F64",     "IQ1_M", "BF16",  "",
      "",        "",       "TQ1_0",  "TQ2_0", "",        "",      "",      "MXFP4",
      "NVFP4"};
  if (type < std::size(kNames) && *kNames[type] != '\0') return kNames[type];
  return "type " + std::to_string(type);
}

void AppendJsonString(std::string_view text, std::string* json) {
  *json += '"';
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      *json += '\\';
      *json += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      constexpr char kHex[] = "0123456789abcdef";
      *json += "\\u00";
      *json += kHex[c >> 4];
      *json += kHex[c & 0xF];
    } else {
      *json += c;
    }
  }
  *json += '"';
}

template <typename T>
void AppendNumber(T value, std::string* json) {
  char text[32];
  const auto end = std::to_chars(text, text + sizeof(text), value).ptr;
  json->append(text, end);
}

// Reads the header from front to back. The first error sticks; after it, and when the bytes given
// end before the file does, every read fails.
class HeaderParser {
 public:
  HeaderParser(std::span<const std::byte> bytes, uint64_t file_bytes, const std::string& file_name)
      : bytes_(bytes), file_bytes_(file_bytes), file_name_(file_name) {}

  Result<std::optional<GgufHeader>> Parse() {
    if (Run()) return std::optional<GgufHeader>(std::move(header_));
    if (needs_more_) return std::optional<GgufHeader>();
    return status_;
  }

 private:
  bool Run() {
    uint64_t tensor_count = 0, key_count = 0;
    if (!ReadStart(&tensor_count, &key_count)) return false;
    header_.metadata_json = "{";
    for (uint64_t i = 0; i < key_count; ++i) {
      if (!ReadKey(i)) return false;
    }
    header_.metadata_json += '}';
    header_.tensors.reserve(std::min<uint64_t>(tensor_count, 1 << 16));
    for (uint64_t i = 0; i < tensor_count; ++i) {
      if (!ReadTensor(i)) return false;
    }
    header_.header_bytes = at_;
    return RefuseUnreadTypes() && PlaceTensors();
  }

  bool ReadStart(uint64_t* tensor_count, uint64_t* key_count) {
    std::string_view magic;
    uint32_t version = 0;
    if (!Take(4, "the magic number", &magic)) return false;
    if (magic != "GGUF") {
      std::string found;
      for (const char c : magic) found += c >= ' ' && c <= '~' ? c : '.';
      return Bad("not a GGUF file: begins with '" + found + "', expected 'GGUF'");
    }
    if (!Plain("version", &version)) return false;
    if (version < kOldestVersion || version > kNewestVersion) {
      const bool swapped = (version & 0xFFFF) == 0;
      status_ = Unsupported(file_name_ + ": version is " + std::to_string(version) +
                            (swapped ? " (a big-endian file?)" : "") + ", read are " +
                            std::to_string(kOldestVersion) + " and " +
                            std::to_string(kNewestVersion));
      return false;
    }
    return Plain("tensor count", tensor_count) && Plain("key count", key_count) &&
           Fits("tensor count", *tensor_count, kMinTensorBytes) &&
           Fits("key count", *key_count, kMinKeyBytes);
  }

  bool ReadKey(uint64_t index) {
    const std::string number = "metadata key " + std::to_string(index);
    std::string_view name;
    if (!Text(number, kMaxKeyBytes, &name)) return false;
    if (!keys_.insert(name).second) {
      return Bad("metadata key '" + std::string(name) + "' is there twice");
    }
    const std::string what = "metadata key '" + std::string(name) + "'";
    if (index > 0) header_.metadata_json += ',';
    AppendJsonString(name, &header_.metadata_json);
    header_.metadata_json += ':';
    ValueType type;
    integer_.reset();
    return ReadValueType(what, &type) && ReadValue(type, what, 0) && KeepKnownKey(name, what);
  }

  // The keys that concern the container.
  bool KeepKnownKey(std::string_view name, const std::string& what) {
    const auto keep = [&](const char* wanted, uint64_t low, uint64_t high, auto* place) {
      if (name != wanted) return true;
      if (!integer_ || *integer_ < low || *integer_ > high) {
        return Bad(what + " is " + (integer_ ? std::to_string(*integer_) : "no unsigned integer") +
                   ", expected an integer from " + std::to_string(low) + " to " +
                   std::to_string(high));
      }
      *place = *integer_;
      return true;
    };
    if (!keep("general.alignment", 8, kMaxAlignment, &alignment_) ||
        !keep("split.no", 0, 65535, &header_.split_index) ||
        !keep("split.count", 0, 65535, &header_.split_count) ||
        !keep("split.tensors.count", 0, INT32_MAX, &header_.split_tensor_count)) {
      return false;
    }
    if (alignment_ % 8 == 0) return true;
    return Bad(what + " is " + std::to_string(alignment_) + ", expected a multiple of 8");
  }

  bool ReadValueType(const std::string& what, ValueType* type) {
    uint32_t number = 0;
    if (!Plain(what + ": type", &number)) return false;
    *type = static_cast<ValueType>(number);
    if (number < kValueTypeCount) return true;
    return Bad(what + ": type is " + std::to_string(number) + ", expected 0 to " +
               std::to_string(kValueTypeCount - 1));
  }

  bool ReadValue(ValueType type, const std::string& what, int depth) {
    switch (type) {
      case ValueType::kUint8: return ReadInteger<uint8_t>(what);
      case ValueType::kInt8: return ReadInteger<int8_t>(what);
      case ValueType::kUint16: return ReadInteger<uint16_t>(what);
      case ValueType::kInt16: return ReadInteger<int16_t>(what);
      case ValueType::kUint32: return ReadInteger<uint32_t>(what);
      case ValueType::kInt32: return ReadInteger<int32_t>(what);
      case ValueType::kUint64: return ReadInteger<uint64_t>(what);
      case ValueType::kInt64: return ReadInteger<int64_t>(what);
      case ValueType::kFloat32: return ReadReal<float>(what);
      case ValueType::kFloat64: return ReadReal<double>(what);
      case ValueType::kBool: return ReadBool(what);
      case ValueType::kArray: return ReadArray(what, depth);
      case ValueType::kString: {
        std::string_view text;
        if (!Text(what, kMaxHeaderBytes, &text)) return false;
        AppendJsonString(text, &header_.metadata_json);
        return true;
      }
    }
    return false;
  }

  template <typename T>
  bool ReadInteger(const std::string& what) {
    T value = 0;
    if (!Plain(what, &value)) return false;
    AppendNumber(value, &header_.metadata_json);
    if (value >= 0) integer_ = static_cast<uint64_t>(value);
    return true;
  }
  template <typename T>
  bool ReadReal(const std::string& what) {
    T value = 0;
    if (!Plain(what, &value)) return false;
    // As a double: its shortest text reads back to the same double, whatever reads it.
    if (std::isfinite(value)) {
      AppendNumber(static_cast<double>(value), &header_.metadata_json);
    } else {
      header_.metadata_json += "null";
    }
    return true;
  }
  bool ReadBool(const std::string& what) {
    uint8_t value = 0;
    if (!Plain(what, &value)) return false;
    if (value > 1) return Bad(what + " is " + std::to_string(value) + ", expected a bool, 0 or 1");
    header_.metadata_json += value == 1 ? "true" : "false";
    return true;
  }
  bool ReadArray(const std::string& what, int depth) {
    ValueType type;
    uint64_t count = 0;
    if (depth == kMaxArrayDepth) {
      return Bad(what + ": arrays are nested deeper than " + std::to_string(kMaxArrayDepth));
    }
    if (!ReadValueType(what + ": array", &type) || !Plain(what + ": array length", &count) ||
        !Fits(what + ": array length", count, MinValueBytes(type))) {
      return false;
    }
    header_.metadata_json += '[';
    for (uint64_t i = 0; i < count; ++i) {
      if (i > 0) header_.metadata_json += ',';
      if (!ReadValue(type, what, depth + 1)) return false;
    }
    header_.metadata_json += ']';
    integer_.reset();
    return true;
  }

  bool ReadTensor(uint64_t index) {
    SourceTensor tensor;
    std::string_view name;
    if (!Text("tensor " + std::to_string(index), kMaxTensorNameBytes, &name)) return false;
    const std::string what = "tensor '" + std::string(name) + "'";
    if (!tensor_names_.insert(name).second) return Bad(what + " is there twice");
    tensor.name = name;
    uint32_t dimension_count = 0, type = 0;
    if (!Plain(what + ": dimension count", &dimension_count)) return false;
    if (dimension_count == 0 || dimension_count > kMaxDimensions) {
      return Bad(what + ": dimension count is " + std::to_string(dimension_count) +
                 ", expected 1 to " + std::to_string(kMaxDimensions));
    }
    uint64_t elements = 1;
    for (uint32_t i = 0; i < dimension_count; ++i) {
      uint64_t dimension = 0;
      if (!Plain(what + ": dimensions", &dimension)) return false;
      if (dimension == 0 || __builtin_mul_overflow(elements, dimension, &elements)) {
        return Bad(what + ": dimension " + std::to_string(i) + " is " + std::to_string(dimension) +
                   ", which makes a tensor that is empty or beyond 64 bits");
      }
      tensor.shape.insert(tensor.shape.begin(), dimension);
    }
    if (!Plain(what + ": type", &type) || !Plain(what + ": offset", &tensor.offset)) return false;
    const std::optional<SourceType> known = SourceTypeOfGgml(type);
    if (!known) {
      auto [entry, inserted] = unread_types_.try_emplace(TensorTypeName(type), name, 0);
      ++entry->second.second;
      return true;
    }
    return SizeTensor(what, *known, elements, std::move(tensor));
  }

  bool SizeTensor(const std::string& what, SourceType type, uint64_t elements,
                  SourceTensor tensor) {
    const SourceBlock block = BlockOf(type);
    if (tensor.shape.back() % block.elements != 0) {
      return Bad(what + " is " + SourceTypeName(type) + " " + tensor.ShapeText() +
                 ": rows of a multiple of " + std::to_string(block.elements) + " expected");
    }
    if (tensor.offset % alignment_ != 0) {
      return Bad(what + ": offset is " + std::to_string(tensor.offset) +
                 ", expected a multiple of the alignment, " + std::to_string(alignment_));
    }
    tensor.type = type;
    if (__builtin_mul_overflow(elements / block.elements, uint64_t{block.bytes}, &tensor.bytes)) {
      return Bad(what + ": " + tensor.ShapeText() + " is beyond 64 bits");
    }
    header_.tensors.push_back(std::move(tensor));
    return true;
  }

  bool RefuseUnreadTypes() {
    if (unread_types_.empty()) return true;
    std::string list;
    for (const auto& [type, entry] : unread_types_) {
      list += (list.empty() ? "" : ", ") + type + " (" + std::to_string(entry.second) +
              " tensors, such as '" + std::string(entry.first) + "')";
    }
    std::string read;
    for (int i = 0; i < kSourceTypeCount; ++i) {
      const SourceTypeInfo& info = InfoOf(static_cast<SourceType>(i));
      if (info.ggml_type >= 0) read += (read.empty() ? "" : ", ") + std::string(info.name);
    }
    status_ = Unsupported(file_name_ + ": has tensors of types that are not read: " + list +
                          "; read are " + read);
    return false;
  }

  // Offsets of the data become offsets of the file; all tensors lie in the file and apart.
  bool PlaceTensors() {
    const uint64_t data = (at_ + alignment_ - 1) / alignment_ * alignment_;
    for (SourceTensor& tensor : header_.tensors) {
      uint64_t end = 0;
      if (__builtin_add_overflow(tensor.offset, data, &tensor.offset) ||
          __builtin_add_overflow(tensor.offset, tensor.bytes, &end) || end > file_bytes_) {
        return Bad("tensor '" + tensor.name + "': " + std::to_string(tensor.bytes) +
                   " bytes at offset " + std::to_string(tensor.offset) + ", but the file has " +
                   std::to_string(file_bytes_) + " bytes");
      }
    }
    status_ = CheckOverlaps(header_.tensors, file_name_);
    return status_.ok();
  }

  // Whether `count` things of at least `least_bytes` can still come.
  bool Fits(const std::string& what, uint64_t count, uint64_t least_bytes) {
    const uint64_t left = std::min(file_bytes_, kMaxHeaderBytes) - at_;
    if (count <= left / least_bytes) return true;
    return Bad(what + " is " + std::to_string(count) + ", but at most " +
               std::to_string(left / least_bytes) + " fit into the " + std::to_string(left) +
               " bytes that a header in this file has left");
  }

  bool Take(uint64_t count, const std::string& what, std::string_view* bytes) {
    if (count > file_bytes_ - at_) {
      return Bad("ends at byte " + std::to_string(file_bytes_) + " inside " + what +
                 ", which needs " + std::to_string(count) + " bytes from byte " +
                 std::to_string(at_));
    }
    if (count > kMaxHeaderBytes - at_) {
      return Bad("header is longer than " + std::to_string(kMaxHeaderBytes) + " bytes, at " + what);
    }
    if (count > bytes_.size() - at_) {
      needs_more_ = true;
      return false;
    }
    *bytes = {reinterpret_cast<const char*>(bytes_.data()) + at_, count};
    at_ += count;
    return true;
  }
  template <typename T>
  bool Plain(const std::string& what, T* value) {
    std::string_view bytes;
    if (!Take(sizeof(T), what, &bytes)) return false;
    std::memcpy(value, bytes.data(), sizeof(T));  // little-endian, as every machine this runs on
    return true;
  }
  bool Text(const std::string& what, uint64_t max_bytes, std::string_view* text) {
    uint64_t length = 0;
    if (!Plain(what + ": string length", &length)) return false;
    if (length > max_bytes) {
      return Bad(what + ": string length is " + std::to_string(length) + ", expected at most " +
                 std::to_string(max_bytes));
    }
    if (!Take(length, what, text)) return false;
    if (simdjson::validate_utf8(text->data(), text->size())) return true;
    return Bad(what + ": the string that ends at byte " + std::to_string(at_) + " is not UTF-8");
  }
  bool Bad(const std::string& what) {
    status_ = Corruption(file_name_ + ": " + what);
    return false;
  }

  const std::span<const std::byte> bytes_;
  const uint64_t file_bytes_;
  const std::string& file_name_;
  uint64_t at_ = 0;
  bool needs_more_ = false;
  Status status_;
  GgufHeader header_;
  uint64_t alignment_ = kDefaultAlignment;
  std::optional<uint64_t> integer_;  // the last value, if it was one and not negative
  std::unordered_set<std::string_view> keys_, tensor_names_;
  // By name: the first tensor of that type, and how many there are.
  std::map<std::string, std::pair<std::string_view, uint64_t>> unread_types_;
};

}  // namespace

Result<std::optional<GgufHeader>> ParseGgufHeader(std::span<const std::byte> bytes,
                                                  uint64_t file_bytes,
                                                  const std::string& file_name) {
  CHECK(bytes.size() <= file_bytes, "more bytes than the file has");
  return HeaderParser(bytes, file_bytes, file_name).Parse();
}

}  // namespace moraine
