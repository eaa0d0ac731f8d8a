#include "io/io_uring_reader.h"

#include <liburing.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/bytes.h"
#include "base/log.h"
#include "io/open_file.h"

namespace moraine {
namespace {

// The kernel's limit on one registered buffer.
constexpr uint64_t kMaxRegisteredBytes = kGiB;
// A slab is cut into at most some hundred segments (residency/slot_segments.h) of up to 1 GiB: 4 TiB
// of buffers. An empty entry costs the kernel 16 bytes.
constexpr uint32_t kBufferTableSize = 4096;
// user_data of a cancellation request; reads carry the index of their slot, which is below
// capacity.
constexpr uint64_t kCancelUserData = ~0ull;

using TaskRun = IoUringTuning::TaskRun;

unsigned TaskRunFlags(TaskRun task_run) {
  switch (task_run) {
    case TaskRun::kDeferred:
      return IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_COOP_TASKRUN |
             IORING_SETUP_TASKRUN_FLAG;
    case TaskRun::kCooperative:
      return IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG;
    case TaskRun::kInterrupt:
      break;
  }
  return 0;
}

// What to ask the kernel for, best first: flags that it does not know or does not grant are refused
// with an error. Without SQPOLL and IOPOLL (which only a caller's tuning asks for) these are the
// task-run flags from the wanted ones downwards; a submission thread has no task runs to place.
std::vector<unsigned> SetupCandidates(const IoUringTuning& tuning) {
  std::vector<unsigned> candidates;
  const unsigned poll = tuning.poll_completions ? IORING_SETUP_IOPOLL : 0;
  if (tuning.submission_thread) candidates.push_back(IORING_SETUP_SQPOLL | poll);
  if (tuning.submission_thread && poll != 0) candidates.push_back(IORING_SETUP_SQPOLL);
  for (const unsigned with_poll : {poll, 0u}) {
    for (TaskRun task_run : {TaskRun::kDeferred, TaskRun::kCooperative, TaskRun::kInterrupt}) {
      if (task_run >= tuning.task_run) candidates.push_back(TaskRunFlags(task_run) | with_poll);
    }
    if (poll == 0) break;
  }
  return candidates;
}

std::string DescribeFlags(unsigned flags) {
  std::string text = (flags & IORING_SETUP_SQPOLL)          ? "submission thread"
                     : (flags & IORING_SETUP_DEFER_TASKRUN) ? "deferred task runs"
                     : (flags & IORING_SETUP_COOP_TASKRUN)  ? "cooperative task runs"
                                                            : "interrupting task runs";
  if (flags & IORING_SETUP_IOPOLL) text += ", polled completions";
  return text;
}

class IoUringReader final : public BlockReader {
 public:
  IoUringReader(const BlockReaderOptions& options, RingSetup setup)
      : direct_(options.direct),
        tuning_(options.uring),
        setup_(std::move(setup)),
        slots_(options.capacity) {
    free_slots_.reserve(options.capacity);
    for (uint32_t i = options.capacity; i-- > 0;) free_slots_.push_back(i);
  }
  ~IoUringReader() override;

  Status SetUpRing();

  Result<FileId> OpenFile(const std::string& path) override { return files_.Open(path, direct_); }
  IoAlignment alignment(FileId file) const override { return files_.alignment(file); }
  const std::string& path(FileId file) const override { return files_.path(file); }
  Status RegisterBuffers(std::span<const std::span<std::byte>> buffers) override;
  void UnregisterBuffer(std::span<std::byte> buffer) override;
  uint32_t capacity() const override { return static_cast<uint32_t>(slots_.size()); }
  uint32_t in_flight() const override {
    return capacity() - static_cast<uint32_t>(free_slots_.size());
  }
  void Submit(std::span<const BlockRead> reads) override;
  void Cancel(uint64_t tag) override;
  size_t Reap(std::vector<BlockCompletion>* completions, int64_t wait_ns) override;
  const char* name() const override { return "io_uring"; }
  std::string configuration() const override;

 private:
  struct Slot {
    uint64_t tag = 0;
    bool busy = false;
  };

