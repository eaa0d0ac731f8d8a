// A complete tokenizer.json small enough to predict by hand: all 256 bytes (id = byte), a few merges,
// a few added tokens. Tests change single fields of it.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "model/tokenizer/byte_level.h"
#include "model/tokenizer/tokenizer.h"
#include "model/tokenizer/utf8.h"

namespace moraine {

inline std::string SpellByte(int byte) {
  std::string spelling;
  AppendUtf8(ByteSpellings()[byte], spelling);
  return spelling;
}

inline nlohmann::json ToyAddedToken(int id, const std::string& content, bool special) {
  return {{"id", id}, {"content", content}, {"special", special}, {"normalized", false},
          {"lstrip", false}, {"rstrip", false}, {"single_word", false}};
}

// ids: bytes 0..255, "he" 256, "ll" 257, "hell" 258, "hello" 259, " h" 260,
// <|a|> 300 (special), <think> 301 (not special), "==" 302 (not special)
inline nlohmann::json ToyTokenizerJson() {
  nlohmann::json vocab;
  for (int byte = 0; byte < 256; ++byte) vocab[SpellByte(byte)] = byte;
  vocab["he"] = 256;
  vocab["ll"] = 257;
  vocab["hell"] = 258;
  vocab["hello"] = 259;
  vocab["\u0120h"] = 260;
  return {{"added_tokens", {ToyAddedToken(300, "<|a|>", true), ToyAddedToken(301, "<think>", false)}},
          {"normalizer", nullptr},
          {"pre_tokenizer",
           {{"type", "Sequence"},
            {"pretokenizers",
             {{{"type", "Split"},
               {"pattern", {{"Regex", " ?\\p{L}+|\\p{N}|\\s+|[^\\s\\p{L}\\p{N}]+"}}},
               {"behavior", "Isolated"},
               {"invert", false}},
              {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}}},
          {"post_processor", nullptr},
          {"decoder", {{"type", "ByteLevel"}}},
          {"model",
           {{"type", "BPE"},
            {"vocab", vocab},
            {"merges", {"h e", "l l", "he ll", "hell o", "\u0120 h"}}}}};
}

inline Tokenizer ToyTokenizer(const nlohmann::json& json, const std::string& config = "") {
  Result<Tokenizer> tokenizer = Tokenizer::FromContents(json.dump(), config);
  CHECK(tokenizer.ok(), tokenizer.status().ToString());
  return std::move(tokenizer).value();
}

}  // namespace moraine
