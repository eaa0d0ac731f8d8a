// Tools as TypeScript declarations: what Kimi-K2.5's remote code hands to its template as tools_ts_str.
// The model was trained on it; with the JSON that the template falls back to it calls tools worse.
//
//   # Tools
//
//   ## functions
//   namespace functions {
//   // Says the weather.
//   type get_weather = (_: {
//     // A city
//     city: string,
//     // Default: "C"
//     unit?: "C" | "F"
//   }) => any;
//   }
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>

namespace moraine {

// `tools` as OpenAI's API has them, their keys sorted (SortToolKeys). Tools that are not functions are
// left out; "" if none is left. nullopt if a schema cannot be declared so: a type that is not known, an
// enum of other values than its type's, a reference to nowhere. Then the template has to do with JSON.
std::optional<std::string> TypeScriptOfTools(const nlohmann::ordered_json& tools);

}  // namespace moraine
