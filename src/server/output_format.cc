#include "server/output_format.h"

#include <array>

namespace moraine {
namespace {

using Arguments = OutputFormat::Arguments;

// From the families' published chat templates.
constexpr std::array<OutputFormat, 9> kFormats = {{
    {.name = "harmony",  // gpt-oss
     .template_marks = {"<|channel|>", "<|message|>"},
     .arguments = Arguments::kHarmony,
     .special_marks = true},
    {.name = "kimi",
     .template_marks = {"<|tool_calls_section_begin|>", ""},
     .arguments = Arguments::kJson,
     .section_begin = "<|tool_calls_section_begin|>",
     .section_end = "<|tool_calls_section_end|>",
     .call_begin = "<|tool_call_begin|>",
     .name_end = "<|tool_call_argument_begin|>",
     .call_end = "<|tool_call_end|>",
     .name_is_id = true,
     .special_marks = true},
    {.name = "deepseek-v3",
     .template_marks = {"<｜tool▁calls▁begin｜>", "```json"},
     .arguments = Arguments::kJson,
     .section_begin = "<｜tool▁calls▁begin｜>",
     .section_end = "<｜tool▁calls▁end｜>",
     .call_begin = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
     .name_end = "\n```json\n",
     .call_end = "<｜tool▁call▁end｜>",
     .special_marks = true},
    {.name = "deepseek-v3.1",
     .template_marks = {"<｜tool▁calls▁begin｜>", ""},
     .arguments = Arguments::kJson,
     .section_begin = "<｜tool▁calls▁begin｜>",
     .section_end = "<｜tool▁calls▁end｜>",
     .call_begin = "<｜tool▁call▁begin｜>",
     .name_end = "<｜tool▁sep｜>",
     .call_end = "<｜tool▁call▁end｜>",
     .special_marks = true},
    {.name = "minimax",
     .template_marks = {"<minimax:tool_call>", ""},
     .arguments = Arguments::kParameters,
     .section_begin = "<minimax:tool_call>",
     .section_end = "</minimax:tool_call>",
     .call_begin = "<invoke name=\"",
     .name_end = "\">",
     .call_end = "</invoke>",
     .parameter_begin = "<parameter name=\"",
     .key_end = "\">",
     .value_end = "</parameter>"},
    {.name = "qwen3-coder",
     .template_marks = {"<tool_call>", "<function="},
     .arguments = Arguments::kParameters,
     .section_begin = "<tool_call>",
     .section_end = "</tool_call>",
     .call_begin = "<function=",
     .name_end = ">",
     .call_end = "</function>",
     .parameter_begin = "<parameter=",
     .key_end = ">",
     .value_end = "</parameter>"},
    {.name = "glm-4.5",
     .template_marks = {"<tool_call>", "<arg_key>"},
     .arguments = Arguments::kParameters,
     .call_begin = "<tool_call>",
     .name_end = "\n",
     .call_end = "</tool_call>",
     .parameter_begin = "<arg_key>",
     .key_end = "</arg_key>",
     .value_begin = "<arg_value>",
     .value_end = "</arg_value>"},
    {.name = "hermes",  // Qwen2.5, Qwen3 and many others
     .template_marks = {"<tool_call>", ""},
     .arguments = Arguments::kJsonCall,
     .call_begin = "<tool_call>",
     .call_end = "</tool_call>"},
    {.name = "plain"},
}};

bool Contains(std::string_view text, std::string_view mark) {
  return text.find(mark) != std::string_view::npos;
}

}  // namespace

std::span<const OutputFormat> OutputFormats() { return kFormats; }

const OutputFormat& FormatOfTemplate(std::string_view template_source) {
  for (const OutputFormat& format : kFormats) {
    if (Contains(template_source, format.template_marks[0]) &&
        Contains(template_source, format.template_marks[1])) {
      return format;
    }
  }
  return kFormats.back();  // not reached: the last one has no marks
}

bool TemplateHasReasoning(std::string_view template_source) {
  return Contains(template_source, kThinkBegin) || Contains(template_source, kThinkEnd) ||
         FormatOfTemplate(template_source).arguments == Arguments::kHarmony;
}

}  // namespace moraine
