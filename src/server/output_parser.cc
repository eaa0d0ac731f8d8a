#include "server/output_parser.h"

#include <array>
#include <cctype>
#include <optional>
#include <utility>

#include "base/check.h"
#include "server/harmony_parser.h"
#include "server/json_scanner.h"
#include "server/mark_search.h"
#include "server/tool_arguments.h"

namespace moraine {
namespace {

using Arguments = OutputFormat::Arguments;
using Kind = OutputDelta::Kind;

constexpr std::string_view kBlanks = " \t\r\n";
// Longer than any name; a text that only mentions a mark must not be held back for ever.
constexpr size_t kMaxNameBytes = 512;

std::string_view Trim(std::string_view text) {
  const size_t begin = text.find_first_not_of(kBlanks);
  if (begin == std::string_view::npos) return "";
  return text.substr(begin, text.find_last_not_of(kBlanks) - begin + 1);
}

// All formats but harmony's: marks around pieces.
//
//   start --<think>--> reasoning --</think>--> content <--> section <--> call
class TagParser final : public OutputParser {
 public:
  explicit TagParser(OutputParserOptions options)
      : options_(std::move(options)),
        format_(*options_.format),
        tools_(format_.has_tools() && !options_.tools.empty()) {
    if (!options_.split_reasoning) mode_ = Mode::kContent;
    if (options_.split_reasoning && options_.begins_in_reasoning) Enter(Mode::kReasoning);
  }

  void Push(std::string_view text, std::vector<OutputDelta>* out) override {
    held_.Append(text);
    while (Step(out)) {
    }
  }
  void Finish(std::vector<OutputDelta>* out) override;
  bool in_reasoning() const override { return mode_ == Mode::kReasoning; }

 private:
  enum class Mode : uint8_t {
    kStart, kReasoning, kContent, kSection, kName, kJson, kJsonCall, kCallEnd, kParameters, kKey,
    kBeforeValue, kValue
  };

  bool Step(std::vector<OutputDelta>* out);
  bool StepStart();
  bool StepText(std::vector<OutputDelta>* out);
  bool StepName(std::vector<OutputDelta>* out);
  bool StepJson(std::vector<OutputDelta>* out);
  bool StepJsonCall(std::vector<OutputDelta>* out);
  bool StepParameters(std::vector<OutputDelta>* out);
  bool StepValue(std::vector<OutputDelta>* out);

  void Enter(Mode mode) {
    mode_ = mode;
    skip_blanks_ = true;
    blanks_.clear();
  }
  void BeginCall();
  void EndCall() { Enter(format_.section_begin.empty() ? Mode::kContent : Mode::kSection); }
  void NameCall(std::string_view name, std::vector<OutputDelta>* out);
  void AddArguments(std::string text, std::vector<OutputDelta>* out);
  void AddText(Kind kind, std::string text, std::vector<OutputDelta>* out);
  void Abandon(std::vector<OutputDelta>* out);
  // Drops what is before the first of the marks, and the mark. Nothing: not there yet.
  std::optional<size_t> SkipTo(std::span<const std::string_view> marks);

