// MirroredReader: a BlockReader over files that exist on several drives. Each read goes to the copy
// whose drive would be through with it first; one that fails there is read from another copy before
// anybody hears of it.
//
// "First" is (bytes in flight on the drive + bytes of this read) / weight: with equal weights, the
// drive with the fewest bytes in flight. Equals go to the higher weight, then to the earlier copy.
// Bytes and not latencies, because they are known at once and are the same in a replay.
//
// Why below ReadScheduler and not in it: the choice is made anew for every chunk, so that even one
// record keeps both drives busy, and queues, deadlines and leases need not know that there are two.
// The one thing that comes down from above is BlockRead::copy: after a wrong checksum, which no drive
// reports, the whole record has to come from one copy, and then from the other.
//
//   a read: Submit -> on copy A -> bytes ---------------------------------> completion
//                             |                  (healed: counted for A)        ^
//                             +--- error, nothing read -> on copy B -> bytes ---+
//                                                                +---- error ---+  (no copy left)
//
// A drive whose reads all fail is always idle and would be asked first every time. After
// kSuspectErrors errors in a row it is asked only when no other copy is left, and once in
// kProbeInterval reads, to notice that it is back. A drive that hangs is not helped: the buffer is
// under its DMA until it answers (ReadScheduler's deadline fails the request).
//
// Costs: a table as large as the inner reader's capacity; nothing is allocated after the files are
// open but log messages. Threads: as BlockReader.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "io/block_reader.h"

namespace moraine {

struct DriveStats {
  std::string directory;
  uint64_t reads = 0, bytes = 0;  // that it delivered
  uint64_t errors = 0;            // reads that it failed; nothing read counts as such
  uint64_t healed = 0;            // of these, delivered by another copy at once
};

class MirroredReader final : public BlockReader {
 public:
  struct Drive {
    std::string directory;  // for messages and statistics
    uint32_t weight = 1;    // bandwidth, relative to the others'
  };
  struct Copy {
    std::string path;
    uint32_t drive = 0;  // index into the constructor's drives
  };
  static constexpr uint32_t kSuspectErrors = 8;
  static constexpr uint32_t kProbeInterval = 256;

  MirroredReader(std::unique_ptr<BlockReader> inner, const std::vector<Drive>& drives);
  ~MirroredReader() override;

  // One file for the caller, whose alignment suits every copy and whose path names all of them. The
  // bytes of the copies are the same; which is copy 0 matters to BlockRead::copy alone.
  Result<FileId> OpenCopies(const std::vector<Copy>& copies);
  const std::vector<DriveStats>& drive_stats() const { return stats_; }

  Result<FileId> OpenFile(const std::string& path) override;  // only one copy, on drive 0
  IoAlignment alignment(FileId file) const override { return At(file).alignment; }
  const std::string& path(FileId file) const override { return At(file).path; }
  Status RegisterBuffers(std::span<const std::span<std::byte>> buffers) override {
    return inner_->RegisterBuffers(buffers);
  }
  void UnregisterBuffer(std::span<std::byte> buffer) override { inner_->UnregisterBuffer(buffer); }
  uint32_t capacity() const override { return inner_->capacity(); }
  uint32_t in_flight() const override { return inner_->in_flight(); }
  void Submit(std::span<const BlockRead> reads) override;
  void Cancel(uint64_t tag) override;
  // wait_ns > 0 may end early with nothing when a read has gone to another copy.
  size_t Reap(std::vector<BlockCompletion>* completions, int64_t wait_ns) override;
  const char* name() const override { return inner_->name(); }
  std::string configuration() const override { return inner_->configuration(); }

 private:
  struct FileCopy {
    FileId file;  // the inner reader's
    uint32_t drive = 0;
  };
  struct File {
    std::string path;
    IoAlignment alignment;
    std::vector<FileCopy> copies;
  };
  struct DriveState {
    uint32_t weight = 1;
    uint64_t in_flight_bytes = 0;
    uint32_t errors_in_a_row = 0;
    uint32_t passed_over = 0;  // reads that went elsewhere since, while suspect
  };
  // A read that is with the inner reader, under the entry's index as its tag.
  struct Entry {
    BlockRead read;
    uint32_t copy = 0;   // that is being read
    uint32_t tried = 0;  // bit c: copy c has failed
    int32_t error = 0;   // the lowest result of those: -errno before "nothing read"
    bool active = false, cancelled = false;
  };

  const File& At(FileId file) const {
    CHECK(file.value() < files_.size(), "unknown file id");
    return files_[file.value()];
  }
  bool IsPassedOver(DriveState* drive);
  uint32_t Choose(const File& file, const BlockRead& read, uint32_t tried);
  void Issue(uint32_t entry_index);
  bool Land(const BlockCompletion& landed, BlockCompletion* completion);
  void CountError(const Entry& entry, int32_t result);

  const std::unique_ptr<BlockReader> inner_;
  std::vector<DriveState> drives_;
  std::vector<DriveStats> stats_;
  std::vector<File> files_;
  std::vector<Entry> entries_;
  std::vector<uint32_t> free_entries_;
  std::vector<BlockRead> batch_;
  std::vector<BlockCompletion> landed_;
};

}  // namespace moraine
