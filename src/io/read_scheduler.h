// ReadScheduler: whole records in, whole records out, over any BlockReader.
//
// Splits a record into chunks that fill the drive's queue, issues demand strictly before
// speculation, resumes short reads, retries failed chunks a bounded number of times, watches
// deadlines, and cancels speculation. One failed part fails the record.
//
// Speculative chunks are issued only while the drive has nothing else to do: no demand chunk queued, no
// more than Options::demand_beside_speculation of them in flight, and at most
// Options::speculative_depth of their own. A mispredicted read must not displace a demand read.
//
// Ownership of buffers: from Enqueue until an outcome with buffer_released == true, the buffer
// belongs to the scheduler (it may be under DMA). A deadline produces an outcome at once with
// buffer_released == false, and a second one when the device has let go.
//
// What happens to a record (all of it on the owner's thread, no lock):
//
//   Enqueue -> queued -> reading -> done ----------------------------------> ok
//                ^ |        | |
//    Promote ----+ |        | +-- error, attempts used up / end of file --> landing -> kIoError /
//   (to the demand |        |                                                          kCorruption
//    queue's end)  |        +---- Cancel ---------------------------------> landing -> kCancelled
//                  |        +---- deadline: kDeadlineExceeded at once ----> landing -> the same
//                  again
//                  +------------- Cancel or deadline ------------------------------> one outcome
//
// landing: nothing more is issued, the chunks in flight are waited for, then the buffer is
// released. An error while reading is decided when the last chunk has landed, so that its only
// outcome releases the buffer too; a deadline that passes meanwhile reports the error without the
// buffer.
//
// Costs: nothing is allocated once the pools have grown to the largest number of records that were
// ever pending at once (a failure allocates its message). Enqueue and Promote are O(1), Flush and
// Poll are linear in the chunks they move, Cancel in the reader's capacity.
//
// Threads: owned by the thread that owns the BlockReader.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/clock.h"
#include "io/block_reader.h"
#include "io/latency_counts.h"

namespace moraine {

enum class ReadPriority : uint8_t { kDemand, kSpeculative };

struct RecordRead {
  FileId file;
  uint64_t offset = 0;
  uint64_t length = 0;  // bytes, not 0; offset, length and buffer aligned as the file asks (CHECK)
  std::byte* buffer = nullptr;
  ReadPriority priority = ReadPriority::kDemand;
  int64_t deadline_ns = 0;  // on the scheduler's clock; 0: none
  uint32_t copy = kAnyCopy;  // BlockRead::copy of every chunk
};

using ReadId = uint64_t;

struct ReadOutcome {
  ReadId id = 0;
  // ok: all bytes are there. kIoError: names the file, the offset, the errno and the attempts.
  // kCorruption: the file ends inside the record (expected and found bytes). kCancelled.
  // kDeadlineExceeded: twice if chunks were in flight, see above.
  Status status;
  bool buffer_released = true;
  int64_t latency_ns = 0;  // from Enqueue to the last completion, or to a deadline's report
  uint64_t delivered_bytes = 0;  // by the device so far, whatever became of the record
};

// Told of parts of records as they arrive, before the outcome of the whole. A part that is read again is
// told again; of a record that is given up, the rest is not. Must not call the scheduler.
class ReadProgress {
 public:
  virtual ~ReadProgress() = default;
  virtual void OnPart(ReadId id, uint64_t offset, uint64_t length) = 0;  // bytes of the record
};

struct ReadSchedulerOptions {
  // Multiple of 4096. Measured (docs/io.md): bandwidth is flat from 128 KiB a request upwards, the
  // CPU time per byte halves up to 512 KiB and hardly falls beyond it; and a 3 MiB expert in six
  // requests uses the parallelism of drives that one request does not fill.
  uint32_t chunk_bytes = 512 * 1024;
  // Chunks begin at multiples of it: of 4096, and no more than chunk_bytes.
  uint32_t chunk_alignment = 4096;
  uint32_t max_attempts = 3;  // per chunk, the first included
  // Chunks and bytes of speculation in flight at most (a chunk is issued while less than that is out); a
  // depth of 0 holds speculation back until it is promoted. The bytes are how far the drive can be
  // behind when a demand read comes, and what keeps it busy while the engine computes and does not
  // look: 4 MiB are 1.3 ms at 3.3 GB/s. Simulated decode of two 128-expert traces at 10, 25 and 50 %
  // resident has its best between 3 and 4 MB: half of that loses 4 to 7 %, twice as much 1 to 2 %.
  // Small records want depth: 16 chunks of 96 KiB gain 0 to 2 % over 8, more gain nothing.
  uint32_t speculative_depth = 16;
  uint64_t speculative_bytes = 4 * 1024 * 1024;
  // Demand chunks in flight beside which speculation is issued: 0 leaves the drive idle for the time
  // that it takes to see the last one arrive (1 to 2 % in the same simulation), more than 2 gain
  // nothing and take bandwidth from the demand.
  uint32_t demand_beside_speculation = 2;
};

struct ReadSchedulerStats {
  uint64_t demand_bytes = 0, speculative_bytes = 0;      // that the device delivered, used or not
  uint64_t demand_records = 0, speculative_records = 0;  // completed; promoted ones are demand
  uint64_t short_reads = 0, retries = 0, failures = 0, deadline_misses = 0, cancelled = 0;
  uint64_t submit_calls = 0;
  LatencyCounts demand_latency;  // of demand_records, from Enqueue to the last completion
  uint64_t busy_ns = 0;  // time with at least one read in flight, on the clock
};

class ReadScheduler {
 public:
  ReadScheduler(std::unique_ptr<BlockReader> reader, const ReadSchedulerOptions& options,
                const Clock& clock = RealClock());
  ~ReadScheduler();  // drains what is in flight

  BlockReader& reader();
  void SetProgress(ReadProgress* progress);  // not owned; null: nobody is told
  // Queues a read; nothing is issued before Flush or Poll.
  ReadId Enqueue(const RecordRead& read);
  // Issues as much as fits, demand first, in one Submit.
  void Flush();
  // A speculative read somebody now waits for, until deadline_ns (0: for ever). No effect on demand
  // reads, on unknown ids, nor on reads that are being given up.
  void Promote(ReadId id, int64_t deadline_ns = 0);
  // Gives a speculative read up. Its outcome (kCancelled) comes from the next Poll if no chunk is
  // in flight, else when the last one has landed. No effect on demand reads, which are never
  // cancelled, nor on unknown ids.
  void Cancel(ReadId id);
  // Reaps, resumes, retries, flushes. Appends outcomes; wait_ns as in BlockReader::Reap, but counts
  // outcomes: < 0 waits until at least one outcome is there (returns at once when idle).
  size_t Poll(std::vector<ReadOutcome>* outcomes, int64_t wait_ns);

  // Appends the outcomes of what has arrived, and issues nothing: for a caller whose demand reads are
  // about to come, and must not find the drive busy with speculation issued a moment before.
  size_t Collect(std::vector<ReadOutcome>* outcomes);

  bool idle() const;                  // nothing queued, nothing in flight, every outcome delivered
  uint32_t demand_in_flight() const;  // records without an outcome, queued ones included
  uint32_t speculative_pending() const;  // records without an outcome, queued ones included
  const ReadSchedulerStats& stats() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace moraine
