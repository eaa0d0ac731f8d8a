// moraine stats: where time and bytes went, of a running server or of a store's last run.
#include <chrono>
#include <cstdio>
#include <memory>
#include <thread>

#include "commands.h"
#include "common_options.h"
#include "drive_note.h"
#include "engine/stats.h"
#include "server/http_get.h"
#include "store/store.h"

namespace moraine {
namespace {

struct StatsArguments {
  std::string url = "http://127.0.0.1:8080";
  std::string api_key;
  std::string store;
  bool layers = false, json = false;
  double watch_seconds = 0;  // 0: once
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

// How much of the drive's measured speed the run used while it read; nothing where it never was
// measured (moraine bench io --save, moraine doctor --save).
void PrintShareOfDrive(const std::string& directory, const EngineStats& stats) {
  const auto store = Store::Open(directory, StoreMode::kReadOnly);
  if (!store.ok() || stats.reads.busy_ns == 0) return;
  const Result<std::string> text = (*store)->GetNote(kDriveNoteKey);
  if (!text.ok()) return;
  const Result<DriveNote> note = ParseDriveNote(*text);
  if (!note.ok() || note->gb_per_s <= 0) return;
  const auto bytes = stats.reads.demand_bytes + stats.reads.speculative_bytes;
  const double gb_per_s = static_cast<double>(bytes) / static_cast<double>(stats.reads.busy_ns);
  std::printf("drive    %.0f %% of the drive's measured %.2f GB/s while busy\n",
              100 * gb_per_s / note->gb_per_s, note->gb_per_s);
}

Status PrintOnce(const StatsArguments& a) {
  ASSIGN_OR_RETURN(const std::string json, a.store.empty() ? FetchFromServer(a) : ReadFromStore(a.store));
  ASSIGN_OR_RETURN(EngineStats stats, ParseEngineStats(json));
  if (!a.layers) stats.layers.clear();
  const std::string text = a.json ? stats.ToJson() + "\n" : stats.ToText(a.layers);
  std::fwrite(text.data(), 1, text.size(), stdout);
  if (!a.store.empty() && !a.json) PrintShareOfDrive(a.store, stats);
  std::fflush(stdout);
  return OkStatus();
}

Status Print(const StatsArguments& a) {
  RETURN_IF_ERROR(PrintOnce(a));
  while (a.watch_seconds > 0) {
    std::this_thread::sleep_for(std::chrono::duration<double>(a.watch_seconds));
    if (!a.json) std::printf("\n");
    RETURN_IF_ERROR(PrintOnce(a));
  }
  return OkStatus();
}

}  // namespace

void RegisterStatsCommand(CLI::App& app, int* exit_code) {
  CLI::App* command =
      app.add_subcommand("stats", "Show where time and bytes went, live or of the last run");
  auto a = std::make_shared<StatsArguments>();
  CLI::Option* url = command->add_option("--url", a->url, "address of a running server")
                         ->capture_default_str();
  command->add_option("--api-key", a->api_key, "API key of that server")->envname("MORAINE_API_KEY");
  command->add_option("--store", a->store, "show the last run of this store instead of a server")
      ->excludes(url);
  command->add_flag("--layers", a->layers, "add a table with one line a layer");
  command->add_flag("--json", a->json, "one JSON object on stdout");
  command->add_option("--watch", a->watch_seconds, "show it again every so many seconds")
      ->check(CLI::Range(0.1, 86400.0));
  command->callback([a, exit_code] {
    const Status status = Print(*a);
    if (!status.ok()) *exit_code = PrintError(status);
  });
}

}  // namespace moraine
