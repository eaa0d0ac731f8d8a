// moraine tune: measures the settings that matter for a model on this machine, and remembers the best.
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstdio>
#include <ctime>
#include <iterator>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "commands.h"
#include "common_options.h"
#include "engine/tuning.h"
#include "engine/tuning_record.h"
#include "machine_identity.h"
#include "memory/topology.h"
#include "tune_measure.h"
#include "tuned_options.h"

namespace moraine {
namespace {

using Json = nlohmann::ordered_json;

struct TuneArguments {
  RunnerArguments runner;
  double seconds = 300;
  uint32_t prompt_tokens = 0, tokens = 0;  // 0: by the time there is
  int rounds = 3;
  uint64_t seed = 1;
  bool show = false, forget = false, json = false;
};

constexpr const char* kObjectiveNames[] = {"prompt", "answer", "request"};

double Median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::ranges::nth_element(values, values.begin() + static_cast<ptrdiff_t>(values.size() / 2));
  return values[values.size() / 2];
}

// Candidates in ascending order, with the start among them.
TuningDimension Numbers(const std::string& name, std::vector<uint32_t> candidates, uint32_t start,
                        TuningObjective objective) {
  candidates.push_back(start);
  std::ranges::sort(candidates);
  candidates.erase(std::ranges::unique(candidates).begin(), candidates.end());
  TuningDimension dimension{.name = name, .objective = objective};
  for (const uint32_t candidate : candidates) {
    if (candidate == start) dimension.start = dimension.candidates.size();
    dimension.candidates.push_back(std::to_string(candidate));
  }
  return dimension;
}

std::vector<TuningDimension> Dimensions(const TuneArguments& a, const RunnerOptions& options,
                                        const TuneFacts& facts, const TuneWork& work) {
  const TunableOptions& given = a.runner.tunable;
  std::vector<TuningDimension> dimensions;
  if (!given.prefill_chunk.given()) {
    std::vector<uint32_t> chunks;
    // A chunk that the prompt does not fill is measured by no other.
    for (uint32_t chunk = facts.gpu.empty() ? 256 : 512; chunk <= 8192; chunk *= 2) {
      if (chunk <= facts.max_context && chunk / 2 < work.prompt_tokens) chunks.push_back(chunk);
    }
    // Scratch takes VRAM from experts, which answers feel where they are streamed.
    const auto objective = facts.streams ? TuningObjective::kRequest : TuningObjective::kPrefill;
    dimensions.push_back(Numbers("prefill-chunk", chunks, facts.prefill_chunk, objective));
  }
  if (options.gpu) return dimensions;
  const auto objective =
      options.gpu_prefill ? TuningObjective::kDecode : TuningObjective::kRequest;
  if (!given.threads.given()) {
    const auto cores = static_cast<uint32_t>(PhysicalCoreCount(SystemTree()));
    std::vector<uint32_t> threads = {cores, static_cast<uint32_t>(Topology::Detect().cpu_count())};
    if (cores >= 2) threads.push_back(cores / 2);
    dimensions.push_back(
        Numbers("threads", threads, static_cast<uint32_t>(facts.threads), objective));
  }
  if (!facts.reads) return dimensions;
  if (!given.lookahead.given()) {
    dimensions.push_back({.name = "lookahead",
                          .candidates = {"true", "false"},
                          .objective = TuningObjective::kDecode,
                          .ordered = false});
  }
  if (!given.io.given() && facts.io_uring) {
    dimensions.push_back({.name = "io",
                          .candidates = {"io_uring", "pread"},
                          .objective = objective,
                          .ordered = false});
  }
  return dimensions;
}

// What differs from the start: a default that is best stays a default.
TunedSettings SettingsAt(const std::vector<TuningDimension>& dimensions, const TuningPoint& point,
                         bool with_defaults) {
  TunedSettings settings;
  for (size_t d = 0; d < dimensions.size(); ++d) {
    if (!with_defaults && point[d] == dimensions[d].start) continue;
    const std::string &name = dimensions[d].name, &text = dimensions[d].candidates[point[d]];
    if (name == "threads") settings.threads = std::stoi(text);
    if (name == "prefill-chunk") settings.prefill_chunk = static_cast<uint32_t>(std::stoul(text));
    if (name == "lookahead") settings.lookahead = text == "true";
    if (name == "io") settings.io = text;
  }
  return settings;
}

struct TuneReport {
  TuneFacts facts;
  TuneWork work;
  std::vector<TuningDimension> dimensions;
  TuningResult result;
  TuningRecord record;
  double default_prefill = 0, default_decode = 0;
  std::string saved_in;
};

class Tuner {
 public:
  Tuner(const TuneArguments& a, RunnerOptions options)
      : a_(a), options_(std::move(options)), begin_ns_(RealClock().NowNs()) {}

