// PosixFile: an owned file descriptor with whole-range reads and writes, and the two syncs that the
// store's crash safety rests on.
//
// Why not <fstream>: it has neither fdatasync nor positional reads from several threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

#include "base/status.h"

namespace moraine {

// Reads and writes are positional, so one PosixFile may be used from several threads.
class PosixFile {
 public:
  PosixFile() = default;
  ~PosixFile();
  PosixFile(PosixFile&& other) noexcept
      : fd_(std::exchange(other.fd_, -1)), path_(std::move(other.path_)) {}
  PosixFile& operator=(PosixFile&& other) noexcept;

  // flags as for open(2); O_CLOEXEC is added. kNotFound if there is no such file.
  static Result<PosixFile> Open(const std::string& path, int flags);

  bool is_open() const { return fd_ >= 0; }
  int fd() const { return fd_; }
  const std::string& path() const { return path_; }
  Result<uint64_t> Size() const;
  // All of destination, or an error: kCorruption at end of file, with offset, expected, found sizes.
  Status ReadAt(uint64_t offset, std::span<std::byte> destination) const;
  // All of source, or an error; kResourceExhausted when disk, quota or file size limit is reached.
  Status WriteAt(uint64_t offset, std::span<const std::byte> source) const;
  Status Truncate(uint64_t bytes) const;
  // Data, and the metadata needed to find it, are on the device when this returns.
  Status SyncData() const;
  // Hints; failures do not matter.
  void StartWriteback(uint64_t offset, uint64_t bytes) const;
  void DropCache(uint64_t offset, uint64_t bytes) const;  // bytes 0: to the end

 private:
  int fd_ = -1;
  std::string path_;
};

// Makes created and renamed names in a directory durable.
Status SyncDirectory(const std::string& path);
// A whole small file.
Result<std::string> ReadWholeFile(const std::string& path);

}  // namespace moraine
