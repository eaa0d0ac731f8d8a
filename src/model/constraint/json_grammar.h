// JSON, and JSON schemas, as expressions.
//
// Members of an object come in the schema's order, as OpenAI's structured outputs do it: any order would
// need a state for each subset. Blanks are what models write: none, one space, or a line break with an
// indentation; never without end, which is where weak models get lost.
//
// A keyword that is not listed here is refused by name, since output that breaks it would be worse:
//   type, enum, const, anyOf, oneOf (taken as anyOf), allOf (of one), $ref (within the document), $defs
//   properties, required, additionalProperties (absent beside properties: false)
//   items, prefixItems, minItems, maxItems, uniqueItems (of what can be listed: unique_items.h)
//   minLength, maxLength, pattern (pattern.h), format (date, time, date-time, uuid, email, hostname,
//   ipv4, uri; ignored where the type is not a string)
//   minimum, maximum, exclusiveMinimum, exclusiveMaximum, multipleOf (exact decimals: number_range.h)
//   and what only describes: title, description, default, examples, ...
// All schemas of one grammar together have at most 1 MiB, an object 512 properties, an enum 1000 values
// (OpenAI's limit).
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <set>
#include <string>
#include <vector>

#include "base/status.h"
#include "model/constraint/grammar.h"

namespace moraine {

// Collects the rules of one grammar. Thread-compatible.
class JsonGrammar {
 public:
  JsonGrammar();

  // A value with no blanks around it.
  Expression AnyValue() const { return CallRule(kValueRule); }
  Expression AnyObject() const { return CallRule(kObjectRule); }
  // `path` names the schema in errors: kInvalidArgument for what is wrong, kUnsupported for what is not
  // listed above. `schema` is only used during the call.
  Result<Expression> Schema(const nlohmann::ordered_json& schema, const std::string& path);

  Result<Grammar> Build(const Expression& root) &&;

 private:
  using Json = nlohmann::ordered_json;
  enum StandardRule : RuleId { kValueRule, kObjectRule, kArrayRule, kStringRule, kNumberRule, kBlanksRule };

  Result<Expression> Compile(const Json& schema, const std::string& path);
  Result<Expression> CompileRef(const Json& schema, const std::string& path);
  Result<Expression> CompileType(const Json& schema, const std::string& type,
                                 const std::string& path);
  Result<Expression> CompileChoice(const Json& list, const std::string& path);
  Result<Expression> CompileEnum(const Json& list, const std::string& path);
  Result<Expression> CompileObject(const Json& schema, const std::string& path);
  Result<Expression> CompileArray(const Json& schema, const std::string& path);
  Result<Expression> CompileString(const Json& schema, const std::string& path);
  Result<Expression> CompileNumber(const Json& schema, const std::string& path, bool integer);

  std::vector<Expression> rules_;
  const Json* document_ = nullptr;
  std::string document_path_;
  std::map<std::string, RuleId> refs_;
  // $refs being compiled in front of which no byte has been matched: a loop of these has no text.
  std::set<std::string> open_refs_;
  int depth_ = 0;
  size_t schema_bytes_ = 0;  // of all schemas, against kMaxSchemaBytes
  // Of the automata for numbers and unique items: small as a schema, they are large as a grammar. About
  // 200 bytes each, and a fifth of Grammar::kMaxNodes.
  uint32_t choices_left_ = 200'000;
};

// One character inside a JSON string, spelled or escaped.
Expression JsonStringCharacter();
Expression JsonStringCharacterOf(const CodePointSet& set);

}  // namespace moraine
