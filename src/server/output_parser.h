// OutputParser: what a model writes -> what an API's answer is made of: text, reasoning, tool calls.
//
// Incremental: every piece is passed on as soon as it cannot be the beginning of something else, so a
// stream shows reasoning, text and the arguments of a call while they are written. How a text is cut
// into pieces never changes the outcome (tests/server/output_parser_test.cc cuts at every byte).
//
// A call that breaks its format is not dropped: what came before its name was known is passed on as
// text, and arguments are passed on as they were written.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "server/output_format.h"
#include "server/tool_definition.h"

namespace moraine {

struct OutputDelta {
  enum class Kind : uint8_t {
    kContent,
    kReasoning,
    kToolCall,       // a call begins: name and id; its arguments follow
    kToolArguments,  // the next bytes of the last call's arguments, JSON text
  };
  Kind kind = Kind::kContent;
  std::string text;
  std::string name, id;  // kToolCall

  bool operator==(const OutputDelta&) const = default;
};

// Thread-compatible.
class OutputParser {
 public:
  virtual ~OutputParser() = default;
  // Appends to *out what `text` completes.
  virtual void Push(std::string_view text, std::vector<OutputDelta>* out) = 0;
  // The end: what was held back.
  virtual void Finish(std::vector<OutputDelta>* out) = 0;
  // What was pushed last is reasoning: for usage.
  virtual bool in_reasoning() const { return false; }
};

struct OutputParserOptions {
  const OutputFormat* format = nullptr;  // null: neither reasoning nor tools are looked for
  bool split_reasoning = false;
  // The prompt ended inside reasoning: the template wrote <think> itself.
  bool begins_in_reasoning = false;
  // Calls are looked for only if there are tools; names that are not among them are passed on too.
  std::vector<ToolDefinition> tools;
  std::function<std::string()> make_call_id;  // "call_..."
};

std::unique_ptr<OutputParser> MakeOutputParser(OutputParserOptions options);

}  // namespace moraine
