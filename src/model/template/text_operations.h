// What filters and string methods do to text, keeping the marks.
#pragma once

#include <functional>
#include <string_view>
#include <vector>

#include "model/template/value.h"

namespace moraine::jinja {

enum class LetterCase { kUpper, kLower, kSwap };

// Each character in the case that `choose` asks for; `choose` sees the characters in order.
TextPtr MapCase(Heap& heap, const Text& text, const std::function<LetterCase(uint32_t)>& choose);

// Without white space, or the characters of `characters` (a string, or none or null for white space).
TextPtr Strip(Heap& heap, const TextPtr& text, const Value* characters, bool left, bool right);

// str.replace; `limit` below 0 means all.
TextPtr ReplaceText(Heap& heap, const Text& text, const Text& from, const Text& to, int64_t limit);

// str.splitlines, as byte spans.
std::vector<ByteSpan> SplitLines(std::string_view text, bool keep_ends);

bool IsAlphabetic(uint32_t codepoint);
bool IsDecimalDigit(uint32_t codepoint);
bool IsAlphanumeric(uint32_t codepoint);

}  // namespace moraine::jinja
