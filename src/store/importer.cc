#include "store/importer.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <xxhash.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "base/bytes.h"
#include "base/clock.h"
#include "store/bulk_file.h"
#include "store/catalogue.h"
#include "store/import_layout.h"
#include "store/pack_header.h"
#include "store/posix_file.h"
#include "store/record_checksum.h"
#include "store/store_directory.h"

namespace moraine {
namespace {

constexpr auto kProgressInterval = std::chrono::milliseconds(200);
constexpr int64_t kCommitIntervalNs = 2'000'000'000;
// Threads beyond the CPUs. A worker waits for each read and write (bulk_file.h); with one for each CPU, drive and
// CPUs would take turns.
constexpr int kWaitingThreads = 6;
// Workers wait when this many batches are written but not yet synced.
constexpr uint64_t kMaxPendingBatches = 2;
// RocksDB's log, tables and their compaction for an index entry of some 60 bytes, with much room.
constexpr uint64_t kCatalogueBytesPerUnit = 256;
constexpr uint64_t kCatalogueBytes = 8 * kMiB;
// Pieces in which the dense pack is read back to be checksummed.
constexpr uint64_t kReadBackBytes = 4 * kMiB;

using AlignedBuffer = std::unique_ptr<std::byte, decltype(&std::free)>;

class ImportSession {
 public:
  ImportSession(const Checkpoint& checkpoint, const ImportPlan& plan, const ImportOptions& options)
      : checkpoint_(checkpoint), plan_(plan), options_(options) {}

  // Everything that can be refused before work begins: directory, lock, earlier imports, space.
  Status Prepare();
  // An earlier run did all of this: there is nothing to run.
  bool finished_earlier() const { return finished_earlier_; }
  void ReportFinished() { Report(/*finished=*/true); }
  // Encodes and writes what is not done. What was written stays done, also after an error.
  Status Run();
  // Dense checksums, then the manifest: from here on the store opens.
  Status Finish();

 private:
  Status CheckEarlierImport();
  Status LoadDoneUnits();
  Status PrepareDrives();
  Status CheckFinishedDrives() const;
  Status CheckFreeSpace() const;
  Status CheckDrive(dev_t device, const std::string& directory, uint64_t needed) const;
  std::vector<std::string> PathsOf(uint32_t file) const;
  Result<PosixFile> OpenPack(const std::string& path, const PackHeader& header) const;
  Status RecordPlan();
  Status OpenPacks();
  Status ChecksumDenseTensors();

  void Work();
  Status EncodeAndWrite(const ImportUnit& unit, std::byte* buffer, uint64_t* checksum);
  void CommitLoop();
  Status Commit(const std::vector<size_t>& units);
  void Fail(const Status& status);
  void Report(bool finished);

  const Checkpoint& checkpoint_;
  const ImportPlan& plan_;
  const ImportOptions& options_;
  const int64_t start_ns_ = RealClock().NowNs();
  PosixFile lock_;
  std::unique_ptr<Catalogue> catalogue_;
  ImportLayout layout_;
  // By ImportUnit::file; the copies of each.
  std::vector<std::vector<std::unique_ptr<BulkFile>>> files_;
  std::vector<uint64_t> checksums_;  // by unit
  std::vector<size_t> todo_;         // units, in file order
  bool finished_earlier_ = false;
  uint64_t resumed_bytes_ = 0;
  std::atomic<size_t> next_{0};      // index into todo_
  std::atomic<uint64_t> written_bytes_{0};
  int worker_count_ = 0;
  const int64_t reading_before_ns_ = checkpoint_.reading_ns();
  // Of all workers, relaxed: figures for people.
  std::atomic<int64_t> encoding_ns_{0}, writing_ns_{0}, waiting_ns_{0};
  std::atomic<bool> stop_{false};

