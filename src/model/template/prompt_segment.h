// What a chat template renders to: the prompt in pieces, each marked with where it came from.
//
// Why not one string: a special token such as <|im_start|> that a user types into a message must stay
// plain text, while the same bytes written by the template are the real token. Only the renderer knows
// which is which, so it hands that knowledge to Tokenizer::EncodeSegments instead of losing it.
#pragma once

#include <string>
#include <vector>

namespace moraine {

struct PromptSegment {
  std::string text;
  // True for literal text of the template and for the model's own tokens (bos_token, ...); false for
  // everything that came in with a request, whatever filters it went through.
  bool trusted = false;
};

struct RenderedPrompt {
  std::vector<PromptSegment> segments;  // adjacent segments differ in `trusted`; none is empty

  std::string text() const {
    std::string all;
    for (const PromptSegment& segment : segments) all += segment.text;
    return all;
  }
};

}  // namespace moraine
