// The options that run, serve, eval and warm share, spelled and explained once.
#pragma once

#include <CLI/CLI.hpp>

#include <cstdint>
#include <string>
#include <vector>

#include "engine/runner.h"

namespace moraine {

// What the user typed; FinishRunnerOptions turns it into RunnerOptions.
struct RunnerArguments {
  RunnerOptions options;
  std::string ram_budget = "auto";
  std::string ram_budget_max;  // "": ram_budget
  std::string kv_format;  // "": f32, on a GPU bf16
  std::string vram_budget = "auto";
  std::string gpus;  // "": the first
  bool no_direct = false;
};

// Adds STORE and the options. `arguments` must outlive the parse.
void AddRunnerArguments(CLI::App* command, RunnerArguments* arguments);
// Adds --gpu, --gpus, --gpu-prefill and --vram-budget, for commands that can compute there.
void AddGpuArguments(CLI::App* command, RunnerArguments* arguments);
// Parses the budgets; errors name the option.
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
