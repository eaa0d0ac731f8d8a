#include <fcntl.h>
#include <simdjson.h>
#include <sys/stat.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cerrno>
#include <cstring>
#include <deque>
#include <filesystem>
#include <map>
#include <set>
#include <unordered_map>

#include "base/bytes.h"
#include "store/checkpoint.h"
#include "store/posix_file.h"

namespace moraine {
namespace {

constexpr char kIndexName[] = "model.safetensors.index.json";
constexpr char kSingleName[] = "model.safetensors";
// The limit of the format's own implementation (safetensors/src/tensor.rs, MAX_HEADER_SIZE).
constexpr uint64_t kMaxHeaderBytes = 100'000'000;
// A config or tokenizer beyond this is not one; the largest published tokenizer.json is 33 MB.
constexpr uint64_t kMaxSmallFileBytes = 256 * kMiB;
// Elements converted at a time: 64 KiB of 16-bit source stays in the second-level cache between the
// kernel's copy and the conversion.
constexpr size_t kConversionElements = 32 * 1024;
// Larger reads tell the kernel the whole range at once, so that it is not fetched in readahead
// windows of 128 KiB.
constexpr uint64_t kReadaheadHintBytes = 256 * kKiB;
// The source is read once: its pages are dropped every time that this much of a file has been read,
// so that importing a model does not fill the machine's page cache. Small models stay cached.
constexpr uint64_t kDropBehindBytes = 64 * kMiB;

float FromBf16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

// Exponent and mantissa moved into place and rebiased by one exact multiplication, which also makes
// subnormals right; infinities and NaNs get the full exponent back.
float FromF16(uint16_t bits) {
  const uint32_t magnitude = static_cast<uint32_t>(bits & 0x7FFF) << 13;
  uint32_t result = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) * 0x1.0p112f);
  if (magnitude >= 0x0F800000) result |= 0x7F800000;
  return std::bit_cast<float>(result | static_cast<uint32_t>(bits & 0x8000) << 16);
}

struct ShardFile {
  std::string name;
  PosixFile file;
  mutable std::atomic<uint64_t> read_bytes{0};
};

class SafetensorsCheckpoint final : public Checkpoint {
 public:
  explicit SafetensorsCheckpoint(std::string directory) : directory_(std::move(directory)) {}

  Status Open();

  const SourceIdentity& identity() const override { return identity_; }
  std::optional<std::string> ReadFile(const std::string& name) const override;
  const std::vector<SourceTensor>& tensors() const override { return tensors_; }
  const SourceTensor* Find(const std::string& name) const override {
    const auto found = by_name_.find(name);
    return found == by_name_.end() ? nullptr : &tensors_[found->second];
  }
  std::string FileOf(const SourceTensor& tensor) const override {
    return files_[tensor.file_index].file.path();
  }
  Status ReadFloats(const SourceTensor& tensor, uint64_t first,
                    std::span<float> destination) const override;

 private:
  // tensor name -> shard, as the index says; empty without an index.
  Result<std::map<std::string, std::string>> ReadIndex() const;
  Status OpenShard(const std::string& name, XXH3_state_t* fingerprint);
  void DropBehind(const ShardFile& shard, uint64_t bytes) const;

