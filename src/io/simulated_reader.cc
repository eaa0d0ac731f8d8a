#include "io/simulated_reader.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>

#include "base/random.h"

namespace moraine {
namespace {

// What the simulated device asks for; short reads end on a multiple of it.
constexpr uint32_t kAlignmentBytes = 4096;
constexpr int32_t kLetTheDiceDecide = 1 << 30;

class SimulatedReader final : public BlockReader {
 public:
  explicit SimulatedReader(SimulatedReaderOptions options)
      : options_(std::move(options)), random_(options_.seed) {
    pending_.reserve(options_.capacity);
  }
  ~SimulatedReader() override {
    for (const File& file : files_) {
      if (file.descriptor >= 0) close(file.descriptor);
    }
  }

  Result<FileId> OpenFile(const std::string& path) override;
  IoAlignment alignment(FileId) const override { return {kAlignmentBytes, kAlignmentBytes}; }
  const std::string& path(FileId file) const override { return At(file).path; }
  Status RegisterBuffers(std::span<const std::span<std::byte>>) override {
    return OkStatus();
  }
  // The memory is about to be unmapped: the one mistake that a real device would not report.
  void UnregisterBuffer(std::span<std::byte> buffer) override {
    for (const Pending& pending : pending_) {
      CHECK(pending.read.buffer + pending.read.length <= buffer.data() ||
                pending.read.buffer >= buffer.data() + buffer.size(),
            "a buffer is given up with a read into it in flight");
    }
  }
  uint32_t capacity() const override { return options_.capacity; }
  uint32_t in_flight() const override { return static_cast<uint32_t>(pending_.size()); }
  void Submit(std::span<const BlockRead> reads) override;
  void Cancel(uint64_t tag) override;
  size_t Reap(std::vector<BlockCompletion>* completions, int64_t wait_ns) override;
  const char* name() const override { return "simulated"; }

 private:
  struct File {
    std::string path;
    const std::vector<std::byte>* contents = nullptr;  // null: read from the descriptor
    int descriptor = -1;
  };
  // The fate of a read is drawn when it is submitted, so that it does not depend on when the caller
  // polls.
  struct Pending {
    BlockRead read;
    int64_t due_ns = 0;
    uint64_t order = 0;        // random: the order among what is due
    int32_t forced_error = 0;  // -errno, or 0
    uint32_t length = 0;       // bytes to deliver at most
    bool corrupt = false;
    uint64_t corrupt_position = 0;
  };

  const File& At(FileId file) const {
    CHECK(file.value() < files_.size(), "unknown file id");
    return files_[file.value()];
  }
  int64_t NowNs() const {
    return options_.manual_clock ? options_.manual_clock->NowNs() : RealClock().NowNs();
  }
  void RollTheDice(Pending* pending);
  void WaitForDue(int64_t wait_ns);
  int32_t Deliver(const Pending& pending);

