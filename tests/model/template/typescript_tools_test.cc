// Declarations as Kimi-K2.5's remote code writes them; the expectations are of that code's output.
#include "model/template/typescript_tools.h"

#include <gtest/gtest.h>

namespace moraine {
namespace {

using nlohmann::ordered_json;

std::string Declare(const std::string& parameters, const std::string& more = "") {
  const auto tools = ordered_json::parse(R"([{"type": "function", "function": {"name": "f")" + more +
                                         R"(, "parameters": )" + parameters + "}}]");
  const auto declared = TypeScriptOfTools(tools);
  if (!declared.has_value()) return "none";
  const std::string begin = "# Tools\n\n## functions\nnamespace functions {\n", end = "\n}\n";
  EXPECT_TRUE(declared->starts_with(begin) && declared->ends_with(end)) << *declared;
  return declared->substr(begin.size(), declared->size() - begin.size() - end.size());
}

TEST(TypeScriptOfTools, RequiredFieldsComeFirstEachGroupByName) {
  EXPECT_EQ(Declare(R"({"type": "object", "required": ["to", "city"], "properties": {
                "unit": {"enum": ["C", "F"], "type": "string", "default": "C"},
                "to": {"type": "integer", "minimum": 1, "maximum": 9.5},
                "city": {"type": "string", "description": "A city\n\nor \"town\"", "maxLength": 5},
                "deep": {"type": "object", "properties": {"x": {"type": "boolean", "default": true}},
                         "additionalProperties": false}}})",
                    R"(, "description": "Says\nit.")"),
            R"(// Says
// it.
type f = (_: {
  // A city

  // or "town"
  // maxLength: 5
  city: string,
  // maximum: 9.5, minimum: 1
  to: number,
  deep?: {
    // Default: True
    x?: boolean,
    [k: string]: never
  },
  // Default: "C"
  unit?: "C" | "F"
}) => any;)");
}

TEST(TypeScriptOfTools, ListsUnionsAndWhatIsLeftOpen) {
  EXPECT_EQ(Declare(R"({"properties": {
                "a": {"type": "array", "items": {"type": "string"}, "minItems": 2},
                "b": {"type": "array", "items": {"type": "number", "description": "one"}},
                "c": {"type": ["string", "null", "array"], "default": [1, "ü", {"k": null}]},
                "d": {"anyOf": [{"type": "integer"}, {"enum": [1, 2.0, null, true]}]},
                "e": {}, "g": {"type": "array"}, "h": {"type": "object"}}})"),
            R"(type f = (_: {
  // minItems: 2
  a?: Array<string>,
  b?: Array<
    // one
    number
  >,
  // Default: [1, "ü", {"k": null}]
  c?: string | null | Array<any>,
  d?: number | 1 | 2.0 | None | True,
  e?: any,
  g?: Array<any>,
  h?: {}
}) => any;)");
  EXPECT_EQ(Declare("{}"), "type f = (_: {}) => any;");
}

TEST(TypeScriptOfTools, ReferencesBecomeInterfaces) {
  EXPECT_EQ(Declare(R"({"$defs": {"Node": {"type": "object", "description": "A node",
                                  "properties": {"next": {"$ref": "#/$defs/Node"}}}},
                "properties": {"node": {"$ref": "#/$defs/Node"}, "self": {"$ref": "#"}}})"),
            R"(interface parameters {
  node?: Node,
  self?: parameters
}
// A node
interface Node {
  next?: Node
}
type f = (_: parameters) => any;)");
}

TEST(TypeScriptOfTools, WhatCannotBeDeclaredIsNotGuessed) {
  for (const char* property : {R"({"$ref": "#/$defs/Nowhere"})", R"({"$ref": "http://x"})",
                               R"({"type": ["string", "date"]})", R"({"description": "no type"})", "5",
                               R"({"enum": [1], "type": "string"})", R"({"enum": [[1]]})",
                               R"({"enum": [1], "type": ["string", "number"]})"}) {
    EXPECT_EQ(Declare(R"({"properties": {"x": )" + std::string(property) + "}}"), "none") << property;
  }
  std::string deep = R"({"type": "string"})";
  for (int i = 0; i < 1000; ++i) deep = R"({"type": "array", "items": )" + deep + "}";
  EXPECT_EQ(Declare(R"({"properties": {"x": )" + deep + "}}"), "none");
}

TEST(TypeScriptOfTools, OnlyFunctionsAreDeclared) {
  EXPECT_EQ(TypeScriptOfTools(ordered_json::parse(R"([{"type": "plugin", "function": {"name": "p"}},
      {"type": "function"}, {"type": "function", "function": {}}, 5])")),
            "");
  EXPECT_EQ(TypeScriptOfTools(ordered_json::parse(R"([{"type": "function", "function": {"name": "a"}},
      {"type": "function", "function": {"name": "b"}}])")),
            "# Tools\n\n## functions\nnamespace functions {\ntype a = (_: {}) => any;\n"
            "type b = (_: {}) => any;\n}\n");
}

}  // namespace
}  // namespace moraine
