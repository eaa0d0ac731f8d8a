// Importer: checkpoint -> store, in bounded memory, in parallel, resumable at any byte.
//
// What a tensor means and how it is encoded comes from the plan (made by engine/import_plan.h from
// the model's config, with compute's encoders); the importer knows only units of work with sizes: one
// record, or one strip of a dense tensor. Units are encoded by worker threads into buffers of a
// bounded pool and written at places that are known before the first byte is read, so that the order
// of completion does not matter. Reads and writes go past the page cache (bulk_file.h), and each
// worker waits for its own; there are more workers than CPUs, so that reading, encoding and writing
// overlap. ImportProgress says what the workers' time went into, which is what bounds the import.
//
// Crash safety: a unit counts as done only after its pack bytes are synced (batched fdatasync) and
// its checksum is in the catalogue. A resume checks the source's fingerprint and the options, takes
// the done units as they are and redoes the rest; of a mirrored store, a unit is done when both of
// its copies are. The manifest is written, synced, when everything
// else is; until then the store does not open.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "store/checkpoint.h"
#include "store/drive_set.h"
#include "store/manifest.h"

namespace moraine {

class ImportPlan {
 public:
  virtual ~ImportPlan() = default;
  // The manifest to be: layers and dense tensors with encodings, sizes and offsets 0; the importer
  // fills in offsets, checksums and store_uuid.
  virtual const Manifest& manifest() const = 0;
  // Encodes one expert into exactly record_bytes, padding zeroed. Thread-safe.
  virtual Status EncodeExpert(const Checkpoint& checkpoint, ExpertKey key,
                              std::span<std::byte> record) const = 0;
  // Dense tensor `index` of the manifest is encoded in strips of rows; a strip's bytes are contiguous
  // and strips follow each other. Vectors are one strip. Thread-safe.
  virtual uint32_t DenseStripCount(size_t index) const = 0;
  virtual uint64_t DenseStripBytes(size_t index, uint32_t strip) const = 0;
  virtual Status EncodeDenseStrip(const Checkpoint& checkpoint, size_t index, uint32_t strip,
                                  std::span<std::byte> bytes) const = 0;
};

struct ImportProgress {
  uint64_t done_bytes = 0, total_bytes = 0;  // of the store
  uint64_t resumed_bytes = 0;                // done by an earlier run
  double seconds = 0;
  // What this run's workers have spent their time on, added up; waiting: for what was written to be synced.
  int threads = 0;
  double reading_seconds = 0, encoding_seconds = 0, writing_seconds = 0, waiting_seconds = 0;
  bool finished = false;
};

struct ImportOptions {
  std::string store_directory;
  int thread_count = 0;                 // 0: one per CPU, and six that wait for the drive
  uint64_t pack_limit_bytes = 64ull << 30;  // a new expert pack is begun beyond this
  // Written bytes are synced and entered in the catalogue in batches of this size (or every two
  // seconds). A kill costs at most three such batches, and no more are ever dirty in the page cache;
  // smaller ones only cost more fdatasync calls.
  uint64_t commit_bytes = 128ull << 20;
  // Where expert packs go. A resume may name other directories: what is not there is written again.
  // Other weights, or another number of stripes, are another layout: kFailedPrecondition.
  DriveSet drives;
  std::function<void(const ImportProgress&)> on_progress;  // about 5 times a second, any thread
};

// kResourceExhausted naming needed and free bytes when the disk is too small (checked first, and
// again by ENOSPC while writing; what was done stays resumable). kFailedPrecondition when the
// directory holds something else, or an import, finished or not, of another source or with other
// options. The same import again does nothing once it is finished: whoever repeats the command after
// a crash need not know how far it got.
Status Import(const Checkpoint& checkpoint, const ImportPlan& plan, const ImportOptions& options);

struct VerifyReport {
  uint64_t records = 0, bytes = 0;    // of every copy
  uint32_t copies = 1;                // of each record
  double seconds = 0;
  std::vector<std::string> problems;  // one line each: what, where, expected, found
};
// Reads every record, every copy of it, and every dense tensor of a store with deep queues and checks
// every checksum. An error only if it could not run; bad records are in the report, each with what
// the other copy is like.
Result<VerifyReport> VerifyStore(const std::string& directory,
                                 const std::function<void(uint64_t done, uint64_t total)>& progress);

}  // namespace moraine
