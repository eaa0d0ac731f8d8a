// Man pages (section 1), made from the command's own description of itself.
#pragma once

#include <string>

#include "command_tree.h"

namespace moraine {

// "moraine", "moraine-bench-io".
std::string ManPageName(const CommandDescription& command);
// In roff with the man macros. `version` goes into the footer.
std::string ManPage(const CommandDescription& program, const CommandDescription& command,
                    const std::string& version);

}  // namespace moraine
