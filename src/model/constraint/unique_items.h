// Lists without repetition ("uniqueItems") of values that a schema names one by one: a state for each set of
// values that have been written. What cannot be listed, like any string, would need a memory that a grammar
// has not.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "model/constraint/expression.h"

namespace moraine {

// Every value that the schema allows, of const, enum, boolean, null and choices among such schemas; nothing if
// they cannot be listed. `document`: what $ref is looked up in.
std::optional<std::vector<nlohmann::ordered_json>> ListValues(
    const nlohmann::ordered_json& schema, const nlohmann::ordered_json& document);

struct UniqueItems {
  // Values that are equal as JSON (1 and 1.0) count as one, in any of their spellings.
  std::vector<nlohmann::ordered_json> values;
  uint32_t min = 0, max = 0;  // items
  Expression separator;
};
// What stands between the brackets. kInvalidArgument if there are fewer than `min` values; kUnsupported if
// more than *choices_left branches are needed, from which those that are made are taken.
Result<Expression> ListOfUnique(const UniqueItems& items, const std::string& path,
                                uint32_t* choices_left);

}  // namespace moraine
