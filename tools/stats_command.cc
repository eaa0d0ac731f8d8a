// moraine stats: where time and bytes went, of a running server or of a store's last run; with iostat's
// grammar: the first report is of the time since the start, further ones of the time between them.
#include <chrono>
#include <cstdio>
#include <memory>
#include <thread>
#include <utility>

#include "commands.h"
#include "common_options.h"
#include "drive_note.h"
#include "engine/workload_profile.h"
#include "model/config.h"
#include "server/http_get.h"
#include "stats_report.h"
#include "store/store.h"

namespace moraine {
namespace {

struct StatsArguments {
  std::string url = "http://127.0.0.1:8080";
  std::string api_key;
  std::string store;
  std::string profile = kDefaultProfile;
  bool layers = false, json = false, only_intervals = false;
  double interval_s = 0;  // 0: one report
  uint64_t count = 0;     // 0: without end, if there is an interval
};

Result<std::string> FetchFromServer(const StatsArguments& a) {
  HttpGetOptions get;
  get.url = a.url + (a.url.ends_with('/') ? "stats" : "/stats") + (a.layers ? "" : "?layers=0");
  get.api_key = a.api_key;
  ASSIGN_OR_RETURN(HttpGetResult answer, HttpGet(get));
  if (answer.status != 200) {
    return FailedPrecondition(get.url + " answers " + std::to_string(answer.status) + ": " +
                              answer.body);
  }
  return std::move(answer.body);
}

Result<std::string> ReadFromStore(const std::string& directory) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Store> store, Store::Open(directory, StoreMode::kReadOnly));
  Result<std::string> note = store->GetNote("last_run_stats");
  if (!note.ok() && note.status().code() == StatusCode::kNotFound) {
    return NotFound(directory + " has no statistics yet: it was never run with a writable store");
  }
  return note;
}

Result<MissCurve> ReadCurve(const Store& store, const std::string& profile_name) {
  ASSIGN_OR_RETURN(const ModelConfig config,
                   ParseModelConfig(store.manifest().model_config, store.directory() + ": config.json"));
  ASSIGN_OR_RETURN(WorkloadProfile profile,
                   WorkloadProfile::Load(store, profile_name, IdentityOf(store.manifest(), config.top_k)));
  return MissCurve(std::move(profile.heat));
}

// What the store knows beside the statistics; a server's store may be another machine's.
StatsContext ReadContext(const std::string& directory, const std::string& profile_name) {
  StatsContext context;
  const auto store = Store::Open(directory, StoreMode::kReadOnly);
  if (!store.ok()) return context;
  const Result<std::string> text = (*store)->GetNote(kDriveNoteKey);
  if (text.ok()) {
    const Result<DriveNote> note = ParseDriveNote(*text);
    if (note.ok() && note->gb_per_s > 0) context.drive_gb_per_s = note->gb_per_s;
  }
  Result<MissCurve> curve = ReadCurve(**store, profile_name);
  if (curve.ok()) context.curve = std::move(*curve);
  return context;
}

void Print(const StatsArguments& a, StatsInterval interval, const StatsContext& context) {
  if (!a.layers) interval.stats.layers.clear();
  const StatsReport report = MakeStatsReport(interval, context);
  const std::string text = a.json ? StatsReportJson(interval, report) + "\n"
                                  : StatsReportText(interval, report, a.layers);
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

Status Report(const StatsArguments& a) {
  ASSIGN_OR_RETURN(std::string before, a.store.empty() ? FetchFromServer(a) : ReadFromStore(a.store));
  ASSIGN_OR_RETURN(const StatsInterval first, IntervalSinceStart(before));
  // Of a stopped run the store may have been moved since.
  const StatsContext context = ReadContext(a.store.empty() ? first.stats.store : a.store, a.profile);
  uint64_t reports = 0;
  if (!a.only_intervals) {
    Print(a, first, context);
    ++reports;
  }
  auto next = std::chrono::steady_clock::now();
  auto fetched = next;
  while (a.interval_s > 0 && (a.count == 0 || reports < a.count)) {
    next += std::chrono::duration_cast<std::chrono::nanoseconds>(
        std::chrono::duration<double>(a.interval_s));
    std::this_thread::sleep_until(next);
    ASSIGN_OR_RETURN(std::string after, FetchFromServer(a));
    const std::chrono::nanoseconds length =
        std::chrono::steady_clock::now() - std::exchange(fetched, std::chrono::steady_clock::now());
    ASSIGN_OR_RETURN(StatsInterval interval, IntervalBetween(before, after, length.count()));
    if (!a.json && reports > 0) std::printf("\n");
    Print(a, std::move(interval), context);
    before = std::move(after);
    ++reports;
  }
  return OkStatus();
}

}  // namespace

void RegisterStatsCommand(CLI::App& app, int* exit_code) {
  CLI::App* command = app.add_subcommand(
      "stats", "Show where time and bytes went, live or of the last run: since the start, then, with an "
               "INTERVAL, of the time since the report before");
  auto a = std::make_shared<StatsArguments>();
  CLI::Option* interval = command->add_option("INTERVAL", a->interval_s, "seconds between reports")
                              ->check(CLI::Range(0.1, 86400.0));
  command->add_option("COUNT", a->count, "how many reports (default: until interrupted)")
      ->check(CLI::Range(uint64_t{1}, uint64_t{1} << 32));
  CLI::Option* watch = command->add_option("--watch", a->interval_s, "the same as INTERVAL")
                           ->check(CLI::Range(0.1, 86400.0))
                           ->excludes(interval);
  command->add_flag("-y", a->only_intervals, "leave out the report since the start")->needs(interval);
  command->add_flag("-x,--layers", a->layers, "add a table with one line a layer");
  command->add_flag("--json", a->json, "one JSON object a report, on a line of its own");
  CLI::Option* url = command->add_option("--url", a->url, "address of a running server")
                         ->capture_default_str();
  command->add_option("--api-key", a->api_key, "API key of that server")->envname("MORAINE_API_KEY");
  command->add_option("--store", a->store, "show the last run of this store instead of a server")
      ->excludes(url)
      ->excludes(interval)
      ->excludes(watch);
  command->add_option("--profile", a->profile, "profile of the store, for the projection")
      ->capture_default_str();
  command->callback([a, exit_code] {
    const Status status = Report(*a);
    if (!status.ok()) *exit_code = PrintError(status);
  });
}

}  // namespace moraine
