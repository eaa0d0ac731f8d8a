#include "io/read_scheduler.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>

#include "base/bytes.h"

namespace moraine {
namespace {

constexpr uint32_t kNone = std::numeric_limits<uint32_t>::max();
constexpr uint64_t kUnknownOffset = std::numeric_limits<uint64_t>::max();
// Records the pool starts with; it doubles up to the high-water mark. Two layers' misses of a
// top-8 model and as much speculation.
constexpr size_t kInitialRecords = 64;

// What a record is going to be reported as.
enum class Fate : uint8_t { kReading, kFailed, kTruncated, kCancelled, kDeadline };

// Lists that a record can be in, each intrusive, so that none of them allocates.
enum ListName : uint8_t { kDemandQueue, kSpeculativeQueue, kFinished, kListCount, kNoList };

struct Record {
  RecordRead read;
  uint32_t generation = 0;
  bool active = false;   // from Enqueue to the outcome that releases the buffer
  bool decided = false;  // an outcome was given; the buffer may still be out
  Fate fate = Fate::kReading;
  ListName list = kNoList;
  uint32_t previous = kNone, next = kNone;  // in `list`
  uint32_t chunk_bytes = 0;
  uint64_t issued_bytes = 0;  // chunks were made of the bytes before this
  uint64_t done_bytes = 0;    // of completed chunks
  uint64_t delivered_bytes = 0;  // by the device, used or not
  uint32_t live_chunks = 0;   // in flight or waiting to be reissued
  uint64_t live_bytes = 0;    // of these chunks
  uint32_t in_flight_chunks = 0;
  int64_t enqueued_ns = 0, finished_ns = 0;
  // Of the chunk that used up its attempts.
  int error_number = 0;
  uint64_t error_offset = 0;
  uint32_t error_length = 0, error_attempts = 0;
  uint64_t end_of_file = kUnknownOffset;  // the lowest offset at which a read found the end
};

// A piece of a record that is with the reader, or waits to go there again.
struct Chunk {
  uint32_t record = kNone;
  uint64_t offset = 0;  // in the record
  uint32_t length = 0;
  uint32_t done = 0;  // bytes of it that have arrived
  uint32_t attempts = 0;
  bool in_flight = false;
};

}  // namespace

class ReadScheduler::Impl {
 public:
  Impl(std::unique_ptr<BlockReader> reader, const ReadSchedulerOptions& options,
       const Clock& clock);
  ~Impl();

  ReadId Enqueue(const RecordRead& read);
  void Flush();
  void Promote(ReadId id, int64_t deadline_ns);
  void Cancel(ReadId id);
  size_t Poll(std::vector<ReadOutcome>* outcomes, int64_t wait_ns);
  size_t Collect(std::vector<ReadOutcome>* outcomes);

  BlockReader& reader() { return *reader_; }
  void SetProgress(ReadProgress* progress) { progress_ = progress; }
  bool idle() const { return active_count_ == 0; }
  uint32_t demand_in_flight() const { return demand_count_; }
  uint32_t speculative_pending() const { return speculative_count_; }
  const ReadSchedulerStats& stats() const { return stats_; }

 private:
  struct List {
    uint32_t head = kNone, tail = kNone;
  };

  static bool IsSpeculative(const Record& record) {
    return record.read.priority == ReadPriority::kSpeculative;
  }
  uint32_t IndexOf(ReadId id) const;  // kNone for an id that is no longer active
  ReadId IdOf(uint32_t record_index) const {
    return static_cast<uint64_t>(records_[record_index].generation) << 32 | record_index;
  }
  void PushBack(ListName list, uint32_t record_index);
  void Unlink(uint32_t record_index);

  // Flush.
  void IssueWaiting(ReadPriority priority, uint32_t* room);
  void IssueQueued(ListName list, uint32_t* room);
  void IssueChunk(uint32_t chunk_index);
  bool HasWaiting(ReadPriority priority) const;

