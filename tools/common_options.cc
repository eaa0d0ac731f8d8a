#include "common_options.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstdio>
#include <vector>

#include "base/bytes.h"
#include "engine/gpu/gpu_model.h"
#include "engine/gpu/vram_plan.h"
#include "model_arguments.h"
#include "residency/eviction_policy.h"
#include "tuned_options.h"

namespace moraine {
namespace {

template <typename T>
bool Parses(const std::string& text, T* value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *value);
  return error == std::errc() && end == text.data() + text.size();
}

// Bytes a second of "25GB/s".
Result<double> ParseLinkLimit(const std::string& text) {
  const auto rate = ParseByteSize(text.substr(0, text.size() - (text.ends_with("/s") ? 2 : 0)));
  if (rate.ok() && *rate > 0) return static_cast<double>(*rate);
  return InvalidArgument("--link-limit: expected a rate such as 25GB/s, found '" + text + "'");
}

}  // namespace

CLI::Validator WholeNumber(uint64_t highest) {
  const auto check = [highest](const std::string& text) -> std::string {
    uint64_t value = 0;
    if (Parses(text, &value) && value <= highest) return "";
    return "expected a whole number from 0 to " + std::to_string(highest) + ", found " + text;
  };
  return CLI::Validator("").operation(check);
}

CLI::Validator Number() {
  const auto check = [](const std::string& text) -> std::string {
    double value = 0;
    return Parses(text, &value) ? "" : "expected a number, found " + text;
  };
  return CLI::Validator("").operation(check);
}

void AddRunnerArguments(CLI::App* command, RunnerArguments* a) {
  command
      ->add_option("STORE", a->options.store_directory,
                   "directory of an imported model, or its name (moraine models)")
      ->transform(StoreByName())
      ->required();
  command
      ->add_option("--ram-budget", a->ram_budget,
                   "memory of the whole process (8GiB), a share of the experts (25%), or auto, the "
                   "default: what is free, or what the cgroup allows")
      ->envname("MORAINE_RAM_BUDGET");
  command->add_option("--policy", a->options.policy, "eviction policy")
      ->check(CLI::IsMember(std::vector<std::string>(EvictionPolicyNames().begin(),
                                                     EvictionPolicyNames().end())))
      ->capture_default_str();
  a->tunable.io = TunableOption(
      command
          ->add_option("--io", a->options.io.kind, "how experts are read; auto: io_uring, else pread")
          ->check(CLI::IsMember({"auto", "io_uring", "pread", "simulated"}))
          ->capture_default_str());
  command->add_option("--io-seed", a->options.io.simulation_seed,
                      "order in which --io simulated completes reads")
      ->check(WholeNumber(UINT64_MAX));
  command->add_flag("--no-direct", a->no_direct, "read through the page cache, without O_DIRECT");
  command
      ->add_option("--isa", a->options.isa,
                   "instruction set of the kernels (default: the CPU's best; also MORAINE_ISA)")
      ->check(CLI::IsMember({"scalar", "avx2", "avx_vnni", "avx512_vnni", "amx"}));
  a->tunable.threads = TunableOption(
      command->add_option("--threads", a->options.threads, "compute threads (default: one per CPU)")
          ->check(CLI::Range(0, 1024)));
  command->add_option("--max-context", a->options.max_context,
                      "tokens of KV cache (default, and 0: the model's, at most 4096)")
      ->check(WholeNumber(UINT32_MAX));
  a->options.prefill_chunk = 0;  // chosen
  a->tunable.prefill_chunk = TunableOption(
      command
          ->add_option("--prefill-chunk", a->options.prefill_chunk,
                       "tokens that are prefilled together; more read fewer experts twice and take more "
                       "memory (default, and 0: 512 to 2048, by what the budget spares)")
          ->check(CLI::Range(0, 65536)));
  command
      ->add_option("--kv", a->kv_format,
                   "keys and values: f32, the default; LOSSY: bf16, or q8 or fp8, for 2 or nearly 4 times the "
                   "context. With --gpu and --gpu-prefill bf16, the default; LOSSY: fp8, for nearly twice the "
                   "context; or f32: prompts at the speed of decode")
      ->check(CLI::IsMember({"f32", "bf16", "q8", "fp8"}));
  a->tunable.lookahead = TunableOption(
      command->add_flag("!--no-lookahead", a->options.lookahead,
                        "do not read ahead what the next layer's router probably wants"));
  command
      ->add_option("--lossy-defer", a->options.defer_experts,
                   "LOSSY: so many absent experts of a layer, the least weighty, join one layer later")
      ->check(WholeNumber(64));
  command
      ->add_option("--lossy-prefer-resident", a->options.prefer_resident,
                   "LOSSY: routers lean to experts in memory, by this share of their logits' span")
      ->check(CLI::Range(0.0, 1.0));
  command->add_option("--profile", a->options.profile,
                      "named profile of a workload to start from and to save")
      ->capture_default_str();
  command->add_flag("--no-tuned", a->no_tuned, "do not use what moraine tune has found");
}

