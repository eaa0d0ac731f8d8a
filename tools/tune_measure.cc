#include "tune_measure.h"

#include <algorithm>
#include <memory>

#include "engine/gpu/gpu_model.h"
#include "engine/gpu_prefill.h"
#include "forward_workload.h"
#include "model/kv_pool.h"
#include "residency/residency_manager.h"

namespace moraine {
namespace {

// In front of an answer whose prompt is not measured.
constexpr uint32_t kShortPrompt = 64;

RunnerOptions With(RunnerOptions options, const TunedSettings& settings) {
  if (settings.threads) options.threads = *settings.threads;
  if (settings.prefill_chunk) options.prefill_chunk = *settings.prefill_chunk;
  if (settings.lookahead) options.lookahead = *settings.lookahead;
  if (settings.io) options.io.kind = *settings.io;
  if (settings.gpu_prefill_tokens) options.gpu_prefill_tokens = *settings.gpu_prefill_tokens;
  return options;
}

// As serve begins: from the profile, or, where nothing has been learnt, the same experts every time.
Status FillCache(Runner& runner) {
  if (runner.residency() == nullptr) return OkStatus();
  const auto nobody = [](uint64_t, uint64_t) {};
  const Status warmed = runner.Warm(WarmOrder::kProfile, nobody);
  return warmed.code() == StatusCode::kNotFound ? runner.Warm(WarmOrder::kStatic, nobody) : warmed;
}

double Rate(const PhaseStats& before, const PhaseStats& after) {
  const auto ns = static_cast<double>(after.wall_ns - before.wall_ns);
  return ns > 0 ? 1e9 * static_cast<double>(after.tokens - before.tokens) / ns : 0;
}

Result<TuneRates> Rounds(Runner& runner, const TuneWork& work, TuningObjective objective) {
  const bool decode = objective != TuningObjective::kPrefill;
  const bool prefill = objective != TuningObjective::kDecode;
  ASSIGN_OR_RETURN(
      const auto workload,
      ForwardWorkload::Create(
          runner, {.prompt_tokens = prefill ? work.prompt_tokens
                                            : std::min(work.prompt_tokens, kShortPrompt),
                   .tokens = work.answer_tokens,
                   .warm_tokens = work.warm_tokens,
                   .seed = work.seed}));
  TuneRates rates;
  for (int round = -1; round < work.rounds; ++round) {
    const PhaseStats prefill_before = runner.prefill_stats();
    EngineStats before;
    RETURN_IF_ERROR(workload->Compute(round, decode, &before));
    if (round < 0) continue;
    if (prefill) rates.prefill.push_back(Rate(prefill_before, runner.prefill_stats()));
    if (decode) rates.decode.push_back(Rate(before.decode, runner.decode_stats()));
  }
  return rates;
}

}  // namespace

double RequestRate(double prefill_tok_per_s, double decode_tok_per_s) {
  if (prefill_tok_per_s <= 0 || decode_tok_per_s <= 0) return 0;
  return (kRequestPrompt + kRequestAnswer) /
         (kRequestPrompt / prefill_tok_per_s + kRequestAnswer / decode_tok_per_s);
}

Result<TuneFacts> LookAtModel(const RunnerOptions& options) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Runner> runner, Runner::Open(options));
  if (options.gpu_prefill && runner->gpu_prefill() == nullptr) {
    return FailedPrecondition("prompts cannot be computed on a GPU here; the log says why");
  }
  RETURN_IF_ERROR(FillCache(*runner));
  TuneFacts facts;
  constexpr TuneWork kLittle = {.prompt_tokens = 64, .answer_tokens = 8, .warm_tokens = 2, .rounds = 1};
  ASSIGN_OR_RETURN(facts.rates, Rounds(*runner, kLittle, TuningObjective::kRequest));
  const EngineStats stats = runner->Stats();
  facts.model = runner->info().name;
  facts.threads = stats.threads;
  facts.prefill_chunk = runner->prefill_chunk();
  facts.max_context = runner->max_context();
  facts.io_uring = stats.io.starts_with("io_uring");
  if (runner->gpu() != nullptr) {
    facts.gpu = runner->gpu()->gpu_name();
    facts.streams = runner->gpu()->plan().streamed_layers > 0;
  } else {
    facts.reads = runner->residency() != nullptr && stats.residency.slot_count < stats.expert_count;
    if (runner->gpu_prefill() != nullptr) facts.gpu = runner->gpu_prefill()->gpu_name();
  }
  return facts;
}

Result<TuneRates> MeasureSettings(const RunnerOptions& options, const TunedSettings& settings,
                                  const TuneWork& work, TuningObjective objective) {
  RunnerOptions with = With(options, settings);
  // Where a prompt's pieces go is found out by the first of them: what is compared here goes to the GPU.
  if (with.gpu_prefill && with.gpu_prefill_tokens == 0) with.gpu_prefill_tokens = 1;
  ASSIGN_OR_RETURN(const std::unique_ptr<Runner> runner, Runner::Open(with));
  RETURN_IF_ERROR(FillCache(*runner));
  return Rounds(*runner, work, objective);
}

Result<uint32_t> MeasureBreakEven(const RunnerOptions& options, const TunedSettings& settings,
                                  uint32_t longest) {
  RunnerOptions with = With(options, settings);
  with.gpu_prefill_tokens = 0;
  ASSIGN_OR_RETURN(const std::unique_ptr<Runner> runner, Runner::Open(with));
  RETURN_IF_ERROR(FillCache(*runner));
  // Long ones first: the GPU's first piece, in which kernels are loaded, does not count.
  for (uint32_t tokens = longest; tokens >= 16; tokens /= 2) {
    const TuneWork work = {.prompt_tokens = tokens, .rounds = 2};
    RETURN_IF_ERROR(Rounds(*runner, work, TuningObjective::kPrefill).status());
  }
  return runner->Stats().gpu_prefill.break_even_tokens;
}

}  // namespace moraine
