// Tools and tool calls in the form that a model's template takes.
//
// OpenAI's API has the arguments of a call as a string of JSON. Most published templates want the object
// (they walk over it, or write it with tojson), a few want the string (they join it to text). Nothing in
// a checkpoint says which, so the template is asked: it renders a small conversation of each form once,
// when it is loaded.
#pragma once

#include <nlohmann/json.hpp>

#include "model/template/chat_template.h"

namespace moraine {

enum class ArgumentsForm { kObject, kString };

// kObject if a call's arguments show in the prompt as JSON or piece by piece when they are an object;
// kString if only a string of them does; kObject if neither does (the template knows no tool calls).
ArgumentsForm ProbeArgumentsForm(const ChatTemplate& chat_template);

// Puts messages[].tool_calls[].function.arguments of a template's context into `form`. What is not an
// object, or not the JSON of one, stays as it is: the model wrote it.
void ConvertArguments(ArgumentsForm form, nlohmann::ordered_json& context);

// Kimi's remote code sorts the keys of all objects of `tools` before its template writes them.
void SortToolKeys(nlohmann::ordered_json& context);

}  // namespace moraine