void AddGpuArguments(CLI::App* command, RunnerArguments* a) {
  CLI::Option* gpu = command->add_flag(
      "--gpu", a->options.gpu, "compute on an NVIDIA GPU: weights, KV cache and experts in VRAM");
  command
      ->add_flag("--gpu-prefill", a->options.gpu_prefill,
                 "compute prompts on an NVIDIA GPU and answers on the CPU, out of the same memory; short "
                 "prompts, or all where the GPU fails, on the CPU")
      ->excludes(gpu);
  command
      ->add_flag("--gpu-hybrid", a->options.gpu_hybrid,
                 "as --gpu-prefill, and answers on GPU and CPU together, hot experts in VRAM, where that is "
                 "faster than the CPU alone")
      ->excludes(gpu);
  command->add_flag("--gpu-hybrid-always", a->options.gpu_hybrid_always,
                    "--gpu-hybrid without timing the CPU alone: all answers are computed together");
  a->tunable.gpu_prefill_tokens = TunableOption(
      command
          ->add_option("--gpu-prefill-tokens", a->options.gpu_prefill_tokens,
                       "shortest piece of a prompt that --gpu-prefill gives to the GPU (default, and 0: "
                       "found out by the first ones)")
          ->check(WholeNumber(UINT32_MAX)));
  command->add_option("--vram-budget", a->vram_budget,
                      "with --gpu, --gpu-prefill or --gpu-hybrid, VRAM of each GPU for all that is there (16GiB), or "
                      "auto, the default: what is free. Experts that do not fit are streamed");
  command->add_option("--gpus", a->gpus,
                      "with --gpu, GPUs to divide the layers among, by number (0,1), or all; otherwise the one to "
                      "use (default: the first)");
}

namespace {

// "0,1", "all", "" (the first).
Result<std::vector<uint32_t>> ParseGpus(const std::string& text) {
  std::vector<uint32_t> gpus;
  if (text.empty()) return gpus;
  if (text == "all") {
    ASSIGN_OR_RETURN(const uint32_t count, CountGpus());
    for (uint32_t gpu = 0; gpu < count; ++gpu) gpus.push_back(gpu);
    return gpus;
  }
  const char* at = text.data();
  const char* const end = at + text.size();
  while (true) {
    uint32_t gpu = 0;
    const auto [next, error] = std::from_chars(at, end, gpu);
    if (error != std::errc() || (next != end && *next != ',')) {
      return InvalidArgument("--gpus '" + text + "': expected numbers (0,1) or all");
    }
    gpus.push_back(gpu);
    if (next == end) return gpus;
    at = next + 1;
  }
}

}  // namespace

void AddLinkLimit(CLI::App* command, RunnerArguments* a) {
  command->add_option("--link-limit", a->link_limit,
                      "with --gpu or --gpu-prefill, emulate a slower link: experts are streamed at this rate "
                      "(25GB/s) at most");
}

void NameEnvironment(CLI::App* command) {
  for (CLI::Option* option : command->get_options()) {
    if (option->get_lnames().empty() || option == command->get_help_ptr()) continue;
    std::string name = option->get_lnames().front();
    const bool is_flag = option->get_items_expected_max() == 0;
    const bool turns_off = is_flag && option->get_flag_value(name, "true") == "false";
    if (turns_off || !option->get_envname().empty() || name == "isa" || name == "io") continue;
    std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) {
      return c == '-' ? '_' : static_cast<char>(std::toupper(c));
    });
    option->envname("MORAINE_" + name);
  }
}

Result<RunnerOptions> FinishRunnerOptions(const RunnerArguments& arguments) {
  RunnerOptions options = arguments.options;
  ASSIGN_OR_RETURN(options.ram_budget, ParseRamBudget(arguments.ram_budget));
  if (!arguments.ram_budget_max.empty()) {
    ASSIGN_OR_RETURN(options.ram_budget_max, ParseRamBudget(arguments.ram_budget_max));
  }
  options.io.direct = !arguments.no_direct;
  if (options.gpu_hybrid_always && !options.gpu_hybrid) {
    return InvalidArgument("--gpu-hybrid-always needs --gpu-hybrid");
  }
  options.gpu_prefill |= options.gpu_hybrid;
  const bool on_gpu = options.gpu || options.gpu_prefill;
  if (!on_gpu && arguments.vram_budget != "auto") {
    return InvalidArgument("--vram-budget needs --gpu, --gpu-prefill or --gpu-hybrid");
  }
  if (!on_gpu && !arguments.gpus.empty()) {
    return InvalidArgument("--gpus needs --gpu, --gpu-prefill or --gpu-hybrid");
  }
  ASSIGN_OR_RETURN(options.gpus, ParseGpus(arguments.gpus));
  if (!options.gpu && options.gpus.size() > 1) {
    return InvalidArgument("--gpus names " + std::to_string(options.gpus.size()) +
                           " GPUs: several are for --gpu; --gpu-prefill and --gpu-hybrid use one");
  }
  if (!options.gpu_prefill && options.gpu_prefill_tokens > 0) {
    return InvalidArgument("--gpu-prefill-tokens needs --gpu-prefill or --gpu-hybrid");
  }
  if (!arguments.link_limit.empty()) {
    if (!on_gpu) return InvalidArgument("--link-limit needs --gpu or --gpu-prefill");
    if (options.gpu_hybrid) {
      return InvalidArgument("--link-limit: not with --gpu-hybrid, which reads experts in place over the "
                             "link: that cannot be slowed");
    }
    ASSIGN_OR_RETURN(options.link_limit_bytes_per_s, ParseLinkLimit(arguments.link_limit));
  }
  if (on_gpu) options.kv_format = KvFormat::kBf16;
  if (!arguments.kv_format.empty()) {
    ASSIGN_OR_RETURN(options.kv_format, ParseKvFormat(arguments.kv_format));
  }
  ASSIGN_OR_RETURN(options.vram_budget_bytes, ParseVramBudget(arguments.vram_budget));
  options.tuned = FindTunedSettings(arguments, options);
  return options;
}

int PrintError(const Status& status) {
  std::fprintf(stderr, "moraine: %s\n", status.ToString().c_str());
  return 1;
}

}  // namespace moraine
