#include "server/harmony_parser.h"

#include <array>

namespace moraine {
namespace {

using Kind = OutputDelta::Kind;

constexpr std::string_view kMessage = "<|message|>", kChannel = "<|channel|>";
constexpr std::array<std::string_view, 4> kBodyEnds = {"<|end|>", "<|call|>", "<|return|>",
                                                       "<|start|>"};
constexpr std::string_view kToolRecipient = "to=functions.";

// Up to a blank or the next mark.
std::string_view Word(std::string_view text) {
  return text.substr(0, std::min(text.find_first_of(" \t\r\n<"), text.size()));
}

}  // namespace

void HarmonyParser::Push(std::string_view text, std::vector<OutputDelta>* out) {
  held_.Append(text);
  while (in_body_ ? StepBody(out) : StepHeader(out)) {
  }
}

bool HarmonyParser::StepHeader(std::vector<OutputDelta>* out) {
  const std::string& text = held_.text();
  if (first_ && !text.empty()) {
    // A header begins with a mark, or with a recipient after the role that the prompt ended with.
    const auto can_begin = [&](std::string_view begin) {
      return text.starts_with(begin) || begin.starts_with(text);
    };
    if (!can_begin("<|") && !can_begin(" to=")) {
      first_ = false;
      in_body_ = true;
      kind_ = Kind::kContent;
      return true;
    }
    if (text.size() < 4) return false;
    first_ = false;
  }
  MarkSearch::Hit hit;
  if (!held_.Find(std::array{kMessage}, &hit)) return false;
  const std::string header = held_.Take(hit.at);
  held_.Take(kMessage.size());
  BeginBody(header, out);
  return true;
}

void HarmonyParser::BeginBody(std::string_view header, std::vector<OutputDelta>* out) {
  in_body_ = true;
  kind_ = Kind::kContent;
  const size_t recipient = header.find(kToolRecipient);
  if (recipient != std::string_view::npos && !options_.tools.empty()) {
    kind_ = Kind::kToolArguments;
    const std::string_view name = Word(header.substr(recipient + kToolRecipient.size()));
    out->push_back({.kind = Kind::kToolCall,
                    .text = {},
                    .name = std::string(name),
                    .id = options_.make_call_id()});
    return;
  }
  const size_t channel = header.find(kChannel);
  const bool analysis = channel != std::string_view::npos &&
                        Word(header.substr(channel + kChannel.size())) == "analysis";
  if (analysis && options_.split_reasoning) kind_ = Kind::kReasoning;
}

void HarmonyParser::AddBody(std::string text, std::vector<OutputDelta>* out) {
  if (!text.empty()) out->push_back({.kind = kind_, .text = std::move(text), .name = {}, .id = {}});
}

bool HarmonyParser::StepBody(std::vector<OutputDelta>* out) {
  MarkSearch::Hit hit;
  if (!held_.Find(kBodyEnds, &hit)) {
    AddBody(held_.Take(held_.Settled(kBodyEnds)), out);
    return false;
  }
  AddBody(held_.Take(hit.at), out);
  held_.Take(kBodyEnds[hit.mark].size());
  in_body_ = false;
  return true;
}

void HarmonyParser::Finish(std::vector<OutputDelta>* out) {
  if (!in_body_ && first_) in_body_ = true;  // a text shorter than a header
  if (in_body_) AddBody(held_.Take(held_.text().size()), out);
}

}  // namespace moraine
