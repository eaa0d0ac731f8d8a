#include "io/pread_reader.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

#include "io/open_file.h"

namespace moraine {
namespace {

class PreadReader final : public BlockReader {
 public:
  explicit PreadReader(const BlockReaderOptions& options)
      : capacity_(options.capacity), direct_(options.direct), queue_(options.capacity) {
    done_.reserve(capacity_);
  }
  ~PreadReader() override;

  Status StartThreads(uint32_t count);

  Result<FileId> OpenFile(const std::string& path) override { return files_.Open(path, direct_); }
  IoAlignment alignment(FileId file) const override { return files_.alignment(file); }
  const std::string& path(FileId file) const override { return files_.path(file); }
  Status RegisterBuffers(std::span<const std::span<std::byte>>) override { return OkStatus(); }
  void UnregisterBuffer(std::span<std::byte>) override {}
  uint32_t capacity() const override { return capacity_; }
  uint32_t in_flight() const override { return in_flight_; }
  void Submit(std::span<const BlockRead> reads) override;
  void Cancel(uint64_t tag) override;
  size_t Reap(std::vector<BlockCompletion>* completions, int64_t wait_ns) override;
  const char* name() const override { return "pread"; }

 private:
  // The descriptor travels along, so that the workers never look into files_.
  struct Task {
    BlockRead read;
    int descriptor = -1;
  };

  void Work();
  static int32_t ReadOnce(const Task& task);

  const uint32_t capacity_;
  const bool direct_;
  // Owner thread only.
  OpenFileTable files_;
  uint32_t in_flight_ = 0;  // submitted and not reaped; bounds queue_ and done_ at capacity_

  std::mutex mutex_;
  std::condition_variable work_available_;  // queue_count_ > 0 or stopping_
  std::condition_variable done_available_;  // done_ is not empty
  // Guarded by mutex_ from here on.
  std::vector<Task> queue_;  // ring of capacity_ entries
  size_t queue_head_ = 0;
  size_t queue_count_ = 0;
  std::vector<BlockCompletion> done_;
  bool stopping_ = false;

  std::vector<std::thread> threads_;  // owner thread only
};

PreadReader::~PreadReader() {
  {
    std::lock_guard lock(mutex_);
    queue_count_ = 0;  // not started: nobody holds their buffers
    stopping_ = true;
  }
  work_available_.notify_all();
  for (std::thread& thread : threads_) thread.join();  // lets the reads in progress end
}

Status PreadReader::StartThreads(uint32_t count) {
  try {
    // More threads than reads in flight would never have work.
    for (uint32_t i = 0; i < std::min(count, capacity_); ++i) {
      threads_.emplace_back([this] { Work(); });
    }
  } catch (const std::system_error& error) {
    return ResourceExhausted("starting pread thread " + std::to_string(threads_.size() + 1) +
                             " of " + std::to_string(count) + ": " + error.what());
  }
  return OkStatus();
}

void PreadReader::Submit(std::span<const BlockRead> reads) {
  if (reads.empty()) return;
  CHECK(reads.size() <= capacity_ - in_flight_, "more reads than capacity");
  in_flight_ += static_cast<uint32_t>(reads.size());
  {
    std::lock_guard lock(mutex_);
    for (const BlockRead& read : reads) {
      queue_[(queue_head_ + queue_count_++) % capacity_] = {read, files_.descriptor(read.file)};
    }
  }
  if (reads.size() == 1) {
    work_available_.notify_one();
  } else {
    work_available_.notify_all();
  }
}

void PreadReader::Cancel(uint64_t tag) {
  std::lock_guard lock(mutex_);
  for (size_t i = 0; i < queue_count_; ++i) {
    if (queue_[(queue_head_ + i) % capacity_].read.tag != tag) continue;
    for (size_t j = i + 1; j < queue_count_; ++j) {  // close the gap, keep the order
      queue_[(queue_head_ + j - 1) % capacity_] = queue_[(queue_head_ + j) % capacity_];
    }
    --queue_count_;
    // No notify: the only thread that waits for done_ is the one that is here.
    done_.push_back({tag, -ECANCELED});
    return;
  }
  // Being read or read already: a pread cannot be interrupted, its completion will come.
}

size_t PreadReader::Reap(std::vector<BlockCompletion>* completions, int64_t wait_ns) {
  if (in_flight_ == 0) return 0;
  std::unique_lock lock(mutex_);
  const auto is_done = [this] { return !done_.empty(); };
  if (wait_ns < 0) {
    done_available_.wait(lock, is_done);
  } else if (wait_ns > 0) {
    done_available_.wait_for(lock, std::chrono::nanoseconds(wait_ns), is_done);
  }
  completions->insert(completions->end(), done_.begin(), done_.end());
  const size_t count = done_.size();
  done_.clear();
  in_flight_ -= static_cast<uint32_t>(count);
  return count;
}

void PreadReader::Work() {
  std::unique_lock lock(mutex_);
  while (true) {
    work_available_.wait(lock, [this] { return stopping_ || queue_count_ > 0; });
    if (stopping_) return;
    const Task task = queue_[queue_head_];
    queue_head_ = (queue_head_ + 1) % capacity_;
    --queue_count_;
    lock.unlock();
    const int32_t result = ReadOnce(task);
    lock.lock();
    done_.push_back({task.read.tag, result});  // reserved: never more than capacity_
    if (done_.size() == 1) done_available_.notify_one();
  }
}

int32_t PreadReader::ReadOnce(const Task& task) {
  ssize_t result;
  do {
    result = pread(task.descriptor, task.read.buffer, task.read.length,
                   static_cast<off_t>(task.read.offset));
  } while (result < 0 && errno == EINTR);
  return static_cast<int32_t>(result < 0 ? -errno : result);
}

}  // namespace

Result<std::unique_ptr<BlockReader>> CreatePreadReader(const BlockReaderOptions& options) {
  if (options.capacity == 0 || options.pread_threads == 0) {
    return InvalidArgument("the pread reader needs a capacity and threads of at least 1");
  }
  auto reader = std::make_unique<PreadReader>(options);
  RETURN_IF_ERROR(reader->StartThreads(options.pread_threads));
  return Result<std::unique_ptr<BlockReader>>(std::move(reader));
}

}  // namespace moraine
