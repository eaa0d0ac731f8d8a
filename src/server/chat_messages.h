// The fields of a chat request that make the prompt: messages, tools and the choice among them.
#pragma once

#include "server/api_request.h"
#include "server/json_fields.h"

namespace moraine {

// Into out->template_context["messages"] and out->tool_arguments.
void ReadMessages(FieldReader& fields, ApiRequest* out);
// tools, tool_choice and parallel_tool_calls; what the template gets goes into its context.
void ReadTools(FieldReader& fields, ApiRequest* out);

// Present, and not in the form that asks for nothing: null, false, [], {}.
bool AsksForSomething(const Json* value);

}  // namespace moraine
