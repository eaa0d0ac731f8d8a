// Templates in the style of the families that want a call's arguments as an object, and of those that
// want them as a string.
#include "model/template/tool_calls.h"

#include <gtest/gtest.h>

namespace moraine {
namespace {

using nlohmann::ordered_json;

ArgumentsForm FormOf(const std::string& call_source) {
  const std::string source = "{% for m in messages %}{% for c in m.tool_calls or [] %}" + call_source +
                             "{% endfor %}{% endfor %}";
  const Result<ChatTemplate> chat_template = ChatTemplate::Parse(source);
  CHECK(chat_template.ok(), chat_template.status().ToString());
  return ProbeArgumentsForm(*chat_template);
}

TEST(ArgumentsForm, AnObjectWhereTheTemplateWalksOverItOrWritesIt) {
  for (const char* source : {
           "{{ c.function.arguments | tojson }}",
           "{% for k, v in c.function.arguments.items() %}<{{ k }}>{{ v }}{% endfor %}",
           "{% for k, v in c.function.arguments|items %}<{{ k }}>{{ v }}{% endfor %}",
           "{% if c.function.arguments is string %}{{ c.function.arguments }}{% else %}"
           "{{ c.function.arguments | tojson }}{% endif %}",
           "{% if c.function.arguments is mapping %}{{ c.function.arguments | tojson }}{% endif %}",
           "{{ '' }}",  // knows no tool calls
           "{{ raise_exception('no tools here') }}",
       }) {
    EXPECT_EQ(FormOf(source), ArgumentsForm::kObject) << source;
  }
}

TEST(ArgumentsForm, AStringWhereTheTemplateJoinsItToText) {
  for (const char* source : {
           "{{ '<sep>' + c['function']['arguments'] + '</call>' }}",
           "{{ c.function.arguments }}",
           "{% if c.function.arguments is string %}{{ c.function.arguments }}{% else %}"
           "{{ raise_exception('arguments must be JSON') }}{% endif %}",
       }) {
    EXPECT_EQ(FormOf(source), ArgumentsForm::kString) << source;
  }
}

ordered_json ContextWith(ordered_json arguments) {
  const ordered_json call = {{"function", {{"name", "f"}, {"arguments", std::move(arguments)}}}};
  return {{"messages", {{{"role", "user"}}, {{"role", "assistant"}, {"tool_calls", ordered_json::array({call})}}}}};
}

ordered_json Converted(ArgumentsForm form, ordered_json arguments) {
  ordered_json context = ContextWith(std::move(arguments));
  ConvertArguments(form, context);
  return context["messages"][1]["tool_calls"][0]["function"]["arguments"];
}

TEST(ConvertArguments, KeepsOrderAndLeavesAloneWhatIsNoObject) {
  const ordered_json object = {{"z", 1}, {"a", {{"b", "ü"}, {"c", 2.0}}}};
  const std::string text = R"({"z":1,"a":{"b":"ü","c":2.0}})";
  EXPECT_EQ(Converted(ArgumentsForm::kString, object), text);
  EXPECT_EQ(Converted(ArgumentsForm::kObject, text).dump(), object.dump());
  EXPECT_EQ(Converted(ArgumentsForm::kObject, object), object);
  EXPECT_EQ(Converted(ArgumentsForm::kString, text), text);
  for (const ordered_json& other : {ordered_json("{\"cut\": "), ordered_json("[1]"), ordered_json("x"),
                                    ordered_json(""), ordered_json(5), ordered_json(nullptr)}) {
    EXPECT_EQ(Converted(ArgumentsForm::kObject, other), other);
  }
}

TEST(ConvertArguments, OddContextsAreLeftAlone) {
  for (const char* text : {R"({})", R"({"messages":5})", R"({"messages":[5,{"tool_calls":null}]})",
                           R"({"messages":[{"tool_calls":[5,{},{"function":5},{"function":{}}]}]})"}) {
    ordered_json context = ordered_json::parse(text);
    ConvertArguments(ArgumentsForm::kObject, context);
    EXPECT_EQ(context.dump(), text);
  }
}

TEST(SortToolKeys, SortsObjectsAtAllLevelsAndKeepsTheOrderOfLists) {
  ordered_json context = ordered_json::parse(
      R"({"z":{"b":1,"a":2},"tools":[{"type":"f","function":{"name":"n","b":[{"y":1,"x":2},3]}},{"a":1}]})");
  SortToolKeys(context);
  EXPECT_EQ(context.dump(),
            R"({"z":{"b":1,"a":2},"tools":[{"function":{"b":[{"x":2,"y":1},3],"name":"n"},"type":"f"},)"
            R"({"a":1}]})");
}

}  // namespace
}  // namespace moraine
