// TextAssembler: token ids of one generation -> text that may be sent.
//
// Holds back incomplete UTF-8 and everything that could still become a stop string, so that no byte
// is ever sent that would have to be taken back.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "model/tokenizer/tokenizer.h"

namespace moraine {

class TextAssembler {
 public:
  TextAssembler(const Tokenizer* tokenizer, std::vector<std::string> stop,
                bool keep_special_tokens = false)
      : decoder_(tokenizer, !keep_special_tokens), stop_(std::move(stop)) {}

  // Appends a token; returns the text that is now final, without the stop string and what follows.
  std::string Push(int32_t token) { return Accept(decoder_.Push(token)); }
  // The end: what was held back.
  std::string Flush();
  // Which stop string was found; empty: none so far. After that Push and Flush return nothing.
  const std::string& stopped_by() const { return stopped_by_; }

 private:
  std::string Accept(std::string_view text);

  StreamingDecoder decoder_;
  const std::vector<std::string> stop_;
  std::string held_;
  std::string stopped_by_;
};

}  // namespace moraine