  struct RegisteredPiece {
    iovec memory;
    uint32_t index = 0;  // that the kernel knows it by
  };

  void EnableRing();
  void RegisterFiles();
  bool PollingIsRefused();
  void ReplacePollingRing();
  void MakeBufferTable();
  // The first piece that begins behind the address.
  std::vector<RegisteredPiece>::const_iterator After(const std::byte* address) const;
  io_uring_sqe* NextEntry();
  void SubmitPrepared();
  // Index of the registered piece that holds all of [buffer, buffer + length), or -1.
  int RegisteredIndex(const std::byte* buffer, uint32_t length) const;
  size_t TakeCompletions(std::vector<BlockCompletion>* completions);

  const bool direct_;
  IoUringTuning tuning_;  // poll_completions is cleared when a drive refuses it
  const RingSetup setup_;
  io_uring ring_ = {};
  unsigned flags_ = 0;  // of the ring: what was granted
  bool ring_exists_ = false;
  bool ring_enabled_ = false;
  OpenFileTable files_;
  size_t registered_file_count_ = 0;  // the first so many of files_
  // Sorted by address, so that the piece of a buffer is found by binary search.
  std::vector<RegisteredPiece> registered_;
  std::vector<uint32_t> free_buffers_;  // indices of the kernel's table
  bool table_made_ = false, refusal_logged_ = false;
  std::vector<Slot> slots_;
  std::vector<uint32_t> free_slots_;
};

IoUringReader::~IoUringReader() {
  if (!ring_exists_) return;
  std::vector<BlockCompletion> dropped;
  while (in_flight() > 0) Reap(&dropped, -1);
  io_uring_queue_exit(&ring_);
}

Status IoUringReader::SetUpRing() {
  const std::vector<unsigned> candidates = SetupCandidates(tuning_);
  int result = -EINVAL, first_result = 0;
  for (const unsigned flags : candidates) {
    io_uring_params params = {};
    // Disabled until the first Submit: see the header.
    params.flags = flags | IORING_SETUP_R_DISABLED | IORING_SETUP_CLAMP;
    // Twice the capacity: a cancellation for every read in flight needs an entry as well. The
    // completion ring is twice that again by default.
    result = setup_(2 * capacity(), &ring_, &params);
    if (result == 0) {
      ring_exists_ = true;
      flags_ = flags;
      // Linux 5.11: waiting with a time-out without a request of its own.
      if ((params.features & IORING_FEAT_EXT_ARG) == 0) {
        return Unsupported("io_uring: this kernel lacks IORING_FEAT_EXT_ARG (Linux 5.11)");
      }
      if (flags != candidates.front()) {
        LOG_WARN("io_uring: {} refused ({}); reads go on with {}",
                 DescribeFlags(candidates.front()), std::strerror(-first_result),
                 DescribeFlags(flags));
      }
      return OkStatus();
    }
    if (first_result == 0) first_result = result;
    // Polling may be refused for lack of rights or memory; the plain ring only for its flags.
    if (result != -EINVAL && (flags & (IORING_SETUP_SQPOLL | IORING_SETUP_IOPOLL)) == 0) break;
  }
  std::string message = std::string("io_uring_setup: ") + std::strerror(-result);
  if (result == -EPERM || result == -EACCES) {
    message += " (kernel.io_uring_disabled, or a container's seccomp filter)";
  }
  return Unsupported(std::move(message));
}

std::string IoUringReader::configuration() const {
  std::string text = "io_uring, " + DescribeFlags(flags_);
  text += registered_.empty() ? ", plain buffers" : ", registered buffers";
  text += registered_file_count_ == 0 ? ", plain files" : ", registered files";
  return text;
}

// The table is made with room for buffers to come: a table that is full cannot grow, and giving the
// whole of it back would need the reads in flight to end.
void IoUringReader::MakeBufferTable() {
  if (table_made_) return;
  table_made_ = true;
  const int result = io_uring_register_buffers_sparse(&ring_, kBufferTableSize);
  if (result < 0) {
    LOG_WARN("io_uring: a table of {} buffers: {}; reads go on unregistered (Linux 5.19 has it)",
             kBufferTableSize, std::strerror(-result));
    return;
  }
  for (uint32_t i = kBufferTableSize; i-- > 0;) free_buffers_.push_back(i);
}

Status IoUringReader::RegisterBuffers(std::span<const std::span<std::byte>> buffers) {
  if (!tuning_.registered_buffers) return OkStatus();
  MakeBufferTable();
  for (std::span<std::byte> buffer : buffers) {
    for (uint64_t offset = 0; offset < buffer.size(); offset += kMaxRegisteredBytes) {
      const iovec piece = {buffer.data() + offset,
                           std::min<uint64_t>(kMaxRegisteredBytes, buffer.size() - offset)};
      if (free_buffers_.empty()) return OkStatus();  // no table, or so much memory: unregistered
      const uint32_t index = free_buffers_.back();
      const int result =
          io_uring_register_buffers_update_tag(&ring_, index, &piece, nullptr, 1);
      if (result == -EFAULT) {
        return InvalidArgument("io_uring: the buffers to register are not mapped memory");
      }
      if (result < 0) {
        if (!std::exchange(refusal_logged_, true)) {
          LOG_WARN("io_uring: registering {} of buffers: {}; reads go on unregistered{}",
                   FormatByteSize(piece.iov_len), std::strerror(-result),
                   result == -ENOMEM ? " (raise RLIMIT_MEMLOCK: ulimit -l unlimited)" : "");
        }
        return OkStatus();
      }
      free_buffers_.pop_back();
      registered_.insert(After(buffer.data() + offset), {piece, index});
    }
  }
  return OkStatus();
}

void IoUringReader::UnregisterBuffer(std::span<std::byte> buffer) {
  std::erase_if(registered_, [&](const RegisteredPiece& piece) {
    const auto* begin = static_cast<const std::byte*>(piece.memory.iov_base);
    if (begin < buffer.data() || begin >= buffer.data() + buffer.size()) return false;
    const iovec nothing = {};
    const int result =
        io_uring_register_buffers_update_tag(&ring_, piece.index, &nothing, nullptr, 1);
    CHECK(result >= 0, std::string("io_uring: giving a buffer up: ") + std::strerror(-result));
    free_buffers_.push_back(piece.index);
    return true;
  });
}

std::vector<IoUringReader::RegisteredPiece>::const_iterator IoUringReader::After(
    const std::byte* address) const {
  return std::upper_bound(registered_.begin(), registered_.end(), address,
                          [](const std::byte* a, const RegisteredPiece& piece) {
                            return a < piece.memory.iov_base;
                          });
}

int IoUringReader::RegisteredIndex(const std::byte* buffer, uint32_t length) const {
  const auto after = After(buffer);
  if (after == registered_.begin()) return -1;
  const RegisteredPiece& piece = *std::prev(after);
  const std::byte* const end =
      static_cast<const std::byte*>(piece.memory.iov_base) + piece.memory.iov_len;
  // A read across the seam of two pieces goes unregistered; with 1 GiB pieces that is rare.
  if (buffer >= end || length > static_cast<uint64_t>(end - buffer)) return -1;
  return static_cast<int>(piece.index);
}

void IoUringReader::RegisterFiles() {
  if (!tuning_.registered_files) return;
  std::vector<int> descriptors;
  for (uint32_t i = 0; i < files_.count(); ++i) descriptors.push_back(files_.descriptor(FileId(i)));
  const int registered = io_uring_register_files(&ring_, descriptors.data(),
                                                 static_cast<unsigned>(descriptors.size()));
  if (registered == 0) {
    registered_file_count_ = descriptors.size();
  } else {
    LOG_WARN("io_uring: registering {} files: {}; reads go on with plain descriptors",
             descriptors.size(), std::strerror(-registered));
  }
}

void IoUringReader::EnableRing() {
  RegisterFiles();
  // By hand: liburing 2.3 declares io_uring_enable_rings, but its shared library does not export
  // it.
  const long enabled =
      syscall(__NR_io_uring_register, ring_.ring_fd, IORING_REGISTER_ENABLE_RINGS, nullptr, 0);
  CHECK(enabled >= 0, std::string("enabling the io_uring: ") + std::strerror(errno));
  ring_enabled_ = true;
  if ((flags_ & IORING_SETUP_IOPOLL) && PollingIsRefused()) ReplacePollingRing();
}

// Whether a polled read of any file fails. Only a read tells: the file system and each layer of the
// drive below it may refuse.
bool IoUringReader::PollingIsRefused() {
  alignas(4096) static thread_local std::byte block[4096];
  for (uint32_t i = 0; i < files_.count(); ++i) {
    io_uring_sqe* entry = NextEntry();
    io_uring_prep_read(entry, files_.descriptor(FileId(i)), block, sizeof(block), 0);
    SubmitPrepared();
    io_uring_cqe* completion = nullptr;
    int result = 0;
    do {
      result = io_uring_wait_cqe(&ring_, &completion);
    } while (result == -EINTR || result == -EAGAIN);
    CHECK(result == 0, std::string("waiting for a polled read: ") + std::strerror(-result));
    result = completion->res;
    io_uring_cqe_seen(&ring_, completion);
    if (result >= 0) continue;
    LOG_WARN("io_uring: {}: polled completions refused ({}: the drive has no polled queues, or the "
             "read is buffered); reads go on with interrupts",
             files_.path(FileId(i)), std::strerror(-result));
    return true;
  }
  return false;
}

void IoUringReader::ReplacePollingRing() {
  tuning_.poll_completions = false;
  io_uring_queue_exit(&ring_);
  ring_ = {};
  ring_exists_ = ring_enabled_ = false;
  registered_file_count_ = 0;
  // The same call succeeded with more flags a moment ago.
  const Status status = SetUpRing();
  CHECK(status.ok(), status.message());
  // The table went with the ring.
  table_made_ = false;
  free_buffers_.clear();
  std::vector<std::span<std::byte>> buffers;
  for (const RegisteredPiece& piece : registered_) {
    buffers.emplace_back(static_cast<std::byte*>(piece.memory.iov_base), piece.memory.iov_len);
  }
  registered_.clear();
  const Status again = RegisterBuffers(buffers);
  CHECK(again.ok(), again.message());
  EnableRing();
}

io_uring_sqe* IoUringReader::NextEntry() {
  io_uring_sqe* entry = io_uring_get_sqe(&ring_);
  // CLAMP may have made the ring smaller than asked for (above 32768 entries); a submission thread
  // may not have taken the entries yet.
  if (entry == nullptr) {
    SubmitPrepared();
    if (flags_ & IORING_SETUP_SQPOLL) io_uring_sqring_wait(&ring_);
    entry = io_uring_get_sqe(&ring_);
    CHECK(entry != nullptr, "no submission entry after a submit");
  }
  return entry;
}

void IoUringReader::SubmitPrepared() {
  // One call as a rule: the kernel stops early only at an entry that it could not even start, whose
  // completion then carries the error.
  while (io_uring_sq_ready(&ring_) > 0) {
    const int submitted = io_uring_submit(&ring_);
    // A submission thread takes the entries when it gets to them.
    if (submitted >= 0 && (flags_ & IORING_SETUP_SQPOLL)) return;
    if (submitted >= 0 || submitted == -EINTR) continue;
    if (submitted == -EAGAIN || submitted == -EBUSY || submitted == -ENOMEM) {
      // The kernel is short of memory or wants completions taken: let it post them and try again.
      io_uring_get_events(&ring_);
      continue;
    }
    CHECK(false, std::string("io_uring_enter: ") + std::strerror(-submitted) +
                     (submitted == -EEXIST ? " (Submit from two threads)" : ""));
  }
}

void IoUringReader::Submit(std::span<const BlockRead> reads) {
  if (reads.empty()) return;
  CHECK(reads.size() <= free_slots_.size(), "more reads than capacity");
  if (!ring_enabled_) EnableRing();
  for (const BlockRead& read : reads) {
    const uint32_t slot_index = free_slots_.back();
    free_slots_.pop_back();
    slots_[slot_index] = {read.tag, true};
    const bool registered_file = read.file.value() < registered_file_count_;
    const int file =
        registered_file ? static_cast<int>(read.file.value()) : files_.descriptor(read.file);
    io_uring_sqe* entry = NextEntry();
    const int buffer_index = RegisteredIndex(read.buffer, read.length);
    if (buffer_index >= 0) {
      io_uring_prep_read_fixed(entry, file, read.buffer, read.length, read.offset, buffer_index);
    } else {
      io_uring_prep_read(entry, file, read.buffer, read.length, read.offset);
    }
    if (registered_file) io_uring_sqe_set_flags(entry, IOSQE_FIXED_FILE);
    io_uring_sqe_set_data64(entry, slot_index);
  }
  SubmitPrepared();
}

void IoUringReader::Cancel(uint64_t tag) {
  for (uint32_t i = 0; i < slots_.size(); ++i) {
    if (!slots_[i].busy || slots_[i].tag != tag) continue;
    io_uring_sqe* entry = NextEntry();
    io_uring_prep_cancel64(entry, i, 0);
    io_uring_sqe_set_data64(entry, kCancelUserData);
    SubmitPrepared();
    return;
  }
}

size_t IoUringReader::TakeCompletions(std::vector<BlockCompletion>* completions) {
  io_uring_cqe* entries[64];
  size_t count = 0;
  // Nobody else looks whether a polled read is done.
  if (flags_ & IORING_SETUP_IOPOLL) io_uring_get_events(&ring_);
  while (true) {
    // Also enters the kernel when it says that it has completions to post (TASKRUN, overflow).
    const unsigned seen = io_uring_peek_batch_cqe(&ring_, entries, std::size(entries));
    if (seen == 0) return count;
    for (unsigned i = 0; i < seen; ++i) {
      const uint64_t user_data = entries[i]->user_data;
      if (user_data == kCancelUserData) continue;  // whether it came in time shows in the read
      CHECK(user_data < slots_.size() && slots_[user_data].busy, "completion of no read");
      completions->push_back({slots_[user_data].tag, entries[i]->res});
      slots_[user_data].busy = false;
      free_slots_.push_back(static_cast<uint32_t>(user_data));
      ++count;
    }
    io_uring_cq_advance(&ring_, seen);
  }
}

size_t IoUringReader::Reap(std::vector<BlockCompletion>* completions, int64_t wait_ns) {
  while (true) {
    if (in_flight() == 0) return 0;
    const size_t count = TakeCompletions(completions);
    if (count > 0 || wait_ns == 0) return count;
    io_uring_cqe* entry = nullptr;
    __kernel_timespec timeout = {wait_ns / 1'000'000'000, wait_ns % 1'000'000'000};
    const int result = wait_ns < 0 ? io_uring_wait_cqe(&ring_, &entry)
                                   : io_uring_wait_cqe_timeout(&ring_, &entry, &timeout);
    if (result == -ETIME) return TakeCompletions(completions);
    CHECK(result == 0 || result == -EINTR || result == -EAGAIN,
          std::string("waiting for io_uring completions: ") + std::strerror(-result));
    // After a signal, or a wake-up by a cancellation's completion, a timed wait ends early rather
    // than late; the scheduler above looks at its own clock.
    if (wait_ns > 0) return TakeCompletions(completions);
  }
}

}  // namespace

RingSetup KernelRingSetup() {
  return [](unsigned entries, io_uring* ring, io_uring_params* params) {
    return io_uring_queue_init_params(entries, ring, params);
  };
}

Result<std::unique_ptr<BlockReader>> CreateIoUringReader(const BlockReaderOptions& options,
                                                         const RingSetup& setup) {
  if (options.capacity == 0) return InvalidArgument("io_uring needs a capacity of at least 1");
  auto reader = std::make_unique<IoUringReader>(options, setup);
  RETURN_IF_ERROR(reader->SetUpRing());
  return Result<std::unique_ptr<BlockReader>>(std::move(reader));
}

}  // namespace moraine
