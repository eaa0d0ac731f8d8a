// VerifyStore: reads a whole store through the read scheduler, as the engine does, and checks every
// checksum. Reads run ahead through a ring of buffers and are checked in file order, so that a
// tensor larger than the ring can be hashed piece by piece. One thread both reaps and hashes: XXH3
// runs at memory speed, which is above any single drive's.
#include <xxhash.h>

#include <algorithm>
#include <unordered_map>

#include "base/bytes.h"
#include "base/clock.h"
#include "io/read_scheduler.h"
#include "memory/host_arena.h"
#include "store/checksum_mismatch.h"
#include "store/importer.h"
#include "store/pack_header.h"
#include "store/store.h"

namespace moraine {
namespace {

// What is read ahead: 128 chunks of 512 KiB keep the deepest drive queue busy.
constexpr uint64_t kWindowBytes = 64 * kMiB;
constexpr size_t kMinSlots = 3;
constexpr size_t kMaxSlots = 256;
constexpr uint64_t kDensePieceBytes = 2 * kMiB;

// A record, or a piece of a dense tensor.
struct Piece {
  bool is_expert = false;
  uint32_t first = 0, second = 0;  // layer and expert, or index of the dense tensor and 0
  uint32_t copy = 0;               // copies of a record are neighbours
  FileId file;
  uint64_t offset = 0, bytes = 0;

  uint64_t read_bytes() const { return AlignUp(bytes, kPackAlignment); }
};

class Verifier {
 public:
  Verifier(const Store& store, std::unique_ptr<BlockReader> reader)
      : store_(store), scheduler_(std::move(reader), ReadSchedulerOptions{}) {}
  ~Verifier() { XXH3_freeState(hash_); }
  Verifier(const Verifier&) = delete;
  Verifier& operator=(const Verifier&) = delete;

  Status Prepare();
  VerifyReport Run(const std::function<void(uint64_t, uint64_t)>& progress);

 private:
  struct Slot {
    std::byte* buffer = nullptr;
    bool landed = false;
    Status status;
  };

  Slot& SlotOf(size_t piece) { return slots_[piece % slots_.size()]; }
  void ReadAhead(size_t head);
  void Reap(int64_t wait_ns);
  void Check(const Piece& piece, const Slot& slot);
  void CheckDense(const Piece& piece, const Slot& slot);
  void CheckRecord(const Piece& piece, const Slot& slot);
  std::string Describe(const Piece& piece) const;

