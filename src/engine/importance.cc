#include "engine/importance.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <charconv>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/bytes.h"
#include "base/check.h"
#include "store/checkpoint.h"

namespace moraine {
namespace {

using Json = nlohmann::ordered_json;

constexpr char kFormat[] = "moraine importance";
constexpr char kNoChecksum[] = "0000000000000000";
constexpr size_t kChecksumDigits = sizeof(kNoChecksum) - 1;
constexpr size_t kLengthBytes = 8;  // of the header's length, little-endian, in front of it

std::string ShapeText(const std::vector<uint64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

// A whole number in decimal or hexadecimal, and nothing else.
bool ParseWhole(const std::string& text, int base, uint64_t* value) {
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), *value, base);
  return !text.empty() && parsed.ec == std::errc() && parsed.ptr == text.data() + text.size();
}

// Strings of __metadata__; remembers the first that is wrong.
class Metadata {
 public:
  Metadata(const Json& header, Status* status) : status_(status) {
    const auto found = header.find("__metadata__");
    if (found != header.end() && found->is_object()) object_ = *found;
  }

  std::string Text(const char* name) const {
    const auto found = object_.find(name);
    if (found != object_.end() && found->is_string()) return found->get<std::string>();
    Fail(name, "a string", found == object_.end() ? "nothing" : found->type_name());
    return {};
  }
  uint64_t Whole(const char* name, int base) const {
    uint64_t value = 0;
    const std::string text = Text(name);
    if (!ParseWhole(text, base, &value)) Fail(name, "a whole number", "'" + text + "'");
    return value;
  }
  void Fail(const char* name, const std::string& expected, const std::string& found) const {
    if (!status_->ok()) return;
    *status_ = Corruption(fmt::format("field '__metadata__.{}': expected {}, found {}", name,
                                      expected, found));
  }

 private:
  Json object_ = Json::object();
  Status* status_;
};

Status CheckValues(const std::string& name, const Importance::Tensor& tensor) {
  for (size_t i = 0; i < tensor.values.size(); ++i) {
    const float value = tensor.values[i];
    if (std::isfinite(value) && value >= 0) continue;
    const uint64_t cols = tensor.shape.back();
    return InvalidArgument(fmt::format(
        "tensor '{}': element {} of row {} is {}, expected a finite number that is not negative",
        name, i % cols, i / cols, value));
  }
  return OkStatus();
}

}  // namespace

std::string ImportanceName(LayerId layer, bool down) {
  return fmt::format("layers.{}.experts.{}", layer.value(), down ? "down" : "gate_up");
}

ImportanceShapes ShapesOfImportance(const ModelConfig& config) {
  ImportanceShapes shapes;
  for (uint32_t i = 0; i < config.layers.size(); ++i) {
    const LayerConfig& layer = config.layers[i];
    if (layer.feed_forward != FeedForwardKind::kMoe) continue;
    shapes[ImportanceName(LayerId(i), false)] = {config.expert_count, config.hidden};
    shapes[ImportanceName(LayerId(i), true)] = {config.expert_count, layer.intermediate};
  }
  return shapes;
}

Status Importance::Write(const std::string& path) {
  Json header = Json::object();
  header["__metadata__"] = {{"format", kFormat},
                            {"version", std::to_string(kImportanceVersion)},
                            {"model", model},
                            {"text", text},
                            {"tokens", std::to_string(tokens)},
                            {"checksum", kNoChecksum}};
  std::string data;
  for (const auto& [name, tensor] : tensors_) {
    const size_t begin = data.size(), bytes = tensor.values.size() * sizeof(float);
    data.append(reinterpret_cast<const char*>(tensor.values.data()), bytes);
    header[name] = {{"dtype", "F32"}, {"shape", tensor.shape},
                    {"data_offsets", {begin, begin + bytes}}};
  }
  std::string head = header.dump(-1, ' ', false, Json::error_handler_t::replace);
  head.resize(AlignUp(head.size(), kLengthBytes), ' ');  // floats stay aligned
  const uint64_t length = head.size();
  std::string file(reinterpret_cast<const char*>(&length), sizeof(length));
  file += head + data;
  checksum_ = XXH3_64bits(file.data(), file.size());
  path_ = path;
  // The model's and the text's names are before it, and quoted: no other string is this one.
  const std::string field = fmt::format("\"checksum\":\"{}\"", kNoChecksum);
  const size_t at = file.find(field) + field.size() - 1 - kChecksumDigits;
  file.replace(at, kChecksumDigits, fmt::format("{:016x}", checksum_));
  std::ofstream stream(path, std::ios::binary | std::ios::trunc);
  if (!stream) return IoErrorFromErrno("create " + path, errno);
  stream.write(file.data(), static_cast<std::streamsize>(file.size()));
  stream.close();
  return stream ? OkStatus() : IoErrorFromErrno("write " + path, errno);
}

