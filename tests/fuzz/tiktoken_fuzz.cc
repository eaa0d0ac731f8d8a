// The input is a tiktoken.model, and, behind zero bytes, a tokenizer_config.json and a text: a file
// either is refused with a status, or tokenizes that text to ids that it knows and that decode to it.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "model/tokenizer/tokenizer.h"
#include "model/tokenizer/utf8.h"

namespace {

// "AA==\0" with its rank for each byte: without all of them every file would be refused.
std::string AllBytes() {
  static constexpr char kDigits[] =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string lines;
  for (int byte = 0; byte < 256; ++byte) {
    lines += {kDigits[byte >> 2], kDigits[(byte & 3) << 4], '=', '='};
    lines += " " + std::to_string(byte) + "\n";
  }
  return lines;
}

std::string_view Cut(std::string_view& rest) {
  const size_t end = std::min(rest.find('\0'), rest.size());
  const std::string_view part = rest.substr(0, end);
  rest.remove_prefix(std::min(end + 1, rest.size()));
  return part;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace moraine;
  static const std::string all_bytes = AllBytes();
  std::string_view text(reinterpret_cast<const char*>(data), size);
  const std::string_view model = Cut(text), config = Cut(text);
  (void)Tokenizer::FromTiktoken(model, config);
  const Result<Tokenizer> tokenizer =
      Tokenizer::FromTiktoken(all_bytes + std::string(model), config);
  if (!tokenizer.ok()) return 0;
  const auto ids = tokenizer->Encode(text, {.add_special_tokens = false});
  if (!ids.ok()) return 0;
  for (const int32_t id : *ids) {
    CHECK(id >= 0 && id < tokenizer->vocab_size(), "an id outside of the vocabulary");
  }
  const auto plain = tokenizer->Encode(text, {.add_special_tokens = false, .parse_special = false});
  CHECK(!plain.ok() || tokenizer->Decode(*plain) == ToValidUtf8(text), "the text changed");
  return 0;
}
