// RunningRequest: one request from the queue to its last event: its tokens, what picks the next one, and the
// text that has been sent.
//
// It knows nothing of batches, sequences or memory. To it a prompt and a part of an answer are the same:
// tokens that must be computed before there are logits to pick the next one from; which is why a request
// that has lost its keys and values (batch_scheduler.h) can begin again from tokens() and go on where it was.
//
// Threads: the engine thread's; cancelled() may be set by any. Picking a token allocates nothing but what its
// event carries.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "engine/engine.h"
#include "engine/text_assembler.h"
#include "model/batch_segment.h"
#include "model/sampler.h"

namespace moraine {

class RunningRequest {
 public:
  struct Context {
    const TextModel* text = nullptr;
    const ModelInfo* model = nullptr;
  };
  // ticket: rises from request to request.
  RunningRequest(GenerationRequest request, std::shared_ptr<Generation> generation,
                 int64_t submitted_ns, uint64_t ticket, const Context& context);

  uint64_t ticket() const { return ticket_; }
  const std::shared_ptr<Generation>& generation() const { return generation_; }
  // The prompt and what has been picked and is not the end: what has to be computed.
  std::span<const int32_t> tokens() const { return tokens_; }
  // How many these can become.
  uint32_t most_tokens() const { return prompt_tokens() + budget_; }
  uint32_t prompt_tokens() const { return event_.timings.prompt_tokens; }
  bool answering() const { return event_.timings.completion_tokens > 0; }
  // Takes the logits of the last token.
  const LogitsSink* sink() const { return &sink_; }

  // Once: it leaves the queue.
  void Start();
  bool started() const { return started_ns_ > 0; }
  // So many tokens of its prompt need not be computed.
  void SetCached(uint32_t tokens) { event_.timings.cached_tokens = tokens; }
  void OnPrefilled(uint32_t tokens);
  // The logits are there: picks a token and says it. Why that was the end; nothing if it was not.
  std::optional<FinishReason> OnLogits();
  // The last event. error: with kError, unless OnLogits has found it.
  void Finish(FinishReason reason, const Status& error);

 private:
  FinishReason Flush(FinishReason reason);

  const GenerationRequest request_;
  const std::shared_ptr<Generation> generation_;
  const std::vector<int32_t>& eos_tokens_;
  const int64_t submitted_ns_;
  const uint64_t ticket_;
  const uint32_t budget_;  // tokens of the answer
  int64_t started_ns_ = 0, answer_ns_ = 0;
  std::vector<int32_t> tokens_;
  std::vector<float> logits_;
  LogitsSink sink_;
  Sampler sampler_;
  TextAssembler text_;
  GenerationEvent event_;
};

}  // namespace moraine
