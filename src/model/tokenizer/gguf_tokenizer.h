// The tokenizer of a GGUF as the files that the model was published with, so that a store's text
// side knows one dialect, wherever it came from.
#pragma once

#include <string>
#include <string_view>

#include "base/status.h"

namespace moraine {

struct TokenizerFiles {
  std::string tokenizer_json, tokenizer_config_json, generation_config_json;
};

// metadata_json: an object of GGUF keys (store/gguf.h). Byte-level BPE only (tokenizer.ggml.model
// "gpt2"), and of its pre-tokenizers (tokenizer.ggml.pre), which GGUF has by name and not by
// pattern, those whose pattern is known here; anything else is kUnsupported. kNotFound if the file
// has no tokenizer. kInvalidArgument naming file, key, found and expected.
//
// Control tokens become added tokens that are special, user-defined ones added tokens that are not,
// unused ones holes. Generation ends at eos, eot and eom, and, as llama.cpp has it, at <|im_end|>,
// <|endoftext|> and their like where they are control tokens. tokenizer.chat_template.NAME become
// named templates.
Result<TokenizerFiles> TokenizerFromGguf(std::string_view metadata_json,
                                         const std::string& file_name);

}  // namespace moraine
