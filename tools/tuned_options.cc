#include "tuned_options.h"

#include <cstdlib>

#include "base/log.h"
#include "machine_identity.h"

namespace moraine {
namespace {

std::string Variable(const char* name) {
  const char* const value = std::getenv(name);
  return value == nullptr ? "" : value;
}

TunedSettings FindRecord(const RunnerOptions& options) {
  const auto store = Store::Open(options.store_directory, StoreMode::kReadOnly);
  if (!store.ok()) return {};  // whoever opens it to use it says why
  const auto records = LoadTuning(**store, TuningCacheDirectory());
  if (!records.ok()) {
    LOG_WARN("what moraine tune has found is not used: {}", records.status().message());
    return {};
  }
  if (records->empty()) return {};
  const TuningRecord* const record = FindTuning(*records, TuningKeyHere(**store, options));
  return record == nullptr ? TunedSettings() : record->settings;
}

}  // namespace

std::string TuningCacheDirectory() {
  std::string cache = Variable("XDG_CACHE_HOME");
  if (cache.empty() && !Variable("HOME").empty()) cache = Variable("HOME") + "/.cache";
  return cache.empty() ? "" : cache + "/moraine/tuning";
}

TuningKey TuningKeyHere(const Store& store, const RunnerOptions& options) {
  const std::vector<std::string>& packs = store.expert_pack_paths();
  const std::string directory =
      packs.empty() ? store.directory() : packs[0].substr(0, packs[0].rfind('/'));
  return KeyOf(IdentifyMachine(SystemTree(), directory, options.gpu || options.gpu_prefill), options);
}

TunedSettings FindTunedSettings(const RunnerArguments& arguments, const RunnerOptions& options) {
  if (arguments.no_tuned) return {};
  TunedSettings settings = FindRecord(options);
  const TunableOptions& options_of_user = arguments.tunable;
  if (options_of_user.threads.given()) settings.threads.reset();
  if (options_of_user.prefill_chunk.given()) settings.prefill_chunk.reset();
  if (options_of_user.lookahead.given()) settings.lookahead.reset();
  if (options_of_user.io.given() || !Variable("MORAINE_IO").empty()) settings.io.reset();
  if (options_of_user.gpu_prefill_tokens.given()) settings.gpu_prefill_tokens.reset();
  return settings;
}

TunedSettings FindTunedSettings(const CommandDescription& command, const std::string& store) {
  RunnerArguments arguments;
  arguments.options.store_directory = store;
  bool tunable = false;
  for (const OptionDescription& option : command.options) {
    const std::string value = ConfiguredText(option);
    const std::string name = option.ConfigName();
    tunable |= name == "no-tuned";
    if (value.empty()) continue;
    const bool on = value == "true" || value == "1";
    if (name == "store" && store.empty()) arguments.options.store_directory = value;
    if (name == "ram-budget") arguments.ram_budget = value;
    if (name == "vram-budget") arguments.vram_budget = value;
    if (name == "gpus") arguments.gpus = value;
    if (name == "kv") arguments.kv_format = value;
    if (name == "max-context") {
      arguments.options.max_context = static_cast<uint32_t>(std::strtoul(value.c_str(), nullptr, 10));
    }
    if (name == "gpu") arguments.options.gpu = on;
    if (name == "gpu-prefill") arguments.options.gpu_prefill = on;
    if (name == "gpu-hybrid") arguments.options.gpu_hybrid = on;
    if (name == "no-tuned" && on) return {};
  }
  if (!tunable || arguments.options.store_directory.empty()) return {};
  arguments.no_tuned = true;  // what was tuned is asked for by itself
  const auto options = FinishRunnerOptions(arguments);
  return options.ok() ? FindRecord(*options) : TunedSettings();
}

std::string TunedText(const TunedSettings& settings, const std::string& name) {
  if (name == "threads" && settings.threads) return std::to_string(*settings.threads);
  if (name == "prefill-chunk" && settings.prefill_chunk) {
    return std::to_string(*settings.prefill_chunk);
  }
  if (name == "no-lookahead" && settings.lookahead) return *settings.lookahead ? "false" : "true";
  if (name == "io" && settings.io) return *settings.io;
  if (name == "gpu-prefill-tokens" && settings.gpu_prefill_tokens) {
    return std::to_string(*settings.gpu_prefill_tokens);
  }
  return "";
}

std::string ConfiguredText(const OptionDescription& option) {
  const std::string value = option.environment.empty() ? "" : Variable(option.environment.c_str());
  return value.empty() ? option.default_text : value;
}

}  // namespace moraine