  const Store& store_;
  HostArena arena_;          // outlives the scheduler's reads: destroyed after it
  ReadScheduler scheduler_;
  std::vector<Piece> pieces_;
  std::vector<Slot> slots_;
  size_t next_ = 0;  // first piece that has not been asked for
  std::unordered_map<ReadId, size_t> reading_;
  std::vector<ReadOutcome> outcomes_;
  XXH3_state_t* hash_ = XXH3_createState();
  std::vector<Status> copies_;  // of the current record, as far as they have been checked
  bool tensor_failed_ = false;  // a piece of the current tensor could not be read
  VerifyReport report_;
};

Status Verifier::Prepare() {
  const Manifest& manifest = store_.manifest();
  ASSIGN_OR_RETURN(const FileId dense_file,
                   scheduler_.reader().OpenFile(store_.dense_pack_path()));
  std::vector<std::vector<FileId>> expert_files;
  for (uint32_t pack = 0; pack < store_.expert_pack_paths().size(); ++pack) {
    std::vector<FileId>& copies = expert_files.emplace_back();
    for (const std::string& path : store_.expert_pack_copies(pack)) {
      ASSIGN_OR_RETURN(const FileId file, scheduler_.reader().OpenFile(path));
      copies.push_back(file);
    }
    report_.copies = static_cast<uint32_t>(copies.size());
  }
  uint64_t slot_bytes = kPackAlignment;
  for (uint32_t i = 0; i < manifest.dense.size(); ++i) {
    const DenseTensor& tensor = manifest.dense[i];
    for (uint64_t done = 0; done < tensor.bytes; done += kDensePieceBytes) {
      pieces_.push_back({.is_expert = false, .first = i, .second = 0, .file = dense_file,
                         .offset = tensor.offset + done,
                         .bytes = std::min(kDensePieceBytes, tensor.bytes - done)});
      slot_bytes = std::max(slot_bytes, pieces_.back().read_bytes());
    }
  }
  for (uint32_t layer = 0; layer < manifest.layers.size(); ++layer) {
    for (uint32_t expert = 0; expert < manifest.layers[layer].expert_count; ++expert) {
      const RecordLocation& location = store_.Locate({LayerId(layer), ExpertId(expert)});
      for (uint32_t copy = 0; copy < expert_files[location.pack].size(); ++copy) {
        pieces_.push_back({.is_expert = true, .first = layer, .second = expert, .copy = copy,
                           .file = expert_files[location.pack][copy], .offset = location.offset,
                           .bytes = location.bytes});
      }
      slot_bytes = std::max(slot_bytes, location.bytes);
    }
  }
  slots_.resize(std::clamp<size_t>(kWindowBytes / slot_bytes, kMinSlots, kMaxSlots));
  ASSIGN_OR_RETURN(arena_, HostArena::Allocate(slots_.size() * slot_bytes, HostArenaOptions{}));
  for (size_t i = 0; i < slots_.size(); ++i) slots_[i].buffer = arena_.data() + i * slot_bytes;
  const std::span<std::byte> memory = arena_.span();
  return scheduler_.reader().RegisterBuffers(std::span(&memory, 1));
}

void Verifier::ReadAhead(size_t head) {
  for (; next_ < pieces_.size() && next_ - head < slots_.size(); ++next_) {
    const Piece& piece = pieces_[next_];
    Slot& slot = SlotOf(next_);
    slot.landed = false;
    const ReadId id = scheduler_.Enqueue({.file = piece.file, .offset = piece.offset,
                                          .length = piece.read_bytes(), .buffer = slot.buffer});
    reading_.emplace(id, next_);
  }
  scheduler_.Flush();
}

void Verifier::Reap(int64_t wait_ns) {
  outcomes_.clear();
  scheduler_.Poll(&outcomes_, wait_ns);
  for (ReadOutcome& outcome : outcomes_) {
    const auto found = reading_.find(outcome.id);
    CHECK(found != reading_.end(), "an outcome nobody asked for");
    Slot& slot = SlotOf(found->second);
    slot.landed = true;
    slot.status = std::move(outcome.status);
    reading_.erase(found);
  }
}

std::string Verifier::Describe(const Piece& piece) const {
  if (!piece.is_expert) return "tensor '" + store_.manifest().dense[piece.first].name + "'";
  return "layer " + std::to_string(piece.first) + " expert " + std::to_string(piece.second);
}

void Verifier::CheckDense(const Piece& piece, const Slot& slot) {
  const DenseTensor& tensor = store_.manifest().dense[piece.first];
  if (piece.offset == tensor.offset) {
    XXH3_64bits_reset(hash_);
    tensor_failed_ = false;
  }
  if (!slot.status.ok()) {
    tensor_failed_ = true;
    return;
  }
  XXH3_64bits_update(hash_, slot.buffer, piece.bytes);
  if (piece.offset + piece.bytes < tensor.offset + tensor.bytes || tensor_failed_) return;
  const uint64_t checksum = XXH3_64bits_digest(hash_);
  if (checksum == tensor.checksum) return;
  report_.problems.push_back(
      ChecksumMismatch(store_.dense_pack_path(), tensor.offset, Describe(piece), tensor.checksum,
                       checksum)
          .message());
}

void Verifier::CheckRecord(const Piece& piece, const Slot& slot) {
  const ExpertKey key{LayerId(piece.first), ExpertId(piece.second)};
  ++report_.records;
  if (piece.copy == 0) copies_.clear();
  copies_.push_back(slot.status.ok() ? store_.VerifyRecord(
                                           key, std::span(slot.buffer, piece.bytes), piece.copy)
                                     : slot.status.WithContext(Describe(piece)));
  if (copies_.size() < report_.copies) return;
  const std::vector<std::string> paths = store_.expert_pack_copies(store_.Locate(key).pack);
  for (size_t copy = 0; copy < copies_.size(); ++copy) {
    if (copies_[copy].ok()) continue;
    std::string problem = copies_[copy].message();
    for (size_t other = 0; other < copies_.size(); ++other) {
      if (other == copy) continue;
      problem += "; its copy in " + paths[other] + (copies_[other].ok() ? " is right" : " is bad too");
    }
    report_.problems.push_back(std::move(problem));
  }
}

void Verifier::Check(const Piece& piece, const Slot& slot) {
  if (piece.is_expert) return CheckRecord(piece, slot);
  if (!slot.status.ok()) {
    report_.problems.push_back(slot.status.WithContext(Describe(piece)).message());
  }
  CheckDense(piece, slot);
}

VerifyReport Verifier::Run(const std::function<void(uint64_t, uint64_t)>& progress) {
  const int64_t start_ns = RealClock().NowNs();
  uint64_t total_bytes = 0;
  for (const Piece& piece : pieces_) total_bytes += piece.bytes;
  for (size_t head = 0; head < pieces_.size(); ++head) {
    ReadAhead(head);
    Reap(/*wait_ns=*/0);
    while (!SlotOf(head).landed) Reap(/*wait_ns=*/-1);
    Check(pieces_[head], SlotOf(head));
    report_.bytes += pieces_[head].bytes;
    if (progress) progress(report_.bytes, total_bytes);
  }
  report_.seconds = static_cast<double>(RealClock().NowNs() - start_ns) * 1e-9;
  return std::move(report_);
}

}  // namespace

Result<VerifyReport> VerifyStore(
    const std::string& directory,
    const std::function<void(uint64_t done, uint64_t total)>& progress) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Store> store,
                   Store::Open(directory, StoreMode::kReadOnly));
  ASSIGN_OR_RETURN(std::unique_ptr<BlockReader> reader, CreateBlockReader(BlockReaderOptions{}));
  Verifier verifier(*store, std::move(reader));
  RETURN_IF_ERROR(verifier.Prepare());
  return verifier.Run(progress);
}

}  // namespace moraine
