// HarmonyParser: gpt-oss's channels.
//
//   <|channel|>analysis<|message|>REASONING<|end|>
//   <|start|>assistant<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>ARGUMENTS<|call|>
//   <|start|>assistant<|channel|>final<|message|>TEXT<|return|>
//
// The prompt ends with <|start|>assistant, so the first header has no beginning. Text without any
// header is taken as it is.
#pragma once

#include "server/mark_search.h"
#include "server/output_parser.h"

namespace moraine {

class HarmonyParser final : public OutputParser {
 public:
  explicit HarmonyParser(OutputParserOptions options) : options_(std::move(options)) {}

  void Push(std::string_view text, std::vector<OutputDelta>* out) override;
  void Finish(std::vector<OutputDelta>* out) override;
  bool in_reasoning() const override { return in_body_ && kind_ == OutputDelta::Kind::kReasoning; }

 private:
  bool StepHeader(std::vector<OutputDelta>* out);
  bool StepBody(std::vector<OutputDelta>* out);
  void BeginBody(std::string_view header, std::vector<OutputDelta>* out);
  void AddBody(std::string text, std::vector<OutputDelta>* out);

  const OutputParserOptions options_;
  MarkSearch held_;
  bool first_ = true;     // nothing has been read yet
  bool in_body_ = false;
  OutputDelta::Kind kind_ = OutputDelta::Kind::kContent;  // of the body
};

}  // namespace moraine
