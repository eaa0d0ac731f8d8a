#include "store/file_checkpoint.h"

#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "base/check.h"

namespace moraine {
namespace {

// Where elements [first, first + count) of a tensor lie; CHECKs that they are whole blocks of it.
struct ByteRange {
  uint64_t offset, bytes;
};
ByteRange RangeOf(const SourceTensor& tensor, uint64_t first, uint64_t count) {
  const uint32_t block = BlockOf(tensor.type).elements;
  CHECK(first % block == 0 && count % block == 0, tensor.name);
  const ByteRange range = {SourceBytes(tensor.type, first), SourceBytes(tensor.type, count)};
  CHECK(range.offset + range.bytes <= tensor.bytes, tensor.name);
  return {tensor.offset + range.offset, range.bytes};
}

}  // namespace

FileCheckpoint::FileCheckpoint() : fingerprint_(XXH3_createState(), XXH3_freeState) {
  CHECK(fingerprint_ != nullptr, "out of memory");
  XXH3_64bits_reset(fingerprint_.get());
}

const SourceTensor* FileCheckpoint::Find(const std::string& name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : &tensors_[found->second];
}

std::string FileCheckpoint::FileOf(const SourceTensor& tensor) const {
  return files_[tensor.file_index].file.path();
}

Status FileCheckpoint::AddFile(std::string name, PosixFile file, std::string_view header,
                               std::vector<SourceTensor> tensors) {
  struct stat info;
  if (fstat(file.fd(), &info) != 0) return IoErrorFromErrno("stat " + file.path(), errno);
  const std::array<uint64_t, 3> attributes = {static_cast<uint64_t>(info.st_size),
                                              static_cast<uint64_t>(info.st_mtim.tv_sec),
                                              static_cast<uint64_t>(info.st_mtim.tv_nsec)};
  XXH3_64bits_update(fingerprint_.get(), name.c_str(), name.size() + 1);
  XXH3_64bits_update(fingerprint_.get(), attributes.data(), sizeof(attributes));
  XXH3_64bits_update(fingerprint_.get(), header.data(), header.size());
  for (SourceTensor& tensor : tensors) {
    tensor.file_index = static_cast<uint32_t>(files_.size());
    const auto [entry, inserted] = by_name_.emplace(tensor.name, tensors_.size());
    if (!inserted) {
      return Corruption(file.path() + ": tensor '" + tensor.name + "' is also in " +
                        FileOf(tensors_[entry->second]));
    }
    tensors_.push_back(std::move(tensor));
  }
  files_.emplace_back(std::move(name), std::move(file));
  return OkStatus();
}

void FileCheckpoint::Identify(const char* format, const std::string& path) {
  std::error_code ignored;
  std::filesystem::path clean = std::filesystem::absolute(path, ignored).lexically_normal();
  if (!clean.has_filename()) clean = clean.parent_path();  // "models/demo/"
  identity_.format = format;
  identity_.description = clean.filename().string();
  identity_.fingerprint = XXH3_64bits_digest(fingerprint_.get());
}

int64_t FileCheckpoint::reading_ns() const {
  int64_t sum = 0;
  for (const SourceFile& file : files_) sum += file.file.reading_ns();
  return sum;
}

Status FileCheckpoint::ReadFloats(const SourceTensor& tensor, uint64_t first,
                                  std::span<float> destination) const {
  const ByteRange range = RangeOf(tensor, first, destination.size());
  const SourceFile& file = files_[tensor.file_index];
  const SourceTypeInfo& type = InfoOf(tensor.type);
  CHECK(type.decode != nullptr, tensor.name + " is " + type.name);
  const SourceBlock block = type.block;
  float* out = destination.data();
  const Status status = file.file.ReadPieces(
      range.offset, range.bytes, block.bytes, [&](std::span<const std::byte> piece) {
        const uint64_t blocks = piece.size() / block.bytes;
        type.decode(piece.data(), blocks, out);
        out += blocks * block.elements;
      });
  return status.ok() ? status : status.WithContext("tensor '" + tensor.name + "'");
}

Status FileCheckpoint::ReadBlocks(const SourceTensor& tensor, uint64_t first,
                                  std::span<std::byte> destination) const {
  const uint64_t count =
      destination.size() / BlockOf(tensor.type).bytes * BlockOf(tensor.type).elements;
  const ByteRange range = RangeOf(tensor, first, count);
  CHECK(range.bytes == destination.size(), tensor.name);
  const SourceFile& file = files_[tensor.file_index];
  std::byte* out = destination.data();
  const Status status = file.file.ReadPieces(
      range.offset, range.bytes, BlockOf(tensor.type).bytes, [&](std::span<const std::byte> piece) {
        std::memcpy(out, piece.data(), piece.size());
        out += piece.size();
      });
  return status.ok() ? status : status.WithContext("tensor '" + tensor.name + "'");
}

}  // namespace moraine
