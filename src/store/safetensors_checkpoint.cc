#include <fcntl.h>
#include <simdjson.h>

#include <filesystem>
#include <map>
#include <set>

#include "base/bytes.h"
#include "store/file_checkpoint.h"
#include "store/posix_file.h"

namespace moraine {
namespace {

constexpr char kIndexName[] = "model.safetensors.index.json";
constexpr char kSingleName[] = "model.safetensors";
// The limit of the format's own implementation (safetensors/src/tensor.rs, MAX_HEADER_SIZE).
constexpr uint64_t kMaxHeaderBytes = 100'000'000;
// A config or tokenizer beyond this is not one; the largest published tokenizer.json is 33 MB.
constexpr uint64_t kMaxSmallFileBytes = 256 * kMiB;

class SafetensorsCheckpoint final : public FileCheckpoint {
 public:
  explicit SafetensorsCheckpoint(std::string directory) : directory_(std::move(directory)) {}

  Status Open();

  std::optional<std::string> ReadFile(const std::string& name) const override;

 private:
  // tensor name -> shard, as the index says; empty without an index.
  Result<std::map<std::string, std::string>> ReadIndex() const;
  Status OpenShard(const std::string& name);

  std::string directory_;
};

Result<std::map<std::string, std::string>> SafetensorsCheckpoint::ReadIndex() const {
  const std::string path = directory_ + "/" + kIndexName;
  std::map<std::string, std::string> shard_of;
  Result<std::string> text = ReadWholeFile(path);
  if (!text.ok()) {
    if (text.status().code() == StatusCode::kNotFound) return shard_of;
    return text.status();
  }
  simdjson::dom::parser parser;
  simdjson::dom::object root, weight_map;
  if (const auto error = parser.parse(*text).get(root); error != simdjson::SUCCESS) {
    return Corruption(path + ": not a JSON object: " + simdjson::error_message(error));
  }
  if (root["weight_map"].get(weight_map) != simdjson::SUCCESS || weight_map.size() == 0) {
    return Corruption(path + ": field 'weight_map' is missing, empty or not an object");
  }
  for (const auto field : weight_map) {
    std::string_view shard;
    if (field.value.get(shard) != simdjson::SUCCESS) {
      return Corruption(path + ": weight_map['" + std::string(field.key) +
                        "'] is not a file name");
    }
    if (shard.empty() || shard.find('/') != std::string_view::npos || shard == "..") {
      return Corruption(path + ": weight_map['" + std::string(field.key) + "'] is '" +
                        std::string(shard) + "', expected a file name without a directory");
    }
    if (!shard_of.emplace(field.key, shard).second) {
      return Corruption(path + ": tensor '" + std::string(field.key) +
                        "' is there twice in weight_map");
    }
  }
  return shard_of;
}

Status SafetensorsCheckpoint::OpenShard(const std::string& name) {
  const std::string path = directory_ + "/" + name;
  ASSIGN_OR_RETURN(PosixFile file, PosixFile::Open(path, O_RDONLY));
  ASSIGN_OR_RETURN(const uint64_t file_bytes, file.Size());
  if (file_bytes < 8) {
    return Corruption(path + ": " + std::to_string(file_bytes) +
                      " bytes, too short for the header length of a safetensors file");
  }
  uint64_t header_bytes = 0;  // little-endian, as every machine this runs on
  RETURN_IF_ERROR(file.ReadAt(0, std::as_writable_bytes(std::span(&header_bytes, 1))));
  if (header_bytes > file_bytes - 8 || header_bytes > kMaxHeaderBytes) {
    return Corruption(path + ": header length is " + std::to_string(header_bytes) +
                      ", but the file has " + std::to_string(file_bytes) +
                      " bytes and headers at most " + std::to_string(kMaxHeaderBytes));
  }
  std::string header(header_bytes, '\0');
  RETURN_IF_ERROR(file.ReadAt(8, std::as_writable_bytes(std::span(header))));
  ASSIGN_OR_RETURN(std::vector<SourceTensor> tensors,
                   ParseSafetensorsHeader(header, file_bytes - 8 - header_bytes, path));
  for (SourceTensor& tensor : tensors) tensor.offset += 8 + header_bytes;
  return AddFile(name, std::move(file), header, std::move(tensors));
}

Status SafetensorsCheckpoint::Open() {
  std::error_code error;
  if (!std::filesystem::is_directory(directory_, error)) {
    return NotFound(directory_ + ": no such directory");
  }
  ASSIGN_OR_RETURN(const auto shard_of, ReadIndex());
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : shard_of) shards.insert(shard);
  if (shards.empty()) shards.insert(kSingleName);

  Status status;
  for (const std::string& shard : shards) {
    status = OpenShard(shard);
    if (!status.ok()) break;
  }
  Identify("safetensors", directory_);
  if (status.code() == StatusCode::kNotFound) {
    return shard_of.empty()
               ? NotFound(directory_ + ": neither " + kIndexName + " nor " + kSingleName)
               : NotFound(status.message() + "; " + kIndexName + " names it as a shard");
  }
  RETURN_IF_ERROR(status);
  for (const auto& [name, shard] : shard_of) {
    const SourceTensor* tensor = Find(name);
    if (tensor == nullptr || NameOfFile(*tensor) != shard) {
      return Corruption(directory_ + "/" + shard + ": has no tensor '" + name + "', which " +
                        kIndexName + " says it has");
    }
  }
  return OkStatus();
}

std::optional<std::string> SafetensorsCheckpoint::ReadFile(const std::string& name) const {
  const std::string path = directory_ + "/" + name;
  std::error_code error;
  const uint64_t bytes = std::filesystem::file_size(path, error);
  if (error || bytes > kMaxSmallFileBytes) return std::nullopt;
  Result<std::string> contents = ReadWholeFile(path);
  if (!contents.ok()) return std::nullopt;
  return std::move(contents).value();
}

}  // namespace

Result<std::unique_ptr<Checkpoint>> OpenSafetensors(const std::string& directory) {
  auto checkpoint = std::make_unique<SafetensorsCheckpoint>(directory);
  RETURN_IF_ERROR(checkpoint->Open());
  return std::unique_ptr<Checkpoint>(std::move(checkpoint));
}

}  // namespace moraine
