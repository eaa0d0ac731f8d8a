#include "io/read_measurement.h"

#include <sys/resource.h>

#include <algorithm>
#include <cmath>

#include "base/bytes.h"
#include "io/read_scheduler.h"
#include "memory/host_arena.h"

namespace moraine {
namespace {

double CpuSeconds() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

class Measuring {
 public:
  Measuring(std::unique_ptr<BlockReader> reader, const ReadMeasurementOptions& options,
            const Clock& clock)
      : options_(options),
        clock_(clock),
        random_(options.seed),
        scheduler_(std::move(reader), SchedulerOptions(options), clock) {}

  Result<ReadMeasurement> Run();

 private:
  struct Pending {
    ReadId id = 0;
    ReadPlace place;
    std::byte* buffer = nullptr;
  };

  static ReadSchedulerOptions SchedulerOptions(const ReadMeasurementOptions& options) {
    ReadSchedulerOptions scheduler;
    scheduler.chunk_bytes =
        options.chunk_bytes > 0
            ? options.chunk_bytes
            : static_cast<uint32_t>(AlignUp(options.max_record_bytes, 4096));
    return scheduler;
  }

  Status Prepare();
  void Fill();
  Status Take(const ReadOutcome& outcome);

  const ReadMeasurementOptions& options_;
  const Clock& clock_;
  Random random_;
  HostArena arena_;  // outlives the scheduler, which waits for what is in flight
  ReadScheduler scheduler_;
  std::vector<FileId> files_;
  std::vector<std::byte*> free_buffers_;
  std::vector<Pending> pending_;
  std::vector<ReadOutcome> outcomes_;
  std::vector<double> latencies_us_;
  ReadMeasurement result_;
};

Status Measuring::Prepare() {
  BlockReader& reader = scheduler_.reader();
  for (const std::string& path : options_.paths) {
    ASSIGN_OR_RETURN(const FileId file, reader.OpenFile(path));
    files_.push_back(file);
  }
  const uint64_t buffer_bytes = AlignUp(options_.max_record_bytes, 4096);
  ASSIGN_OR_RETURN(arena_, HostArena::Allocate(buffer_bytes * options_.records,
                                               {.huge_pages = options_.huge_pages}));
  const std::span<std::byte> buffers[] = {arena_.span()};
  RETURN_IF_ERROR(reader.RegisterBuffers(buffers));
  for (uint32_t i = 0; i < options_.records; ++i) {
    free_buffers_.push_back(arena_.data() + i * buffer_bytes);
  }
  pending_.reserve(options_.records);
  latencies_us_.reserve(1 << 16);
  return OkStatus();
}

void Measuring::Fill() {
  while (!free_buffers_.empty()) {
    Pending pending;
    pending.place = options_.pick(random_);
    CHECK(pending.place.bytes <= options_.max_record_bytes, "a record above max_record_bytes");
    pending.buffer = free_buffers_.back();
    free_buffers_.pop_back();
    RecordRead read;
    read.file = files_.at(pending.place.file);
    read.offset = pending.place.offset;
    read.length = pending.place.bytes;
    read.buffer = pending.buffer;
    pending.id = scheduler_.Enqueue(read);
    pending_.push_back(pending);
  }
}

Status Measuring::Take(const ReadOutcome& outcome) {
  const auto found = std::find_if(pending_.begin(), pending_.end(),
                                  [&](const Pending& p) { return p.id == outcome.id; });
  CHECK(found != pending_.end(), "an outcome of no read");
  const Pending pending = *found;
  *found = pending_.back();
  pending_.pop_back();
  free_buffers_.push_back(pending.buffer);
  RETURN_IF_ERROR(outcome.status);
  if (options_.on_record) {
    RETURN_IF_ERROR(options_.on_record(pending.place, {pending.buffer, pending.place.bytes}));
  }
  ++result_.records;
  result_.bytes += pending.place.bytes;
  const uint64_t chunk = options_.chunk_bytes > 0 ? options_.chunk_bytes : pending.place.bytes;
  result_.requests += (pending.place.bytes + chunk - 1) / chunk;
  latencies_us_.push_back(static_cast<double>(outcome.latency_ns) * 1e-3);
  return OkStatus();
}

Result<ReadMeasurement> Measuring::Run() {
  RETURN_IF_ERROR(Prepare());
  const double cpu_start_s = CpuSeconds();
  const int64_t start_ns = clock_.NowNs();
  const auto end_ns = start_ns + static_cast<int64_t>(options_.seconds * 1e9);
  int64_t now_ns = start_ns;
  while (now_ns < end_ns) {
    Fill();
    outcomes_.clear();
    scheduler_.Poll(&outcomes_, -1);
    now_ns = clock_.NowNs();
    for (const ReadOutcome& outcome : outcomes_) RETURN_IF_ERROR(Take(outcome));
  }
  const double cpu_s = CpuSeconds() - cpu_start_s;
  result_.configuration = scheduler_.reader().configuration();
  result_.seconds = static_cast<double>(now_ns - start_ns) * 1e-9;
  const double gigabytes = static_cast<double>(result_.bytes) * 1e-9;
  result_.gb_per_s = gigabytes / result_.seconds;
  result_.cpu_s_per_gb = cpu_s / gigabytes;
  result_.core_percent = 100 * cpu_s / result_.seconds;
  result_.p50_us = Quantile(&latencies_us_, 0.5);
  result_.p99_us = Quantile(&latencies_us_, 0.99);
  return result_;
}

}  // namespace

double Quantile(std::vector<double>* samples, double fraction) {
  if (samples->empty()) return 0;
  const auto rank = static_cast<size_t>(std::ceil(fraction * static_cast<double>(samples->size())));
  const auto position = samples->begin() + static_cast<ptrdiff_t>(std::max<size_t>(rank, 1) - 1);
  std::nth_element(samples->begin(), position, samples->end());
  return *position;
}

Result<ReadMeasurement> MeasureReads(std::unique_ptr<BlockReader> reader,
                                     const ReadMeasurementOptions& options, const Clock& clock) {
  if (options.paths.empty() || !options.pick || options.records == 0 || options.seconds <= 0 ||
      options.max_record_bytes == 0) {
    return InvalidArgument("a measurement of reads needs files, records and time");
  }
  return Measuring(std::move(reader), options, clock).Run();
}

}  // namespace moraine
