// The JSON header of a safetensors file: {"name": {"dtype", "shape", "data_offsets"}, ...}.
// Untrusted input: every number is checked before anything is computed from it.
#include <simdjson.h>

#include <optional>
#include <string>
#include <unordered_set>

#include "store/checkpoint.h"

namespace moraine {
namespace {

namespace dom = simdjson::dom;

// More dimensions than any published tensor has; keeps messages and shapes short.
constexpr size_t kMaxDimensions = 8;

// What a tensor's entry is wrong about, with the file and the tensor in front.
class EntryContext {
 public:
  EntryContext(const std::string& file_name, std::string_view tensor)
      : prefix_(file_name + ": tensor '" + std::string(tensor) + "': ") {}
  Status Bad(const std::string& what) const { return Corruption(prefix_ + what); }
  Status Unsupported(const std::string& what) const {
    return moraine::Unsupported(prefix_ + what);
  }

 private:
  std::string prefix_;
};

// "F32, F16, ..."
std::string ReadableTypes() {
  std::string list;
  for (int i = 0; i < kSourceTypeCount; ++i) {
    const SourceTypeInfo& info = InfoOf(static_cast<SourceType>(i));
    if (info.safetensors == nullptr) continue;
    list += (list.empty() ? "" : ", ") + std::string(info.safetensors);
  }
  return list;
}

Status ParseShape(const dom::object& entry, const EntryContext& context, SourceTensor* tensor,
                  uint64_t* element_count) {
  dom::array shape;
  if (entry["shape"].get(shape) != simdjson::SUCCESS) {
    return context.Bad("field 'shape' is missing or not an array");
  }
  *element_count = 1;
  for (const dom::element element : shape) {
    uint64_t dimension = 0;
    if (element.get(dimension) != simdjson::SUCCESS) {
      return context.Bad("field 'shape' holds something that is not an unsigned integer");
    }
    if (tensor->shape.size() == kMaxDimensions) {
      return context.Bad("field 'shape' has more than " + std::to_string(kMaxDimensions) +
                         " dimensions");
    }
    if (__builtin_mul_overflow(*element_count, dimension, element_count)) {
      return context.Bad("field 'shape' overflows 64 bits");
    }
    tensor->shape.push_back(dimension);
  }
  return OkStatus();
}

Status ParseOffsets(const dom::object& entry, const EntryContext& context, uint64_t data_bytes,
                    SourceTensor* tensor) {
  dom::array offsets;
  if (entry["data_offsets"].get(offsets) != simdjson::SUCCESS) {
    return context.Bad("field 'data_offsets' is missing or not an array");
  }
  uint64_t bounds[2] = {0, 0};
  size_t count = 0;
  for (const dom::element element : offsets) {
    uint64_t value = 0;
    if (count == 2 || element.get(value) != simdjson::SUCCESS) {
      return context.Bad("field 'data_offsets' is not two unsigned integers");
    }
    bounds[count++] = value;
  }
  if (count != 2) return context.Bad("field 'data_offsets' is not two unsigned integers");
  if (bounds[0] > bounds[1] || bounds[1] > data_bytes) {
    return context.Bad("field 'data_offsets' is [" + std::to_string(bounds[0]) + ", " +
                       std::to_string(bounds[1]) + "], outside the file's " +
                       std::to_string(data_bytes) + " data bytes");
  }
  tensor->offset = bounds[0];
  tensor->bytes = bounds[1] - bounds[0];
  return OkStatus();
}

Result<SourceTensor> ParseEntry(std::string_view name, const dom::element& value,
                                uint64_t data_bytes, const std::string& file_name) {
  const EntryContext context(file_name, name);
  dom::object entry;
  if (value.get(entry) != simdjson::SUCCESS) return context.Bad("entry is not an object");
  std::string_view type_name;
  if (entry["dtype"].get(type_name) != simdjson::SUCCESS) {
    return context.Bad("field 'dtype' is missing or not a string");
  }
  const std::optional<SourceType> type = SourceTypeOfSafetensors(type_name);
  if (!type) {
    return context.Unsupported("dtype is " + std::string(type_name) +
                               ", expected " + ReadableTypes());
  }
  SourceTensor tensor;
  tensor.name = name;
  tensor.type = *type;
  uint64_t element_count = 0;
  RETURN_IF_ERROR(ParseShape(entry, context, &tensor, &element_count));
  RETURN_IF_ERROR(ParseOffsets(entry, context, data_bytes, &tensor));
  uint64_t expected_bytes = 0;
  if (__builtin_mul_overflow(element_count, BlockOf(*type).bytes, &expected_bytes) ||
      expected_bytes != tensor.bytes) {
    return context.Bad("shape " + tensor.ShapeText() + " of " + SourceTypeName(*type) +
                       " does not fit the " + std::to_string(tensor.bytes) +
                       " bytes of 'data_offsets'");
  }
  return tensor;
}

}  // namespace

Result<std::vector<SourceTensor>> ParseSafetensorsHeader(std::string_view header,
                                                         uint64_t data_bytes,
                                                         const std::string& file_name) {
  dom::parser parser;
  dom::element root;
  const simdjson::error_code error =
      parser.parse(header.data(), header.size(), /*realloc_if_needed=*/true).get(root);
  if (error != simdjson::SUCCESS) {
    return Corruption(file_name + ": the safetensors header is not JSON: " +
                      simdjson::error_message(error));
  }
  dom::object object;
  if (root.get(object) != simdjson::SUCCESS) {
    return Corruption(file_name + ": the safetensors header is not a JSON object");
  }
  std::vector<SourceTensor> tensors;
  std::unordered_set<std::string_view> names;
  for (const auto field : object) {
    if (field.key == "__metadata__") continue;
    if (!names.insert(field.key).second) {
      return Corruption(file_name + ": tensor '" + std::string(field.key) +
                        "' is there twice in the header");
    }
    ASSIGN_OR_RETURN(SourceTensor tensor,
                     ParseEntry(field.key, field.value, data_bytes, file_name));
    tensors.push_back(std::move(tensor));
  }
  RETURN_IF_ERROR(CheckOverlaps(tensors, file_name));
  return tensors;
}

}  // namespace moraine
