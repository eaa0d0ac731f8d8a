// moraine bench io: reads random experts of a store as decode does, beside fio on the same files.
//
// Request size and depth of both are the same: the depth is the reader's capacity, and enough
// records are outstanding to keep that many requests in flight. Rounds alternate between all
// variants and fio, because a drive's speed wanders by a third within minutes; medians are printed,
// and the ratio is the median of the rounds' ratios.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>

#include "base/bytes.h"
#include "base/log.h"
#include "commands.h"
#include "common_options.h"
#include "drive_note.h"
#include "fio_process.h"
#include "io/read_measurement.h"
#include "store/store.h"

namespace moraine {
namespace {

using Json = nlohmann::ordered_json;

struct BenchIoArguments {
  std::string store;
  std::vector<std::string> chunks = {"512KiB"};
  std::vector<uint32_t> depths = {8, 32};
  uint32_t records = 0;  // 0: enough to keep the depth
  double seconds = 2;
  int rounds = 3;
  BlockReaderOptions reader;
  std::string task_run = "deferred";
  bool no_direct = false, no_fio = false, verify = false, ablation = false;
  bool huge_pages = true;
  bool json = false, save = false;
};

// One row of the table.
struct Variant {
  std::string name;
  BlockReaderOptions reader;  // capacity: the depth
  uint64_t request_bytes = 0;
  uint32_t records = 0;
  bool verify = false, huge_pages = true;
  std::vector<ReadMeasurement> rounds;
  std::vector<double> ratios;  // to fio in the same round
};

using FioKey = std::pair<uint64_t, uint32_t>;  // request bytes, depth
using FioRounds = std::map<FioKey, std::vector<FioResult>>;

FioKey KeyOf(const Variant& variant) { return {variant.request_bytes, variant.reader.capacity}; }

template <typename Sample, typename Field>
double Median(const std::vector<Sample>& samples, Field Sample::*field) {
  std::vector<double> values;
  for (const Sample& sample : samples) values.push_back(sample.*field);
  return Quantile(&values, 0.5);
}

double Median(std::vector<double> values) { return Quantile(&values, 0.5); }

// The machine's one-minute load average, or -1.
double LoadAverage() {
  double load = -1;
  return getloadavg(&load, 1) == 1 ? load : -1;
}

IoUringTuning::TaskRun ParseTaskRun(const std::string& name) {
  if (name == "cooperative") return IoUringTuning::TaskRun::kCooperative;
  if (name == "interrupt") return IoUringTuning::TaskRun::kInterrupt;
  return IoUringTuning::TaskRun::kDeferred;
}

// The records of a store, to pick from.
struct StoreRecords {
  std::unique_ptr<Store> store;
  std::vector<ExpertKey> keys;