  Result<TuneReport> Run() {
    Say("looking at the model");
    ASSIGN_OR_RETURN(report_.facts, LookAtModel(options_));
    ChooseWork();
    report_.dimensions = Dimensions(a_, options_, report_.facts, report_.work);
    std::erase_if(report_.dimensions, [](const auto& d) { return d.candidates.size() < 2; });
    if (report_.dimensions.empty()) {
      return InvalidArgument("nothing to find out: all settings that matter here were given");
    }
    Say(fmt::format("prompts of {} tokens, answers of {}, {} rounds each", report_.work.prompt_tokens,
                    report_.work.answer_tokens, report_.work.rounds));
    const auto enough = [&] { return Elapsed() > a_.seconds; };
    const auto measure = [&](const TuningPoint& point, TuningObjective objective) {
      return MeasureAt(point, objective);
    };
    ASSIGN_OR_RETURN(report_.result, Tune(report_.dimensions, measure, enough));
    RETURN_IF_ERROR(Conclude());
    return std::move(report_);
  }

 private:
  double Elapsed() const {
    return static_cast<double>(RealClock().NowNs() - begin_ns_) * 1e-9;
  }
  void Say(const std::string& text) const {
    if (!a_.json) std::fprintf(stderr, "%5.0f s  %s\n", Elapsed(), text.c_str());
  }

  // As much as lets about 24 measurements fit the time, one round each that does not count included.
  void ChooseWork() {
    TuneWork& work = report_.work;
    work.rounds = a_.rounds;
    work.seed = a_.seed;
    const TuneFacts& facts = report_.facts;
    const double round_seconds = a_.seconds / 24 / (a_.rounds + 1);
    const auto fitting = [&](double rate, uint32_t least, uint32_t most) {
      const double tokens = std::clamp(rate * round_seconds / 2, double(least), double(most));
      return std::bit_floor(static_cast<uint32_t>(tokens));
    };
    work.answer_tokens = a_.tokens > 0 ? a_.tokens : fitting(Median(facts.rates.decode), 16, 128);
    work.warm_tokens = work.answer_tokens / 4;
    // Short prompts tell less than long ones will give, above all on a GPU.
    work.prompt_tokens = a_.prompt_tokens > 0 ? a_.prompt_tokens
                         : facts.gpu.empty() ? fitting(Median(facts.rates.prefill), 256, 2048)
                                             : 8192;
    const uint32_t room = work.answer_tokens + work.warm_tokens + 1;
    work.prompt_tokens = std::min(work.prompt_tokens,
                                  std::max(facts.max_context, room + 1) - room);
  }

  // The rounds' figures by which the search judges.
  Result<std::vector<double>> MeasureAt(const TuningPoint& point, TuningObjective objective) {
    const TunedSettings settings = SettingsAt(report_.dimensions, point, /*with_defaults=*/true);
    auto rates = MeasureSettings(options_, settings, report_.work, objective);
    if (!rates.ok()) {
      Say(fmt::format("{}: {}", settings.ToText(), rates.status().message()));
      return rates.status();
    }
    std::vector<double> figures = rates->prefill.empty() ? rates->decode : rates->prefill;
    if (objective == TuningObjective::kRequest) {
      for (size_t i = 0; i < figures.size(); ++i) {
        figures[i] = RequestRate(rates->prefill[i], rates->decode[i]);
      }
    }
    Say(fmt::format("{}: {:.2f} tok/s ({})", settings.ToText(), Median(figures),
                    kObjectiveNames[static_cast<int>(objective)]));
    return figures;
  }