  const OutputParserOptions options_;
  const OutputFormat& format_;
  const bool tools_;
  Mode mode_ = Mode::kStart;
  MarkSearch held_;
  std::string blanks_;        // at the end of a text: dropped if a mark follows
  bool skip_blanks_ = false;  // at the beginning of a text
  bool called_ = false;
  // The call that is being read.
  bool named_ = false, has_arguments_ = false;
  std::string call_name_, key_, raw_, blanks_before_call_;
  JsonSpan span_;
  JsonCallReader call_reader_;
};

bool TagParser::Step(std::vector<OutputDelta>* out) {
  switch (mode_) {
    case Mode::kStart: return StepStart();
    case Mode::kReasoning:
    case Mode::kContent: return StepText(out);
    case Mode::kSection: {
      const auto mark = SkipTo(std::array{format_.call_begin, format_.section_end});
      if (mark == 0) BeginCall();
      if (mark == 1) Enter(Mode::kContent);
      return mark.has_value();
    }
    case Mode::kName: return StepName(out);
    case Mode::kJson: return StepJson(out);
    case Mode::kJsonCall: return StepJsonCall(out);
    case Mode::kCallEnd: {
      const auto mark = SkipTo(std::array{format_.call_end, format_.section_end});
      if (mark == 0) EndCall();
      if (mark == 1) Enter(Mode::kContent);
      return mark.has_value();
    }
    case Mode::kParameters: return StepParameters(out);
    case Mode::kKey: {
      MarkSearch::Hit hit;
      if (!held_.Find(std::array{format_.key_end}, &hit)) return false;
      key_ = std::string(Trim(held_.Take(hit.at)));
      held_.Take(format_.key_end.size());
      mode_ = format_.value_begin.empty() ? Mode::kValue : Mode::kBeforeValue;
      return true;
    }
    case Mode::kBeforeValue: {
      const auto mark = SkipTo(std::array{format_.value_begin});
      if (mark) mode_ = Mode::kValue;
      return mark.has_value();
    }
    case Mode::kValue: return StepValue(out);
  }
  return false;
}

std::optional<size_t> TagParser::SkipTo(std::span<const std::string_view> marks) {
  MarkSearch::Hit hit;
  if (!held_.Find(marks, &hit)) return std::nullopt;
  held_.Take(hit.at + marks[hit.mark].size());
  return hit.mark;
}

bool TagParser::StepStart() {
  const size_t begin = held_.text().find_first_not_of(kBlanks);
  if (begin == std::string::npos) return false;
  const std::string_view text = std::string_view(held_.text()).substr(begin);
  if (text.starts_with(kThinkBegin)) {
    held_.Take(begin + kThinkBegin.size());
    Enter(Mode::kReasoning);
    return true;
  }
  if (kThinkBegin.starts_with(text)) return false;
  mode_ = Mode::kContent;
  return true;
}

bool TagParser::StepText(std::vector<OutputDelta>* out) {
  const bool reasoning = mode_ == Mode::kReasoning;
  std::array<std::string_view, 2> marks = {};
  if (reasoning) marks[0] = kThinkEnd;
  if (!reasoning && tools_) marks = {format_.section_begin, format_.call_begin};
  const Kind kind = reasoning ? Kind::kReasoning : Kind::kContent;
  MarkSearch::Hit hit;
  if (!held_.Find(marks, &hit)) {
    AddText(kind, held_.Take(held_.Settled(marks)), out);
    return false;
  }
  AddText(kind, held_.Take(hit.at), out);
  held_.Take(marks[hit.mark].size());
  if (reasoning) {
    Enter(Mode::kContent);
  } else if (hit.mark == 0) {
    Enter(Mode::kSection);
  } else {
    BeginCall();  // also where a model forgets the section's mark
  }
  return true;
}

// Blanks around pieces belong to the format; in a text without pieces they are left as they are.
void TagParser::AddText(Kind kind, std::string text, std::vector<OutputDelta>* out) {
  if (skip_blanks_) {
    text.erase(0, std::min(text.find_first_not_of(kBlanks), text.size()));
    if (text.empty()) return;
    skip_blanks_ = false;
  }
  text.insert(0, std::exchange(blanks_, ""));
  if (kind == Kind::kReasoning || tools_) {
    const size_t last = text.find_last_not_of(kBlanks);
    blanks_ = text.substr(last == std::string::npos ? 0 : last + 1);
    text.resize(text.size() - blanks_.size());
  }
  if (!text.empty()) out->push_back({.kind = kind, .text = std::move(text), .name = {}, .id = {}});
}

void TagParser::BeginCall() {
  blanks_before_call_ = blanks_;
  named_ = has_arguments_ = false;
  raw_.clear();
  span_ = JsonSpan();
  call_reader_ = JsonCallReader();
  Enter(format_.arguments == Arguments::kJsonCall ? Mode::kJsonCall : Mode::kName);
}

void TagParser::NameCall(std::string_view name, std::vector<OutputDelta>* out) {
  std::string id;
  if (format_.name_is_id) {
    id = std::string(name);
    if (name.starts_with("functions.")) name.remove_prefix(10);
    name = name.substr(0, name.rfind(':'));
  }
  if (id.empty()) id = options_.make_call_id();
  call_name_ = std::string(name);
  called_ = named_ = true;
  out->push_back({.kind = Kind::kToolCall, .text = {}, .name = call_name_, .id = std::move(id)});
}

void TagParser::AddArguments(std::string text, std::vector<OutputDelta>* out) {
  if (text.empty()) return;
  has_arguments_ = true;
  out->push_back({.kind = Kind::kToolArguments, .text = std::move(text), .name = {}, .id = {}});
}

// What looked like a call is none.
void TagParser::Abandon(std::vector<OutputDelta>* out) {
  std::string text = blanks_before_call_ + std::string(format_.call_begin) + raw_ + held_.Take(held_.text().size());
  skip_blanks_ = false;
  AddText(Kind::kContent, std::move(text), out);
  mode_ = Mode::kContent;
}

bool TagParser::StepName(std::vector<OutputDelta>* out) {
  // A call without arguments may end at once, and a parameter may follow without the name's mark.
  const std::array marks = {format_.name_end, format_.parameter_begin,
                            format_.arguments == Arguments::kParameters ? format_.call_end
                                                                        : std::string_view()};
  MarkSearch::Hit hit;
  if (!held_.Find(marks, &hit)) {
    if (held_.text().size() > kMaxNameBytes) Abandon(out);
    return false;
  }
  const std::string taken = held_.Take(hit.at);
  const std::string_view name = Trim(taken);
  if (name.empty() && hit.mark == 0 && format_.name_end == "\n") {  // a line break before the name
    raw_ += taken + held_.Take(1);
    return true;
  }
  if (name.empty() || name.size() > kMaxNameBytes) {
    raw_ += taken;
    Abandon(out);
    return true;
  }
  if (hit.mark == 0) held_.Take(format_.name_end.size());
  NameCall(name, out);
  Enter(format_.arguments == Arguments::kJson ? Mode::kJson : Mode::kParameters);
  return true;
}

bool TagParser::StepJson(std::vector<OutputDelta>* out) {
  if (!span_.failed()) {
    size_t count = 0;
    const std::string& text = held_.text();
    while (count < text.size() && !span_.complete() && !span_.failed()) span_.Feed(text[count++]);
    if (!span_.failed()) {  // else it is no object: up to the mark, then
      const std::string taken = held_.Take(count);
      AddArguments(std::string(has_arguments_ ? taken : taken.substr(std::min(
                       taken.find_first_not_of(kBlanks), taken.size()))), out);
      if (span_.complete()) mode_ = Mode::kCallEnd;
      return span_.complete();
    }
  }
  const std::array marks = {format_.call_end};
  MarkSearch::Hit hit;
  if (!held_.Find(marks, &hit)) {
    AddArguments(held_.Take(held_.Settled(marks)), out);
    return false;
  }
  std::string rest = held_.Take(hit.at);
  if (!has_arguments_ && Trim(rest).empty()) rest = "{}";
  AddArguments(std::move(rest), out);
  mode_ = Mode::kCallEnd;
  return true;
}

bool TagParser::StepJsonCall(std::vector<OutputDelta>* out) {
  size_t count = 0;
  const std::string& text = held_.text();
  while (count < text.size() && !call_reader_.complete() && !call_reader_.failed()) {
    call_reader_.Feed(text[count++]);
  }
  raw_ += held_.Take(count);
  if (call_reader_.has_name() && !named_) NameCall(call_reader_.name(), out);
  if (named_) AddArguments(call_reader_.TakeArguments(), out);
  if (!call_reader_.complete() && !call_reader_.failed()) return false;
  if (!named_) {
    Abandon(out);
    return true;
  }
  if (!has_arguments_) AddArguments("{}", out);
  mode_ = Mode::kCallEnd;
  return true;
}

bool TagParser::StepParameters(std::vector<OutputDelta>* out) {
  const auto mark =
      SkipTo(std::array{format_.parameter_begin, format_.call_end, format_.section_end});
  if (!mark) return false;
  if (*mark == 0) {
    mode_ = Mode::kKey;
    return true;
  }
  AddArguments(has_arguments_ ? "}" : "{}", out);
  if (*mark == 1) {
    EndCall();
  } else {
    Enter(Mode::kContent);
  }
  return true;
}

bool TagParser::StepValue(std::vector<OutputDelta>* out) {
  MarkSearch::Hit hit;
  if (!held_.Find(std::array{format_.value_end}, &hit)) return false;
  const std::string text = held_.Take(hit.at);
  held_.Take(format_.value_end.size());
  AddArguments(ArgumentMember(options_.tools, call_name_, key_, text, !has_arguments_), out);
  mode_ = Mode::kParameters;
  return true;
}

void TagParser::Finish(std::vector<OutputDelta>* out) {
  switch (mode_) {
    case Mode::kStart:
    case Mode::kContent:
      AddText(Kind::kContent, held_.Take(held_.text().size()), out);
      if (!blanks_.empty() && !called_) {
        out->push_back({.kind = Kind::kContent, .text = blanks_, .name = {}, .id = {}});
      }
      break;
    case Mode::kReasoning:
      AddText(Kind::kReasoning, held_.Take(held_.text().size()), out);
      break;
    case Mode::kName: Abandon(out); break;
    case Mode::kJsonCall:
      if (!named_) Abandon(out);
      break;
    case Mode::kJson:
      AddArguments(held_.Take(held_.text().size()), out);
      break;
    case Mode::kParameters: AddArguments(has_arguments_ ? "}" : "{}", out); break;
    case Mode::kSection:
    case Mode::kCallEnd:
    case Mode::kKey:
    case Mode::kBeforeValue:
    case Mode::kValue: break;
  }
}

class PlainParser final : public OutputParser {
 public:
  void Push(std::string_view text, std::vector<OutputDelta>* out) override {
    if (text.empty()) return;
    out->push_back(
        {.kind = Kind::kContent, .text = std::string(text), .name = {}, .id = {}});
  }
  void Finish(std::vector<OutputDelta>*) override {}
};

}  // namespace

std::unique_ptr<OutputParser> MakeOutputParser(OutputParserOptions options) {
  if (options.format == nullptr) return std::make_unique<PlainParser>();
  if (options.format->arguments == Arguments::kHarmony) {
    return std::make_unique<HarmonyParser>(std::move(options));
  }
  return std::make_unique<TagParser>(std::move(options));
}

}  // namespace moraine
