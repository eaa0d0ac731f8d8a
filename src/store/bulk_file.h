// BulkFile: a file of which every byte is read or written once, in large pieces, past the page cache.
//
// An import moves a whole model. Through the page cache each byte is copied once more, each 4 KiB costs a page
// that is found, mapped into the cache and given back, and what the machine had cached before is gone: of 23 CPU
// seconds of a 10 GB import 13.5 were the kernel's. So large pieces go by O_DIRECT. The buffered descriptor takes
// what is small or not aligned, file systems without O_DIRECT, whatever a direct transfer left undone (it then
// knows the error's words, too), and reads of what the page cache has already, which mincore(2) tells: a
// checkpoint that was downloaded a minute ago.
//
// Why not io_uring: nothing here is waited for by somebody, so threads that wait for one piece each keep a
// drive's queue as full (Import runs more of them than there are CPUs). A piece of 1 MiB stays in the
// second-level cache while it is consumed.
//
// Threads: thread-safe; each thread that reads has a buffer of one piece.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <span>

#include "store/posix_file.h"

namespace moraine {

class BulkFile {
 public:
  enum class Access : uint8_t { kRead, kReadWrite };

  // Takes a file over that was opened without O_DIRECT, and opens it once more with it. Never fails: where
  // that cannot be, everything is buffered.
  BulkFile(PosixFile file, Access access);
  ~BulkFile();
  BulkFile(const BulkFile&) = delete;
  BulkFile& operator=(const BulkFile&) = delete;

  const PosixFile& buffered() const { return buffered_; }
  const std::string& path() const { return buffered_.path(); }
  // Whether large transfers go past the page cache; false once the file system has refused one.
  bool direct() const;

  // Calls take(piece) with the bytes of the range in order. Pieces are multiples of unit_bytes, as is the range.
  // Errors: PosixFile::ReadAt's. Pages that only this has brought into the cache are dropped again.
  Status ReadPieces(uint64_t offset, uint64_t bytes, uint64_t unit_bytes,
                    const std::function<void(std::span<const std::byte>)>& take) const;
  // Direct if offset, size and memory are multiples of 4096. Errors: PosixFile::WriteAt's.
  Status WriteAt(uint64_t offset, std::span<const std::byte> source) const;
  // Asks for room, so that writes of several threads need not extend the file one after the other. A hint: the
  // write that finds no room says so.
  void Reserve(uint64_t bytes) const;

  // Time that threads have spent in reads of ReadPieces, added up.
  int64_t reading_ns() const;

 private:
  bool IsCached(uint64_t offset, uint64_t bytes) const;
  uint64_t ReadDirect(uint64_t offset, uint64_t bytes, std::byte* buffer) const;
  void DropBehind(uint64_t bytes) const;

  PosixFile buffered_, direct_;
  void* mapping_ = nullptr;  // of the whole file, never touched: what mincore asks about
  uint64_t mapping_bytes_ = 0;
  // Relaxed, all three: hints and counters, nothing is published through them.
  mutable std::atomic<bool> refused_{false};
  mutable std::atomic<uint64_t> buffered_bytes_{0};
  mutable std::atomic<int64_t> reading_ns_{0};
};

}  // namespace moraine