  // Both phases, with the defaults and with what was found; where prompts may go to either, from which length.
  Status Conclude() {
    TuningRecord& record = report_.record;
    record.settings = SettingsAt(report_.dimensions, report_.result.best, /*with_defaults=*/false);
    if (options_.gpu_prefill && !a_.runner.tunable.gpu_prefill_tokens.given()) {
      Say("from which length prompts are faster on the GPU");
      ASSIGN_OR_RETURN(const uint32_t tokens,
                       MeasureBreakEven(options_, record.settings,
                                        std::bit_floor(report_.work.prompt_tokens)));
      if (tokens > 0) record.settings.gpu_prefill_tokens = tokens;
    }
    Say("both phases with the defaults and with what was found");
    for (const bool found : {false, true}) {
      double* const prefill = found ? &record.prefill_tok_per_s : &report_.default_prefill;
      double* const decode = found ? &record.decode_tok_per_s : &report_.default_decode;
      ASSIGN_OR_RETURN(const TuneRates rates,
                       MeasureSettings(options_, found ? record.settings : TunedSettings(),
                                       report_.work, TuningObjective::kRequest));
      *prefill = Median(rates.prefill);
      *decode = Median(rates.decode);
    }
    record.saved_unix_s = std::time(nullptr);
    return OkStatus();
  }

  const TuneArguments& a_;
  const RunnerOptions options_;
  const int64_t begin_ns_;
  TuneReport report_;
};

// For writing if nobody else has it so.
Result<std::unique_ptr<Store>> OpenToRemember(const std::string& directory) {
  auto store = Store::Open(directory, StoreMode::kReadWrite);
  return store.ok() ? std::move(store) : Store::Open(directory, StoreMode::kReadOnly);
}

Status Remember(const RunnerOptions& options, TuneReport* report) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Store> store, OpenToRemember(options.store_directory));
  const std::string cache = TuningCacheDirectory();
  report->record.key = TuningKeyHere(*store, options);
  RETURN_IF_ERROR(SaveTuning(*store, cache, report->record));
  report->saved_in = store->mode() == StoreMode::kReadWrite ? "the store" : TuningFile(cache, *store);
  return OkStatus();
}

Json ToJson(const TuningRecord& record) {
  Json json = Json::parse(EncodeTuning({&record, 1}));
  return json["records"][0];
}

void PrintJson(const TuneReport& report) {
  Json rows = Json::array();
  for (const TuningRow& row : report.result.rows) {
    const TuningDimension& dimension = report.dimensions[row.dimension];
    rows.push_back({{"setting", dimension.name},
                    {"candidate", dimension.candidates[row.candidate]},
                    {"measures", kObjectiveNames[static_cast<int>(dimension.objective)]},
                    {"tok_per_s", row.tok_per_s > 0 ? Json(row.tok_per_s) : Json(nullptr)},
                    {"spread", row.spread},
                    {"default", row.start},
                    {"chosen", row.chosen},
                    {"error", row.error}});
  }
  const Json json = {{"model", report.facts.model},
                     {"gpu", report.facts.gpu},
                     {"prompt_tokens", report.work.prompt_tokens},
                     {"answer_tokens", report.work.answer_tokens},
                     {"rounds", report.work.rounds},
                     {"rows", rows},
                     {"complete", !report.result.stopped},
                     {"default_prefill_tok_per_s", report.default_prefill},
                     {"default_decode_tok_per_s", report.default_decode},
                     {"found", ToJson(report.record)},
                     {"saved_in", report.saved_in}};
  std::printf("%s\n", json.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
}

void PrintText(const TuneReport& report) {
  const TuningRecord& record = report.record;
  fmt::print("{:<15} {:<10} {:>10} {:>9}  {}\n", "setting", "candidate", "tok/s", "spread", "of");
  for (const TuningRow& row : report.result.rows) {
    const TuningDimension& dimension = report.dimensions[row.dimension];
    fmt::print("{:<15} {:<10} {:>10} {:>9}  {:<8}{}{}{}\n",
               row.candidate == 0 ? dimension.name : "", dimension.candidates[row.candidate],
               row.tok_per_s > 0 ? fmt::format("{:.2f}", row.tok_per_s) : "-",
               row.tok_per_s > 0 ? fmt::format("{:.2f}", row.spread) : "",
               kObjectiveNames[static_cast<int>(dimension.objective)], row.chosen ? "chosen " : "",
               row.start ? "(default) " : "", row.error);
  }
  fmt::print("\n-: not measured: slower neighbours{}. A request: {:.0f} tokens of prompt, {:.0f} of answer\n",
             report.result.stopped ? ", or --seconds were over" : "", kRequestPrompt, kRequestAnswer);
  fmt::print("found: {}\n", record.settings.ToText());
  fmt::print("prompts {:.1f} tok/s (defaults: {:.1f}), answers {:.2f} tok/s (defaults: {:.2f})\n",
             record.prefill_tok_per_s, report.default_prefill, record.decode_tok_per_s,
             report.default_decode);
  fmt::print("remembered in {}; run, serve, eval and bench use it here unless told otherwise "
             "(--no-tuned)\n", report.saved_in);
  if (!report.facts.gpu.empty()) {
    fmt::print("a prompt's bits on a GPU depend on its chunks and on where it is computed, within rounding\n");
  }
}

Status Show(const TuneArguments& a, const RunnerOptions& options) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Store> store,
                   Store::Open(options.store_directory, StoreMode::kReadOnly));
  ASSIGN_OR_RETURN(const std::vector<TuningRecord> records,
                   LoadTuning(*store, TuningCacheDirectory()));
  const TuningKey here = TuningKeyHere(*store, options);
  if (a.json) {
    Json list = Json::array();
    for (const TuningRecord& record : records) {
      Json json = ToJson(record);
      json["fits"] = record.key == here;
      list.push_back(json);
    }
    std::printf("%s\n", list.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
    return OkStatus();
  }
  if (records.empty()) fmt::print("nothing was tuned: moraine tune {}\n", options.store_directory);
  for (const TuningRecord& record : records) {
    fmt::print("{}\n", record.settings.ToText());
    for (const auto& [name, value] : record.key.fields) fmt::print("  {:<13} {}\n", name, value);
    fmt::print("  prompts {:.1f} tok/s, answers {:.2f}\n", record.prefill_tok_per_s,
               record.decode_tok_per_s);
    const std::string difference = record.key.DifferenceTo(here);
    fmt::print("  {}\n", difference.empty() ? "fits this machine and these options"
                                            : "does not fit: " + difference);
  }
  return OkStatus();
}

