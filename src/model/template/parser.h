// Tokens to the syntax tree, following the grammar of jinja2/parser.py.
#pragma once

#include <string_view>

#include "model/template/ast.h"

namespace moraine::jinja {

// Nesting of the tree; recursive descent, destruction and evaluation all recurse over it.
inline constexpr int kMaxTreeDepth = 100;

// Throws Error with a line.
Template ParseTemplate(std::string_view source);

}  // namespace moraine::jinja
