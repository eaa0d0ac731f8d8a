// GPT-2's spelling of bytes: tokenizer.json is text, so each of the 256 bytes is written as one
// printable character (0x20 as "Ġ", 0x0A as "Ċ"). Everything behind this header works on bytes.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>

namespace moraine {

// The character that spells each byte.
const std::array<uint32_t, 256>& ByteSpellings();

// The bytes that `spelling` stands for; nullopt if a character of it spells none.
std::optional<std::string> BytesOfSpelling(std::string_view spelling);

}  // namespace moraine
