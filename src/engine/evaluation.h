// Evaluation: does a store, with these options, compute what the reference computed?
//
// The parts of `moraine eval`. All of them run through the same Runner as serving does, so what is
// measured is what is served.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "engine/runner.h"
#include "engine/text_model.h"

namespace moraine {

struct MatchCount {
  uint32_t match = 0, total = 0;
};

// How far a distribution of next tokens is from another store's, over all positions of a text.
struct Divergence {
  double kl = 0;         // Kullback-Leibler divergence from the other store's, nats a token
  double same_best = 0;  // share of positions where both find the same token the likeliest
};

struct EvaluationReport {
  std::optional<MatchCount> greedy;               // continuations identical to the reference's
  std::optional<double> logits_max_abs_error;     // against reference or fixture
  std::optional<double> prefill_decode_max_abs_difference;
  std::map<std::string, double> nll;              // nats a token, by file name
  std::map<std::string, Divergence> divergence;   // of SetBaseline's store, by file name
  std::optional<MatchCount> chat;                 // answers identical to the file's
  std::vector<std::string> mismatches;            // for people: what differed, up to 20
  std::string digest;                             // XXH3-64 of every logit's bits, in order

  std::string ToJson() const;
  std::string ToText() const;
};

class Evaluation {
 public:
  // The runner must outlive the evaluation. Tokenizer and template come from the store where it has
  // them; parts that need one say so.
  static Result<std::unique_ptr<Evaluation>> Create(Runner& runner);
  ~Evaluation();

  // From now on AddText compares with what this runner's store gives, too: the same model in another
  // format. kInvalidArgument if it has another vocabulary or too short a context. Must outlive the evaluation.
  Status SetBaseline(Runner& baseline);

  // [{prompt, ids, greedy_fp32, last_logits_top: [[id, logit]...], min_margin}]: continuation and last
  // logits. A continuation counts as identical up to the first step where the best two logits are
  // closer than 1e-3, if min_margin says the reference had such a step.
  Status AddReference(const std::string& file);
  // DIR/expected.json {prompt_ids, greedy_from_first_N} and DIR/logits.safetensors {logits: [n, vocab]
  // F32}: all positions, the continuation, and decoding token by token against prefill.
  Status AddFixture(const std::string& directory);
  // Mean NLL over windows of 512 predictions (513 ids, one shared), the file's tokens in a row.
  Status AddText(const std::string& file);
  // [{question, answer}]: greedy answer through the chat template, compared exactly.
  Status AddChat(const std::string& file);

  const EvaluationReport& Finish();

 private:
  Evaluation();
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace moraine
