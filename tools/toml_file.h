// The part of TOML that a list of options needs: tables, and keys with strings, numbers, booleans and
// arrays of them. Refused with the line's number: inline tables, strings over several lines, dates, dotted
// keys. (CLI11's own reader takes a # within quotes for a comment, and what it does not understand for a
// flag.)
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace moraine {

struct TomlSetting {
  std::string table;  // "bench.io"; empty before the first
  std::string key;
  std::vector<std::string> values;  // one, unless it is an array; strings without their quotes
  bool is_array = false;
  int line = 0;
};

// `name` is the file's, for errors. kInvalidArgument "NAME:LINE: ...".
Result<std::vector<TomlSetting>> ParseToml(std::string_view text, const std::string& name);

}  // namespace moraine
