// moraine verify: reads a whole store and checks every checksum.
#include <fmt/format.h>

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/bytes.h"
#include "base/clock.h"
#include "commands.h"
#include "common_options.h"
#include "model_arguments.h"
#include "progress_display.h"
#include "store/importer.h"

namespace moraine {
namespace {

struct VerifyArguments {
  std::string store_directory;
  bool json = false;
};

Result<VerifyReport> Verify(const VerifyArguments& a) {
  ProgressDisplay display("verifying", a.json);
  const int64_t start_ns = RealClock().NowNs();
  return VerifyStore(a.store_directory, [&](uint64_t done, uint64_t total) {
    display.Update(done, total, 0, static_cast<double>(RealClock().NowNs() - start_ns) * 1e-9);
  });
}

void PrintReport(const VerifyArguments& a, const VerifyReport& report) {
  const double rate =
      report.seconds > 0 ? static_cast<double>(report.bytes) * 1e-9 / report.seconds : 0;
  if (a.json) {
    const nlohmann::ordered_json json = {{"ok", report.problems.empty()},
                                         {"records", report.records},
                                         {"copies", report.copies},
                                         {"bytes", report.bytes},
                                         {"seconds", report.seconds},
                                         {"gigabytes_per_second", rate},
                                         {"problems", report.problems}};
    std::printf("%s\n",
                json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace).c_str());
    return;
  }
  for (const std::string& problem : report.problems) fmt::print("bad: {}\n", problem);
  fmt::print("{}: {} records{}, {} in {:.2f} s, {:.2f} GB/s: {}\n", a.store_directory, report.records,
             report.copies > 1 ? fmt::format(" ({} copies of each)", report.copies) : "",
             FormatByteSize(report.bytes), report.seconds, rate,
             report.problems.empty() ? "all checksums match"
                                     : fmt::format("{} bad", report.problems.size()));
}

}  // namespace

void RegisterVerifyCommand(CLI::App& app, int* exit_code) {
  auto a = std::make_shared<VerifyArguments>();
  CLI::App* command =
      app.add_subcommand("verify", "Read a whole store, check every checksum, name what is bad");
  command->add_option("STORE", a->store_directory, "directory of an imported model, or its name")
      ->transform(StoreByName())
      ->required();
  command->add_flag("--json", a->json, "one JSON object on stdout");
  command->callback([a, exit_code] {
    const Result<VerifyReport> report = Verify(*a);
    if (!report.ok()) {
      *exit_code = PrintError(report.status());
      return;
    }
    PrintReport(*a, *report);
    if (!report->problems.empty()) *exit_code = 1;
  });
}

}  // namespace moraine
