// The options that run, serve, eval and warm share, spelled and explained once.
#pragma once

#include <CLI/CLI.hpp>

#include <cstdint>
#include <string>
#include <vector>

#include "engine/runner.h"

namespace moraine {

// An option whose value moraine tune can find, and whether somebody has said what it is to be.
class TunableOption {
 public:
  TunableOption() = default;
  explicit TunableOption(CLI::Option* option)
      : option_(option), default_text_(option->get_default_str()) {}
  // By a flag or the environment, which CLI11 counts, or by the configuration file, which changes defaults.
  bool given() const {
    return option_ != nullptr && (option_->count() > 0 || option_->get_default_str() != default_text_);
  }

 private:
  CLI::Option* option_ = nullptr;
  std::string default_text_;
};
struct TunableOptions {
  TunableOption threads, prefill_chunk, lookahead, io, gpu_prefill_tokens;
};

// What the user typed; FinishRunnerOptions turns it into RunnerOptions.
struct RunnerArguments {
  RunnerOptions options;
  std::string ram_budget = "auto";
  std::string ram_budget_max;  // "": ram_budget
  std::string kv_format;  // "": f32, on a GPU bf16
  std::string vram_budget = "auto";
  std::string gpus;  // "": the first
  std::string link_limit;  // "": none
  bool no_direct = false;
  bool no_tuned = false;
  TunableOptions tunable;
};

// Adds STORE and the options. `arguments` must outlive the parse.
void AddRunnerArguments(CLI::App* command, RunnerArguments* arguments);
// Adds --gpu, --gpus, --gpu-prefill and --vram-budget, for commands that can compute there.
void AddGpuArguments(CLI::App* command, RunnerArguments* arguments);
// Adds --link-limit, which emulates another machine: for benchmarks.
void AddLinkLimit(CLI::App* command, RunnerArguments* arguments);
// Parses the budgets; errors name the option. Unless no_tuned, looks in the store for what moraine tune has found.
Result<RunnerOptions> FinishRunnerOptions(const RunnerArguments& arguments);

// Gives each option that takes a value, and each flag that turns something on, the environment variable
// MORAINE_NAME unless it has one. Not --isa and --io: those variables are read where the choice is made.
void NameEnvironment(CLI::App* command);

// For CLI11's check(): its own conversion error says what it could not convert, but not to what.
CLI::Validator WholeNumber(uint64_t highest);
CLI::Validator Number();

// Prints "moraine: <message>" to stderr; returns the exit code for a failed operation (1).
int PrintError(const Status& status);

}  // namespace moraine
