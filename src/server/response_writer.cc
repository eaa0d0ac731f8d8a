#include "server/response_writer.h"

#include "base/check.h"

namespace moraine {

ResponseWriter::ResponseWriter(std::vector<std::unique_ptr<OutputParser>> parsers, bool streams)
    : parsers_(std::move(parsers)),
      choices_(parsers_.size()),
      streams_(streams),
      unfinished_(parsers_.size()) {}

std::string ResponseWriter::Handle(uint32_t choice, const GenerationEvent& event) {
  CHECK(choice < choices_.size() && !choices_[choice].finished, "an event after the last one");
  ChoiceAnswer& answer = choices_[choice];
  answer.timings = event.timings;
  deltas_.clear();
  std::string text;
  switch (event.kind) {
    case GenerationEvent::Kind::kStarted:
      if (streams_ && !started_) text = StreamStart();
      started_ = true;
      return text;
    case GenerationEvent::Kind::kPrefillProgress:
      return streams_ ? StreamProgress(event) : "";
    case GenerationEvent::Kind::kToken:
      if (parsers_[choice]->in_reasoning()) ++answer.reasoning_tokens;
      NoteToken(choice, event);
      parsers_[choice]->Push(event.text, &deltas_);
      Collect(choice);
      return streams_ ? StreamDeltas(choice, deltas_, &event) : "";
    case GenerationEvent::Kind::kFinished: break;
  }
  parsers_[choice]->Push(event.text, &deltas_);
  parsers_[choice]->Finish(&deltas_);
  Collect(choice);
  answer.finished = true;
  answer.finish_reason = event.finish_reason;
  answer.stop_string = event.stop_string;
  --unfinished_;
  if (!streams_) return "";
  if (!deltas_.empty()) text = StreamDeltas(choice, deltas_, nullptr);
  text += StreamFinish(choice);
  if (done()) text += StreamEnd();
  return text;
}

// Into the answer, and out of deltas_ what must not be sent.
void ResponseWriter::Collect(uint32_t choice) {
  ChoiceAnswer& answer = choices_[choice];
  std::erase_if(deltas_, [&](const OutputDelta& delta) {
    if (delta.kind == OutputDelta::Kind::kToolCall) {
      answer.drops_calls = answer.tool_calls.size() >= max_tool_calls_;
    }
    return answer.drops_calls && (delta.kind == OutputDelta::Kind::kToolCall ||
                                  delta.kind == OutputDelta::Kind::kToolArguments);
  });
  for (const OutputDelta& delta : deltas_) {
    switch (delta.kind) {
      case OutputDelta::Kind::kContent: answer.content += delta.text; break;
      case OutputDelta::Kind::kReasoning: answer.reasoning += delta.text; break;
      case OutputDelta::Kind::kToolCall:
        answer.tool_calls.push_back({delta.id, delta.name, ""});
        break;
      case OutputDelta::Kind::kToolArguments:
        answer.tool_calls.back().arguments += delta.text;
        break;
    }
  }
}

UsageTotals ResponseWriter::Usage() const {
  UsageTotals usage;
  for (size_t i = 0; i < choices_.size(); ++i) {
    const ChoiceAnswer& answer = choices_[i];
    if (i % choices_per_prompt_ == 0) {
      usage.prompt_tokens += answer.timings.prompt_tokens;
      usage.cached_tokens += answer.timings.cached_tokens;
    }
    usage.completion_tokens += answer.timings.completion_tokens;
    usage.reasoning_tokens += answer.reasoning_tokens;
  }
  return usage;
}

}  // namespace moraine