  SimulatedReaderOptions options_;
  Random random_;
  std::vector<File> files_;
  std::vector<Pending> pending_;
  int64_t free_at_ns_ = 0;  // when the device has moved all that was asked of it
};

Result<FileId> SimulatedReader::OpenFile(const std::string& path) {
  File file;
  file.path = path;
  const auto found = options_.memory_files.find(path);
  if (found != options_.memory_files.end()) {
    file.contents = &found->second;
  } else {
    file.descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file.descriptor < 0) {
      if (errno == ENOENT) return NotFound(path + ": no such file");
      return IoErrorFromErrno(path + ": open for reading", errno);
    }
  }
  files_.push_back(std::move(file));
  return FileId(static_cast<uint32_t>(files_.size() - 1));
}

void SimulatedReader::RollTheDice(Pending* pending) {
  const SimulatedFaults& faults = options_.faults;
  const BlockRead& read = pending->read;
  // Always the same number of draws, so that one read's faults do not shift another's latency.
  const bool error = random_.Chance(faults.error_probability);
  const bool is_short = random_.Chance(faults.short_read_probability);
  pending->corrupt = random_.Chance(faults.corruption_probability);
  const uint64_t short_blocks = 1 + random_.Below(std::max(1u, read.length / kAlignmentBytes - 1));
  pending->corrupt_position = random_.Next();
  pending->order = random_.Next();
  const int64_t span_ns = std::max<int64_t>(0, faults.max_latency_ns - faults.min_latency_ns);
  pending->due_ns = NowNs() + faults.min_latency_ns +
                    static_cast<int64_t>(random_.Below(static_cast<uint64_t>(span_ns) + 1));
  if (faults.bytes_per_second > 0) {
    free_at_ns_ = std::max(pending->due_ns, free_at_ns_) +
                  static_cast<int64_t>(1e9 * static_cast<double>(read.length) /
                                       static_cast<double>(faults.bytes_per_second));
    pending->due_ns = free_at_ns_;
  }
  pending->length = read.length;

  const int32_t scripted = faults.script ? faults.script(read) : kLetTheDiceDecide;
  if (scripted != kLetTheDiceDecide) {
    pending->forced_error = std::min(scripted, 0);
    pending->length = static_cast<uint32_t>(std::max(scripted, 0));
    pending->corrupt = false;
    CHECK(pending->length <= read.length, "a script delivers more than was asked for");
  } else if (error) {
    pending->forced_error = -EIO;
  } else if (is_short && read.length > kAlignmentBytes) {
    pending->length = static_cast<uint32_t>(short_blocks * kAlignmentBytes);
  }
}

void SimulatedReader::Submit(std::span<const BlockRead> reads) {
  CHECK(reads.size() <= options_.capacity - pending_.size(), "more reads than capacity");
  for (const BlockRead& read : reads) {
    CHECK(read.offset % kAlignmentBytes == 0 && read.length % kAlignmentBytes == 0 &&
              reinterpret_cast<uintptr_t>(read.buffer) % kAlignmentBytes == 0,
          "a read that O_DIRECT would refuse: " + At(read.file).path + " at " +
              std::to_string(read.offset));
    Pending pending;
    pending.read = read;
    RollTheDice(&pending);
    pending_.push_back(pending);
  }
}

void SimulatedReader::Cancel(uint64_t tag) {
  for (Pending& pending : pending_) {
    if (pending.read.tag != tag) continue;
    // A device may or may not have started.
    if (random_.Chance(0.5)) {
      pending.forced_error = -ECANCELED;
      pending.due_ns = std::min(pending.due_ns, NowNs());
    }
    return;
  }
}

void SimulatedReader::WaitForDue(int64_t wait_ns) {
  int64_t due_ns = pending_.front().due_ns;
  for (const Pending& pending : pending_) due_ns = std::min(due_ns, pending.due_ns);
  int64_t sleep_ns = std::max<int64_t>(0, due_ns - NowNs());
  if (wait_ns >= 0) sleep_ns = std::min(sleep_ns, wait_ns);
  if (sleep_ns == 0) return;
  if (options_.manual_clock != nullptr) {
    options_.manual_clock->AdvanceNs(sleep_ns);
    return;
  }
  timespec duration = {sleep_ns / 1'000'000'000, sleep_ns % 1'000'000'000};
  while (nanosleep(&duration, &duration) != 0 && errno == EINTR) {
  }
}

int32_t SimulatedReader::Deliver(const Pending& pending) {
  if (pending.forced_error != 0) return pending.forced_error;
  const File& file = At(pending.read.file);
  int64_t count = 0;
  if (file.contents != nullptr) {
    const uint64_t size_bytes = file.contents->size();
    const uint64_t offset = std::min(pending.read.offset, size_bytes);
    count = static_cast<int64_t>(std::min<uint64_t>(pending.length, size_bytes - offset));
    std::memcpy(pending.read.buffer, file.contents->data() + offset, static_cast<size_t>(count));
  } else {
    count = pread(file.descriptor, pending.read.buffer, pending.length,
                  static_cast<off_t>(pending.read.offset));
    if (count < 0) return -errno;
  }
  if (pending.corrupt && count > 0) {
    const uint64_t bit = pending.corrupt_position % (static_cast<uint64_t>(count) * 8);
    pending.read.buffer[bit / 8] ^= std::byte{1} << (bit % 8);
  }
  return static_cast<int32_t>(count);
}

size_t SimulatedReader::Reap(std::vector<BlockCompletion>* completions, int64_t wait_ns) {
  if (pending_.empty()) return 0;
  if (wait_ns != 0) WaitForDue(wait_ns);
  const int64_t now_ns = NowNs();
  const auto due_end = std::partition(pending_.begin(), pending_.end(),
                                      [now_ns](const Pending& p) { return p.due_ns <= now_ns; });
  // By their random keys, not by time: with no latency at all, time is the order of submission.
  std::sort(pending_.begin(), due_end,
            [](const Pending& a, const Pending& b) { return a.order < b.order; });
  const auto due_count = static_cast<uint64_t>(due_end - pending_.begin());
  // Some of what is due, at least one: the caller must not rely on seeing a batch as a batch.
  const size_t count = due_count == 0 ? 0 : 1 + random_.Below(due_count);
  for (size_t i = 0; i < count; ++i) {
    completions->push_back({pending_[i].read.tag, Deliver(pending_[i])});
  }
  pending_.erase(pending_.begin(), pending_.begin() + static_cast<ptrdiff_t>(count));
  return count;
}

}  // namespace

std::unique_ptr<BlockReader> CreateSimulatedReader(SimulatedReaderOptions options) {
  CHECK(options.capacity > 0, "a simulated reader needs a capacity of at least 1");
  return std::make_unique<SimulatedReader>(std::move(options));
}

}  // namespace moraine