Status Forget(const RunnerOptions& options) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Store> store, OpenToRemember(options.store_directory));
  ASSIGN_OR_RETURN(const size_t count, ForgetTuning(*store, TuningCacheDirectory()));
  fmt::print("forgotten: {}\n", count);
  return OkStatus();
}

Status RunTune(TuneArguments a) {
  a.runner.no_tuned = true;
  ASSIGN_OR_RETURN(const RunnerOptions options, FinishRunnerOptions(a.runner));
  if (a.show) return Show(a, options);
  if (a.forget) return Forget(options);
  ASSIGN_OR_RETURN(TuneReport report, Tuner(a, options).Run());
  RETURN_IF_ERROR(Remember(options, &report));
  a.json ? PrintJson(report) : PrintText(report);
  return OkStatus();
}

}  // namespace

void RegisterTuneCommand(CLI::App& app, int* exit_code) {
  auto a = std::make_shared<TuneArguments>();
  CLI::App* command = app.add_subcommand(
      "tune", "Measure which settings are fastest for a model on this machine, and remember them.\n"
              "What is given is not varied. No setting that changes a bit of the CPU's results is tried");
  AddRunnerArguments(command, &a->runner);
  AddGpuArguments(command, &a->runner);
  command->add_option("--seconds", a->seconds, "begin nothing new after so many")
      ->check(CLI::Range(1.0, 86400.0))
      ->capture_default_str();
  command->add_option("--prompt-tokens", a->prompt_tokens,
                      "of a round (default, and 0: 256 to 2048 by the time there is, on a GPU 8192)")
      ->check(WholeNumber(1 << 20));
  command->add_option("--tokens", a->tokens, "of an answer (default, and 0: 16 to 128 by the time)")
      ->check(WholeNumber(1 << 20));
  command->add_option("--rounds", a->rounds, "medians of so many")
      ->check(CLI::Range(1, 100))
      ->capture_default_str();
  command->add_option("--seed", a->seed, "of tokens and sampling");
  CLI::Option* const show =
      command->add_flag("--show", a->show, "print what is remembered, and whether it fits here");
  command->add_flag("--forget", a->forget, "remove what is remembered")->excludes(show);
  command->add_flag("--json", a->json, "one line of JSON");
  command->callback([a, exit_code] {
    const Status status = RunTune(*a);
    if (!status.ok()) *exit_code = PrintError(status);
  });
}

}  // namespace moraine
