// What the soak asks for, and what an engine answers that nobody disturbs.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/random.h"
#include "engine/engine.h"

namespace moraine {

// FNV-1a over 32-bit words; tells bits, not values, apart.
class Digest {
 public:
  void Add(std::span<const float> values);
  uint64_t value() const { return value_; }

 private:
  uint64_t value_ = 0xcbf29ce484222325ull;
};

struct SoakCase {
  std::vector<int32_t> prompt;
  SamplingOptions sampling;  // greedy or seeded
  uint32_t max_tokens = 0;

  // Of the undisturbed run. digests[i]: of the log probabilities up to and with token i, whose
  // normaliser takes in every logit.
  std::vector<int32_t> tokens;
  std::vector<uint64_t> digests;
  FinishReason finish_reason = FinishReason::kLength;
  uint64_t logits_digest = 0;  // of all logits at all positions of the prompt

  GenerationRequest Request() const;
};

// Tokens and digests of one request as they arrive.
struct Answer {
  std::vector<int32_t> tokens;
  std::vector<uint64_t> digests;
  Digest digest;
  void Add(const GenerationEvent& token);
};

// All logits of a prompt, computed in one piece, or in pieces cut by `cuts`.
Result<uint64_t> PromptLogitsDigest(Runner& runner, std::span<const int32_t> prompt, Random* cuts);

// `count` prompts out of golden_directory (short, chat and up to some hundred tokens long), answered by
// `engine`, on which nothing else runs.
std::vector<SoakCase> MakeSoakCases(Engine& engine, const std::string& golden_directory,
                                    uint32_t count, uint64_t seed);

}  // namespace moraine
