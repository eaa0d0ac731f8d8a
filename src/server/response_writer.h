// ResponseWriter: the events of a generation -> one API's answer, as a stream or as a whole.
//
// What all APIs have in common is here: each choice has a parser, what it finds is collected, and the
// subclass spells it. Collected in both cases: some APIs repeat everything at a stream's end.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "server/api_error.h"
#include "server/output_parser.h"

namespace moraine {

struct ToolCall {
  std::string id, name, arguments;
};

struct ChoiceAnswer {
  std::string content, reasoning;
  std::vector<ToolCall> tool_calls;
  uint32_t reasoning_tokens = 0;
  bool drops_calls = false;  // the call that is being written is one too many
  bool finished = false;
  FinishReason finish_reason = FinishReason::kStop;
  std::string stop_string;
  GenerationTimings timings;  // once finished; prompt_tokens and cached_tokens from the start
};

struct UsageTotals {
  uint64_t prompt_tokens = 0, cached_tokens = 0, completion_tokens = 0, reasoning_tokens = 0;
};

// Thread-compatible.
class ResponseWriter {
 public:
  ResponseWriter(std::vector<std::unique_ptr<OutputParser>> parsers, bool streams);
  virtual ~ResponseWriter() = default;

  bool streams() const { return streams_; }
  // Calls beyond this many are left out of the answer: for parallel_tool_calls false.
  void set_max_tool_calls(size_t count) { max_tool_calls_ = count; }
  // Choices come prompt by prompt, so many each.
  void set_choices_per_prompt(size_t count) { choices_per_prompt_ = count; }
  // Takes one event of one choice; a failed or cancelled end is not given to it. Returns what to send:
  // nothing unless this streams.
  std::string Handle(uint32_t choice, const GenerationEvent& event);
  // All choices have finished.
  bool done() const { return unfinished_ == 0; }

  // The answer as a whole; once done.
  virtual std::string FullBody() = 0;
  // A failure after the stream has begun.
  virtual std::string StreamError(const ApiError& error) = 0;

 protected:
  // Before anything else, once.
  virtual std::string StreamStart() = 0;
  virtual std::string StreamProgress(const GenerationEvent&) { return ""; }
  // `event` is the token's; null for what was held back to the end.
  virtual std::string StreamDeltas(uint32_t choice, std::span<const OutputDelta> deltas,
                                   const GenerationEvent* event) = 0;
  virtual std::string StreamFinish(uint32_t choice) = 0;
  // After the last choice's finish.
  virtual std::string StreamEnd() = 0;
  // Called for every token before its deltas.
  virtual void NoteToken(uint32_t, const GenerationEvent&) {}

  const std::vector<ChoiceAnswer>& choices() const { return choices_; }
  // A prompt is counted once, whatever the number of its choices.
  UsageTotals Usage() const;

 private:
  void Collect(uint32_t choice);

  std::vector<std::unique_ptr<OutputParser>> parsers_;
  std::vector<ChoiceAnswer> choices_;
  const bool streams_;
  size_t max_tool_calls_ = SIZE_MAX;
  size_t choices_per_prompt_ = SIZE_MAX;
  bool started_ = false;
  size_t unfinished_;
  std::vector<OutputDelta> deltas_;  // scratch
};

}  // namespace moraine
