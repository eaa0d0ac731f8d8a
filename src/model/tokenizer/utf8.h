// UTF-8, one character at a time, with the replacement rule that everybody shares (Unicode's "maximal
// subpart", Rust's from_utf8_lossy, Python's errors="replace"): each longest prefix of a valid
// character that is not completed counts as one U+FFFD. Header-only; used by the templates too.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace moraine {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

struct Utf8Step {
  enum Kind { kValid, kInvalid, kIncomplete };  // incomplete: valid so far, but the text ends
  Kind kind;
  int length;         // bytes of the character or of the bad part, at least 1
  uint32_t codepoint;  // of a valid character
};

// `text` is not empty.
inline Utf8Step NextUtf8(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t first = byte(0);
  if (first < 0x80) return {Utf8Step::kValid, 1, first};
  int length = 0;
  uint8_t low = 0x80, high = 0xBF;  // legal range of the second byte
  if (first >= 0xC2 && first <= 0xDF) {
    length = 2;
  } else if (first >= 0xE0 && first <= 0xEF) {
    length = 3;
    if (first == 0xE0) low = 0xA0;   // overlong
    if (first == 0xED) high = 0x9F;  // surrogates
  } else if (first >= 0xF0 && first <= 0xF4) {
    length = 4;
    if (first == 0xF0) low = 0x90;   // overlong
    if (first == 0xF4) high = 0x8F;  // above U+10FFFF
  } else {
    return {Utf8Step::kInvalid, 1, 0};
  }
  uint32_t codepoint = first & (0x7F >> length);
  for (int i = 1; i < length; ++i) {
    if (static_cast<size_t>(i) == text.size()) return {Utf8Step::kIncomplete, i, 0};
    if (byte(i) < low || byte(i) > high) return {Utf8Step::kInvalid, i, 0};
    codepoint = codepoint << 6 | (byte(i) & 0x3F);
    low = 0x80;
    high = 0xBF;
  }
  return {Utf8Step::kValid, length, codepoint};
}

inline void AppendUtf8(uint32_t codepoint, std::string& out) {
  const auto put = [&](uint32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (codepoint < 0x80) {
    put(codepoint);
  } else if (codepoint < 0x800) {
    put(0xC0 | codepoint >> 6);
    put(0x80 | (codepoint & 0x3F));
  } else if (codepoint < 0x10000) {
    put(0xE0 | codepoint >> 12);
    put(0x80 | (codepoint >> 6 & 0x3F));
    put(0x80 | (codepoint & 0x3F));
  } else {
    put(0xF0 | codepoint >> 18);
    put(0x80 | (codepoint >> 12 & 0x3F));
    put(0x80 | (codepoint >> 6 & 0x3F));
    put(0x80 | (codepoint & 0x3F));
  }
}

// Appends the valid text of `bytes` with replacements to `out`; returns how many bytes it consumed,
// which is all but an incomplete character at the end.
inline size_t AppendValidUtf8(std::string_view bytes, std::string& out) {
  size_t done = 0;
  while (done < bytes.size()) {
    const Utf8Step step = NextUtf8(bytes.substr(done));
    if (step.kind == Utf8Step::kIncomplete) break;
    if (step.kind == Utf8Step::kValid) {
      out.append(bytes.substr(done, step.length));
    } else {
      out.append(kReplacementCharacter);
    }
    done += step.length;
  }
  return done;
}

inline std::string ToValidUtf8(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  if (AppendValidUtf8(bytes, out) < bytes.size()) out.append(kReplacementCharacter);
  return out;
}

}  // namespace moraine
