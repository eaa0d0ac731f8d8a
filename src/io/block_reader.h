// BlockReader: one attempt to read one contiguous chunk, many at a time, in any order.
//
// Three implementations: io_uring (the fast one), a pread pool (where io_uring is disabled), and a
// simulated one (seeded latency, errors, short reads, corruption, reordering); and one in front of
// them for files with copies on several drives (io/mirrored_reader.h). They do no more than
// the device does: a read may come back short, failed, late or out of order. Everything that is
// policy (chunking, priorities, resume, retry, deadlines, cancellation) lives once, above them, in
// ReadScheduler, and is tested against the simulated reader.
//
// Threads: owned by one thread (io_uring's SINGLE_ISSUER). The engine thread submits between
// kernels and reaps between tasks; a dedicated I/O thread would add a wake-up of 10 to 50 us to
// every layer. The owner is the thread that first submits: files may be opened and buffers
// registered by the one that starts the engine up. With reads in flight the owner must also be the
// one that destroys.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/status.h"

namespace moraine {

using FileId = Id<struct FileIdTag>;

// What O_DIRECT asks of this file: offsets and lengths are multiples of offset_bytes, addresses of
// memory_bytes (statx STATX_DIOALIGN; 4096/4096 where the kernel does not say; 1/1 for a file that
// is read through the page cache).
struct IoAlignment {
  uint32_t offset_bytes = 4096;
  uint32_t memory_bytes = 4096;
};

inline constexpr uint32_t kAnyCopy = UINT32_MAX;

struct BlockRead {
  FileId file;
  uint64_t offset = 0;  // aligned to IoAlignment::offset_bytes
  std::byte* buffer =
      nullptr;          // aligned to IoAlignment::memory_bytes; the reader's until completion
  uint32_t length = 0;  // bytes, aligned like offset
  uint64_t tag = 0;     // the caller's; returned in the completion; unique among in-flight
  // Of a file with copies (io/mirrored_reader.h) the one to try first; others have no choice.
  uint32_t copy = kAnyCopy;
};

struct BlockCompletion {
  uint64_t tag = 0;
  int32_t result = 0;  // bytes read (possibly fewer than asked; 0 at end of file) or -errno
};

class BlockReader {
 public:
  virtual ~BlockReader() = default;  // waits for reads in flight: their buffers are under DMA

  // Opens a file for reading, O_DIRECT where the filesystem has it. Files that are open before the
  // first Submit are registered with io_uring, later ones are read through their descriptors.
  virtual Result<FileId> OpenFile(const std::string& path) = 0;
  virtual IoAlignment alignment(FileId file) const = 0;
  // As given to OpenFile; for messages.
  virtual const std::string& path(FileId file) const = 0;
  // Announces memory that reads will land in, so that it can be registered (pinned once instead of
  // at every read). Optional for correctness; may be called again for further memory. Returns an
  // error only if the memory cannot be used at all; a refused registration (RLIMIT_MEMLOCK) is
  // logged once and reads go on unregistered.
  virtual Status RegisterBuffers(std::span<const std::span<std::byte>> buffers) = 0;
  // Before memory that was announced is unmapped; the very span that was registered. The caller has
  // no read into it in flight. Without this the kernel's pin would keep the pages from the system.
  virtual void UnregisterBuffer(std::span<std::byte> buffer) = 0;

  // Reads that may be in flight at once. Constant after construction.
  virtual uint32_t capacity() const = 0;
  virtual uint32_t in_flight() const = 0;
  // Starts all of them with as few system calls as possible (io_uring: one). Needs in_flight() +
  // reads.size() <= capacity(). Failures arrive as completions.
  virtual void Submit(std::span<const BlockRead> reads) = 0;
  // Best effort: asks that the read ends early. Its completion still arrives (possibly -ECANCELED)
  // and the buffer is the reader's until then.
  virtual void Cancel(uint64_t tag) = 0;
  // Appends what has completed. wait_ns: 0 polls, < 0 waits for at least one completion, > 0 waits
  // up to that long. Returns the number appended. Returns at once when nothing is in flight.
  virtual size_t Reap(std::vector<BlockCompletion>* completions, int64_t wait_ns) = 0;

  virtual const char* name() const = 0;  // "io_uring", "pread", "simulated"
  // What is in effect after all fallbacks, for reports: "io_uring, deferred task runs, registered
  // buffers, registered files". Complete after the first Submit.
  virtual std::string configuration() const { return name(); }
};

// How io_uring is driven. The defaults are what `moraine bench io --ablation` chose (docs/io.md);
// the rest exists so that this can be measured again on another drive or kernel. What the kernel or
// the drive refuses falls back with a log line.
struct IoUringTuning {
  // When completions are processed: kDeferred, when we ask for them (SINGLE_ISSUER, DEFER_TASKRUN,
  // Linux 6.1); kCooperative, at any system call of this thread (COOP_TASKRUN, Linux 5.19);
  // kInterrupt, by interrupting it.
  enum class TaskRun : uint8_t { kDeferred, kCooperative, kInterrupt };
  TaskRun task_run = TaskRun::kDeferred;
  bool registered_buffers = true;  // pinned once instead of at every read
  bool registered_files = true;    // no reference count a read
  bool submission_thread = false;  // SQPOLL: a kernel thread that spins submits
  bool poll_completions = false;   // IOPOLL: this thread spins for completions; O_DIRECT only
};

struct BlockReaderOptions {
  std::string kind = "auto";  // auto | io_uring | pread | simulated
  // Reads in flight. One drive is full at 16 requests (docs/io.md); four Gen5 drives took 32 of 1
  // MiB (64 of our chunks). Twice that, since what is not needed costs one idle slot each.
  uint32_t capacity = 128;
  bool direct = true;            // O_DIRECT
  uint32_t pread_threads = 16;   // a thread is a unit of queue depth: see capacity
  uint64_t simulation_seed = 1;  // simulated: reorders the completions of real reads
  IoUringTuning uring = {};
};

// "auto" takes io_uring and falls back to pread with a log line that says why (no such system call,
// kernel.io_uring_disabled, a container's seccomp filter). The environment variable MORAINE_IO
// (io_uring, pread or simulated) replaces "auto", and only that: what was asked for by name is not
// overridden.
Result<std::unique_ptr<BlockReader>> CreateBlockReader(const BlockReaderOptions& options);

}  // namespace moraine
