#include "faulty_reader.h"

#include <algorithm>
#include <cerrno>
#include <ctime>
#include <unordered_map>

#include "base/clock.h"

namespace moraine {
namespace {

constexpr uint32_t kBlockBytes = 4096;  // short reads end on a multiple of it
constexpr int64_t kNever = INT64_MAX;

// After a flip a record is right until so many reads have begun at its start. The record that was
// flipped and the one read in its stead take at most ReadSchedulerOptions::max_attempts = 3 each, and
// once more 3 if speculation was given up and then demanded.
constexpr uint32_t kImmuneStarts = 12;

class FaultyReader final : public BlockReader {
 public:
  FaultyReader(std::unique_ptr<BlockReader> inner, FaultyDrive* drive,
               std::function<void()> on_submit)
      : inner_(std::move(inner)), drive_(*drive), on_submit_(std::move(on_submit)) {}

  Result<FileId> OpenFile(const std::string& path) override { return inner_->OpenFile(path); }
  IoAlignment alignment(FileId file) const override { return inner_->alignment(file); }
  const std::string& path(FileId file) const override { return inner_->path(file); }
  Status RegisterBuffers(std::span<const std::span<std::byte>> buffers) override {
    return inner_->RegisterBuffers(buffers);
  }
  void UnregisterBuffer(std::span<std::byte> buffer) override {
    for (const auto& [tag, flight] : flights_) {
      CHECK(flight.read.buffer + flight.read.length <= buffer.data() ||
                flight.read.buffer >= buffer.data() + buffer.size(),
            "a buffer is given up with a read into it in flight");
    }
    inner_->UnregisterBuffer(buffer);
  }
  uint32_t capacity() const override { return inner_->capacity(); }
  uint32_t in_flight() const override { return static_cast<uint32_t>(flights_.size()); }
  void Submit(std::span<const BlockRead> reads) override;
  void Cancel(uint64_t tag) override;
  size_t Reap(std::vector<BlockCompletion>* completions, int64_t wait_ns) override;
  const char* name() const override { return inner_->name(); }
  std::string configuration() const override { return inner_->configuration() + ", with faults"; }

 private:
  struct Flight {
    BlockRead read;
    FaultyDrive::Fate fate;
    int64_t due_ns = 0;  // not delivered before
  };
  BlockCompletion Deliver(const BlockCompletion& landed);
  int64_t EarliestHeldNs() const;

