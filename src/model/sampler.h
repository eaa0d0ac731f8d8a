// Sampler: logits -> one token.
//
// Order of operations: what a constraint forbids, logit bias, repetition / presence / frequency penalties, temperature, top-k,
// top-p, min-p, draw; the order of transformers' generate(), which is how model cards measure their
// advice. (llama.cpp applies the temperature last, so there top-p and min-p see the untempered
// distribution.) temperature 0 is greedy: the highest logit after bias and penalties, the lowest id
// on a tie. The generator is seeded per request, so that a request with a seed gives the same tokens
// whatever runs beside it. A NaN logit is never chosen while any other is a number.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/random.h"
#include "base/status.h"

namespace moraine {

struct SamplingOptions {
  float temperature = 0.0f;         // 0: greedy
  uint32_t top_k = 0;               // 0: all
  float top_p = 1.0f;               // (0, 1]
  float min_p = 0.0f;               // [0, 1): relative to the best
  float repetition_penalty = 1.0f;  // > 0; CTRL (Keskar et al. 2019), over prompt and output
  float presence_penalty = 0.0f;    // OpenAI's, over the output
  float frequency_penalty = 0.0f;
  std::vector<std::pair<int32_t, float>> logit_bias = {};  // token id, added
  uint64_t seed = 0;

  // kInvalidArgument naming the field, what was found and the range.
  Status Validate(uint32_t vocab_size) const;
};

struct TokenLogprob {
  int32_t token = 0;
  float logprob = 0;
};

// One per sequence. Thread-compatible. No allocation in Sample.
class Sampler {
 public:
  Sampler(const SamplingOptions& options, uint32_t vocab_size);

  // Tokens of the prompt, for the repetition penalty.
  void AcceptPrompt(std::span<const int32_t> tokens);
  // Picks a token and accepts it. `logits` has vocab_size values and is left as it was. `allowed`: bit
  // t % 64 of word t / 64 says whether token t may be picked; empty: all may.
  int32_t Sample(std::span<const float> logits, std::span<const uint64_t> allowed = {});

 private:
  void Forbid(std::span<const uint64_t> allowed);
  void ApplyPenalties();
  int32_t Draw(int32_t best_token);
  int32_t WorstKept();
  double MassOf(size_t begin, size_t end) const;
  bool Better(int32_t a, int32_t b) const;

  SamplingOptions options_;
  Random random_;
  std::vector<float> logits_;
  std::vector<float> weights_;           // of candidates: e^((logit - best) / temperature)
  std::vector<uint32_t> output_counts_;  // by token
  std::vector<bool> seen_;               // prompt or output
  std::vector<int32_t> order_;           // scratch: candidates, the best in front as far as selected
  bool has_penalties_ = false;
};

// Log-probabilities (natural log, of the unmodified distribution) of `token` and of the `count` most
// likely tokens, best first.
struct Logprobs {
  float chosen = 0;
  std::vector<TokenLogprob> top;
};
Logprobs ComputeLogprobs(std::span<const float> logits, int32_t token, uint32_t count);

}  // namespace moraine
