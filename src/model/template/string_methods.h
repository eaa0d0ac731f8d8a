// Methods of str.
#pragma once

#include <string_view>

#include "model/template/interpreter.h"

namespace moraine::jinja {

Method FindStringMethod(std::string_view name);  // null if there is none

// "{} {0} {name:>5}".format(...); string_format.cc
Value BraceFormat(Interpreter& interpreter, const Text& format, const Arguments& arguments);

}  // namespace moraine::jinja