  std::unique_ptr<BlockReader> inner_;
  FaultyDrive& drive_;
  const std::function<void()> on_submit_;
  std::unordered_map<uint64_t, Flight> flights_;  // by tag; those held included
  std::vector<BlockCompletion> landed_;           // scratch
  std::vector<BlockCompletion> held_;             // landed, but not due
  std::vector<BlockRead> submitted_;              // scratch
};

void FaultyReader::Submit(std::span<const BlockRead> reads) {
  submitted_.assign(reads.begin(), reads.end());
  for (BlockRead& read : submitted_) {
    const FaultyDrive::Fate fate = drive_.Draw(inner_->path(read.file), read);
    const bool fresh =
        flights_.emplace(read.tag, Flight{read, fate, RealClock().NowNs() + fate.delay_ns}).second;
    CHECK(fresh, "two reads in flight with one tag");
    read.length = fate.length;
  }
  inner_->Submit(submitted_);
  if (on_submit_) on_submit_();
}

void FaultyReader::Cancel(uint64_t tag) {
  const auto held = std::find_if(held_.begin(), held_.end(),
                                 [&](const BlockCompletion& c) { return c.tag == tag; });
  if (held == held_.end()) {
    inner_->Cancel(tag);
  } else {
    flights_.at(tag).due_ns = 0;
  }
}

BlockCompletion FaultyReader::Deliver(const BlockCompletion& landed) {
  const auto flight = flights_.find(landed.tag);
  const FaultyDrive::Fate& fate = flight->second.fate;
  BlockCompletion completion = landed;
  if (landed.result > 0) {
    std::byte* const bytes = flight->second.read.buffer;
    const uint64_t bit = fate.flip_bit % (static_cast<uint64_t>(landed.result) * 8);
    if (fate.flip) bytes[bit / 8] ^= std::byte{1} << (bit % 8);
    if (fate.flip_first) bytes[0] ^= std::byte{1};
    if (fate.error) completion.result = -EIO;
  }
  flights_.erase(flight);
  return completion;
}

int64_t FaultyReader::EarliestHeldNs() const {
  int64_t earliest_ns = kNever;
  for (const BlockCompletion& held : held_) {
    earliest_ns = std::min(earliest_ns, flights_.at(held.tag).due_ns);
  }
  return earliest_ns;
}

size_t FaultyReader::Reap(std::vector<BlockCompletion>* completions, int64_t wait_ns) {
  const int64_t until_ns = wait_ns < 0 ? kNever : RealClock().NowNs() + wait_ns;
  const size_t before = completions->size();
  while (!flights_.empty()) {
    const int64_t next_ns = std::min(until_ns, EarliestHeldNs());
    const int64_t pause_ns =
        next_ns == kNever ? -1 : std::max<int64_t>(0, next_ns - RealClock().NowNs());
    if (inner_->in_flight() > 0) {
      landed_.clear();
      inner_->Reap(&landed_, pause_ns);
      held_.insert(held_.end(), landed_.begin(), landed_.end());
    } else if (pause_ns > 0) {
      const timespec pause = {pause_ns / 1'000'000'000, pause_ns % 1'000'000'000};
      nanosleep(&pause, nullptr);
    }
    const int64_t now_ns = RealClock().NowNs();
    std::erase_if(held_, [&](const BlockCompletion& landed) {
      if (flights_.at(landed.tag).due_ns > now_ns) return false;
      completions->push_back(Deliver(landed));
      return true;
    });
    if (completions->size() > before || now_ns >= until_ns) break;
  }
  return completions->size() - before;
}

}  // namespace

FaultyDrive::FaultyDrive(std::vector<Record> records, uint64_t seed)
    : records_(std::move(records)),
      random_(seed),
      suffered_(records_.size()),
      immune_starts_(records_.size()) {
  for (uint32_t i = 0; i < records_.size(); ++i) index_[{records_[i].path, records_[i].offset}] = i;
}

void FaultyDrive::Set(DriveFaults faults) {
  std::lock_guard lock(mutex_);
  faults_ = std::move(faults);
}

FaultCounts FaultyDrive::counts() const {
  std::lock_guard lock(mutex_);
  return counts_;
}

FaultyDrive::Suffered FaultyDrive::suffered(uint32_t record) const {
  std::lock_guard lock(mutex_);
  return suffered_[record];
}

void FaultyDrive::Forget() {
  std::lock_guard lock(mutex_);
  std::fill(suffered_.begin(), suffered_.end(), Suffered{});
  std::fill(immune_starts_.begin(), immune_starts_.end(), 0);
}

uint32_t FaultyDrive::RecordOf(const std::string& path, uint64_t offset) const {
  auto after = index_.upper_bound({path, offset});
  if (after == index_.begin()) return kNoRecord;
  const uint32_t record = std::prev(after)->second;
  const Record& found = records_[record];
  return found.path == path && offset < found.offset + found.bytes ? record : kNoRecord;
}

FaultyDrive::Fate FaultyDrive::Draw(const std::string& path, const BlockRead& read) {
  const uint32_t record = RecordOf(path, read.offset);
  std::lock_guard lock(mutex_);
  ++counts_.reads;
  Fate fate;
  fate.length = read.length;
  if (record == kNoRecord) return fate;
  Suffered& suffered = suffered_[record];
  const bool start = read.offset == records_[record].offset;
  uint32_t& immune_starts = immune_starts_[record];
  if (start && immune_starts > 0) --immune_starts;

  if (faults_.broken.contains(record) || random_.Chance(faults_.error)) {
    fate.error = true;
    ++suffered.errors;
    ++counts_.errors;
  } else if (random_.Chance(faults_.short_read) && read.length > kBlockBytes) {
    const uint64_t blocks = 1 + random_.Below(read.length / kBlockBytes - 1);
    fate.length = static_cast<uint32_t>(blocks * kBlockBytes);
    ++counts_.short_reads;
  }
  if (start && faults_.rotten.contains(record)) {
    fate.flip_first = true;
    ++suffered.rotten;
  } else if (immune_starts == 0 && !fate.error && random_.Chance(faults_.flip)) {
    fate.flip = true;
    fate.flip_bit = random_.Next();
    immune_starts = kImmuneStarts;
    ++suffered.flips;
    ++counts_.flips;
  }
  if (random_.Chance(faults_.slow) && faults_.slow_ns > 0) {
    fate.delay_ns = static_cast<int64_t>(random_.Below(static_cast<uint64_t>(faults_.slow_ns)));
    ++counts_.slow;
  }
  if (faults_.hangs > 0) {
    --faults_.hangs;
    fate.delay_ns = faults_.hang_ns;
    ++suffered.hangs;
    ++counts_.hangs;
  }
  return fate;
}

std::unique_ptr<BlockReader> CreateFaultyReader(std::unique_ptr<BlockReader> inner,
                                                FaultyDrive* drive,
                                                std::function<void()> on_submit) {
  return std::make_unique<FaultyReader>(std::move(inner), drive, std::move(on_submit));
}

}  // namespace moraine
