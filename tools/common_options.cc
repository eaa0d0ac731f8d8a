#include "common_options.h"

#include <cstdio>

namespace moraine {

void AddRunnerArguments(CLI::App* command, RunnerArguments* a) {
  command->add_option("STORE", a->options.store_directory, "directory of an imported model")
      ->required();
  command
      ->add_option("--ram-budget", a->ram_budget,
                   "memory of the whole process (8GiB), a share of the experts (25%), or auto")
      ->envname("MORAINE_RAM_BUDGET");
  command->add_option("--policy", a->options.policy, "eviction policy: heat, sieve or lru")
      ->capture_default_str();
  command->add_option("--io", a->options.io.kind, "auto, io_uring, pread or simulated")
      ->capture_default_str();
  command->add_option("--io-seed", a->options.io.simulation_seed,
                      "order in which --io simulated completes reads");
  command->add_flag("--no-direct", a->no_direct, "read through the page cache, without O_DIRECT");
  command->add_option("--isa", a->options.isa,
                      "scalar, avx2, avx_vnni or avx512 (default: the best; also MORAINE_ISA)");
  command->add_option("--threads", a->options.threads, "compute threads (default: one per CPU)")
      ->check(CLI::Range(0, 1024));
  command->add_option("--max-context", a->options.max_context,
                      "tokens of KV cache (default: the model's, at most 4096)");
  command
      ->add_option("--prefill-chunk", a->options.prefill_chunk,
                   "tokens that are prefilled together")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  command->add_flag("!--no-lookahead", a->options.lookahead,
                    "do not read ahead what the next layer's router probably wants");
  command->add_option("--profile", a->options.heat_profile,
                      "named heat profile to start from and to save");
}

Result<RunnerOptions> FinishRunnerOptions(const RunnerArguments& arguments) {
  RunnerOptions options = arguments.options;
  ASSIGN_OR_RETURN(options.ram_budget, ParseRamBudget(arguments.ram_budget));
  options.io.direct = !arguments.no_direct;
  return options;
}

int PrintError(const Status& status) {
  std::fprintf(stderr, "moraine: %s\n", status.ToString().c_str());
  return 1;
}

}  // namespace moraine
