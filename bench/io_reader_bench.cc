// io_reader_bench: random reads of whole records of a file, through the read scheduler.
//
// Prints GB/s, latency and CPU seconds per GB as a table, and the same as one JSON line, for every
// combination of reader, record size and chunk size. The CPU time is the whole process's: the
// kernel's share, the pread threads and the io_uring workers included.
//
//   io_reader_bench FILE [--record 96KiB,3MiB] [--chunk 0,512KiB] [--reader io_uring,pread]
//                        [--records 8] [--capacity 128] [--threads 16] [--seconds 3] [--buffered]
//
// --records: how many records are kept outstanding; --chunk 0: one request a record, which makes
// --records the queue depth (what fio calls iodepth).
#include <sys/resource.h>
#include <sys/stat.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/bytes.h"
#include "base/random.h"
#include "io/read_scheduler.h"
#include "memory/host_arena.h"

namespace moraine {
namespace {

struct BenchOptions {
  std::string file;
  std::vector<std::string> readers = {"io_uring", "pread"};
  std::vector<std::string> records = {"96KiB", "3MiB"};
  std::vector<std::string> chunks = {"0"};
  uint32_t outstanding = 8;
  uint32_t capacity = 128;
  uint32_t threads = 16;
  double seconds = 3;
  bool buffered = false;
};

struct Measurement {
  double gb_per_s = 0;
  double p50_us = 0, p99_us = 0;
  double cpu_s_per_gb = 0;
  uint64_t records = 0;
};

double CpuSeconds() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

Result<Measurement> Measure(const BenchOptions& options, const std::string& kind,
                            uint64_t record_bytes, uint64_t chunk_bytes) {
  BlockReaderOptions reader_options;
  reader_options.kind = kind;
  reader_options.capacity = options.capacity;
  reader_options.pread_threads = options.threads;
  reader_options.direct = !options.buffered;
  ASSIGN_OR_RETURN(auto reader, CreateBlockReader(reader_options));
  ASSIGN_OR_RETURN(const FileId file, reader->OpenFile(options.file));
  struct stat status = {};
  stat(options.file.c_str(), &status);
  const uint64_t record_count = static_cast<uint64_t>(status.st_size) / record_bytes;
  if (record_count == 0) return InvalidArgument(options.file + ": smaller than one record");
  ASSIGN_OR_RETURN(HostArena arena, HostArena::Allocate(record_bytes * options.outstanding, {}));
  const std::span<std::byte> buffers[] = {arena.span()};
  RETURN_IF_ERROR(reader->RegisterBuffers(buffers));

  ReadSchedulerOptions scheduler_options;
  scheduler_options.chunk_bytes = static_cast<uint32_t>(chunk_bytes);
  ReadScheduler scheduler(std::move(reader), scheduler_options);
  Random random(1);
  std::vector<std::byte*> free_buffers;
  for (uint32_t i = 0; i < options.outstanding; ++i) {
    free_buffers.push_back(arena.data() + i * record_bytes);
  }
  std::vector<std::pair<ReadId, std::byte*>> pending;
  std::vector<ReadOutcome> outcomes;
  std::vector<double> latencies_us;
  const double cpu_start_s = CpuSeconds();
  const int64_t start_ns = RealClock().NowNs();
  const auto end_ns = start_ns + static_cast<int64_t>(options.seconds * 1e9);
  int64_t now_ns = start_ns;
  while (now_ns < end_ns || !scheduler.idle()) {
    while (now_ns < end_ns && !free_buffers.empty()) {
      RecordRead read;
      read.file = file;
      read.offset = random.Below(record_count) * record_bytes;
      read.length = record_bytes;
      read.buffer = free_buffers.back();
      free_buffers.pop_back();
      pending.emplace_back(scheduler.Enqueue(read), read.buffer);
    }
    outcomes.clear();
    scheduler.Poll(&outcomes, -1);
    for (const ReadOutcome& outcome : outcomes) {
      RETURN_IF_ERROR(outcome.status);
      latencies_us.push_back(static_cast<double>(outcome.latency_ns) * 1e-3);
      const auto found = std::find_if(pending.begin(), pending.end(),
                                      [&](const auto& p) { return p.first == outcome.id; });
      free_buffers.push_back(found->second);
      pending.erase(found);
    }
    now_ns = RealClock().NowNs();
  }
  Measurement measurement;
  measurement.records = latencies_us.size();
  const double gigabytes = static_cast<double>(measurement.records * record_bytes) * 1e-9;
  measurement.gb_per_s = gigabytes / (static_cast<double>(now_ns - start_ns) * 1e-9);
  measurement.cpu_s_per_gb = (CpuSeconds() - cpu_start_s) / gigabytes;
  std::sort(latencies_us.begin(), latencies_us.end());
  measurement.p50_us = latencies_us[latencies_us.size() / 2];
  measurement.p99_us = latencies_us[latencies_us.size() * 99 / 100];
  return measurement;
}

Status Run(const BenchOptions& options) {
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  std::printf("%-9s %10s %10s %8s %8s %9s %9s %9s\n", "reader", "record", "chunk", "records",
              "GB/s", "p50 us", "p99 us", "CPU s/GB");
  for (const std::string& record : options.records) {
    ASSIGN_OR_RETURN(const uint64_t record_bytes, ParseByteSize(record));
    for (const std::string& chunk : options.chunks) {
      ASSIGN_OR_RETURN(uint64_t chunk_bytes, ParseByteSize(chunk));
      if (chunk_bytes == 0) chunk_bytes = record_bytes;
      if (record_bytes % 4096 != 0 || chunk_bytes % 4096 != 0 || record_bytes == 0) {
        return InvalidArgument("records and chunks must be multiples of 4 KiB");
      }
      for (const std::string& reader : options.readers) {
        ASSIGN_OR_RETURN(const Measurement m, Measure(options, reader, record_bytes, chunk_bytes));
        std::printf("%-9s %10s %10s %8u %8.2f %9.0f %9.0f %9.3f\n", reader.c_str(),
                    FormatByteSize(record_bytes).c_str(), FormatByteSize(chunk_bytes).c_str(),
                    options.outstanding, m.gb_per_s, m.p50_us, m.p99_us, m.cpu_s_per_gb);
        rows.push_back({{"reader", reader},
                        {"record_bytes", record_bytes},
                        {"chunk_bytes", chunk_bytes},
                        {"outstanding_records", options.outstanding},
                        {"gb_per_s", m.gb_per_s},
                        {"p50_us", m.p50_us},
                        {"p99_us", m.p99_us},
                        {"cpu_s_per_gb", m.cpu_s_per_gb}});
      }
    }
  }
  std::printf("%s\n", rows.dump().c_str());
  return OkStatus();
}

}  // namespace
}  // namespace moraine

int main(int argc, char** argv) {
  moraine::BenchOptions options;
  CLI::App app("Random record reads: bandwidth, latency, CPU time");
  app.add_option("file", options.file, "a file larger than memory's caches matter")->required();
  app.add_option("--reader", options.readers, "io_uring, pread")->delimiter(',');
  app.add_option("--record", options.records, "record sizes")->delimiter(',');
  app.add_option("--chunk", options.chunks, "chunk sizes; 0: the record's")->delimiter(',');
  app.add_option("--records", options.outstanding, "records outstanding");
  app.add_option("--capacity", options.capacity, "requests in flight at most");
  app.add_option("--threads", options.threads, "pread threads");
  app.add_option("--seconds", options.seconds, "of each measurement");
  app.add_flag("--buffered", options.buffered, "no O_DIRECT");
  CLI11_PARSE(app, argc, argv);
  const moraine::Status status = moraine::Run(options);
  if (status.ok()) return 0;
  std::fprintf(stderr, "io_reader_bench: %s\n", status.ToString().c_str());
  return 1;
}
