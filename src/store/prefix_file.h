// PrefixFile: blocks of keys and values on disk, where prompts of later processes find them.
//
//   header page     4 KiB: text that says what the file is, of which model, and how large a block is
//   slot 0          4 KiB: serial, parent, tokens, checksums; then the payload, padded to 4 KiB
//   slot 1          ...
//
// All blocks of a model have one size, so the file is slots of that size and a budget is a number of slots:
// nothing is compacted, and what is dropped is overwritten. RocksDB or a file a block would cost a second
// write of every byte or a directory of thousands of names, and neither can tell a half-written block from a
// whole one better than its checksum does.
//
// A block is written with one call and never synced. Kill and power failure leave some slots that do not
// have the checksums in their heads; they are free to the next process. Nothing here is the only copy of
// anything.
//
// A block is known by its serial, which no other block of the file ever had, and names the block before it by
// that one's serial: a block whose tokens and parents have been compared cannot be mistaken for another.
//
// Threads: thread-compatible; Read and Write of different slots from several.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "memory/host_arena.h"
#include "store/posix_file.h"

namespace moraine {

struct PrefixFileOptions {
  std::string directory;  // made if it is not there, in a directory that is
  // Model, format of keys and values, and all else that decides about their bits; one line. Each has a
  // file of its own.
  std::string identity;
  uint32_t block_tokens = 0;
  uint64_t payload_bytes = 0;  // of a block
  uint64_t budget_bytes = 0;   // of the file
};

class PrefixFile {
 public:
  // In front of the payload, in a slot as in a buffer.
  static constexpr uint64_t kHeadBytes = 4096;
  static uint64_t SlotBytes(uint64_t payload_bytes);
  static uint32_t SlotCount(uint64_t payload_bytes, uint64_t budget_bytes);

  struct Block {
    uint64_t serial = 0;  // of the parent lower than of the child
    uint64_t parent = 0;  // serial; 0: the first of a prompt
    std::vector<int32_t> tokens;
  };
  struct Found {
    uint32_t slot = 0;
    Block block;
  };

  // Opens or makes DIRECTORY/prefix-HASH.kv. found: what its slots say they have, by serial. Slots beyond the
  // budget are cut off; a file that is not one of these begins anew. kInvalidArgument: the budget has no
  // room for a block. kFailedPrecondition: another process has it, or it is another model's, naming both.
  static Result<std::unique_ptr<PrefixFile>> Open(const PrefixFileOptions& options,
                                                  std::vector<Found>* found);

  const std::string& path() const { return file_.path(); }
  uint32_t slot_count() const { return slot_count_; }
  uint64_t slot_bytes() const { return slot_bytes_; }

  // buffer: slot_bytes(), 4 KiB-aligned, with the payload behind kHeadBytes; the head is filled in.
  // kResourceExhausted: no room on the disk.
  Status Write(uint32_t slot, const Block& block, std::span<std::byte> buffer) const;
  // The payload comes behind kHeadBytes. kCorruption, naming file and offset, unless slot has this very block.
  Status Read(uint32_t slot, const Block& block, std::span<std::byte> buffer) const;

 private:
  PrefixFile() = default;
  Status OpenFile(const std::string& path);
  Status CheckHeader(const std::string& identity);
  void Scan(std::vector<Found>* found) const;
  uint64_t OffsetOf(uint32_t slot) const { return kHeadBytes + slot * slot_bytes_; }

  PosixFile file_;
  uint32_t block_tokens_ = 0, slot_count_ = 0;
  uint64_t payload_bytes_ = 0, slot_bytes_ = 0;
};

}  // namespace moraine
