// ForwardWorkload: the prompts and answers that bench prefill, bench decode and tune compute.
//
// A prompt is a piece of a text, or random tokens: routing follows from them as from any other. An answer's tokens are
// drawn at temperature 1 by the model's own logits, so that routing is that of answers; but random on a GPU, where
// drawing from the flat logits of random weights takes longer than a step. The same seed gives the same work.
//
// Threads: the runner's.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/random.h"
#include "base/status.h"
#include "engine/runner.h"
#include "model/sampler.h"
#include "model/sequence_state.h"

namespace moraine {

struct ForwardWorkloadOptions {
  std::string text = {};  // file; "": random tokens
  uint32_t prompt_tokens = 0;
  uint32_t tokens = 0, warm_tokens = 0;  // of an answer; before them, not counted
  uint32_t batch = 1;                    // sequences
  uint64_t seed = 1;
};

class ForwardWorkload {
 public:
  // The runner outlives it. An error names the file, or what is too short.
  static Result<std::unique_ptr<ForwardWorkload>> Create(Runner& runner,
                                                         const ForwardWorkloadOptions& options);

  // Prompts and, for `decode`, answers behind them. before: statistics when what is measured begins.
  Status Compute(int round, bool decode, EngineStats* before);

 private:
  // One of the sequences that are decoded together.
  struct Stream {
    SequenceState* state = nullptr;
    std::unique_ptr<Sampler> sampler;
    std::vector<float> logits;
    LogitsSink keep;
    int32_t token = 0;
  };

  ForwardWorkload(Runner& runner, const ForwardWorkloadOptions& options)
      : runner_(runner), options_(options), random_(options.seed) {}
  Status ReadText();
  std::vector<int32_t> Prompt(int round) const;
  Status Begin(Stream* stream, uint32_t index, int text);
  Status DecodeStep(std::vector<Stream>* streams);

  Runner& runner_;
  const ForwardWorkloadOptions options_;
  Random random_;
  std::vector<int32_t> text_tokens_;
};

}  // namespace moraine
