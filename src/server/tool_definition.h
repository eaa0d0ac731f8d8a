// A tool that a request offers to the model, and how the model is to choose among them.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

namespace moraine {

struct ToolDefinition {
  std::string name;
  nlohmann::ordered_json parameters;  // a JSON schema; an object of anything if the request has none
  bool strict = false;                // its schema must be followed to the letter, or be refused
};

struct ToolChoice {
  enum class Kind : uint8_t { kAuto, kNone, kRequired, kNamed };
  Kind kind = Kind::kAuto;
  std::string name;  // kNamed
};

}  // namespace moraine
