#include "store/manifest.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>

namespace moraine {
namespace {

using Json = nlohmann::ordered_json;

// 64-bit digests as hexadecimal text: JSON readers elsewhere keep only 53 bits of a number.
std::string Hex(uint64_t value) {
  char text[17];
  std::snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(value));
  return text;
}

// Reads fields of one JSON object; remembers the first thing that is wrong.
class FieldReader {
 public:
  FieldReader(const Json& object, std::string path, Status* status)
      : object_(object), path_(std::move(path)), status_(status) {
    if (!object_.is_object()) Fail(path_, "an object", object_.type_name());
  }

  std::string String(const char* name) const {
    const Json* value = Member(name, "a string");
    if (value == nullptr) return {};
    if (!value->is_string()) return Fail(path_ + name, "a string", value->type_name()), "";
    return value->get_ref<const std::string&>();
  }
  uint64_t Unsigned(const char* name, uint64_t max = UINT64_MAX) const {
    const Json* value = Member(name, "an unsigned integer");
    if (value == nullptr) return 0;
    if (!value->is_number_unsigned() || value->get<uint64_t>() > max) {
      return Fail(path_ + name, "an unsigned integer up to " + std::to_string(max),
                  value->is_number() ? value->dump() : value->type_name()),
             0;
    }
    return value->get<uint64_t>();
  }
  uint32_t Unsigned32(const char* name) const {
    return static_cast<uint32_t>(Unsigned(name, UINT32_MAX));
  }
  uint64_t Digest(const char* name) const {
    const std::string text = String(name);
    uint64_t value = 0;
    const auto parsed = std::from_chars(text.data(), text.data() + text.size(), value, 16);
    if (status_->ok() && (parsed.ec != std::errc() || parsed.ptr != text.data() + text.size())) {
      Fail(path_ + name, "16 hexadecimal digits", "'" + text + "'");
    }
    return value;
  }
  // An array or an object; an empty value after an error.
  const Json& Container(const char* name, bool array) const {
    static const Json kEmpty = Json::array();
    const char* expected = array ? "an array" : "an object";
    const Json* value = Member(name, expected);
    if (value == nullptr) return kEmpty;
    if (array ? !value->is_array() : !value->is_object()) {
      Fail(path_ + name, expected, value->type_name());
      return kEmpty;
    }
    return *value;
  }

 private:
  const Json* Member(const char* name, const char* expected) const {
    if (!status_->ok()) return nullptr;
    const auto found = object_.find(name);
    if (found != object_.end()) return &*found;
    Fail(path_ + name, expected, "nothing");
    return nullptr;
  }
  void Fail(const std::string& field, const std::string& expected, const std::string& found) const {
    if (!status_->ok()) return;
    *status_ =
        Corruption("manifest: field '" + field + "': expected " + expected + ", found " + found);
  }

  const Json& object_;
  std::string path_;
  Status* status_;
};

LayerManifest ReadLayer(const FieldReader& reader) {
  LayerManifest layer;
  layer.expert_count = reader.Unsigned32("expert_count");
  layer.record_bytes = reader.Unsigned("record_bytes");
  layer.gate_up_encoding = reader.String("gate_up_encoding");
  layer.down_encoding = reader.String("down_encoding");
  layer.hidden = reader.Unsigned32("hidden");
  layer.intermediate = reader.Unsigned32("intermediate");
  return layer;
}

DenseTensor ReadDenseTensor(const FieldReader& reader) {
  DenseTensor tensor;
  tensor.name = reader.String("name");
  tensor.encoding = reader.String("encoding");
  tensor.rows = reader.Unsigned32("rows");
  tensor.cols = reader.Unsigned32("cols");
  tensor.offset = reader.Unsigned("offset");
  tensor.bytes = reader.Unsigned("bytes");
  tensor.checksum = reader.Digest("checksum");
  return tensor;
}

Status CheckVersion(const Json& root) {
  Status status;
  const uint64_t version = FieldReader(root, "", &status).Unsigned("format_version");
  RETURN_IF_ERROR(status);
  if (version == kStoreFormatVersion) return OkStatus();
  return Unsupported("manifest: store format " + std::to_string(version) +
                     ", but this program reads format " + std::to_string(kStoreFormatVersion));
}

}  // namespace

