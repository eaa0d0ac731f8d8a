#include "engine/running_request.h"

#include <algorithm>
#include <cmath>

#include "base/clock.h"
#include "model/constraint/token_constraint.h"

namespace moraine {
namespace {

uint32_t AnswerBudget(const GenerationRequest& request, const ModelInfo& model) {
  const uint32_t room = model.max_context - static_cast<uint32_t>(request.prompt.size());
  return request.max_tokens > 0 ? std::min(request.max_tokens, room) : room;
}

}  // namespace

RunningRequest::RunningRequest(GenerationRequest request, std::shared_ptr<Generation> generation,
                               int64_t submitted_ns, uint64_t ticket, const Context& context)
    : request_(std::move(request)),
      generation_(std::move(generation)),
      eos_tokens_(context.model->eos_tokens),
      submitted_ns_(submitted_ns),
      ticket_(ticket),
      budget_(AnswerBudget(request_, *context.model)),
      logits_(context.model->vocab_size),
      sampler_(request_.sampling, context.model->vocab_size),
      text_(&context.text->tokenizer(), request_.stop, request_.keep_special_tokens) {
  tokens_.reserve(request_.prompt.size() + budget_);
  tokens_ = request_.prompt;
  sink_ = [this](uint32_t, std::span<const float> logits) {
    std::copy(logits.begin(), logits.end(), logits_.begin());
  };
  sampler_.AcceptPrompt(request_.prompt);
  event_.timings.prompt_tokens = static_cast<uint32_t>(request_.prompt.size());
}

void RunningRequest::Start() {
  started_ns_ = RealClock().NowNs();
  event_.timings.queue_ns = started_ns_ - submitted_ns_;
  event_.kind = GenerationEvent::Kind::kStarted;
  request_.on_event(event_);
}

void RunningRequest::OnPrefilled(uint32_t tokens) {
  event_.kind = GenerationEvent::Kind::kPrefillProgress;
  event_.prefilled_tokens = tokens;
  request_.on_event(event_);
}

std::optional<FinishReason> RunningRequest::OnLogits() {
  if (!answering()) {
    answer_ns_ = RealClock().NowNs();
    event_.timings.prefill_ns = answer_ns_ - started_ns_;
  }
  TokenConstraint* constraint = request_.constraint.get();
  if (constraint != nullptr && constraint->must_end()) return Flush(FinishReason::kStop);
  const int32_t token = constraint == nullptr
                            ? sampler_.Sample(logits_)
                            : sampler_.Sample(logits_, constraint->AllowedTokens());
  if (!std::isfinite(logits_[static_cast<size_t>(token)])) {
    event_.error = Internal("the model computed logits that are not finite");
    return FinishReason::kError;
  }
  ++event_.timings.completion_tokens;
  const bool may_end = !request_.ignore_eos || constraint != nullptr;
  if (may_end && std::ranges::find(eos_tokens_, token) != eos_tokens_.end()) {
    return Flush(FinishReason::kStop);
  }
  if (constraint != nullptr && !constraint->Accept(token)) {
    event_.error = constraint->too_complex()
                       ? ResourceExhausted("the schema leaves too many ways open to follow them all")
                       : Internal("no token of the vocabulary continues the constrained output");
    return FinishReason::kError;
  }
  event_.kind = GenerationEvent::Kind::kToken;
  event_.token = token;
  event_.text = text_.Push(token);
  if (request_.top_logprobs) {
    event_.logprobs = ComputeLogprobs(logits_, token, *request_.top_logprobs);
  }
  request_.on_event(event_);
  event_.text.clear();
  if (!text_.stopped_by().empty()) {
    event_.stop_string = text_.stopped_by();
    return FinishReason::kStop;
  }
  if (event_.timings.completion_tokens == budget_) return Flush(FinishReason::kLength);
  tokens_.push_back(token);
  return std::nullopt;
}

FinishReason RunningRequest::Flush(FinishReason reason) {
  event_.text = text_.Flush();
  if (text_.stopped_by().empty()) return reason;
  event_.stop_string = text_.stopped_by();
  return FinishReason::kStop;
}

void RunningRequest::Finish(FinishReason reason, const Status& error) {
  const int64_t now_ns = RealClock().NowNs();
  if (answer_ns_ > 0) {
    event_.timings.decode_ns = now_ns - answer_ns_;
  } else if (started()) {
    event_.timings.prefill_ns = now_ns - started_ns_;
  } else {
    event_.timings.queue_ns = now_ns - submitted_ns_;
  }
  event_.kind = GenerationEvent::Kind::kFinished;
  event_.finish_reason = reason;
  event_.logprobs.reset();
  event_.token = -1;
  if (event_.error.ok()) event_.error = error;
  if (reason == FinishReason::kCancelled && event_.error.ok()) {
    event_.error = Cancelled("request cancelled");
  }
  request_.on_event(event_);
}

}  // namespace moraine
