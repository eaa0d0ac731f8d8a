// FileCheckpoint: what checkpoints in files have in common, whatever their format: tensors by name,
// positional reads converted to float32, and a fingerprint of the files.
//
// The source is read once: its pages are dropped every 64 MiB of a file, so that importing a model
// does not fill the machine's page cache.
#pragma once

#include <xxhash.h>

#include <atomic>
#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "store/checkpoint.h"
#include "store/posix_file.h"

namespace moraine {

// Thread-safe after opening.
class FileCheckpoint : public Checkpoint {
 public:
  const SourceIdentity& identity() const override { return identity_; }
  const std::vector<SourceTensor>& tensors() const override { return tensors_; }
  const SourceTensor* Find(const std::string& name) const override;
  std::string FileOf(const SourceTensor& tensor) const override;
  Status ReadFloats(const SourceTensor& tensor, uint64_t first,
                    std::span<float> destination) const override;
  Status ReadBlocks(const SourceTensor& tensor, uint64_t first,
                    std::span<std::byte> destination) const override;

 protected:
  FileCheckpoint();

  // Takes the file over with the tensors in it, whose offsets are from its start. `header` and the
  // file's name, size and time go into the fingerprint. kCorruption if a tensor is already there.
  Status AddFile(std::string name, PosixFile file, std::string_view header,
                 std::vector<SourceTensor> tensors);
  // After the last AddFile. `path` is where the user found it: its last component is the
  // description.
  void Identify(const char* format, const std::string& path);
  // As given to AddFile.
  const std::string& NameOfFile(const SourceTensor& tensor) const {
    return files_[tensor.file_index].name;
  }

 private:
  struct SourceFile {
    std::string name;
    PosixFile file;
    mutable std::atomic<uint64_t> read_bytes{0};
  };
  void AdviseRead(const SourceFile& file, uint64_t offset, uint64_t bytes) const;
  void DropBehind(const SourceFile& file, uint64_t bytes) const;

  SourceIdentity identity_;
  std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> fingerprint_;
  std::deque<SourceFile> files_;  // a deque: atomics do not move
  std::vector<SourceTensor> tensors_;
  std::unordered_map<std::string, size_t> by_name_;
};

}  // namespace moraine
