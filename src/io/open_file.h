// OpenFileTable: the files of a reader, opened O_DIRECT where the file system has it.
//
// Shared by the io_uring and the pread reader, so that both refuse and fall back alike. Buffered
// reads are only ever a fallback: they copy every byte once more and let the page cache compete
// with the expert slots for the same memory.
#pragma once

#include <string>
#include <vector>

#include "io/block_reader.h"

namespace moraine {

// Owns the descriptors. Thread-compatible.
class OpenFileTable {
 public:
  OpenFileTable() = default;
  ~OpenFileTable();
  OpenFileTable(const OpenFileTable&) = delete;
  OpenFileTable& operator=(const OpenFileTable&) = delete;

  // direct: try O_DIRECT; where the file system refuses it, one log line and a buffered descriptor.
  // kNotFound for a missing file, kIoError otherwise.
  Result<FileId> Open(const std::string& path, bool direct);

  size_t count() const { return files_.size(); }
  int descriptor(FileId file) const { return At(file).descriptor; }
  IoAlignment alignment(FileId file) const { return At(file).alignment; }
  const std::string& path(FileId file) const { return At(file).path; }

 private:
  struct File {
    int descriptor = -1;
    IoAlignment alignment;
    std::string path;
  };
  const File& At(FileId file) const;

  std::vector<File> files_;
};

}  // namespace moraine