  // Poll.
  void Land(const BlockCompletion& completion);
  void LandError(uint32_t chunk_index, int error_number);
  void LandBytes(uint32_t chunk_index, uint32_t bytes);
  void FreeChunk(uint32_t chunk_index);
  void Doom(uint32_t record_index, Fate fate);
  void FinishIfLanded(uint32_t record_index);
  void CancelInFlight(uint32_t record_index);
  void ExpireDeadlines(std::vector<ReadOutcome>* outcomes);
  void EmitFinished(std::vector<ReadOutcome>* outcomes);
  void Leave(Record* record);
  Status StatusOf(const Record& record) const;
  int64_t ReaderWait(int64_t wait_ns, int64_t started_ns) const;
  void ReapOnce(int64_t wait_ns);
  void AccountBusy();

  const std::unique_ptr<BlockReader> reader_;
  const ReadSchedulerOptions options_;
  const Clock& clock_;
  ReadProgress* progress_ = nullptr;
  ReadSchedulerStats stats_;

  std::vector<Record> records_;
  std::vector<uint32_t> free_records_;
  List lists_[kListCount];
  // capacity + speculative_depth: speculation holds at most speculative_depth of them even while it
  // waits for a retry, so demand always finds `capacity`.
  std::vector<Chunk> chunks_;
  std::vector<uint32_t> free_chunks_;
  std::vector<uint32_t> waiting_chunks_;  // short or failed, to be issued again, oldest first
  std::vector<BlockRead> batch_;
  std::vector<BlockCompletion> completions_;

