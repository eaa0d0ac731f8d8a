// tiktoken.model, the vocabulary of Kimi's checkpoints: lines of "base64-bytes rank", nothing else. How
// text is cut and what the special tokens are called stands in the checkpoint's remote code, which is
// never run; the pattern is kKimiPattern, the names are in tokenizer_config.json.
//
// Why not a tokenizer.json made from it: tiktoken merges the two neighbours whose joined bytes have the
// least id, whatever they are; a list of merges gives each way to build a token a rank of its own, and
// the two differ where ways compete ("aa" + "a" and "a" + "aa").
//
// Deviation: the remote code cuts texts at 400,000 characters and words at 25,000, to spare tiktoken's
// stack; this does not, so the two tokens at such a cut may differ.
#pragma once

#include <span>
#include <string_view>

#include "base/status.h"
#include "model/tokenizer/tokenizer_json.h"

namespace moraine {

// `named` are the special tokens that have names (ParseAddedTokensDecoder); their ids are behind the
// ranks. All other ids from the first behind the ranks to 256 of them, or to the last named one, become
// "<|reserved_token_ID|>".
//
// kInvalidArgument naming the line, what was found and what was expected. Ranks must be 0, 1, 2, ...:
// nothing is allocated for a rank that the file does not reach. Each of the 256 bytes must be a token.
Result<TokenizerParts> ParseTiktoken(std::string_view contents, std::span<const AddedToken> named);

}  // namespace moraine
