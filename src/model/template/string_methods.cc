#include "model/template/string_methods.h"

#include <algorithm>
#include <unordered_map>

#include "model/template/text_operations.h"
#include "model/tokenizer/utf8.h"

namespace moraine::jinja {
namespace {

using I = Interpreter;
using V = Value;
using A = Arguments;

const Text& TextOf(const V& self) { return *self.text; }

std::string_view StringArgument(const A& arguments, size_t index) {
  return arguments.Get(index, nullptr).is_string()
             ? std::string_view(arguments.Get(index, nullptr).text->bytes)
             : (Fail(std::string("must be str, not ") + TypeName(arguments.Get(index, nullptr))),
                std::string_view());
}

// Byte spans of the words between white space; `limit` cuts, below 0 none.
std::vector<ByteSpan> Words(std::string_view text, int64_t limit) {
  std::vector<ByteSpan> words;
  size_t at = 0;
  const auto space_at = [&](size_t i) { return IsPythonSpace(NextUtf8(text.substr(i)).codepoint); };
  while (true) {
    while (at < text.size() && space_at(at)) at += NextUtf8(text.substr(at)).length;
    if (at >= text.size()) return words;
    const size_t begin = at;
    if (limit >= 0 && static_cast<int64_t>(words.size()) == limit) {
      words.push_back({begin, text.size()});
      return words;
    }
    while (at < text.size() && !space_at(at)) at += NextUtf8(text.substr(at)).length;
    words.push_back({begin, at});
  }
}

std::vector<ByteSpan> SplitAt(std::string_view text, std::string_view separator, int64_t limit,
                              bool from_right) {
  if (separator.empty()) Fail("empty separator");
  std::vector<ByteSpan> parts;
  if (from_right) {
    size_t end = text.size();
    while (limit != 0) {
      const size_t found = end >= separator.size()
                               ? text.rfind(separator, end - separator.size()) : text.npos;
      if (found == text.npos) break;
      parts.push_back({found + separator.size(), end});
      end = found;
      --limit;
    }
    parts.push_back({0, end});
    std::reverse(parts.begin(), parts.end());
    return parts;
  }
  size_t begin = 0;
  while (limit != 0) {
    const size_t found = text.find(separator, begin);
    if (found == text.npos) break;
    parts.push_back({begin, found});
    begin = found + separator.size();
    --limit;
  }
  parts.push_back({begin, text.size()});
  return parts;
}

V Slices(I& interpreter, const V& self, const std::vector<ByteSpan>& spans) {
  std::vector<V> parts;
  for (const ByteSpan span : spans) {
    parts.push_back(interpreter.heap().Slice(TextOf(self), span.begin, span.end));
  }
  return interpreter.heap().NewList(std::move(parts));
}

V Split(I& interpreter, const V& self, const A& arguments, bool from_right) {
  const std::string_view text = TextOf(self).bytes;
  interpreter.meter().StepForBytes(text.size());
  const V* separator = arguments.Find(0, "sep");
  const int64_t limit = arguments.GetInt(1, "maxsplit", -1);
  if (separator == nullptr || separator->is(Kind::kNone)) {
    std::vector<ByteSpan> words = Words(text, from_right ? -1 : limit);
    if (from_right && limit >= 0 && static_cast<int64_t>(words.size()) > limit) {
      // The uncut rest is what is left of the last `limit` words, with the blanks in front.
      const auto joined = static_cast<int64_t>(words.size()) - limit;
      words[joined - 1].begin = 0;
      words.erase(words.begin(), words.begin() + joined - 1);
    }
    return Slices(interpreter, self, words);
  }
  return Slices(interpreter, self,
                SplitAt(text, arguments.GetString(0, "sep", ""), limit, from_right));
}

V StripMethod(I& interpreter, const V& self, const A& arguments, bool left, bool right) {
  arguments.AtMost(1);
  return V::String(
      Strip(interpreter.heap(), self.text, arguments.Find(0, nullptr), left, right));
}

bool Affix(std::string_view text, const V& affix, bool at_start) {
  if (affix.is(Kind::kTuple)) {
    return std::any_of(affix.list->items.begin(), affix.list->items.end(), [&](const V& one) {
      return one.is_string() && Affix(text, one, at_start);
    });
  }
  if (!affix.is_string()) Fail("startswith and endswith take a str or a tuple of str");
  return at_start ? text.starts_with(affix.text->bytes) : text.ends_with(affix.text->bytes);
}

V RemoveAffix(I& interpreter, const V& self, const A& arguments, bool at_start) {
  const std::string_view affix = StringArgument(arguments, 0);
  const size_t size = TextOf(self).bytes.size();
  if (affix.empty() || !Affix(TextOf(self).bytes, arguments.Get(0, nullptr), at_start)) return self;
  return at_start ? interpreter.heap().Slice(TextOf(self), affix.size(), size)
                  : interpreter.heap().Slice(TextOf(self), 0, size - affix.size());
}

V Find(I& interpreter, const V& self, const A& arguments, bool from_right, bool must_exist) {
  // With bounds, search the slice and add what it cut off.
  const V start = arguments.positional.size() > 1 ? arguments.positional[1] : V::None();
  const V stop = arguments.positional.size() > 2 ? arguments.positional[2] : V::None();
  const V part = interpreter.Slice(self, start, stop, V::None());
  const std::string_view wanted = StringArgument(arguments, 0);
  const std::string_view text = TextOf(part).bytes;
  interpreter.meter().StepForBytes(text.size());
  const size_t found = from_right ? text.rfind(wanted) : text.find(wanted);
  if (found == text.npos) {
    if (must_exist) Fail("substring not found");
    return V::Int(-1);
  }
  int64_t offset = 0;
  if (!start.is(Kind::kNone)) {
    offset = start.as_int() < 0 ? std::max<int64_t>(0, start.as_int() + interpreter.Length(self))
                                : start.as_int();
  }
  return V::Int(offset + static_cast<int64_t>(CharacterCount(text.substr(0, found))));
}

V Count(I& interpreter, const V& self, const A& arguments) {
  const std::string_view wanted = StringArgument(arguments, 0);
  const std::string_view text = TextOf(self).bytes;
  interpreter.meter().StepForBytes(text.size());
  if (wanted.empty()) return V::Int(static_cast<int64_t>(CharacterCount(text)) + 1);
  return V::Int(static_cast<int64_t>(SplitAt(text, wanted, -1, false).size()) - 1);
}

V Join(I& interpreter, const V& self, const A& arguments) {
  TextBuilder out(interpreter.meter());
  bool first = true;
  for (const V& item : interpreter.Iterate(arguments.Get(0, nullptr))) {
    if (!item.is_string()) Fail(std::string("join: expected str, found ") + TypeName(item));
    if (!std::exchange(first, false)) out.Append(TextOf(self));
    out.Append(TextOf(item));
  }
  return V::String(out.Build());
}

V Partition(I& interpreter, const V& self, const A& arguments, bool from_right) {
  const std::string_view separator = StringArgument(arguments, 0);
  const std::string_view text = TextOf(self).bytes;
  const std::vector<ByteSpan> parts = SplitAt(text, separator, 1, from_right);
  std::vector<V> three;
  if (parts.size() == 1) {
    three = {self, V::Constant(""), V::Constant("")};
    if (from_right) std::swap(three[0], three[2]);
  } else {
    three = {interpreter.heap().Slice(TextOf(self), 0, parts[0].end),
             interpreter.heap().Slice(TextOf(self), parts[0].end, parts[1].begin),
             interpreter.heap().Slice(TextOf(self), parts[1].begin, text.size())};
  }
  return interpreter.heap().NewList(std::move(three), Kind::kTuple);
}

// Letters behind letters are lower case, all others upper.
V Title(I& interpreter, const V& self, const A&) {
  return V::String(MapCase(interpreter.heap(), TextOf(self), [inside = false](uint32_t c) mutable {
    const bool was_inside = std::exchange(inside, IsAlphabetic(c));
    return was_inside ? LetterCase::kLower : LetterCase::kUpper;
  }));
}

V Pad(I& interpreter, const V& self, const A& arguments, bool left, bool right) {
  const int64_t missing = arguments.GetInt(0, nullptr, 0) - interpreter.Length(self);
  const std::string_view fill = arguments.GetString(1, nullptr, " ");
  if (CharacterCount(fill) != 1) Fail("The fill character must be exactly one character long");
  if (missing <= 0) return self;
  interpreter.meter().CheckString(static_cast<size_t>(missing));
  // Python's center puts the odd blank left only if the width is odd.
  const int64_t width = arguments.GetInt(0, nullptr, 0);
  const int64_t before = left && right ? missing / 2 + (missing & width & 1) : left ? missing : 0;
  TextBuilder out(interpreter.meter());
  for (int64_t i = 0; i < before; ++i) out.Append(fill);
  out.Append(TextOf(self));
  for (int64_t i = before; i < missing; ++i) out.Append(fill);
  return V::String(out.Build());
}

V AllCharacters(I& interpreter, const V& self, bool (*predicate)(uint32_t)) {
  const std::string_view text = TextOf(self).bytes;
  interpreter.meter().StepForBytes(text.size());
  for (size_t at = 0; at < text.size();) {
    const Utf8Step step = NextUtf8(text.substr(at));
    if (!predicate(step.codepoint)) return V::Bool(false);
    at += step.length;
  }
  return V::Bool(!text.empty());
}

V FilterMethod(I& interpreter, const V& self, const char* filter) {
  return interpreter.ApplyFilter(filter, self, {});
}

}  // namespace

Method FindStringMethod(std::string_view name) {
  static const std::unordered_map<std::string_view, Method> methods = {
      {"split", [](I& i, const V& s, const A& a) { return Split(i, s, a, false); }},
      {"rsplit", [](I& i, const V& s, const A& a) { return Split(i, s, a, true); }},
      {"splitlines",
       [](I& i, const V& s, const A& a) {
         return Slices(i, s, SplitLines(TextOf(s).bytes, a.GetBool(0, "keepends", false)));
       }},
      {"strip", [](I& i, const V& s, const A& a) { return StripMethod(i, s, a, true, true); }},
      {"lstrip", [](I& i, const V& s, const A& a) { return StripMethod(i, s, a, true, false); }},
      {"rstrip", [](I& i, const V& s, const A& a) { return StripMethod(i, s, a, false, true); }},
      {"startswith",
       [](I&, const V& s, const A& a) {
         return V::Bool(Affix(TextOf(s).bytes, a.Get(0, nullptr), true));
       }},
      {"endswith",
       [](I&, const V& s, const A& a) {
         return V::Bool(Affix(TextOf(s).bytes, a.Get(0, nullptr), false));
       }},
      {"removeprefix", [](I& i, const V& s, const A& a) { return RemoveAffix(i, s, a, true); }},
      {"removesuffix", [](I& i, const V& s, const A& a) { return RemoveAffix(i, s, a, false); }},
      {"upper", [](I& i, const V& s, const A&) { return FilterMethod(i, s, "upper"); }},
      {"lower", [](I& i, const V& s, const A&) { return FilterMethod(i, s, "lower"); }},
      {"casefold", [](I& i, const V& s, const A&) { return FilterMethod(i, s, "lower"); }},
      {"capitalize", [](I& i, const V& s, const A&) { return FilterMethod(i, s, "capitalize"); }},
      {"swapcase",
       [](I& i, const V& s, const A&) {
         return V::String(
             MapCase(i.heap(), TextOf(s), [](uint32_t) { return LetterCase::kSwap; }));
       }},
      {"title", Title},
      {"replace",
       [](I& i, const V& s, const A& a) {
         StringArgument(a, 0);
         StringArgument(a, 1);
         return V::String(ReplaceText(i.heap(), TextOf(s), TextOf(a.positional[0]),
                                      TextOf(a.positional[1]), a.GetInt(2, "count", -1)));
       }},
      {"find", [](I& i, const V& s, const A& a) { return Find(i, s, a, false, false); }},
      {"rfind", [](I& i, const V& s, const A& a) { return Find(i, s, a, true, false); }},
      {"index", [](I& i, const V& s, const A& a) { return Find(i, s, a, false, true); }},
      {"rindex", [](I& i, const V& s, const A& a) { return Find(i, s, a, true, true); }},
      {"count", Count},
      {"join", Join},
      {"format", [](I& i, const V& s, const A& a) { return BraceFormat(i, TextOf(s), a); }},
      {"partition", [](I& i, const V& s, const A& a) { return Partition(i, s, a, false); }},
      {"rpartition", [](I& i, const V& s, const A& a) { return Partition(i, s, a, true); }},
      {"ljust", [](I& i, const V& s, const A& a) { return Pad(i, s, a, false, true); }},
      {"rjust", [](I& i, const V& s, const A& a) { return Pad(i, s, a, true, false); }},
      {"center", [](I& i, const V& s, const A& a) { return Pad(i, s, a, true, true); }},
      {"isdigit", [](I& i, const V& s, const A&) { return AllCharacters(i, s, IsDecimalDigit); }},
      {"isalpha", [](I& i, const V& s, const A&) { return AllCharacters(i, s, IsAlphabetic); }},
      {"isalnum", [](I& i, const V& s, const A&) { return AllCharacters(i, s, IsAlphanumeric); }},
      {"isspace", [](I& i, const V& s, const A&) { return AllCharacters(i, s, IsPythonSpace); }},
      {"isupper", [](I& i, const V& s, const A&) { return V::Bool(i.ApplyTest("upper", s, {})); }},
      {"islower", [](I& i, const V& s, const A&) { return V::Bool(i.ApplyTest("lower", s, {})); }},
  };
  const auto found = methods.find(name);
  return found == methods.end() ? nullptr : found->second;
}

}  // namespace moraine::jinja
