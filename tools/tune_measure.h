// TuneMeasure: what a candidate of `moraine tune` reaches, by the real engine: a model opened with its settings,
// the cache warmed, a round that does not count, and some that do.
//
// Threads: owned by one thread.
#pragma once

#include <string>
#include <vector>

#include "base/status.h"
#include "engine/runner.h"
#include "engine/tuned_settings.h"
#include "engine/tuning.h"

namespace moraine {

// What rounds are made of.
struct TuneWork {
  uint32_t prompt_tokens = 2048;
  uint32_t answer_tokens = 64, warm_tokens = 16;
  int rounds = 3;
  uint64_t seed = 1;
};

// Tokens a second of each round; empty for a phase that was not measured.
struct TuneRates {
  std::vector<double> prefill, decode;
};

// What is known of a model once it is open.
struct TuneFacts {
  std::string model, gpu;  // gpu: "" on the CPU
  int threads = 0;
  uint32_t prefill_chunk = 0, max_context = 0;
  bool reads = false;     // experts from a drive while it computes
  bool streams = false;   // experts to a GPU
  bool io_uring = false;
  TuneRates rates;        // of short work
};

// Opens it as `options` say and does a little. kFailedPrecondition: prompts are to be computed on a GPU, and none
// can be had.
Result<TuneFacts> LookAtModel(const RunnerOptions& options);

// `options` with these settings. For kDecode prompts are short, for kPrefill there are no answers.
Result<TuneRates> MeasureSettings(const RunnerOptions& options, const TunedSettings& settings,
                                  const TuneWork& work, TuningObjective objective);

// The shortest piece of a prompt that is faster on the GPU with --gpu-prefill; 0: none is.
Result<uint32_t> MeasureBreakEven(const RunnerOptions& options, const TunedSettings& settings,
                                  uint32_t longest);

// Tokens a second, of prompt and answer together, of a request of kRequestPrompt and kRequestAnswer tokens: what
// settings that move both phases are judged by. A choice: between a chat's turn and a document's question.
inline constexpr double kRequestPrompt = 512, kRequestAnswer = 128;
double RequestRate(double prefill_tok_per_s, double decode_tok_per_s);

}  // namespace moraine
