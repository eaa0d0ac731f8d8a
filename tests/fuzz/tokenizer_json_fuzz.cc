// The input is a tokenizer.json, and, behind a zero byte, a text: a file either is refused with a
// status, or tokenizes that text to ids that it knows and decodes them to valid UTF-8.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "model/tokenizer/tokenizer.h"
#include "model/tokenizer/utf8.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace moraine;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t end = std::min(input.find('\0'), input.size());
  const Result<Tokenizer> tokenizer = Tokenizer::FromContents(input.substr(0, end), "");
  if (!tokenizer.ok()) return 0;
  const std::string_view text = input.substr(std::min(end + 1, size));
  for (const bool parse_special : {false, true}) {
    const auto ids = tokenizer->Encode(text, {.parse_special = parse_special});
    if (!ids.ok()) continue;
    StreamingDecoder decoder(&*tokenizer, /*skip_special_tokens=*/false);
    std::string streamed;
    for (const int32_t id : *ids) {
      CHECK(id >= 0 && id < tokenizer->vocab_size(), "an id outside of the vocabulary");
      streamed += decoder.Push(id);
    }
    streamed += decoder.Flush();
    CHECK(streamed == tokenizer->Decode(*ids), "streaming decodes differently");
    CHECK(streamed == ToValidUtf8(streamed), "decoded text is not UTF-8");
  }
  return 0;
}