  std::string directory_;
  SourceIdentity identity_;
  std::deque<ShardFile> files_;  // a deque: atomics do not move
  std::vector<SourceTensor> tensors_;
  std::unordered_map<std::string, size_t> by_name_;
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

Status SafetensorsCheckpoint::OpenShard(const std::string& name, XXH3_state_t* fingerprint) {
  const std::string path = directory_ + "/" + name;
  ASSIGN_OR_RETURN(PosixFile file, PosixFile::Open(path, O_RDONLY));
  struct stat info;
  if (fstat(file.fd(), &info) != 0) return IoErrorFromErrno("stat " + path, errno);
  const uint64_t file_bytes = static_cast<uint64_t>(info.st_size);
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
  const std::array<uint64_t, 3> attributes = {file_bytes,
                                              static_cast<uint64_t>(info.st_mtim.tv_sec),
                                              static_cast<uint64_t>(info.st_mtim.tv_nsec)};
  XXH3_64bits_update(fingerprint, name.data(), name.size() + 1);
  XXH3_64bits_update(fingerprint, attributes.data(), sizeof(attributes));
  XXH3_64bits_update(fingerprint, header.data(), header.size());
  for (SourceTensor& tensor : tensors) {
    tensor.file_index = static_cast<uint32_t>(files_.size());
    tensor.offset += 8 + header_bytes;
    const auto [entry, inserted] = by_name_.emplace(tensor.name, tensors_.size());
    if (!inserted) {
      return Corruption(path + ": tensor '" + tensor.name + "' is also in " +
                        FileOf(tensors_[entry->second]));
    }
    tensors_.push_back(std::move(tensor));
  }
  ShardFile& shard = files_.emplace_back();
  shard.name = name;
  shard.file = std::move(file);
  return OkStatus();
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

  XXH3_state_t* fingerprint = XXH3_createState();
  XXH3_64bits_reset(fingerprint);
  Status status;
  for (const std::string& shard : shards) {
    status = OpenShard(shard, fingerprint);
    if (!status.ok()) break;
  }
  identity_.format = "safetensors";
  std::filesystem::path path = std::filesystem::absolute(directory_, error).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();  // "models/demo/"
  identity_.description = path.filename().string();
  identity_.fingerprint = XXH3_64bits_digest(fingerprint);
  XXH3_freeState(fingerprint);
  if (status.code() == StatusCode::kNotFound) {
    return shard_of.empty()
               ? NotFound(directory_ + ": neither " + kIndexName + " nor " + kSingleName)
               : NotFound(status.message() + "; " + kIndexName + " names it as a shard");
  }
  RETURN_IF_ERROR(status);
  for (const auto& [name, shard] : shard_of) {
    const SourceTensor* tensor = Find(name);
    if (tensor == nullptr || files_[tensor->file_index].name != shard) {
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

void SafetensorsCheckpoint::DropBehind(const ShardFile& shard, uint64_t bytes) const {
  // Relaxed: only a counter, nothing is published through it.
  const uint64_t before = shard.read_bytes.fetch_add(bytes, std::memory_order_relaxed);
  if (before / kDropBehindBytes != (before + bytes) / kDropBehindBytes) shard.file.DropCache(0, 0);
}

Status SafetensorsCheckpoint::ReadFloats(const SourceTensor& tensor, uint64_t first,
                                         std::span<float> destination) const {
  const uint32_t type_bytes = SourceTypeBytes(tensor.type);
  CHECK(first + destination.size() <= tensor.bytes / type_bytes, tensor.name);
  const ShardFile& shard = files_[tensor.file_index];
  const uint64_t offset = tensor.offset + first * type_bytes;
  const uint64_t bytes = destination.size() * type_bytes;
  if (bytes >= kReadaheadHintBytes) {
    (void)posix_fadvise(shard.file.fd(), static_cast<off_t>(offset), static_cast<off_t>(bytes),
                        POSIX_FADV_WILLNEED);
  }
  const auto context = [&](const Status& status) {
    return status.WithContext("tensor '" + tensor.name + "'");
  };
  if (tensor.type == SourceType::kF32) {
    const Status status = shard.file.ReadAt(offset, std::as_writable_bytes(destination));
    if (!status.ok()) return context(status);
  } else {
    std::array<uint16_t, kConversionElements> chunk;
    for (size_t done = 0; done < destination.size();) {
      const size_t count = std::min(chunk.size(), destination.size() - done);
      const Status status = shard.file.ReadAt(
          offset + done * 2, std::as_writable_bytes(std::span(chunk.data(), count)));
      if (!status.ok()) return context(status);
      float* out = destination.data() + done;
      if (tensor.type == SourceType::kBf16) {
        for (size_t i = 0; i < count; ++i) out[i] = FromBf16(chunk[i]);
      } else {
        for (size_t i = 0; i < count; ++i) out[i] = FromF16(chunk[i]);
      }
      done += count;
    }
  }
  DropBehind(shard, bytes);
  return OkStatus();
}

}  // namespace

Result<std::unique_ptr<Checkpoint>> OpenSafetensors(const std::string& directory) {
  auto checkpoint = std::make_unique<SafetensorsCheckpoint>(directory);
  RETURN_IF_ERROR(checkpoint->Open());
  return std::unique_ptr<Checkpoint>(std::move(checkpoint));
}

}  // namespace moraine
