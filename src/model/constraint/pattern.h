// Regular expressions of JSON schemas ("pattern") as expressions for the inside of a JSON string.
//
// ECMA 262's syntax without what is not regular: no lookaround, back references or \b. ^ and $ only at the
// ends of the pattern or of its alternatives; without them anything may stand before or behind.
#pragma once

#include <string_view>

#include "base/status.h"
#include "model/constraint/expression.h"

namespace moraine {

// kUnsupported or kInvalidArgument, with the place.
Result<Expression> CompilePattern(std::string_view pattern);

}  // namespace moraine
