#include "model/tokenizer/byte_level.h"

#include "model/tokenizer/utf8.h"

namespace moraine {

const std::array<uint32_t, 256>& ByteSpellings() {
  static const std::array<uint32_t, 256> spellings = [] {
    std::array<uint32_t, 256> table{};
    uint32_t next = 256;
    for (uint32_t byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) ||
                             (byte >= 0xAE && byte <= 0xFF);
      table[byte] = printable ? byte : next++;
    }
    return table;
  }();
  return spellings;
}

std::optional<std::string> BytesOfSpelling(std::string_view spelling) {
  static constexpr uint32_t kEnd = 256 + 68;  // 68 bytes are not printable
  static const std::array<int16_t, kEnd> bytes_of = [] {
    std::array<int16_t, kEnd> table;
    table.fill(-1);
    for (int byte = 0; byte < 256; ++byte) table[ByteSpellings()[byte]] = static_cast<int16_t>(byte);
    return table;
  }();
  std::string bytes;
  while (!spelling.empty()) {
    const Utf8Step step = NextUtf8(spelling);
    if (step.kind != Utf8Step::kValid || step.codepoint >= kEnd || bytes_of[step.codepoint] < 0) {
      return std::nullopt;
    }
    bytes.push_back(static_cast<char>(bytes_of[step.codepoint]));
    spelling.remove_prefix(step.length);
  }
  return bytes;
}

}  // namespace moraine
