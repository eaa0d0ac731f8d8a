// moraine warm: fills the cache from a profile, from prompts whose routing it learns first, or from
// static order, and says how fast that went. What it learns it saves as the profile, from which run
// and serve preload their cache.
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <memory>

#include "base/clock.h"
#include "commands.h"
#include "common_options.h"
#include "engine/runner.h"
#include "engine/text_model.h"
#include "progress_display.h"

namespace moraine {
namespace {

struct WarmArguments {
  RunnerArguments runner;
  std::vector<std::string> prompt_files;
  std::string order = "profile";
  bool json = false;
};

Status LearnFrom(Runner& runner, const Tokenizer& tokenizer, const std::string& path,
                 uint64_t* tokens) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) return IoErrorFromErrno(path, errno);
  const std::string text{std::istreambuf_iterator<char>(stream), {}};
  ASSIGN_OR_RETURN(const std::vector<int32_t> ids, tokenizer.Encode(text));
  const Runner::ForwardOptions options{.logits = Runner::LogitsMode::kNone};
  for (size_t begin = 0; begin < ids.size(); begin += runner.max_context()) {
    const auto part =
        std::span(ids).subspan(begin, std::min<size_t>(runner.max_context(), ids.size() - begin));
    runner.ResetSequence();
    RETURN_IF_ERROR(runner.Forward(part, options));
    *tokens += part.size();
  }
  return OkStatus();
}

Status Warm(const WarmArguments& a) {
  ASSIGN_OR_RETURN(RunnerOptions options, FinishRunnerOptions(a.runner));
  options.store_mode = StoreMode::kReadWrite;
  ASSIGN_OR_RETURN(const std::unique_ptr<Runner> runner, Runner::Open(options));
  uint64_t tokens = 0;
  if (!a.prompt_files.empty()) {
    ASSIGN_OR_RETURN(const TextModel text, TextModel::Load(runner->store().manifest()));
    for (const std::string& path : a.prompt_files) {
      RETURN_IF_ERROR(LearnFrom(*runner, text.tokenizer(), path, &tokens));
    }
    RETURN_IF_ERROR(runner->SaveProfile());
  }
  const EngineStats before = runner->Stats();
  ProgressDisplay display("warming", a.json);
  const auto order =
      a.order == "static" ? WarmOrder::kStatic : WarmOrder::kProfile;
  const int64_t begin_ns = RealClock().NowNs();
  const Status warmed = runner->Warm(order, [&](uint64_t done, uint64_t total) {
    display.Update(done, total, 0, static_cast<double>(RealClock().NowNs() - begin_ns) * 1e-9);
  });
  if (warmed.code() == StatusCode::kNotFound) {
    return NotFound(warmed.message() +
                    ": give --prompts FILE or --order static, or run or serve the model once");
  }
  RETURN_IF_ERROR(warmed);
  const EngineStats stats = runner->Stats();
  const double gigabytes =
      static_cast<double>(stats.residency.bytes_read - before.residency.bytes_read) * 1e-9;
  const double seconds = static_cast<double>(stats.uptime_ns - before.uptime_ns) * 1e-9;
  std::printf(a.json ? "{\"learnt_tokens\":%llu,\"resident_experts\":%u,\"experts\":%llu,"
                       "\"gigabytes\":%.6f,\"seconds\":%.6f}\n"
                     : "learnt from %llu tokens; %u of %llu experts are resident, %.3f GB were read "
                       "in %.3f s\n",
              static_cast<unsigned long long>(tokens), stats.residency.resident,
              static_cast<unsigned long long>(stats.expert_count), gigabytes, seconds);
  return OkStatus();
}

}  // namespace

void RegisterWarmCommand(CLI::App& app, int* exit_code) {
  auto a = std::make_shared<WarmArguments>();
  CLI::App* command = app.add_subcommand(
      "warm", "Fill the cache from a profile, from prompts (learnt and saved) or in static order");
  AddRunnerArguments(command, &a->runner);
  command->add_option("--prompts", a->prompt_files, "text files to learn the routing from");
  command->add_option("--order", a->order, "what is read first, and stays if not all fits")
      ->check(CLI::IsMember({"profile", "static"}))
      ->capture_default_str();
  command->add_flag("--json", a->json, "one JSON object on stdout");
  command->callback([a, exit_code] {
    const Status status = Warm(*a);
    if (!status.ok()) *exit_code = PrintError(status);
  });
}

}  // namespace moraine
