// Arguments that a model writes as text between marks, as JSON.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "server/tool_definition.h"

namespace moraine {

// `{"KEY": VALUE` for the first one, `, "KEY": VALUE` for others. The text is a string where the tool's
// schema says so; else as it was written if that is JSON (no number changes), or a string. One line break at each end is the
// format's.
std::string ArgumentMember(std::span<const ToolDefinition> tools, std::string_view tool,
                           const std::string& key, std::string_view text, bool first);

}  // namespace moraine
