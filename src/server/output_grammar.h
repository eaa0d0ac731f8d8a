// The grammar of what a model may write when a request leaves it no choice: response_format, and
// tool_choice "required" or a name.
//
// Reasoning stays free: it may come first, and what is asked for follows. Calls are in the model's own
// format, so that it is kept on the path it was trained on and OutputParser reads them as ever.
#pragma once

#include <memory>
#include <optional>

#include "server/api_request.h"
#include "server/output_format.h"

namespace moraine {

class Grammar;  // model/constraint/grammar.h

struct OutputGrammarOptions {
  const OutputFormat* format = nullptr;
  bool may_reason = false;  // the template knows of reasoning
  bool begins_in_reasoning = false;
};

// Null in *out if the output is free. 400 for schemas that are wrong or use what is not supported.
std::optional<ApiError> MakeOutputGrammar(const ApiRequest& request,
                                          const OutputGrammarOptions& options,
                                          std::shared_ptr<const Grammar>* out);

}  // namespace moraine
