// FileCheckpoint: what checkpoints in files have in common, whatever their format: tensors by name,
// positional reads converted to float32, and a fingerprint of the files.
//
// The source is read once, past the page cache where it can be (bulk_file.h), so that importing a model does not
// fill it.
#pragma once

#include <xxhash.h>

#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "store/bulk_file.h"
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
  int64_t reading_ns() const override;

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
    SourceFile(std::string file_name, PosixFile posix)
        : name(std::move(file_name)), file(std::move(posix), BulkFile::Access::kRead) {}
    std::string name;
    BulkFile file;
  };

  SourceIdentity identity_;
  std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> fingerprint_;
  std::deque<SourceFile> files_;  // a deque: they do not move
  std::vector<SourceTensor> tensors_;
  std::unordered_map<std::string, size_t> by_name_;
};

}  // namespace moraine