  uint32_t active_count_ = 0;
  uint32_t demand_count_ = 0, speculative_count_ = 0;  // undecided records
  uint32_t speculative_chunks_ = 0;                    // live chunks of speculative records
  uint64_t speculative_bytes_ = 0;                     // theirs
  int64_t next_deadline_ns_ = std::numeric_limits<int64_t>::max();  // a lower bound
  int64_t busy_since_ns_ = 0;  // start of the unaccounted busy time, while was_busy_
  bool was_busy_ = false;
};

ReadScheduler::Impl::Impl(std::unique_ptr<BlockReader> reader, const ReadSchedulerOptions& options,
                          const Clock& clock)
    : reader_(std::move(reader)), options_(options), clock_(clock) {
  CHECK(options_.chunk_bytes > 0 && options_.chunk_bytes % 4096 == 0,
        "chunk_bytes must be a multiple of 4096");
  CHECK(options_.chunk_alignment % 4096 == 0 && options_.chunk_alignment > 0 &&
            options_.chunk_bytes % options_.chunk_alignment == 0,
        "chunk_bytes must be a multiple of chunk_alignment, and that of 4096");
  CHECK(options_.max_attempts > 0, "max_attempts counts the first attempt");
  const size_t chunk_count = reader_->capacity() + options_.speculative_depth;
  chunks_.resize(chunk_count);
  free_chunks_.reserve(chunk_count);
  for (size_t i = chunk_count; i-- > 0;) free_chunks_.push_back(static_cast<uint32_t>(i));
  waiting_chunks_.reserve(chunk_count);
  batch_.reserve(reader_->capacity());
  completions_.reserve(reader_->capacity());
  records_.reserve(kInitialRecords);
  free_records_.reserve(kInitialRecords);
}

ReadScheduler::Impl::~Impl() {
  // The buffers are under DMA until the last completion.
  while (reader_->in_flight() > 0) {
    completions_.clear();
    reader_->Reap(&completions_, -1);
  }
}

uint32_t ReadScheduler::Impl::IndexOf(ReadId id) const {
  const auto index = static_cast<uint32_t>(id);
  if (index >= records_.size()) return kNone;
  const Record& record = records_[index];
  return record.active && record.generation == id >> 32 ? index : kNone;
}

void ReadScheduler::Impl::PushBack(ListName name, uint32_t record_index) {
  List& list = lists_[name];
  Record& record = records_[record_index];
  CHECK(record.list == kNoList, "a record in two lists");
  record.list = name;
  record.previous = list.tail;
  record.next = kNone;
  (list.tail == kNone ? list.head : records_[list.tail].next) = record_index;
  list.tail = record_index;
}

void ReadScheduler::Impl::Unlink(uint32_t record_index) {
  Record& record = records_[record_index];
  if (record.list == kNoList) return;
  List& list = lists_[record.list];
  (record.previous == kNone ? list.head : records_[record.previous].next) = record.next;
  (record.next == kNone ? list.tail : records_[record.next].previous) = record.previous;
  record.list = kNoList;
}

ReadId ReadScheduler::Impl::Enqueue(const RecordRead& read) {
  const IoAlignment alignment = reader_->alignment(read.file);
  CHECK(read.length > 0 && read.length % alignment.offset_bytes == 0 &&
            read.offset % alignment.offset_bytes == 0,
        reader_->path(read.file) + ": offset " + std::to_string(read.offset) + " or length " +
            std::to_string(read.length) + " is not aligned to " +
            std::to_string(alignment.offset_bytes));
  CHECK(reinterpret_cast<uintptr_t>(read.buffer) % alignment.memory_bytes == 0,
        "a buffer is not aligned to " + std::to_string(alignment.memory_bytes));
  if (free_records_.empty()) {
    free_records_.push_back(static_cast<uint32_t>(records_.size()));
    records_.emplace_back();
    // Room to give every record back without allocating.
    free_records_.reserve(records_.capacity());
  }
  const uint32_t index = free_records_.back();
  free_records_.pop_back();
  Record& record = records_[index];
  const uint32_t generation = record.generation + 1;
  record = Record();
  record.generation = generation;
  record.read = read;
  record.active = true;
  record.enqueued_ns = clock_.NowNs();
  // Chunks of equal size: a record is as late as its last chunk, and 512 KiB + 4 KiB would cost two
  // requests for the time of the larger.
  const uint64_t chunk_count = (read.length + options_.chunk_bytes - 1) / options_.chunk_bytes;
  record.chunk_bytes =
      static_cast<uint32_t>(AlignUp((read.length + chunk_count - 1) / chunk_count, options_.chunk_alignment));
  if (read.deadline_ns != 0) next_deadline_ns_ = std::min(next_deadline_ns_, read.deadline_ns);
  ++active_count_;
  ++(IsSpeculative(record) ? speculative_count_ : demand_count_);
  PushBack(IsSpeculative(record) ? kSpeculativeQueue : kDemandQueue, index);
  return IdOf(index);
}

bool ReadScheduler::Impl::HasWaiting(ReadPriority priority) const {
  return std::any_of(waiting_chunks_.begin(), waiting_chunks_.end(), [&](uint32_t chunk) {
    return records_[chunks_[chunk].record].read.priority == priority;
  });
}

void ReadScheduler::Impl::IssueChunk(uint32_t chunk_index) {
  Chunk& chunk = chunks_[chunk_index];
  Record& record = records_[chunk.record];
  chunk.in_flight = true;
  ++record.in_flight_chunks;
  const uint64_t position = chunk.offset + chunk.done;
  batch_.push_back({.file = record.read.file,
                    .offset = record.read.offset + position,
                    .buffer = record.read.buffer + position,
                    .length = chunk.length - chunk.done,
                    .tag = chunk_index,
                    .copy = record.read.copy});
}

void ReadScheduler::Impl::IssueWaiting(ReadPriority priority, uint32_t* room) {
  size_t kept = 0;
  for (const uint32_t chunk : waiting_chunks_) {
    if (*room > 0 && records_[chunks_[chunk].record].read.priority == priority) {
      IssueChunk(chunk);
      --*room;
    } else {
      waiting_chunks_[kept++] = chunk;
    }
  }
  waiting_chunks_.resize(kept);
}

void ReadScheduler::Impl::IssueQueued(ListName list, uint32_t* room) {
  const bool speculative = list == kSpeculativeQueue;
  while (lists_[list].head != kNone && *room > 0 && !free_chunks_.empty()) {
    if (speculative && (speculative_chunks_ >= options_.speculative_depth ||
                        speculative_bytes_ >= options_.speculative_bytes)) {
      return;
    }
    const uint32_t record_index = lists_[list].head;
    Record& record = records_[record_index];
    const uint32_t chunk_index = free_chunks_.back();
    free_chunks_.pop_back();
    Chunk& chunk = chunks_[chunk_index];
    chunk = Chunk();
    chunk.record = record_index;
    chunk.offset = record.issued_bytes;
    chunk.length = static_cast<uint32_t>(
        std::min<uint64_t>(record.chunk_bytes, record.read.length - record.issued_bytes));
    record.issued_bytes += chunk.length;
    ++record.live_chunks;
    record.live_bytes += chunk.length;
    if (speculative) {
      ++speculative_chunks_;
      speculative_bytes_ += chunk.length;
    }
    IssueChunk(chunk_index);
    --*room;
    if (record.issued_bytes == record.read.length) Unlink(record_index);
  }
}

void ReadScheduler::Impl::Flush() {
  batch_.clear();
  uint32_t room = reader_->capacity() - reader_->in_flight();
  IssueWaiting(ReadPriority::kDemand, &room);
  IssueQueued(kDemandQueue, &room);
  const size_t demand_chunks = chunks_.size() - free_chunks_.size() - speculative_chunks_;
  if (lists_[kDemandQueue].head == kNone && !HasWaiting(ReadPriority::kDemand) &&
      demand_chunks <= options_.demand_beside_speculation) {
    IssueWaiting(ReadPriority::kSpeculative, &room);
    IssueQueued(kSpeculativeQueue, &room);
  }
  if (batch_.empty()) return;
  if (!was_busy_) {
    was_busy_ = true;
    busy_since_ns_ = clock_.NowNs();
  }
  ++stats_.submit_calls;
  reader_->Submit(batch_);
}

void ReadScheduler::Impl::Promote(ReadId id, int64_t deadline_ns) {
  const uint32_t index = IndexOf(id);
  if (index == kNone) return;
  Record& record = records_[index];
  if (!IsSpeculative(record) || record.decided || record.fate == Fate::kCancelled) return;
  record.read.priority = ReadPriority::kDemand;
  record.read.deadline_ns = deadline_ns;
  if (deadline_ns != 0) next_deadline_ns_ = std::min(next_deadline_ns_, deadline_ns);
  speculative_chunks_ -= record.live_chunks;
  speculative_bytes_ -= record.live_bytes;
  --speculative_count_;
  ++demand_count_;
  if (record.list == kSpeculativeQueue) {
    Unlink(index);
    PushBack(kDemandQueue, index);
  }
}

void ReadScheduler::Impl::Cancel(ReadId id) {
  const uint32_t index = IndexOf(id);
  if (index == kNone) return;
  Record& record = records_[index];
  if (!IsSpeculative(record) || record.decided || record.fate == Fate::kCancelled) return;
  ++stats_.cancelled;
  CancelInFlight(index);
  Doom(index, Fate::kCancelled);
}

void ReadScheduler::Impl::CancelInFlight(uint32_t record_index) {
  if (records_[record_index].in_flight_chunks == 0) return;
  for (uint32_t i = 0; i < chunks_.size(); ++i) {
    if (chunks_[i].in_flight && chunks_[i].record == record_index) reader_->Cancel(i);
  }
}

void ReadScheduler::Impl::FreeChunk(uint32_t chunk_index) {
  Record& record = records_[chunks_[chunk_index].record];
  --record.live_chunks;
  record.live_bytes -= chunks_[chunk_index].length;
  if (IsSpeculative(record)) {
    --speculative_chunks_;
    speculative_bytes_ -= chunks_[chunk_index].length;
  }
  free_chunks_.push_back(chunk_index);
}

// The record will not be completed: nothing more of it is issued. What is in flight must still
// land. Of a truncated record, what lies before the end found so far goes on, to find the true end.
void ReadScheduler::Impl::Doom(uint32_t record_index, Fate fate) {
  Record& record = records_[record_index];
  record.fate = fate;
  Unlink(record_index);
  std::erase_if(waiting_chunks_, [&](uint32_t chunk_index) {
    const Chunk& chunk = chunks_[chunk_index];
    if (chunk.record != record_index) return false;
    if (fate == Fate::kTruncated && record.read.offset + chunk.offset < record.end_of_file) {
      return false;
    }
    FreeChunk(chunk_index);
    return true;
  });
  FinishIfLanded(record_index);
}

void ReadScheduler::Impl::FinishIfLanded(uint32_t record_index) {
  Record& record = records_[record_index];
  const bool complete = record.done_bytes == record.read.length;
  if (record.live_chunks > 0 || (record.fate == Fate::kReading && !complete)) return;
  record.finished_ns = clock_.NowNs();
  PushBack(kFinished, record_index);
}

void ReadScheduler::Impl::Land(const BlockCompletion& completion) {
  const auto chunk_index = static_cast<uint32_t>(completion.tag);
  CHECK(completion.tag < chunks_.size() && chunks_[chunk_index].in_flight,
        "a completion of no chunk in flight");
  Chunk& chunk = chunks_[chunk_index];
  chunk.in_flight = false;
  const uint32_t record_index = chunk.record;
  Record& record = records_[record_index];
  --record.in_flight_chunks;
  if (completion.result > 0) {
    const auto bytes = static_cast<uint32_t>(completion.result);
    (IsSpeculative(record) ? stats_.speculative_bytes : stats_.demand_bytes) += bytes;
    record.delivered_bytes += bytes;
  }
  if (record.fate != Fate::kReading && record.fate != Fate::kTruncated) {
    FreeChunk(chunk_index);
    FinishIfLanded(record_index);
  } else if (completion.result < 0) {
    LandError(chunk_index, -completion.result);
  } else {
    LandBytes(chunk_index, static_cast<uint32_t>(completion.result));
  }
}

void ReadScheduler::Impl::LandError(uint32_t chunk_index, int error_number) {
  Chunk& chunk = chunks_[chunk_index];
  const uint32_t record_index = chunk.record;
  Record& record = records_[record_index];
  ++chunk.attempts;
  if (chunk.attempts < options_.max_attempts) {
    ++stats_.retries;
    waiting_chunks_.push_back(chunk_index);
    return;
  }
  if (record.fate == Fate::kTruncated) {  // the first reason stays: it may have been reported
    FreeChunk(chunk_index);
    FinishIfLanded(record_index);
    return;
  }
  record.error_number = error_number;
  record.error_offset = record.read.offset + chunk.offset + chunk.done;
  record.error_length = chunk.length - chunk.done;
  record.error_attempts = chunk.attempts;
  FreeChunk(chunk_index);
  Doom(record_index, Fate::kFailed);
}

void ReadScheduler::Impl::LandBytes(uint32_t chunk_index, uint32_t bytes) {
  Chunk& chunk = chunks_[chunk_index];
  const uint32_t record_index = chunk.record;
  Record& record = records_[record_index];
  const uint32_t wanted = chunk.length - chunk.done;
  CHECK(bytes <= wanted, "the reader delivered more than was asked for");
  // A direct read can only be resumed at an aligned offset; a ragged end is read again.
  const uint32_t ragged = bytes % reader_->alignment(record.read.file).offset_bytes;
  const uint32_t usable = bytes == wanted ? bytes : bytes - ragged;
  chunk.done += usable;
  if (chunk.done == chunk.length) {
    record.done_bytes += chunk.length;
    if (progress_ != nullptr) progress_->OnPart(IdOf(record_index), chunk.offset, chunk.length);
    FreeChunk(chunk_index);
    FinishIfLanded(record_index);
  } else if (usable > 0) {
    // Every resume starts further on, so their number is bounded without counting attempts.
    ++stats_.short_reads;
    waiting_chunks_.push_back(chunk_index);
  } else {
    // No progress without an error is the end of the file.
    record.end_of_file =
        std::min(record.end_of_file, record.read.offset + chunk.offset + chunk.done + bytes);
    FreeChunk(chunk_index);
    Doom(record_index, Fate::kTruncated);
  }
}

Status ReadScheduler::Impl::StatusOf(const Record& record) const {
  // Speculation is given up all the time: no text that would have to be allocated.
  if (record.fate == Fate::kCancelled) return Cancelled("read given up");
  if (record.fate == Fate::kReading) return OkStatus();  // the common case allocates nothing
  const RecordRead& read = record.read;
  const std::string prefix = reader_->path(read.file) + ": ";
  const std::string what = "record of " + std::to_string(read.length) + " bytes at offset " +
                           std::to_string(read.offset);
  switch (record.fate) {
    case Fate::kReading:
      break;
    case Fate::kFailed:
      return IoError(prefix + "reading " + std::to_string(record.error_length) +
                     " bytes at offset " + std::to_string(record.error_offset) + ": " +
                     std::strerror(record.error_number) + " (errno " +
                     std::to_string(record.error_number) + "), " +
                     std::to_string(record.error_attempts) + " attempts; part of the " + what);
    case Fate::kTruncated: {
      const uint64_t found_bytes =
          record.end_of_file > read.offset ? record.end_of_file - read.offset : 0;
      return Corruption(prefix + "the file ends inside the " + what + ": expected " +
                        std::to_string(read.length) + " bytes, found " +
                        std::to_string(found_bytes));
    }
    case Fate::kCancelled:
      break;  // returned above
    case Fate::kDeadline:
      return DeadlineExceeded(prefix + "the " + what + " did not arrive within " +
                              std::to_string((read.deadline_ns - record.enqueued_ns) / 1000) +
                              " us");
  }
  return Internal("unreachable");
}

// The record no longer counts as pending: somebody is about to be told.
void ReadScheduler::Impl::Leave(Record* record) {
  record->decided = true;
  --(IsSpeculative(*record) ? speculative_count_ : demand_count_);
  if (record->fate == Fate::kFailed || record->fate == Fate::kTruncated) ++stats_.failures;
  if (record->fate == Fate::kReading) {
    ++(IsSpeculative(*record) ? stats_.speculative_records : stats_.demand_records);
    if (!IsSpeculative(*record)) stats_.demand_latency.Add(record->finished_ns - record->enqueued_ns);
  }
}

void ReadScheduler::Impl::ExpireDeadlines(std::vector<ReadOutcome>* outcomes) {
  const int64_t now_ns = clock_.NowNs();
  if (now_ns < next_deadline_ns_) return;
  next_deadline_ns_ = std::numeric_limits<int64_t>::max();
  for (uint32_t i = 0; i < records_.size(); ++i) {
    Record& record = records_[i];
    const bool waits = record.active && !record.decided && record.list != kFinished;
    if (!waits || record.read.deadline_ns == 0) continue;
    if (record.read.deadline_ns > now_ns) {
      next_deadline_ns_ = std::min(next_deadline_ns_, record.read.deadline_ns);
      continue;
    }
    if (record.fate == Fate::kReading) {
      ++stats_.deadline_misses;
      CancelInFlight(i);  // so that the buffer comes back sooner
      Doom(i, Fate::kDeadline);
      if (record.list == kFinished) continue;  // nothing in flight: one outcome says it all
    }
    // A record that had failed or been cancelled before keeps that as its reason.
    Leave(&record);
    outcomes->push_back({IdOf(i), StatusOf(record),
                         /*buffer_released=*/false, now_ns - record.enqueued_ns});
  }
}

void ReadScheduler::Impl::EmitFinished(std::vector<ReadOutcome>* outcomes) {
  while (lists_[kFinished].head != kNone) {
    const uint32_t index = lists_[kFinished].head;
    Unlink(index);
    Record& record = records_[index];
    CHECK(record.live_chunks == 0, "a finished record with chunks");
    if (!record.decided) Leave(&record);
    outcomes->push_back({IdOf(index), StatusOf(record),
                         /*buffer_released=*/true, record.finished_ns - record.enqueued_ns,
                         record.delivered_bytes});
    record.active = false;
    --active_count_;
    free_records_.push_back(index);
  }
}

void ReadScheduler::Impl::AccountBusy() {
  if (!was_busy_) return;
  const int64_t now_ns = clock_.NowNs();
  stats_.busy_ns += static_cast<uint64_t>(now_ns - busy_since_ns_);
  busy_since_ns_ = now_ns;
  was_busy_ = reader_->in_flight() > 0;
}

void ReadScheduler::Impl::ReapOnce(int64_t wait_ns) {
  completions_.clear();
  reader_->Reap(&completions_, wait_ns);
  AccountBusy();
  for (const BlockCompletion& completion : completions_) Land(completion);
}

// How long the reader may wait: not past the caller's wait, nor past the next deadline.
int64_t ReadScheduler::Impl::ReaderWait(int64_t wait_ns, int64_t started_ns) const {
  if (wait_ns == 0) return 0;
  const int64_t now_ns = clock_.NowNs();
  int64_t left_ns = wait_ns < 0 ? -1 : std::max<int64_t>(0, started_ns + wait_ns - now_ns);
  if (next_deadline_ns_ != std::numeric_limits<int64_t>::max()) {
    const int64_t to_deadline_ns = std::max<int64_t>(0, next_deadline_ns_ - now_ns);
    left_ns = left_ns < 0 ? to_deadline_ns : std::min(left_ns, to_deadline_ns);
  }
  return left_ns;
}

size_t ReadScheduler::Impl::Poll(std::vector<ReadOutcome>* outcomes, int64_t wait_ns) {
  const size_t before = outcomes->size();
  const int64_t started_ns = clock_.NowNs();
  while (true) {
    Flush();
    EmitFinished(outcomes);
    ReapOnce(outcomes->size() > before ? 0 : ReaderWait(wait_ns, started_ns));
    ExpireDeadlines(outcomes);  // after reaping: what has arrived is not late
    EmitFinished(outcomes);
    if (outcomes->size() > before || wait_ns == 0 || reader_->in_flight() == 0) {
      // Room that has just come free; and what failed or came short goes out again.
      Flush();
      if (outcomes->size() > before || wait_ns == 0 || reader_->in_flight() == 0) break;
    }
    if (wait_ns > 0 && clock_.NowNs() - started_ns >= wait_ns) break;
  }
  return outcomes->size() - before;
}

size_t ReadScheduler::Impl::Collect(std::vector<ReadOutcome>* outcomes) {
  const size_t before = outcomes->size();
  ReapOnce(/*wait_ns=*/0);
  EmitFinished(outcomes);
  return outcomes->size() - before;
}

ReadScheduler::ReadScheduler(std::unique_ptr<BlockReader> reader,
                             const ReadSchedulerOptions& options, const Clock& clock)
    : impl_(std::make_unique<Impl>(std::move(reader), options, clock)) {}
ReadScheduler::~ReadScheduler() = default;

BlockReader& ReadScheduler::reader() { return impl_->reader(); }
void ReadScheduler::SetProgress(ReadProgress* progress) { impl_->SetProgress(progress); }
ReadId ReadScheduler::Enqueue(const RecordRead& read) { return impl_->Enqueue(read); }
void ReadScheduler::Flush() { impl_->Flush(); }
void ReadScheduler::Promote(ReadId id, int64_t deadline_ns) {
  impl_->Promote(id, deadline_ns);
}
void ReadScheduler::Cancel(ReadId id) { impl_->Cancel(id); }
size_t ReadScheduler::Poll(std::vector<ReadOutcome>* outcomes, int64_t wait_ns) {
  return impl_->Poll(outcomes, wait_ns);
}
size_t ReadScheduler::Collect(std::vector<ReadOutcome>* outcomes) {
  return impl_->Collect(outcomes);
}
bool ReadScheduler::idle() const { return impl_->idle(); }
uint32_t ReadScheduler::demand_in_flight() const { return impl_->demand_in_flight(); }
uint32_t ReadScheduler::speculative_pending() const { return impl_->speculative_pending(); }
const ReadSchedulerStats& ReadScheduler::stats() const { return impl_->stats(); }

}  // namespace moraine
