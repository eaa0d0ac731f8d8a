// MeasureReads: random whole-record reads for some seconds, as decode makes them.
//
// Through the ReadScheduler into a registered arena, at demand priority, from one thread: what it
// measures is the path of a miss, not the drive alone. `moraine bench io` puts fio's figure beside
// it; `moraine doctor` draws the drive's curve with it.
//
// The figures are those of the window between the first submission and the end of the time; the
// reads still in flight then are drained, and count for nothing. CPU time is the whole process's:
// the kernel's share, pread threads and io_uring's workers included, interrupts that hit other
// processes not.
//
// Threads: the caller's, for the whole time.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/random.h"
#include "io/block_reader.h"

namespace moraine {

// One record: `file` is the index of its path.
struct ReadPlace {
  uint32_t file = 0;
  uint64_t offset = 0;
  uint64_t bytes = 0;
  uint64_t tag = 0;  // the caller's, for on_record
};

struct ReadMeasurementOptions {
  std::vector<std::string> paths;
  // The next record to read. Called for each read; offset and bytes aligned as the file asks.
  std::function<ReadPlace(Random&)> pick;
  uint64_t max_record_bytes = 0;  // the size of each of the arena's buffers
  // Requests a record is split into are at most this large; 0: one request a record.
  uint32_t chunk_bytes = 0;
  uint32_t records = 8;  // outstanding; the reader's capacity limits the requests in flight
  bool huge_pages = true;  // the arena's, as the engine's slots have them
  double seconds = 1;
  uint64_t seed = 1;
  // Called with the bytes of each record that arrives, if set; an error ends the measurement.
  std::function<Status(const ReadPlace&, std::span<const std::byte>)> on_record;
};

struct ReadMeasurement {
  uint64_t records = 0, bytes = 0, requests = 0;
  double seconds = 0;
  double gb_per_s = 0;
  double p50_us = 0, p99_us = 0;  // of a record, from Enqueue to its last byte
  double cpu_s_per_gb = 0;
  double core_percent = 0;    // CPU seconds a second, in percent of one core
  std::string configuration;  // the reader's, after all fallbacks
};

// Consumes the reader (registration is once a reader). kInvalidArgument if nothing can be measured,
// else the reader's error, or on_record's.
Result<ReadMeasurement> MeasureReads(std::unique_ptr<BlockReader> reader,
                                     const ReadMeasurementOptions& options,
                                     const Clock& clock = RealClock());

// The value below which `fraction` of the samples lie (nearest rank); 0 for none. Reorders them.
double Quantile(std::vector<double>* samples, double fraction);

}  // namespace moraine
