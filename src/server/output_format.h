// OutputFormat: how a family of models writes tool calls and reasoning; one description a family,
// chosen by what its chat template contains.
//
// Marks come in this order; a format leaves empty what it does not have:
//
//   section_begin  { call_begin NAME name_end ARGUMENTS call_end }...  section_end
//
// ARGUMENTS are the JSON text (kJson), or { parameter_begin KEY key_end value_begin VALUE value_end }...
// (kParameters). In kJsonCall, name and arguments are members of one JSON object after call_begin.
// gpt-oss's channels are a format of their own kind (kHarmony).
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace moraine {

struct OutputFormat {
  enum class Arguments : uint8_t { kJsonCall, kJson, kParameters, kHarmony, kNone };

  std::string_view name;
  // The template contains each of these that is not empty.
  std::string_view template_marks[2] = {};
  Arguments arguments = Arguments::kNone;
  std::string_view section_begin = {}, section_end = {};
  std::string_view call_begin = {}, name_end = {}, call_end = {};
  std::string_view parameter_begin = {}, key_end = {}, value_begin = {}, value_end = {};
  // Kimi writes "functions.NAME:INDEX" for a name, and wants all of it back as the call's id.
  bool name_is_id = false;
  // Marks may be special tokens of the vocabulary, which are left out of text unless asked for.
  bool special_marks = false;

  bool has_tools() const { return arguments != Arguments::kNone; }
};

inline constexpr std::string_view kThinkBegin = "<think>", kThinkEnd = "</think>";

// In the order in which they are tried.
std::span<const OutputFormat> OutputFormats();
// The first one whose marks are in the template; the last one has no tools and fits all.
const OutputFormat& FormatOfTemplate(std::string_view template_source);
// Whether the template knows of reasoning between <think> and </think>, or of harmony's channels.
bool TemplateHasReasoning(std::string_view template_source);

}  // namespace moraine
