// Shell completions, made from the command's own description of itself.
#pragma once

#include <string>

#include "command_tree.h"

namespace moraine {

std::string BashCompletion(const CommandDescription& program);
std::string ZshCompletion(const CommandDescription& program);
std::string FishCompletion(const CommandDescription& program);

}  // namespace moraine