Result<Importance> Importance::Read(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) return IoErrorFromErrno("open " + path, errno);
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    return InvalidArgument(path + ": a directory, expected a file of importance");
  }
  Importance importance;
  importance.path_ = path;
  const Status status = importance.Parse({std::istreambuf_iterator<char>(stream), {}});
  if (!status.ok()) return status.WithContext(path);
  return importance;
}

Status Importance::Parse(std::string bytes) {
  uint64_t length = 0;
  if (bytes.size() >= kLengthBytes) std::memcpy(&length, bytes.data(), kLengthBytes);
  if (bytes.size() < kLengthBytes || length > bytes.size() - kLengthBytes) {
    return Corruption(fmt::format("expected a header of {} bytes, found a file of {}", length,
                                  bytes.size()));
  }
  const Json header = Json::parse(bytes.begin() + kLengthBytes,
                                  bytes.begin() + static_cast<ptrdiff_t>(kLengthBytes + length),
                                  nullptr, /*allow_exceptions=*/false);
  if (!header.is_object()) return Corruption("the header is not a JSON object");
  Status status;
  const Metadata metadata(header, &status);
  const std::string format = metadata.Text("format");
  if (format != kFormat) metadata.Fail("format", fmt::format("'{}'", kFormat), "'" + format + "'");
  const uint64_t version = metadata.Whole("version", 10);
  RETURN_IF_ERROR(status);
  if (version != kImportanceVersion) {
    return Unsupported(fmt::format("field '__metadata__.version': expected {}, found {}",
                                   kImportanceVersion, version));
  }
  model = metadata.Text("model");
  text = metadata.Text("text");
  tokens = metadata.Whole("tokens", 10);
  const std::string digest = metadata.Text("checksum");
  checksum_ = metadata.Whole("checksum", 16);
  RETURN_IF_ERROR(status);
  const std::string field = fmt::format("\"checksum\":\"{}\"", digest);
  const size_t at = bytes.find(field);
  if (digest.size() != kChecksumDigits || at == std::string::npos) {
    return Corruption("field '__metadata__.checksum': expected 16 hexadecimal digits, found '" +
                      digest + "'");
  }
  bytes.replace(at + field.size() - 1 - kChecksumDigits, kChecksumDigits, kNoChecksum);
  const uint64_t found = XXH3_64bits(bytes.data(), bytes.size());
  if (found != checksum_) {
    return Corruption(fmt::format("field '__metadata__.checksum': expected {:016x} for {} bytes, "
                                  "found {}; the file is truncated or damaged",
                                  found, bytes.size(), digest));
  }
  const size_t data = kLengthBytes + length;
  ASSIGN_OR_RETURN(const std::vector<SourceTensor> parsed,
                   ParseSafetensorsHeader(std::string_view(bytes).substr(kLengthBytes, length),
                                          bytes.size() - data, "header"));
  for (const SourceTensor& source : parsed) {
    if (source.type != SourceType::kF32 || source.shape.empty()) {
      return InvalidArgument(fmt::format("tensor '{}': expected F32 rows, found {} {}", source.name,
                                         SourceTypeName(source.type), source.ShapeText()));
    }
    Tensor& tensor = tensors_[source.name];
    tensor = {source.shape, std::vector<float>(source.bytes / sizeof(float))};
    std::memcpy(tensor.values.data(), bytes.data() + data + source.offset, source.bytes);
    RETURN_IF_ERROR(CheckValues(source.name, tensor));
  }
  return OkStatus();
}

Status Importance::CheckFits(const ModelConfig& config) const {
  const ImportanceShapes expected = ShapesOfImportance(config);
  const auto bad = [&](const std::string& name, const std::string& wanted,
                       const std::string& found) {
    return InvalidArgument(fmt::format(
        "{}: tensor '{}': expected {}, found {}; it was measured with another model ('{}')",
        path_, name, wanted, found, model));
  };
  for (const auto& [name, shape] : expected) {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) return bad(name, ShapeText(shape), "nothing");
    const std::vector<uint64_t>& other = found->second.shape;
    if (other != shape) return bad(name, ShapeText(shape), ShapeText(other));
  }
  for (const auto& [name, tensor] : tensors_) {
    if (!expected.contains(name)) return bad(name, "nothing", ShapeText(tensor.shape));
  }
  return OkStatus();
}

std::span<const float> Importance::OfExpert(ExpertKey key, bool down) const {
  const auto found = tensors_.find(ImportanceName(key.layer, down));
  CHECK(found != tensors_.end(), "importance of a layer without experts");
  const Tensor& tensor = found->second;
  return std::span(tensor.values).subspan(key.expert.value() * tensor.shape[1], tensor.shape[1]);
}

}  // namespace moraine