  ReadPlace Pick(Random& random) const {
    const uint64_t index = random.Below(keys.size());
    const RecordLocation& location = store->Locate(keys[index]);
    return {location.pack, location.offset, location.bytes, index};
  }
  uint64_t max_bytes() const { return store->manifest().max_record_bytes(); }
};

Result<StoreRecords> OpenRecords(const std::string& directory) {
  StoreRecords records;
  ASSIGN_OR_RETURN(records.store, Store::Open(directory, StoreMode::kReadOnly));
  const Manifest& manifest = records.store->manifest();
  for (uint32_t layer = 0; layer < manifest.layers.size(); ++layer) {
    for (uint32_t expert = 0; expert < manifest.layers[layer].expert_count; ++expert) {
      records.keys.push_back({LayerId(layer), ExpertId(expert)});
    }
  }
  if (records.keys.empty()) return FailedPrecondition(directory + " has no experts to read");
  return records;
}

// The request size that the scheduler makes of a record: equal parts, none above the chunk.
uint64_t RequestBytes(uint64_t record_bytes, uint64_t chunk_bytes) {
  if (chunk_bytes == 0) return record_bytes;
  const uint64_t count = (record_bytes + chunk_bytes - 1) / chunk_bytes;
  return AlignUp((record_bytes + count - 1) / count, 4096);
}

// The base variant, and with --ablation one deviation from it at a time.
std::vector<Variant> Deviations(const BenchIoArguments& a, const Variant& base) {
  std::vector<Variant> variants = {base};
  const auto add = [&](const char* name, auto&& change) {
    Variant variant = base;
    variant.name = name;
    change(&variant);
    variants.push_back(std::move(variant));
  };
  using TaskRun = IoUringTuning::TaskRun;
  if (a.ablation) {
    add("no registered buffers", [](Variant* v) { v->reader.uring.registered_buffers = false; });
    // fio's buffers are on small pages as well.
    add("no huge pages", [](Variant* v) { v->huge_pages = false; });
    add("no registered files", [](Variant* v) { v->reader.uring.registered_files = false; });
    add("cooperative task runs",
        [](Variant* v) { v->reader.uring.task_run = TaskRun::kCooperative; });
    add("interrupting task runs",
        [](Variant* v) { v->reader.uring.task_run = TaskRun::kInterrupt; });
    add("submission thread", [](Variant* v) { v->reader.uring.submission_thread = true; });
    add("polled completions", [](Variant* v) { v->reader.uring.poll_completions = true; });
    add("pread", [](Variant* v) {
      v->reader.kind = "pread";
      v->reader.pread_threads = v->reader.capacity;
    });
  }
  if (a.verify) add("checksums verified", [](Variant* v) { v->verify = true; });
  return variants;
}

Result<std::vector<Variant>> PlanVariants(const BenchIoArguments& a, uint64_t record_bytes) {
  std::vector<Variant> variants;
  for (const std::string& chunk : a.chunks) {
    ASSIGN_OR_RETURN(const uint64_t chunk_bytes, ParseByteSize(chunk));
    if (chunk_bytes % 4096 != 0 || chunk_bytes > kGiB) {
      return InvalidArgument("--chunk " + chunk + ": expected a multiple of 4 KiB, 1 GiB at most");
    }
    for (const uint32_t depth : a.depths) {
      Variant base;
      base.name = "as configured";
      base.reader = a.reader;
      base.huge_pages = a.huge_pages;
      base.reader.direct = !a.no_direct;
      base.reader.uring.task_run = ParseTaskRun(a.task_run);
      base.reader.capacity = depth;
      base.reader.pread_threads = depth;
      base.request_bytes = RequestBytes(record_bytes, chunk_bytes);
      // One more than fills the depth: when a record has landed and its buffer waits for the next
      // one, the others still have requests for the whole depth.
      const auto requests = static_cast<uint32_t>(
          (record_bytes + base.request_bytes - 1) / base.request_bytes);
      base.records = a.records > 0 ? a.records : (depth + requests - 1) / requests + 1;
      for (Variant& variant : Deviations(a, base)) variants.push_back(std::move(variant));
    }
  }
  return variants;
}

Status MeasureVariant(const BenchIoArguments& a, const StoreRecords& records, uint64_t seed,
                      Variant* variant) {
  ASSIGN_OR_RETURN(auto reader, CreateBlockReader(variant->reader));
  ReadMeasurementOptions options;
  options.paths = records.store->expert_pack_paths();
  options.pick = [&](Random& random) { return records.Pick(random); };
  options.max_record_bytes = records.max_bytes();
  options.chunk_bytes = static_cast<uint32_t>(variant->request_bytes);
  options.records = variant->records;
  options.seconds = a.seconds;
  options.seed = seed;
  options.huge_pages = variant->huge_pages;
  if (variant->verify) {
    options.on_record = [&](const ReadPlace& place, std::span<const std::byte> bytes) {
      return records.store->VerifyRecord(records.keys[place.tag], bytes);
    };
  }
  ASSIGN_OR_RETURN(const ReadMeasurement measured, MeasureReads(std::move(reader), options));
  variant->rounds.push_back(measured);
  return OkStatus();
}

// One figure of fio for each size and depth; an absent fio is said once and then done without.
Status MeasureFio(const BenchIoArguments& a, const StoreRecords& records,
                  const std::vector<Variant>& variants, bool* available, FioRounds* rounds) {
  std::map<FioKey, bool> seen;
  for (const Variant& variant : variants) {
    if (!*available || !seen.emplace(KeyOf(variant), true).second) continue;
    FioOptions options;
    options.paths = records.store->expert_pack_paths();
    std::tie(options.request_bytes, options.depth) = KeyOf(variant);
    options.seconds = a.seconds;
    options.direct = !a.no_direct;
    const Result<FioResult> result = RunFio(options);
    if (result.status().code() == StatusCode::kNotFound) {
      LOG_WARN("fio is not installed, so there is nothing to compare with: apt-get install fio");
      *available = false;
      return OkStatus();
    }
    RETURN_IF_ERROR(result.status());
    (*rounds)[KeyOf(variant)].push_back(*result);
  }
  return OkStatus();
}

Status MeasureAll(const BenchIoArguments& a, const StoreRecords& records,
                  std::vector<Variant>* variants, FioRounds* fio) {
  bool fio_available = !a.no_fio;
  for (int round = 0; round < a.rounds; ++round) {
    RETURN_IF_ERROR(MeasureFio(a, records, *variants, &fio_available, fio));
    for (Variant& variant : *variants) {
      RETURN_IF_ERROR(
          MeasureVariant(a, records, static_cast<uint64_t>(round) + 1, &variant));
      if (!fio_available) continue;
      const double peer = (*fio)[KeyOf(variant)].back().gb_per_s;
      variant.ratios.push_back(variant.rounds.back().gb_per_s / peer);
    }
  }
  return OkStatus();
}

Json ToJson(const BenchIoArguments& a, const Variant& v, const FioRounds& fio, double load) {
  using M = ReadMeasurement;
  Json json = {{"store", a.store},
               {"variant", v.name},
               {"configuration", v.rounds.back().configuration},
               {"direct", v.reader.direct},
               {"verify", v.verify},
               {"huge_pages", v.huge_pages},
               {"request_bytes", v.request_bytes},
               {"depth", v.reader.capacity},
               {"outstanding_records", v.records},
               {"rounds", v.rounds.size()},
               {"seconds", a.seconds},
               {"gb_per_s", Median(v.rounds, &M::gb_per_s)},
               {"record_p50_us", Median(v.rounds, &M::p50_us)},
               {"record_p99_us", Median(v.rounds, &M::p99_us)},
               {"cpu_s_per_gb", Median(v.rounds, &M::cpu_s_per_gb)},
               {"core_percent", Median(v.rounds, &M::core_percent)},
               {"fio", nullptr},
               {"ratio_to_fio", nullptr},
               {"load_average", load},
               {"cpus", std::thread::hardware_concurrency()}};
  const auto peer = fio.find(KeyOf(v));
  if (peer != fio.end()) {
    json["fio"] = {{"gb_per_s", Median(peer->second, &FioResult::gb_per_s)},
                   {"request_p50_us", Median(peer->second, &FioResult::p50_us)},
                   {"request_p99_us", Median(peer->second, &FioResult::p99_us)},
                   {"cpu_s_per_gb", Median(peer->second, &FioResult::cpu_s_per_gb)},
                   {"core_percent", Median(peer->second, &FioResult::core_percent)}};
    json["ratio_to_fio"] = Median(v.ratios);
  }
  return json;
}

void PrintTable(const BenchIoArguments& a, const StoreRecords& records,
                const std::vector<Variant>& variants, const FioRounds& fio, double load) {
  using M = ReadMeasurement;
  fmt::print("{}: {} records of {} in {} pack(s), {}; load average {:.1f} on {} CPUs\n", a.store,
             records.keys.size(), FormatByteSize(records.max_bytes()),
             records.store->expert_pack_paths().size(),
             a.no_direct ? "through the page cache" : "O_DIRECT", load,
             std::thread::hardware_concurrency());
  fmt::print("medians of {} alternating rounds of {:g} s; latency: ours of a record, fio's of a "
             "request\n\n",
             a.rounds, a.seconds);
  fmt::print("{:<23}{:>10}{:>6}{:>8}{:>7}{:>9}{:>9}{:>9}{:>7} |{:>6}{:>9}{:>9}{:>9}{:>7}\n", "",
             "request", "depth", "records", "GB/s", "p50 us", "p99 us", "CPU s/GB", "core %", "fio",
             "p50 us", "p99 us", "CPU s/GB", "ratio");
  for (const Variant& v : variants) {
    fmt::print("{:<23}{:>10}{:>6}{:>8}{:>7.2f}{:>9.0f}{:>9.0f}{:>9.4f}{:>7.1f} |", v.name,
               FormatByteSize(v.request_bytes), v.reader.capacity, v.records,
               Median(v.rounds, &M::gb_per_s), Median(v.rounds, &M::p50_us),
               Median(v.rounds, &M::p99_us), Median(v.rounds, &M::cpu_s_per_gb),
               Median(v.rounds, &M::core_percent));
    const auto peer = fio.find(KeyOf(v));
    if (peer == fio.end()) {
      fmt::print(" no fio\n");
      continue;
    }
    fmt::print("{:>6.2f}{:>9.0f}{:>9.0f}{:>9.4f}{:>7.2f}\n",
               Median(peer->second, &FioResult::gb_per_s),
               Median(peer->second, &FioResult::p50_us), Median(peer->second, &FioResult::p99_us),
               Median(peer->second, &FioResult::cpu_s_per_gb), Median(v.ratios));
  }
  fmt::print("\n");
  // What was asked for and what the kernel granted may differ.
  std::map<std::string, bool> said;
  for (const Variant& v : variants) {
    if (!said.emplace(v.name, true).second) continue;
    fmt::print("{:<23}{}\n", v.name, v.rounds.back().configuration);
  }
}

Status SaveBest(const std::string& store, const std::vector<Variant>& variants) {
  DriveNote note;
  for (const Variant& v : variants) {
    const double gb_per_s = Median(v.rounds, &ReadMeasurement::gb_per_s);
    if (gb_per_s > note.gb_per_s) note = {gb_per_s, v.request_bytes, v.reader.capacity};
  }
  return SaveDriveNote(store, note);
}

Status BenchIo(const BenchIoArguments& a) {
  ASSIGN_OR_RETURN(StoreRecords records, OpenRecords(a.store));
  ASSIGN_OR_RETURN(std::vector<Variant> variants, PlanVariants(a, records.max_bytes()));
  const double load = LoadAverage();
  FioRounds fio;
  RETURN_IF_ERROR(MeasureAll(a, records, &variants, &fio));
  if (a.json) {
    for (const Variant& variant : variants) {
      const Json json = ToJson(a, variant, fio, load);
      fmt::print("{}\n", json.dump(-1, ' ', false, Json::error_handler_t::replace));
    }
  } else {
    PrintTable(a, records, variants, fio, load);
  }
  if (!a.save) return OkStatus();
  records.store.reset();  // one process may write
  return SaveBest(a.store, variants);
}

}  // namespace

void RegisterBenchIoCommand(CLI::App& bench, int* exit_code) {
  auto a = std::make_shared<BenchIoArguments>();
  CLI::App* command =
      bench.add_subcommand("io", "Read random experts as decode does, beside fio");
  command->add_option("STORE", a->store, "directory of an imported model")->required();
  command
      ->add_option("--chunk", a->chunks,
                   "request sizes to measure: a record is split into equal parts, none larger; 0: "
                   "one request a record")
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--depth", a->depths, "requests in flight, fio's iodepth")
      ->delimiter(',')
      ->check(CLI::Range(1u, 4096u))
      ->capture_default_str();
  command->add_option("--records", a->records,
                      "records outstanding (default: as many as keep the depth, and one)")
      ->check(CLI::Range(1u, 4096u));
  command->add_option("--seconds", a->seconds, "of each measurement")
      ->check(CLI::Range(0.05, 3600.0))
      ->capture_default_str();
  command->add_option("--rounds", a->rounds, "of which the medians are printed")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command->add_option("--io", a->reader.kind, "reader; pread gets as many threads as the depth")
      ->check(CLI::IsMember({"auto", "io_uring", "pread", "simulated"}))
      ->capture_default_str();
  command->add_option("--task-run", a->task_run, "when io_uring's completions are processed")
      ->check(CLI::IsMember({"deferred", "cooperative", "interrupt"}))
      ->capture_default_str();
  IoUringTuning& uring = a->reader.uring;
  command->add_flag("!--no-registered-buffers", uring.registered_buffers, "pin pages at each read");
  command->add_flag("!--no-registered-files", uring.registered_files, "look files up at each read");
  command->add_flag("!--no-huge-pages", a->huge_pages, "read into 4 KiB pages, as fio does");
  command->add_flag("--submission-thread", uring.submission_thread,
                    "SQPOLL: a spinning kernel thread submits");
  command->add_flag("--poll-completions", uring.poll_completions,
                    "IOPOLL: spin for completions; needs a drive with polled queues");
  command->add_flag("--ablation", a->ablation,
                    "also each deviation from the configuration: buffers, pages, files, task runs, "
                    "submission thread, polled completions, pread");
  command->add_flag("--verify", a->verify, "also with each record's checksum verified");
  command->add_flag("--no-direct", a->no_direct, "read through the page cache, without O_DIRECT");
  command->add_flag("--no-fio", a->no_fio, "do not run fio");
  command->add_flag("--save", a->save, "keep the best figure in the store, for moraine stats");
  command->add_flag("--json", a->json, "one JSON object a line for each measurement");
  command->callback([a, exit_code] {
    const Status status = BenchIo(*a);
    if (!status.ok()) *exit_code = PrintError(status);
  });
}

}  // namespace moraine
