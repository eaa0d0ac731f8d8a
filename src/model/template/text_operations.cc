#include "model/template/text_operations.h"

#include <utf8proc.h>

#include "model/tokenizer/utf8.h"

namespace moraine::jinja {
namespace {

bool IsLineEnd(uint32_t c) {
  return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 ||
         c == 0x2029;
}

}  // namespace

TextPtr MapCase(Heap& heap, const Text& text, const std::function<LetterCase(uint32_t)>& choose) {
  TextBuilder out(heap.meter());
  const auto map_part = [&](size_t begin, size_t end, bool untrusted) {
    std::string mapped;
    for (size_t at = begin; at < end;) {
      const Utf8Step step = NextUtf8(std::string_view(text.bytes).substr(at));
      const auto c = static_cast<int32_t>(step.codepoint);
      LetterCase letter_case = choose(step.codepoint);
      if (letter_case == LetterCase::kSwap) {
        letter_case = utf8proc_tolower(c) == c ? LetterCase::kUpper : LetterCase::kLower;
      }
      if (letter_case == LetterCase::kUpper && c == 0xDF) {
        mapped += "SS";  // the one letter in common use that grows
      } else {
        AppendUtf8(static_cast<uint32_t>(letter_case == LetterCase::kUpper ? utf8proc_toupper(c)
                                                                           : utf8proc_tolower(c)),
                   mapped);
      }
      at += step.length;
    }
    out.Append(mapped, untrusted);
  };
  size_t done = 0;
  for (const ByteSpan& span : text.untrusted) {
    map_part(done, span.begin, false);
    map_part(span.begin, span.end, true);
    done = span.end;
  }
  map_part(done, text.bytes.size(), false);
  return out.Build();
}

TextPtr Strip(Heap& heap, const TextPtr& text, const Value* characters, bool left, bool right) {
  const bool has_set = characters != nullptr && !characters->is(Kind::kNone);
  if (has_set && !characters->is_string()) Fail("strip arg must be None or str");
  const auto is_stripped = [&](std::string_view character) {
    if (!has_set) return IsPythonSpace(NextUtf8(character).codepoint);
    // Characters of UTF-8 do not overlap, so a substring is a member.
    return characters->text->bytes.find(character) != std::string::npos;
  };
  const std::string_view bytes = text->bytes;
  size_t begin = 0, end = bytes.size();
  while (left && begin < end) {
    const int length = NextUtf8(bytes.substr(begin)).length;
    if (!is_stripped(bytes.substr(begin, length))) break;
    begin += length;
  }
  while (right && begin < end) {
    size_t last = end - 1;
    while (last > begin && (static_cast<uint8_t>(bytes[last]) & 0xC0) == 0x80) --last;
    if (!is_stripped(bytes.substr(last, end - last))) break;
    end = last;
  }
  if (begin == 0 && end == bytes.size()) return text;
  return heap.Slice(*text, begin, end).text;
}

TextPtr ReplaceText(Heap& heap, const Text& text, const Text& from, const Text& to, int64_t limit) {
  TextBuilder out(heap.meter());
  size_t done = 0;
  if (from.bytes.empty()) {  // between all characters
    const std::vector<size_t> offsets = CharacterOffsets(heap.meter(), text.bytes);
    for (size_t i = 0; i < offsets.size() && limit != 0; ++i, --limit) {
      out.Append(text, done, offsets[i]);
      done = offsets[i];
      out.Append(to);
    }
  }
  while (!from.bytes.empty() && limit != 0) {
    const size_t found = text.bytes.find(from.bytes, done);
    if (found == std::string::npos) break;
    out.Append(text, done, found);
    out.Append(to);
    done = found + from.bytes.size();
    --limit;
  }
  out.Append(text, done, text.bytes.size());
  return out.Build();
}

std::vector<ByteSpan> SplitLines(std::string_view text, bool keep_ends) {
  std::vector<ByteSpan> lines;
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    const Utf8Step step = NextUtf8(text.substr(at));
    const size_t end = at;
    at += step.length;
    if (!IsLineEnd(step.codepoint)) continue;
    if (step.codepoint == '\r' && at < text.size() && text[at] == '\n') ++at;
    lines.push_back({begin, keep_ends ? at : end});
    begin = at;
  }
  if (begin < text.size()) lines.push_back({begin, text.size()});
  return lines;
}

bool IsAlphabetic(uint32_t codepoint) {
  const utf8proc_category_t category = utf8proc_category(static_cast<int32_t>(codepoint));
  return category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
}

bool IsDecimalDigit(uint32_t codepoint) {
  return utf8proc_category(static_cast<int32_t>(codepoint)) == UTF8PROC_CATEGORY_ND;
}

bool IsAlphanumeric(uint32_t codepoint) {
  const utf8proc_category_t category = utf8proc_category(static_cast<int32_t>(codepoint));
  return IsAlphabetic(codepoint) ||
         (category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO);
}

}  // namespace moraine::jinja
