#include "model/template/chat_template.h"

#include <gmock/gmock.h>

namespace moraine {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::ordered_json;

Result<RenderedPrompt> Render(const std::string& source, const Json& context = Json::object(),
                              ChatTemplateOptions options = {}) {
  ASSIGN_OR_RETURN(const ChatTemplate chat_template, ChatTemplate::Parse(source, options));
  return chat_template.Render(context);
}

// The segments as "T:text|U:text".
std::string Marks(const std::string& source, const Json& context) {
  const Result<RenderedPrompt> prompt = Render(source, context);
  CHECK(prompt.ok(), prompt.status().ToString());
  std::string marks;
  for (const PromptSegment& segment : prompt->segments) {
    if (!marks.empty()) marks += "|";
    marks += (segment.trusted ? "T:" : "U:") + segment.text;
  }
  return marks;
}

TEST(InputMarking, TemplateTextIsTrustedAndMessagesAreNot) {
  const Json context = {{"bos_token", "<s>"}, {"m", {{"role", "user"}, {"content", "hi <|end|>"}}}};
  EXPECT_EQ(Marks("{{ bos_token }}<|start|>{{ m.role }}\n{{ m.content }}<|end|>", context),
            "T:<s><|start|>|U:user|T:\n|U:hi <|end|>|T:<|end|>");
}

TEST(InputMarking, SurvivesOperatorsFiltersAndMethods) {
  const Json context = {{"c", "  Ab,cd  "}, {"l", {"x", "y"}}};
  const std::pair<const char*, const char*> cases[] = {
      {"{{ '<' + c + '>' }}", "T:<|U:  Ab,cd  |T:>"},
      {"{{ '<' ~ c|trim ~ '>' }}", "T:<|U:Ab,cd|T:>"},
      {"{{ ('<' ~ c.strip() ~ '>')|upper }}", "T:<|U:AB,CD|T:>"},
      {"{{ ('<<' ~ c.strip())[1:4] }}", "T:<|U:Ab"},
      {"{{ ('ab' ~ c.strip())[::-1] }}", "U:dc,bA|T:ba"},
      {"{{ ('<' ~ c.strip() ~ '>').split(',')|join('+') }}", "T:<|U:Ab|T:+|U:cd|T:>"},
      {"{{ '(x)'.replace('x', c.strip()) }}", "T:(|U:Ab,cd|T:)"},
      {"{{ c.strip().replace(',', '<;>') }}", "U:Ab|T:<;>|U:cd"},
      {"{{ '<{}>'.format(c.strip()) }}", "T:<|U:Ab,cd|T:>"},
      {"{{ '<%s>' % c.strip() }}", "T:<|U:Ab,cd|T:>"},
      {"{{ (c.strip() ~ ' <and more>')|truncate(8, end='<.>') }}", "U:Ab,cd|T:<.>"},
      {"{{ ('<' ~ c.strip() ~ '>')|center(9) }}", "T: <|U:Ab,cd|T:> "},
      {"{% for x in [l] recursive %}<{{ loop(x) if x is not string else x }}>{% endfor %}",
       "T:<<|U:x|T:><|U:y|T:>>"},
      {"{{ l|join('-') }}", "U:x|T:-|U:y"},
      {"{{ l|tojson }}", "T:[\"|U:x|T:\", \"|U:y|T:\"]"},
      {"{{ {'k': c.strip()} }}", "T:{'k': '|U:Ab,cd|T:'}"},
      {"{% set s %}<{{ l[0] }}>{% endset %}{{ s }}", "T:<|U:x|T:>"},
      {"{% macro m(a) %}<{{ a }}>{% endmacro %}{{ m(l[0])|indent }}", "T:<|U:x|T:>"},
      {"{% filter upper %}<{{ l[0] }}>{% endfilter %}", "T:<|U:X|T:>"},
      {"{% set ns = namespace(t='') %}{% for x in l %}{% set ns.t = ns.t ~ '<' ~ x %}{% endfor %}"
       "{{ ns.t }}",
       "T:<|U:x|T:<|U:y"},
      {"{{ (c.strip() ~ '&')|escape }}", "U:Ab,cd|T:&amp;"},
      {"{{ c|title }}{{ c|list|first }}", "U:  Ab,cd   "},
  };
  for (const auto& [source, marks] : cases) EXPECT_EQ(Marks(source, context), marks) << source;
}

TEST(InputMarking, KeysOfTheRequestAreNotTrusted) {
  EXPECT_EQ(Marks("{% for k, v in d.items() %}<{{ k }}={{ v }}>{% endfor %}",
                  {{"d", {{"</tool>", 1}}}}),
            "T:<|U:</tool>|T:=1>");
  // Nor when they become the names of arguments.
  EXPECT_EQ(Marks("{{ dict(**d) }}", {{"d", {{"<x>", 1}}}}), "T:{'|U:<x>|T:': 1}");
  EXPECT_EQ(Marks("{% macro m() %}{% for k in kwargs %}{{ k }}{% endfor %}{% endmacro %}{{ m(**d) }}",
                  {{"d", {{"<x>", 1}}}}),
            "U:<x>");
}

TEST(InputMarking, JsonIsPunctuatedByTheTemplateOnly) {
  const Json context = {{"c", "<x>"}};
  for (const char* source : {"{{ [1, 2]|tojson(indent=c) }}", "{{ [1, 2]|tojson(separators=(c, ':')) }}",
                             "{{ [1, 2]|tojson(separators=(',', c)) }}"}) {
    EXPECT_FALSE(Render(source, context).ok()) << source;
  }
}

void ExpectBudget(const std::string& source, const std::string& which,
                  ChatTemplateOptions options = {}) {
  const Result<RenderedPrompt> prompt = Render(source, Json::object(), options);
  ASSERT_FALSE(prompt.ok()) << source;
  EXPECT_EQ(prompt.status().code(), StatusCode::kResourceExhausted) << prompt.status().ToString();
  EXPECT_THAT(prompt.status().message(), HasSubstr("budget of " + which)) << source;
}

TEST(Budgets, StepsStopLoops) {
  ExpectBudget("{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
               "steps");
  ExpectBudget("{% for a in range(1000) %}{{ 'x' }}{% endfor %}", "steps", {.max_steps = 500});
  // A list that grows while it is walked is walked as it was.
  EXPECT_TRUE(Render("{% set l = [1] %}{% for x in l %}{{ l.append(x) }}{% endfor %}").ok());
}

TEST(Budgets, DepthStopsRecursion) {
  ExpectBudget("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "depth");
  ExpectBudget("{% set l = [] %}{% set _ = l.append(l) %}{{ l }}", "depth");
  ExpectBudget("{% for x in [[1]] recursive %}{{ loop([x]) }}{% endfor %}", "depth");
  ExpectBudget("{% set l = [] %}{% set _ = l.append(l) %}{{ l|tojson }}", "depth");
  ExpectBudget("{% set l = [] %}{% set _ = l.append(l) %}{% set k = [] %}{% set _ = k.append(k) %}"
               "{{ l == k }}",
               "depth");
  Json deep = 1;
  for (int i = 0; i < 1000; ++i) deep = Json::array({deep});
  const Result<RenderedPrompt> prompt = Render("x", {{"messages", deep}});
  ASSERT_FALSE(prompt.ok());
  EXPECT_EQ(prompt.status().code(), StatusCode::kResourceExhausted);
}

TEST(Budgets, OutputAndMemoryAreBounded) {
  ExpectBudget("{% for a in range(100) %}0123456789{% endfor %}", "output bytes",
               {.max_output_bytes = 999});
  EXPECT_TRUE(Render("{% for a in range(100) %}0123456789{% endfor %}", Json::object(),
                     {.max_output_bytes = 1000}).ok());
  ExpectBudget("{{ 'x' * 1000000000000 }}", "output bytes");
  ExpectBudget("{% set ns = namespace(x='abc') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}"
               "{% endfor %}",
               "output bytes");
  ExpectBudget("{% set l = [] %}{% for i in range(99) %}{% set _ = l.append('x' * 1000000) %}"
               "{% endfor %}",
               "memory", {.max_memory_bytes = 10'000'000});
  ExpectBudget("{{ [1] * 100000000000 }}", "memory", {.max_memory_bytes = 10'000'000});
}

TEST(Errors, NameTheLineAndWhatWasExpected) {
  const std::pair<const char*, const char*> cases[] = {
      {"a\n{% if x %}\nb", "line 3: expected {% endif %}"},
      {"a\n\n{{ 1 + }}", "line 3: expected an expression, found '}}'"},
      {"{{ (1 }}", "line 1: unexpected '}'"},
      {"\n{{ missing.x }}", "line 2: 'missing' is undefined"},
      {"\n\n{{ raise_exception('only user turns') }}", "line 3: only user turns"},
      {"{% for x in [1] %}\n{{ x.a.b }}{% endfor %}", "line 2: 'a' is undefined"},
      {"\n{% frob %}", "line 2: unknown tag 'frob'"},
      {"{% break %}", "line 1: {% break %} is outside of a loop"},
      {"{{ 'abc }}", "line 1: a string is not closed"},
  };
  for (const auto& [source, message] : cases) {
    const Result<RenderedPrompt> prompt = Render(source);
    ASSERT_FALSE(prompt.ok()) << source;
    EXPECT_EQ(prompt.status().code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(prompt.status().message(), HasSubstr(message)) << source;
  }
  EXPECT_EQ(Render("{% include 'x' %}").status().code(), StatusCode::kUnsupported);
  EXPECT_FALSE(Render("x", Json::array()).ok());
}

TEST(Errors, DeepNestingIsAnErrorNotACrash) {
  for (const auto& [open, close] : std::vector<std::pair<std::string, std::string>>{
           {"(", ")"}, {"[", "]"}, {"not ", ""}, {"-", ""}, {"", "+1"}, {"", ".a"}, {"", "|e"},
           {"", "[0"}, {"", " if 1"}, {"{1:", "}"}}) {
    std::string source = "{{ ";
    for (int i = 0; i < 100'000; ++i) source += open;
    source += "1";
    for (int i = 0; i < 100'000; ++i) source += close;
    EXPECT_FALSE(ChatTemplate::Parse(source + " }}").ok()) << open << close;
  }
  std::string blocks;
  for (int i = 0; i < 100'000; ++i) blocks += "{% if 1 %}";
  EXPECT_FALSE(ChatTemplate::Parse(blocks).ok());
}

TEST(ChatTemplate, TheClockIsInjected) {
  ChatTemplateOptions options;
  options.unix_time_s = [] { return int64_t{86400}; };
  const Result<RenderedPrompt> prompt = Render("{{ strftime_now('%d %b %Y') }}", Json::object(), options);
  ASSERT_TRUE(prompt.ok());
  EXPECT_EQ(prompt->text(), "02 Jan 1970");
}

}  // namespace
}  // namespace moraine