uint64_t Manifest::expert_count() const {
  uint64_t count = 0;
  for (const LayerManifest& layer : layers) count += layer.expert_count;
  return count;
}

uint64_t Manifest::expert_bytes() const {
  uint64_t bytes = 0;
  for (const LayerManifest& layer : layers) bytes += layer.expert_count * layer.record_bytes;
  return bytes;
}

uint64_t Manifest::max_record_bytes() const {
  uint64_t bytes = 0;
  for (const LayerManifest& layer : layers) {
    if (layer.expert_count > 0) bytes = std::max(bytes, layer.record_bytes);
  }
  return bytes;
}

std::string Manifest::ToJson() const {
  Json root;
  root["format_version"] = format_version;
  root["store_uuid"] = store_uuid;
  root["created_by"] = created_by;
  root["source"] = {{"format", source.format},
                    {"description", source.description},
                    {"fingerprint", Hex(source.fingerprint)}};
  root["model_config"] = model_config;
  root["layers"] = Json::array();
  for (const LayerManifest& layer : layers) {
    root["layers"].push_back({{"expert_count", layer.expert_count},
                              {"record_bytes", layer.record_bytes},
                              {"gate_up_encoding", layer.gate_up_encoding},
                              {"down_encoding", layer.down_encoding},
                              {"hidden", layer.hidden},
                              {"intermediate", layer.intermediate}});
  }
  root["dense"] = Json::array();
  for (const DenseTensor& tensor : dense) {
    root["dense"].push_back({{"name", tensor.name},
                             {"encoding", tensor.encoding},
                             {"rows", tensor.rows},
                             {"cols", tensor.cols},
                             {"offset", tensor.offset},
                             {"bytes", tensor.bytes},
                             {"checksum", Hex(tensor.checksum)}});
  }
  root["dense_pack_bytes"] = dense_pack_bytes;
  root["notes"] = notes;
  root["files"] = Json::object();
  for (const auto& [name, contents] : files) root["files"][name] = contents;
  // Names and files come from outside and may not be UTF-8, which dump() would throw for.
  return root.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Result<Manifest> Manifest::FromJson(const std::string& json) {
  const Json root = Json::parse(json, nullptr, /*allow_exceptions=*/false);
  if (root.is_discarded()) return Corruption("manifest: not JSON");
  RETURN_IF_ERROR(CheckVersion(root));
  Status status;
  Manifest manifest;
  const FieldReader reader(root, "", &status);
  manifest.store_uuid = reader.String("store_uuid");
  manifest.created_by = reader.String("created_by");
  const FieldReader source(reader.Container("source", false), "source.", &status);
  manifest.source.format = source.String("format");
  manifest.source.description = source.String("description");
  manifest.source.fingerprint = source.Digest("fingerprint");
  manifest.model_config = reader.String("model_config");
  for (const Json& layer : reader.Container("layers", true)) {
    const std::string path = "layers[" + std::to_string(manifest.layers.size()) + "].";
    manifest.layers.push_back(ReadLayer(FieldReader(layer, path, &status)));
  }
  for (const Json& tensor : reader.Container("dense", true)) {
    const std::string path = "dense[" + std::to_string(manifest.dense.size()) + "].";
    manifest.dense.push_back(ReadDenseTensor(FieldReader(tensor, path, &status)));
  }
  manifest.dense_pack_bytes = reader.Unsigned("dense_pack_bytes");
  for (const Json& note : reader.Container("notes", true)) {
    if (!note.is_string()) return Corruption("manifest: field 'notes': expected strings");
    manifest.notes.push_back(note.get<std::string>());
  }
  const Json& files = reader.Container("files", false);
  for (const auto& [name, contents] : files.items()) {
    if (!contents.is_string()) {
      return Corruption("manifest: field 'files." + name + "': expected a string, found " +
                        contents.type_name());
    }
    manifest.files[name] = contents.get<std::string>();
  }
  RETURN_IF_ERROR(status);
  return manifest;
}

}  // namespace moraine