  std::mutex mutex_;  // guards what follows
  std::condition_variable pending_changed_;  // more to commit, or a worker has left
  std::condition_variable committed_;        // room for more
  std::vector<size_t> pending_;  // written, not synced
  uint64_t pending_bytes_ = 0;
  int working_ = 0;
  Status status_;
};

Status ImportSession::Prepare() {
  RETURN_IF_ERROR(options_.drives.Check());
  RETURN_IF_ERROR(CreateStoreDirectory(options_.store_directory));
  ASSIGN_OR_RETURN(lock_, LockStoreForWriting(options_.store_directory));
  ASSIGN_OR_RETURN(catalogue_, Catalogue::Open(CatalogueDirectory(options_.store_directory),
                                               Catalogue::Mode::kCreate));
  layout_ = MakeImportLayout(plan_, options_.pack_limit_bytes, options_.drives);
  checksums_.resize(layout_.units.size());
  RETURN_IF_ERROR(CheckEarlierImport());
  if (finished_earlier_) return OkStatus();
  RETURN_IF_ERROR(LoadDoneUnits());
  RETURN_IF_ERROR(CheckFreeSpace());
  RETURN_IF_ERROR(PrepareDrives());
  RETURN_IF_ERROR(RecordPlan());
  return OpenPacks();
}

Status ImportSession::CheckEarlierImport() {
  const std::string& store = options_.store_directory;
  ASSIGN_OR_RETURN(const auto finished_json, catalogue_->Get(kManifestKey));
  if (finished_json) {
    ASSIGN_OR_RETURN(const Manifest finished, Manifest::FromJson(*finished_json));
    const std::string difference = DescribePlanDifference(finished, layout_.manifest);
    if (difference.empty()) {
      finished_earlier_ = true;
      resumed_bytes_ = layout_.total_bytes;
      return CheckFinishedDrives();
    }
    return FailedPrecondition(store + ": holds a finished import already, and " + difference +
                              "; choose another directory");
  }
  ASSIGN_OR_RETURN(const auto begun_json, catalogue_->Get(kImportKey));
  if (begun_json) {
    ASSIGN_OR_RETURN(const Manifest begun, Manifest::FromJson(*begun_json));
    const std::string difference = DescribePlanDifference(begun, layout_.manifest);
    if (difference.empty()) return OkStatus();
    return FailedPrecondition(store + ": holds the unfinished import of something else: " +
                              difference + "; repeat it as it was begun, or remove the directory");
  }
  return OkStatus();
}

// A finished import is not touched again, so a mirror that it lacks would silently never be written.
Status ImportSession::CheckFinishedDrives() const {
  if (!options_.drives.mirror) return OkStatus();
  ASSIGN_OR_RETURN(const DriveSet drives, DriveSet::Read(options_.store_directory));
  if (drives.mirror) return OkStatus();
  const std::string& store = options_.store_directory;
  const std::string& mirror = options_.drives.mirror->directory;
  return FailedPrecondition(store + ": holds a finished import without a mirror; to add one, copy its "
                            "experts-*.pack to " + mirror + " and the line 'mirror 1 " + mirror +
                            "' to " + store + "/DRIVES");
}

// Only once nothing can be refused any more: from here on the directory insists on this plan.
Status ImportSession::RecordPlan() {
  // Enough to recognise the same plan; the files' contents are part of the uuid.
  Manifest begun = layout_.manifest;
  begun.files.clear();
  return catalogue_->Write({.puts = {{kImportKey, begun.ToJson()}}, .deletes = {}}, /*sync=*/true);
}

Status ImportSession::LoadDoneUnits() {
  // Sizes of the packs as they are: an entry whose bytes are no longer there is not believed.
  std::vector<uint64_t> sizes;
  for (uint32_t file = 0; file < layout_.file_bytes.size(); ++file) {
    uint64_t least = UINT64_MAX;
    for (const std::string& path : PathsOf(file)) {
      std::error_code error;
      const uint64_t size = std::filesystem::file_size(path, error);
      least = std::min(least, error ? 0 : size);
    }
    sizes.push_back(least);
  }
  CatalogueBatch lost;
  for (size_t i = 0; i < layout_.units.size(); ++i) {
    const ImportUnit& unit = layout_.units[i];
    const std::string key =
        PairKey(unit.is_expert ? kRecordPrefix : kStripPrefix, unit.first, unit.second);
    ASSIGN_OR_RETURN(const auto value, catalogue_->Get(key));
    RecordLocation location;
    const bool known = value && (unit.is_expert ? DecodeLocation(*value, &location)
                                                : DecodeChecksum(*value, &location.checksum));
    if (known && sizes[unit.file] >= unit.offset + unit.bytes) {
      checksums_[i] = location.checksum;
      resumed_bytes_ += unit.bytes;
    } else {
      todo_.push_back(i);
      if (value) lost.deletes.push_back(key);
    }
  }
  // Forgotten before the first byte is written: a later unit makes the new file long enough, and if
  // this run is killed then, the next one must not believe in the hole before it.
  return lost.deletes.empty() ? OkStatus() : catalogue_->Write(lost, /*sync=*/true);
}

std::vector<std::string> ImportSession::PathsOf(uint32_t file) const {
  if (file == 0) return {DensePackPath(options_.store_directory)};
  return options_.drives.ExpertPackPaths(options_.store_directory, file - 1);
}

// The directories, and where the store will look for them.
Status ImportSession::PrepareDrives() {
  for (const std::string& directory :
       options_.drives.PackDirectories(options_.store_directory)) {
    std::error_code error;
    std::filesystem::create_directories(directory, error);
    if (error) return IoError("create directory " + directory + ": " + error.message());
  }
  return options_.drives.Write(options_.store_directory);
}

// What each file system still has to take; several directories may be on one.
Status ImportSession::CheckFreeSpace() const {
  std::map<dev_t, std::pair<std::string, uint64_t>> needed;  // a directory on it, bytes
  const auto add = [&](const std::string& path, uint64_t bytes) -> Status {
    // Nothing has been created yet: the nearest directory that is there is on the same drive.
    std::filesystem::path place = std::filesystem::path(path).parent_path();
    struct stat info;
    while (stat(place.c_str(), &info) != 0) {
      if (errno != ENOENT || place == place.parent_path()) {
        return IoErrorFromErrno("stat " + place.string(), errno);
      }
      place = place.parent_path();
    }
    const std::string directory = place.string();
    auto& [where, sum] = needed.try_emplace(info.st_dev, directory, 0).first->second;
    // Saturates: a plan may be absurd, and then the answer must not wrap round to "enough".
    if (__builtin_add_overflow(sum, bytes, &sum)) sum = UINT64_MAX;
    return OkStatus();
  };
  std::vector<uint64_t> file_bytes(layout_.file_bytes.size());
  for (const size_t i : todo_) {
    uint64_t& bytes = file_bytes[layout_.units[i].file];
    if (__builtin_add_overflow(bytes, layout_.units[i].bytes, &bytes)) bytes = UINT64_MAX;
  }
  RETURN_IF_ERROR(add(CatalogueDirectory(options_.store_directory),
                      kCatalogueBytes + todo_.size() * kCatalogueBytesPerUnit));
  for (uint32_t file = 0; file < file_bytes.size(); ++file) {
    for (const std::string& path : PathsOf(file)) {
      // An earlier run may have written more than it committed, and has reserved the rest.
      struct stat info;
      const uint64_t whole = layout_.file_bytes[file];
      const uint64_t allocated = stat(path.c_str(), &info) == 0
                                     ? static_cast<uint64_t>(info.st_blocks) * 512
                                     : 0;
      RETURN_IF_ERROR(add(path, std::min(file_bytes[file], whole - std::min(whole, allocated))));
    }
  }
  for (const auto& [device, drive] : needed) {
    RETURN_IF_ERROR(CheckDrive(device, drive.first, drive.second));
  }
  return OkStatus();
}

Status ImportSession::CheckDrive(dev_t device, const std::string& directory,
                                 uint64_t needed) const {
  struct stat store;
  const bool is_store = stat(options_.store_directory.c_str(), &store) == 0 &&
                        store.st_dev == device;
  const std::string& name = is_store ? options_.store_directory : directory;
  struct statvfs info;
  if (statvfs(name.c_str(), &info) != 0) return IoErrorFromErrno("statvfs " + name, errno);
  const uint64_t free = uint64_t{info.f_bavail} * info.f_frsize;
  if (needed <= free) return OkStatus();
  return ResourceExhausted(name + ": the import needs " + FormatByteSize(needed) + " (" +
                           std::to_string(needed) + " bytes), but the disk has " +
                           FormatByteSize(free) + " (" + std::to_string(free) + " bytes) free");
}

Result<PosixFile> ImportSession::OpenPack(const std::string& path,
                                          const PackHeader& header) const {
  ASSIGN_OR_RETURN(PosixFile pack, PosixFile::Open(path, O_RDWR | O_CREAT));
  // A directory outside the store may belong to another one.
  ASSIGN_OR_RETURN(const uint64_t size, pack.Size());
  PackHeader::Page page{};
  if (size >= page.size()) RETURN_IF_ERROR(pack.ReadAt(0, page));
  if (page != PackHeader::Page{}) {
    const Status ours = header.CheckPage(page, path);
    if (!ours.ok()) {
      return FailedPrecondition(ours.message() + "; choose an empty directory");
    }
  }
  RETURN_IF_ERROR(pack.WriteAt(0, header.ToPage()));
  return pack;
}

Status ImportSession::OpenPacks() {
  for (uint32_t file = 0; file < layout_.file_bytes.size(); ++file) {
    const PackHeader header = {file == 0 ? PackKind::kDense : PackKind::kExperts,
                               file == 0 ? 0 : file - 1, layout_.manifest.store_uuid};
    const std::vector<std::string> paths = PathsOf(file);
    std::vector<std::unique_ptr<BulkFile>>& copies = files_.emplace_back();
    for (const std::string& path : paths) {
      ASSIGN_OR_RETURN(PosixFile pack, OpenPack(path, header));
      copies.push_back(std::make_unique<BulkFile>(std::move(pack), BulkFile::Access::kReadWrite));
    }
    std::error_code ignored;  // both have just been opened
    if (paths.size() > 1 && std::filesystem::equivalent(paths[0], paths[1], ignored)) {
      return InvalidArgument(paths[1] + ": is " + paths[0] +
                             "; a mirror is a directory of its own, on another drive");
    }
    for (const auto& copy : copies) copy->Reserve(layout_.file_bytes[file]);
  }
  for (const std::string& directory :
       options_.drives.PackDirectories(options_.store_directory)) {
    RETURN_IF_ERROR(SyncDirectory(directory));
  }
  return SyncDirectory(options_.store_directory);
}

Status ImportSession::EncodeAndWrite(const ImportUnit& unit, std::byte* buffer,
                                     uint64_t* checksum) {
  const int64_t start_ns = RealClock().NowNs();
  const std::span<std::byte> bytes(buffer, unit.bytes);
  if (unit.is_expert) {
    RETURN_IF_ERROR(plan_.EncodeExpert(checkpoint_, unit.key(), bytes));
  } else {
    RETURN_IF_ERROR(plan_.EncodeDenseStrip(checkpoint_, unit.first, unit.second, bytes));
  }
  *checksum = unit.is_expert ? RecordChecksum(bytes) : XXH3_64bits(bytes.data(), bytes.size());
  const int64_t encoded_ns = RealClock().NowNs();
  for (const auto& file : files_[unit.file]) {
    RETURN_IF_ERROR(file->WriteAt(unit.offset, bytes));
  }
  encoding_ns_.fetch_add(encoded_ns - start_ns, std::memory_order_relaxed);
  writing_ns_.fetch_add(RealClock().NowNs() - encoded_ns, std::memory_order_relaxed);
  return OkStatus();
}

void ImportSession::Work() {
  const AlignedBuffer buffer(
      static_cast<std::byte*>(std::aligned_alloc(
          kPackAlignment, AlignUp(std::max<uint64_t>(layout_.max_unit_bytes, 1), kPackAlignment))),
      &std::free);
  CHECK(buffer != nullptr, "out of memory for an encode buffer");
  // Relaxed: the index alone is shared; results are published under the mutex.
  size_t index;
  while (!stop_ && (index = next_.fetch_add(1, std::memory_order_relaxed)) < todo_.size()) {
    const size_t i = todo_[index];
    const Status status = EncodeAndWrite(layout_.units[i], buffer.get(), &checksums_[i]);
    if (!status.ok()) {
      Fail(status);
      break;
    }
    written_bytes_ += layout_.units[i].bytes;
    const int64_t written_ns = RealClock().NowNs();
    std::unique_lock lock(mutex_);
    pending_.push_back(i);
    pending_bytes_ += layout_.units[i].bytes;
    if (pending_bytes_ >= options_.commit_bytes) pending_changed_.notify_one();
    committed_.wait(lock, [&] {
      return stop_ || pending_bytes_ < kMaxPendingBatches * options_.commit_bytes;
    });
    waiting_ns_.fetch_add(RealClock().NowNs() - written_ns, std::memory_order_relaxed);
  }
  const std::lock_guard lock(mutex_);
  --working_;
  pending_changed_.notify_one();
}

void ImportSession::Fail(const Status& status) {
  const std::lock_guard lock(mutex_);
  if (status_.ok()) status_ = status;
  stop_ = true;
  committed_.notify_all();
}

void ImportSession::CommitLoop() {
  int64_t last_commit_ns = start_ns_;
  for (bool done = false; !done;) {
    std::vector<size_t> batch;
    {
      std::unique_lock lock(mutex_);
      pending_changed_.wait_for(lock, kProgressInterval, [&] {
        return working_ == 0 || pending_bytes_ >= options_.commit_bytes;
      });
      done = working_ == 0;
      if (done || pending_bytes_ >= options_.commit_bytes ||
          RealClock().NowNs() - last_commit_ns >= kCommitIntervalNs) {
        batch.swap(pending_);
        pending_bytes_ = 0;
        committed_.notify_all();
      }
    }
    if (!batch.empty()) {
      const Status status = Commit(batch);
      if (!status.ok()) Fail(status);
      last_commit_ns = RealClock().NowNs();
    }
    Report(/*finished=*/false);
  }
}

Status ImportSession::Commit(const std::vector<size_t>& units) {
  std::set<uint32_t> touched;
  for (const size_t i : units) touched.insert(layout_.units[i].file);
  for (const uint32_t file : touched) {
    for (const auto& copy : files_[file]) RETURN_IF_ERROR(copy->buffered().SyncData());
  }
  CatalogueBatch batch;
  for (const size_t i : units) {
    const ImportUnit& unit = layout_.units[i];
    // What was written through the page cache is clean now, and nobody will read it soon.
    for (const auto& copy : files_[unit.file]) copy->buffered().DropCache(unit.offset, unit.bytes);
    if (unit.is_expert) {
      batch.puts.emplace_back(PairKey(kRecordPrefix, unit.first, unit.second),
                              EncodeLocation({unit.file - 1, unit.offset, unit.bytes,
                                              checksums_[i]}));
    } else {
      batch.puts.emplace_back(PairKey(kStripPrefix, unit.first, unit.second),
                              EncodeChecksum(checksums_[i]));
    }
  }
  // Not synced: an entry that a power cut loses is a unit done twice, no more.
  return catalogue_->Write(batch, /*sync=*/false);
}

void ImportSession::Report(bool finished) {
  if (!options_.on_progress) return;
  const auto seconds = [](int64_t ns) { return static_cast<double>(ns) * 1e-9; };
  const int64_t reading_ns = checkpoint_.reading_ns() - reading_before_ns_;
  options_.on_progress({.done_bytes = resumed_bytes_ + written_bytes_,
                        .total_bytes = layout_.total_bytes,
                        .resumed_bytes = resumed_bytes_,
                        .seconds = seconds(RealClock().NowNs() - start_ns_),
                        .threads = worker_count_,
                        .reading_seconds = seconds(reading_ns),
                        .encoding_seconds = seconds(std::max<int64_t>(encoding_ns_ - reading_ns, 0)),
                        .writing_seconds = seconds(writing_ns_),
                        .waiting_seconds = seconds(waiting_ns_),
                        .finished = finished});
}

Status ImportSession::Run() {
  const int wanted = options_.thread_count > 0
                         ? options_.thread_count
                         : static_cast<int>(std::max(1u, std::thread::hardware_concurrency())) +
                               kWaitingThreads;
  working_ = static_cast<int>(std::min<size_t>(static_cast<size_t>(wanted), todo_.size()));
  worker_count_ = working_;
  std::vector<std::thread> workers;
  for (int i = 0; i < worker_count_; ++i) workers.emplace_back([this] { Work(); });
  CommitLoop();
  for (std::thread& worker : workers) worker.join();
  const std::lock_guard lock(mutex_);
  return status_;
}

Status ImportSession::ChecksumDenseTensors() {
  const PosixFile& pack = files_[0][0]->buffered();
  std::vector<std::byte> buffer(kReadBackBytes);
  XXH3_state_t* whole = XXH3_createState();
  XXH3_state_t* strip = XXH3_createState();
  Status status;
  // Strips of a tensor are neighbours in units, in order.
  for (size_t i = 0; status.ok() && i < layout_.units.size() && !layout_.units[i].is_expert; ++i) {
    const ImportUnit& unit = layout_.units[i];
    if (unit.second == 0) XXH3_64bits_reset(whole);
    XXH3_64bits_reset(strip);
    for (uint64_t done = 0; status.ok() && done < unit.bytes;) {
      const uint64_t count = std::min<uint64_t>(buffer.size(), unit.bytes - done);
      status = pack.ReadAt(unit.offset + done, std::span(buffer.data(), count));
      pack.DropCache(unit.offset + done, count);
      XXH3_64bits_update(whole, buffer.data(), count);
      XXH3_64bits_update(strip, buffer.data(), count);
      done += count;
    }
    DenseTensor& tensor = layout_.manifest.dense[unit.first];
    if (status.ok() && XXH3_64bits_digest(strip) != checksums_[i]) {
      // Forgotten, so that the next attempt writes it again.
      status = catalogue_->Write(
          {.puts = {}, .deletes = {PairKey(kStripPrefix, unit.first, unit.second)}},
          /*sync=*/false);
      if (!status.ok()) break;
      status = Corruption(pack.path() + " at offset " + std::to_string(unit.offset) +
                          ": tensor '" + tensor.name + "' reads back differently than written");
    }
    tensor.checksum = XXH3_64bits_digest(whole);
  }
  XXH3_freeState(whole);
  XXH3_freeState(strip);
  return status;
}

Status ImportSession::Finish() {
  RETURN_IF_ERROR(ChecksumDenseTensors());
  for (size_t file = 0; file < files_.size(); ++file) {
    for (const auto& copy : files_[file]) {
      RETURN_IF_ERROR(copy->buffered().Truncate(layout_.file_bytes[file]));
      RETURN_IF_ERROR(copy->buffered().SyncData());
    }
  }
  CatalogueBatch batch;
  for (const ImportUnit& unit : layout_.units) {
    if (!unit.is_expert) batch.deletes.push_back(PairKey(kStripPrefix, unit.first, unit.second));
  }
  batch.deletes.push_back(kImportKey);
  Manifest manifest = layout_.manifest;
  for (auto& [name, contents] : manifest.files) {
    batch.puts.emplace_back(kFilePrefix + name, std::move(contents));
  }
  manifest.files.clear();
  batch.puts.emplace_back(kManifestKey, manifest.ToJson());
  RETURN_IF_ERROR(catalogue_->Write(batch, /*sync=*/true));
  RETURN_IF_ERROR(catalogue_->Flush());
  Report(/*finished=*/true);
  return OkStatus();
}

}  // namespace

Status Import(const Checkpoint& checkpoint, const ImportPlan& plan, const ImportOptions& options) {
  ImportSession session(checkpoint, plan, options);
  RETURN_IF_ERROR(session.Prepare());
  if (session.finished_earlier()) {
    session.ReportFinished();
    return OkStatus();
  }
  Status status = session.Run();
  if (status.ok()) status = session.Finish();
  if (status.ok()) return status;
  return Status(status.code(), status.message() +
                                   "; what is done is kept: import again with the same arguments "
                                   "to continue");
}

}  // namespace moraine
