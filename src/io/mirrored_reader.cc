#include "io/mirrored_reader.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>

#include "base/log.h"

namespace moraine {

MirroredReader::MirroredReader(std::unique_ptr<BlockReader> inner, const std::vector<Drive>& drives)
    : inner_(std::move(inner)) {
  CHECK(!drives.empty(), "a mirrored reader has drives");
  for (const Drive& drive : drives) {
    CHECK(drive.weight > 0, "a drive's weight is 0");
    drives_.push_back({.weight = drive.weight});
    stats_.push_back({.directory = drive.directory});
  }
  entries_.resize(inner_->capacity());
  free_entries_.reserve(entries_.size());
  for (size_t i = entries_.size(); i-- > 0;) free_entries_.push_back(static_cast<uint32_t>(i));
  batch_.reserve(entries_.size());
  landed_.reserve(entries_.size());
}

MirroredReader::~MirroredReader() = default;

Result<FileId> MirroredReader::OpenFile(const std::string& path) {
  return OpenCopies({{.path = path, .drive = 0}});
}

Result<FileId> MirroredReader::OpenCopies(const std::vector<Copy>& copies) {
  CHECK(!copies.empty() && copies.size() < 32, "a file has at least one copy, and few");
  File file;
  file.alignment = {1, 1};
  for (const Copy& copy : copies) {
    CHECK(copy.drive < drives_.size(), "a copy on an unknown drive");
    ASSIGN_OR_RETURN(const FileId inner_file, inner_->OpenFile(copy.path));
    file.copies.push_back({inner_file, copy.drive});
    // Powers of two: the larger suits both.
    const IoAlignment alignment = inner_->alignment(inner_file);
    file.alignment.offset_bytes = std::max(file.alignment.offset_bytes, alignment.offset_bytes);
    file.alignment.memory_bytes = std::max(file.alignment.memory_bytes, alignment.memory_bytes);
    file.path += (file.path.empty() ? "" : " and its copy ") + copy.path;
  }
  files_.push_back(std::move(file));
  return FileId(static_cast<uint32_t>(files_.size() - 1));
}

// A drive that does nothing but fail, except for the read that tries it again.
bool MirroredReader::IsPassedOver(DriveState* drive) {
  if (drive->errors_in_a_row < kSuspectErrors) return false;
  if (++drive->passed_over < kProbeInterval) return true;
  drive->passed_over = 0;
  return false;
}

uint32_t MirroredReader::Choose(const File& file, const BlockRead& read, uint32_t tried) {
  const auto is_left = [&](uint32_t copy) { return (tried >> copy & 1) == 0; };
  if (read.copy < file.copies.size() && is_left(read.copy)) return read.copy;
  uint32_t best = 0, best_weight = 0;
  uint64_t best_bytes = 0;
  bool found = false, best_is_passed_over = false;
  for (uint32_t copy = 0; copy < file.copies.size(); ++copy) {
    if (!is_left(copy)) continue;
    DriveState& drive = drives_[file.copies[copy].drive];
    const bool passed_over = IsPassedOver(&drive);
    const uint64_t bytes = drive.in_flight_bytes + read.length;
    // bytes / weight, without the division. 2^20 weights times 2^40 bytes fit.
    const uint64_t ours = bytes * best_weight, theirs = best_bytes * drive.weight;
    const bool better = passed_over != best_is_passed_over ? best_is_passed_over
                        : ours != theirs                   ? ours < theirs
                                                           : drive.weight > best_weight;
    if (found && !better) continue;
    found = true;
    best = copy;
    best_weight = drive.weight;
    best_bytes = bytes;
    best_is_passed_over = passed_over;
  }
  CHECK(found, "every copy has been tried");
  return best;
}

void MirroredReader::Issue(uint32_t entry_index) {
  Entry& entry = entries_[entry_index];
  const File& file = At(entry.read.file);
  entry.copy = Choose(file, entry.read, entry.tried);
  const FileCopy& copy = file.copies[entry.copy];
  drives_[copy.drive].in_flight_bytes += entry.read.length;
  BlockRead read = entry.read;
  read.file = copy.file;
  read.tag = entry_index;
  batch_.push_back(read);
}

void MirroredReader::Submit(std::span<const BlockRead> reads) {
  CHECK(reads.size() <= free_entries_.size(), "more reads than capacity");
  batch_.clear();
  for (const BlockRead& read : reads) {
    const uint32_t index = free_entries_.back();
    free_entries_.pop_back();
    entries_[index] = Entry();
    entries_[index].read = read;
    entries_[index].active = true;
    Issue(index);
  }
  inner_->Submit(batch_);
}

void MirroredReader::Cancel(uint64_t tag) {
  for (uint32_t i = 0; i < entries_.size(); ++i) {
    if (!entries_[i].active || entries_[i].read.tag != tag) continue;
    entries_[i].cancelled = true;
    inner_->Cancel(i);
    return;
  }
}

void MirroredReader::CountError(const Entry& entry, int32_t result) {
  const File& file = At(entry.read.file);
  const FileCopy& copy = file.copies[entry.copy];
  ++drives_[copy.drive].errors_in_a_row;
  // The 1st, 2nd, 4th, ...: a broken drive fails thousands of reads.
  if (!std::has_single_bit(++stats_[copy.drive].errors)) return;
  LOG_WARN("{}: reading {} bytes at offset {}: {}; error {} of this drive", inner_->path(copy.file),
           entry.read.length, entry.read.offset,
           result < 0 ? std::strerror(-result) : "the file ends there", stats_[copy.drive].errors);
}

// True if the read is over; else it has been put into batch_ again.
bool MirroredReader::Land(const BlockCompletion& landed, BlockCompletion* completion) {
  const auto index = static_cast<uint32_t>(landed.tag);
  CHECK(landed.tag < entries_.size() && entries_[index].active, "a completion of no read in flight");
  Entry& entry = entries_[index];
  const File& file = At(entry.read.file);
  const uint32_t drive = file.copies[entry.copy].drive;
  drives_[drive].in_flight_bytes -= entry.read.length;
  *completion = {entry.read.tag, landed.result};
  if (landed.result > 0) {
    ++stats_[drive].reads;
    stats_[drive].bytes += static_cast<uint32_t>(landed.result);
    drives_[drive].errors_in_a_row = 0;
    for (uint32_t copy = 0; copy < file.copies.size(); ++copy) {
      stats_[file.copies[copy].drive].healed += entry.tried >> copy & 1;
    }
  } else if (!entry.cancelled && landed.result != -ECANCELED) {
    CountError(entry, landed.result);
    entry.tried |= 1u << entry.copy;
    entry.error = std::min(entry.error, landed.result);
    if (static_cast<size_t>(std::popcount(entry.tried)) < file.copies.size()) {
      Issue(index);
      return false;
    }
    completion->result = entry.error;
  }
  entry.active = false;
  free_entries_.push_back(index);
  return true;
}

size_t MirroredReader::Reap(std::vector<BlockCompletion>* completions, int64_t wait_ns) {
  const size_t before = completions->size();
  while (true) {
    landed_.clear();
    batch_.clear();
    inner_->Reap(&landed_, wait_ns);
    for (const BlockCompletion& landed : landed_) {
      BlockCompletion completion;
      if (Land(landed, &completion)) completions->push_back(completion);
    }
    if (!batch_.empty()) inner_->Submit(batch_);
    // No read is tried more often than it has copies, so a wait ends.
    if (completions->size() > before || wait_ns >= 0 || inner_->in_flight() == 0) break;
  }
  return completions->size() - before;
}

}  // namespace moraine
