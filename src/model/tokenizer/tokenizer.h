// The tokenizer of a Hugging Face checkpoint: tokenizer.json (byte-level BPE) + tokenizer_config.json,
// or Kimi's tiktoken.model (tiktoken.h) in place of the former.
//
//   text -> added tokens (normalized:false) -> normalizer -> added tokens (normalized:true)
//        -> pre-tokenizer (PCRE2 with JIT) -> BPE (merge heap, cached words) -> post-processor -> ids
//
// Why not llama.cpp's way of one hand-written splitter per model: every published model ships its
// pattern, and interpreting the file means a new model needs no code. A field that this does not know
// is an error that names it, never a guess.
//
// Cost: about 23 MB/s of text on one core (bench/tokenizer_bench.cc), and about 120 bytes per
// vocabulary entry.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "model/template/prompt_segment.h"

namespace moraine {

// What tokenizer_config.json says; each field is empty or unset if the file does not have it.
struct TokenizerConfig {
  std::string bos_token, eos_token, pad_token, unk_token;
  std::optional<bool> add_bos_token, add_eos_token;
  // "LlamaTokenizerFast", "TikTokenTokenizer", ...
  std::string tokenizer_class;
  // The "default" one where the file lists several. A checkpoint may ship chat_template.jinja instead,
  // which wins over this.
  std::string chat_template;
  // The one called "tool_use", for requests with tools; most models have one template for all.
  std::string tool_use_template;
};

struct EncodeOptions {
  // Lets the post-processor add bos/eos. False for text that a chat template rendered.
  bool add_special_tokens = true;
  // False: control tokens written in the text stay plain text ("input marking"). A control token is an
  // added token that is marked special or that begins and ends with punctuation (<think>,
  // <tool_call>); other added tokens, such as runs of blanks, are ordinary vocabulary either way.
  bool parse_special = true;
};

// Thread-safe after construction.
class Tokenizer {
 public:
  // `config_path` may be empty or name a missing file: then nothing is known but tokenizer.json.
  static Result<Tokenizer> FromFiles(const std::filesystem::path& tokenizer_json,
                                     const std::filesystem::path& config_path);
  // The same from file contents; `config_json` may be empty.
  static Result<Tokenizer> FromContents(std::string_view tokenizer_json,
                                        std::string_view config_json);
  // Kimi's files: tiktoken.h. Special tokens come from the config's added_tokens_decoder.
  static Result<Tokenizer> FromTiktoken(std::string_view tiktoken_model,
                                        std::string_view config_json);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;

  // `text` is UTF-8; each invalid byte sequence is taken as U+FFFD. kResourceExhausted if a
  // pre-tokenizer pattern exceeds PCRE2's match limit on this text; else this does not fail.
  Result<std::vector<int32_t>> Encode(std::string_view text, EncodeOptions options = {}) const;
  // One text in pieces. Control tokens are recognised only where they lie wholly in trusted text;
  // apart from that the pieces are tokenised as if joined, so marking never changes harmless input.
  Result<std::vector<int32_t>> EncodeSegments(std::span<const PromptSegment> segments,
                                              bool add_special_tokens = false) const;

  // Invalid UTF-8 becomes U+FFFD; ids outside the vocabulary decode to nothing.
  std::string Decode(std::span<const int32_t> ids, bool skip_special_tokens = false) const;

  // The token as tokenizer.json spells it ("Ġthe", "<|im_end|>").
  std::optional<int32_t> TokenToId(std::string_view token) const;
  // The bytes that the token stands for (" the"), possibly half a character; empty if there is none.
  std::string_view TokenBytes(int32_t id) const;
  // Added and marked special:true: what skip_special_tokens leaves out.
  bool IsSpecial(int32_t id) const;
  // One more than the largest id; the model's embedding may have more rows.
  int32_t vocab_size() const;
  const TokenizerConfig& config() const;
  std::optional<int32_t> bos_id() const;
  // eos_token of the config; generation_config.json may name more, which is the caller's business.
  std::vector<int32_t> eos_ids() const;

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Turns a stream of ids into text that is valid UTF-8 at every step: an incomplete character is held
// back until its bytes have come, bytes that can no longer become valid are replaced by U+FFFD.
// The concatenation of all results, Flush included, equals Tokenizer::Decode of all ids.
// Thread-compatible; the tokenizer must outlive it.
class StreamingDecoder {
 public:
  explicit StreamingDecoder(const Tokenizer* tokenizer, bool skip_special_tokens = true)
      : tokenizer_(tokenizer), skip_special_tokens_(skip_special_tokens) {}

  // The text that became complete with this id; often empty, never half a character.
  std::string Push(int32_t id);
  // What is still held back, as U+FFFD; call once at the end.
  std::string Flush();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_tokens_;
  std::string pending_;  // at most 3 bytes: the beginning of one character
};

}  // namespace moraine
