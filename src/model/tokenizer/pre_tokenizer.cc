#include "model/tokenizer/pre_tokenizer.h"

#include <utf8proc.h>

#include <algorithm>

#include "model/tokenizer/utf8.h"

namespace moraine {
namespace {

using simdjson::dom::array;
using simdjson::dom::element;
using simdjson::dom::element_type;

constexpr int kMaxSequenceDepth = 8;

// What `use_regex` stands for in ByteLevel.
constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

element Member(element json, std::string_view key) {
  element value;
  if (json.at_key(key).get(value) != simdjson::SUCCESS) return element();
  return value;
}

bool HasMember(element json, std::string_view key) {
  element value;
  return json.at_key(key).get(value) == simdjson::SUCCESS && !value.is_null();
}

Result<array> JsonArray(element json, std::string_view key, const std::string& field) {
  array values;
  if (json.at_key(key).get(values) != simdjson::SUCCESS) {
    return InvalidArgument(field + "." + std::string(key) + ": expected an array");
  }
  return values;
}

Result<std::string_view> TypeOf(element json, const std::string& field) {
  if (!json.is_object()) return InvalidArgument(field + ": expected an object or null");
  return JsonString(json, "type", field);
}

// {"String": "..."} or {"Regex": "..."}
Result<Regex> PatternFromJson(element json, const std::string& field) {
  const element pattern = HasMember(json, "pattern") ? Member(json, "pattern") : element();
  if (!HasMember(json, "pattern") || !pattern.is_object()) {
    return InvalidArgument(field + ".pattern: expected {\"Regex\": ...} or {\"String\": ...}");
  }
  const bool literal = HasMember(pattern, "String");
  ASSIGN_OR_RETURN(const std::string_view text,
                   JsonString(pattern, literal ? "String" : "Regex", field + ".pattern"));
  Result<Regex> regex = literal ? Regex::CompileLiteral(text) : Regex::Compile(text);
  if (!regex.ok()) return regex.status().WithContext(field + ".pattern");
  return regex;
}

// Text without characters from U+0300 on is its own NFC: no such character composes or reorders.
bool IsTriviallyNfc(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return static_cast<uint8_t>(c) < 0xCC; });
}

bool IsAscii(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return static_cast<uint8_t>(c) < 0x80; });
}

std::string EncodeCodepoints(const std::vector<int32_t>& codepoints) {
  std::string out;
  out.reserve(codepoints.size());
  for (const int32_t codepoint : codepoints) AppendUtf8(static_cast<uint32_t>(codepoint), out);
  return out;
}

// utf8proc_map would do, but it reorders combining marks by exchanging neighbours: quadratic for a
// text of marks only. So: its decomposition by character, a sort of ours, its composition.
std::string NormalizeUnicode(std::string_view text, bool compose, bool compatibility) {
  if (compose && !compatibility ? IsTriviallyNfc(text) : IsAscii(text)) return std::string(text);
  const auto options = static_cast<utf8proc_option_t>(
      UTF8PROC_STABLE | (compose ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE) |
      (compatibility ? UTF8PROC_COMPAT : 0));
  const auto decomposing = static_cast<utf8proc_option_t>(options | UTF8PROC_DECOMPOSE);
  std::vector<int32_t> codepoints;
  codepoints.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const Utf8Step step = NextUtf8(text.substr(at));
    int32_t parts[32];  // U+FDFA, the longest, becomes 18
    int boundary = 0;
    const utf8proc_ssize_t count = utf8proc_decompose_char(static_cast<int32_t>(step.codepoint),
                                                           parts, 32, decomposing, &boundary);
    CHECK(count >= 0 && count <= 32, "a character has too long a decomposition");
    codepoints.insert(codepoints.end(), parts, parts + count);
    at += step.length;
  }
  const auto combining_class = [](int32_t codepoint) {
    return utf8proc_get_property(codepoint)->combining_class;
  };
  for (auto run = codepoints.begin(); run != codepoints.end();) {
    const auto is_mark = [&](int32_t codepoint) { return combining_class(codepoint) != 0; };
    run = std::find_if(run, codepoints.end(), is_mark);
    const auto end = std::find_if_not(run, codepoints.end(), is_mark);
    std::stable_sort(run, end, [&](int32_t a, int32_t b) {
      return combining_class(a) < combining_class(b);
    });
    run = end;
  }
  if (compose) {
    const utf8proc_ssize_t count = utf8proc_normalize_utf32(
        codepoints.data(), static_cast<utf8proc_ssize_t>(codepoints.size()), options);
    CHECK(count >= 0, "composition failed");
    codepoints.resize(static_cast<size_t>(count));
  }
  return EncodeCodepoints(codepoints);
}

std::string ToLowercase(std::string_view text) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const Utf8Step step = NextUtf8(text.substr(at));
    if (step.codepoint == 0x130) {  // the only one that becomes two
      out += "i\u0307";
    } else {
      AppendUtf8(static_cast<uint32_t>(utf8proc_tolower(static_cast<int32_t>(step.codepoint))), out);
    }
    at += step.length;
  }
  return out;
}

}  // namespace

Result<bool> JsonBool(element json, std::string_view key, bool fallback, const std::string& field) {
  if (!HasMember(json, key)) return fallback;
  bool value = false;
  if (json.at_key(key).get(value) != simdjson::SUCCESS) {
    return InvalidArgument(field + "." + std::string(key) + ": expected true or false");
  }
  return value;
}

Result<std::string_view> JsonString(element json, std::string_view key, const std::string& field) {
  std::string_view value;
  if (json.at_key(key).get(value) != simdjson::SUCCESS) {
    return InvalidArgument(field + "." + std::string(key) + ": expected a string");
  }
  return value;
}

Result<Normalizer> Normalizer::FromJson(element json, const std::string& field) {
  Normalizer normalizer;
  RETURN_IF_ERROR(Append(json, field, 0, normalizer.steps_));
  return normalizer;
}

Status Normalizer::Append(element json, const std::string& field, int depth,
                          std::vector<Step>& steps) {
  if (json.is_null()) return OkStatus();
  if (depth > kMaxSequenceDepth) return InvalidArgument(field + ": nested too deeply");
  ASSIGN_OR_RETURN(const std::string_view type, TypeOf(json, field));
  if (type == "Sequence") {
    ASSIGN_OR_RETURN(const array members, JsonArray(json, "normalizers", field));
    size_t index = 0;
    for (const element member : members) {
      RETURN_IF_ERROR(Append(member, field + ".normalizers[" + std::to_string(index++) + "]",
                             depth + 1, steps));
    }
  } else if (type == "NFC" || type == "NFD" || type == "NFKC" || type == "NFKD") {
    steps.emplace_back(UnicodeForm{type.back() == 'C', type.size() == 4});
  } else if (type == "Lowercase") {
    steps.emplace_back(Lowercase{});
  } else if (type == "Prepend") {
    ASSIGN_OR_RETURN(const std::string_view text, JsonString(json, "prepend", field));
    steps.emplace_back(Prepend{std::string(text)});
  } else if (type == "Replace") {
    ASSIGN_OR_RETURN(Regex pattern, PatternFromJson(json, field));
    ASSIGN_OR_RETURN(const std::string_view content, JsonString(json, "content", field));
    steps.emplace_back(Replace{std::move(pattern), std::string(content)});
  } else {
    return Unsupported(field + ".type: \"" + std::string(type) + "\" is not supported");
  }
  return OkStatus();
}

Result<std::string> Normalizer::Apply(std::string_view text) const {
  std::string current(text);
  for (const Step& step : steps_) {
    if (const auto* form = std::get_if<UnicodeForm>(&step)) {
      current = NormalizeUnicode(current, form->compose, form->compatibility);
    } else if (std::holds_alternative<Lowercase>(step)) {
      current = ToLowercase(current);
    } else if (const auto* prepend = std::get_if<Prepend>(&step)) {
      if (!current.empty()) current.insert(0, prepend->text);
    } else {
      const auto& replace = std::get<Replace>(step);
      std::string replaced;
      size_t done = 0;
      RETURN_IF_ERROR(replace.pattern.ForEachMatch(current, [&](size_t begin, size_t end) {
        replaced.append(current, done, begin - done).append(replace.content);
        done = end;
      }));
      current = std::move(replaced.append(current, done));
    }
  }
  return current;
}

Result<PreTokenizer> PreTokenizer::FromJson(element json, const std::string& field) {
  PreTokenizer pre_tokenizer;
  if (!json.is_null()) RETURN_IF_ERROR(pre_tokenizer.Append(json, field, 0));
  if (!pre_tokenizer.has_byte_level_) {
    return Unsupported(field + ": there is no ByteLevel, and only byte-level BPE is supported");
  }
  return pre_tokenizer;
}

Result<PreTokenizer> PreTokenizer::FromPattern(std::string_view pattern) {
  PreTokenizer pre_tokenizer;
  ASSIGN_OR_RETURN(Regex regex, Regex::Compile(pattern));
  pre_tokenizer.steps_.emplace_back(Split{std::move(regex), Behavior::kIsolated, false});
  pre_tokenizer.has_byte_level_ = true;
  return pre_tokenizer;
}

Result<PreTokenizer::Behavior> PreTokenizer::BehaviorFromJson(element json,
                                                              const std::string& field) {
  ASSIGN_OR_RETURN(const std::string_view name, JsonString(json, "behavior", field));
  if (name == "Removed") return Behavior::kRemoved;
  if (name == "Isolated") return Behavior::kIsolated;
  if (name == "MergedWithPrevious") return Behavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return Behavior::kMergedWithNext;
  if (name == "Contiguous") return Behavior::kContiguous;
  return Unsupported(field + ".behavior: \"" + std::string(name) + "\" is not supported");
}

Status PreTokenizer::AppendSplit(element json, const std::string& field) {
  ASSIGN_OR_RETURN(Regex pattern, PatternFromJson(json, field));
  ASSIGN_OR_RETURN(const Behavior behavior, BehaviorFromJson(json, field));
  ASSIGN_OR_RETURN(const bool invert, JsonBool(json, "invert", false, field));
  steps_.emplace_back(Split{std::move(pattern), behavior, invert});
  return OkStatus();
}

Status PreTokenizer::Append(element json, const std::string& field, int depth) {
  if (depth > kMaxSequenceDepth) return InvalidArgument(field + ": nested too deeply");
  if (has_byte_level_) return Unsupported(field + ": ByteLevel must be the last pre-tokenizer");
  ASSIGN_OR_RETURN(const std::string_view type, TypeOf(json, field));
  if (type == "Sequence") {
    ASSIGN_OR_RETURN(const array members, JsonArray(json, "pretokenizers", field));
    size_t index = 0;
    for (const element member : members) {
      RETURN_IF_ERROR(
          Append(member, field + ".pretokenizers[" + std::to_string(index++) + "]", depth + 1));
    }
  } else if (type == "Split") {
    RETURN_IF_ERROR(AppendSplit(json, field));
  } else if (type == "Digits") {
    ASSIGN_OR_RETURN(const bool individual, JsonBool(json, "individual_digits", false, field));
    ASSIGN_OR_RETURN(Regex pattern, Regex::Compile("\\p{N}"));
    const Behavior behavior = individual ? Behavior::kIsolated : Behavior::kContiguous;
    steps_.emplace_back(Split{std::move(pattern), behavior, false});
  } else if (type == "Punctuation") {
    Behavior behavior = Behavior::kIsolated;
    if (HasMember(json, "behavior")) {
      ASSIGN_OR_RETURN(behavior, BehaviorFromJson(json, field));
    }
    ASSIGN_OR_RETURN(Regex pattern, Regex::Compile("[\\p{P}$+<=>^`|~]"));
    steps_.emplace_back(Split{std::move(pattern), behavior, false});
  } else if (type == "ByteLevel") {
    ASSIGN_OR_RETURN(const bool prefix_space, JsonBool(json, "add_prefix_space", true, field));
    ASSIGN_OR_RETURN(const bool use_regex, JsonBool(json, "use_regex", true, field));
    if (prefix_space) steps_.emplace_back(PrefixSpace{});
    if (use_regex) {
      ASSIGN_OR_RETURN(Regex pattern, Regex::Compile(kGpt2Pattern));
      steps_.emplace_back(Split{std::move(pattern), Behavior::kIsolated, false});
    }
    has_byte_level_ = true;
  } else {
    return Unsupported(field + ".type: \"" + std::string(type) + "\" is not supported");
  }
  return OkStatus();
}

Status PreTokenizer::Cut(const Split& split, std::string_view text, TextSpan whole,
                         std::vector<TextSpan>& spans) {
  // The pattern sees this pre-token only: look-around ends at its borders.
  struct Part {
    TextSpan span;
    bool is_match;
  };
  std::vector<Part> parts;
  size_t done = whole.begin;
  const auto add = [&](size_t begin, size_t end, bool is_match) {
    if (begin < end) parts.push_back({{begin, end}, is_match != split.invert});
  };
  RETURN_IF_ERROR(split.pattern.ForEachMatch(
      text.substr(whole.begin, whole.end - whole.begin), [&](size_t begin, size_t end) {
        add(done, whole.begin + begin, false);
        add(whole.begin + begin, whole.begin + end, true);
        done = whole.begin + end;
      }));
  add(done, whole.end, false);

  const size_t first = spans.size();
  bool joins = false;  // whether this part is glued to the one before it
  for (size_t i = 0; i < parts.size(); ++i) {
    const Part& part = parts[i];
    const bool previous_is_match = i > 0 && parts[i - 1].is_match;
    switch (split.behavior) {
      case Behavior::kRemoved:
        if (!part.is_match) spans.push_back(part.span);
        continue;
      case Behavior::kIsolated: joins = false; break;
      case Behavior::kContiguous: joins = i > 0 && part.is_match == previous_is_match; break;
      case Behavior::kMergedWithPrevious: joins = part.is_match && !previous_is_match; break;
      // Of several matches in a row only the last one goes with what follows.
      case Behavior::kMergedWithNext: joins = previous_is_match && !part.is_match; break;
    }
    if (joins && spans.size() > first) {
      spans.back().end = part.span.end;
    } else {
      spans.push_back(part.span);
    }
  }
  return OkStatus();
}

Status PreTokenizer::Apply(std::string& text, std::vector<TextSpan>& spans) const {
  spans.assign(1, {0, text.size()});
  std::vector<TextSpan> next;
  for (const Step& step : steps_) {
    next.clear();
    if (const auto* split = std::get_if<Split>(&step)) {
      for (const TextSpan span : spans) RETURN_IF_ERROR(Cut(*split, text, span, next));
    } else {
      std::string prefixed;
      for (const TextSpan span : spans) {
        const size_t begin = prefixed.size();
        if (span.begin < span.end && text[span.begin] != ' ') prefixed += ' ';
        prefixed.append(text, span.begin, span.end - span.begin);
        next.push_back({begin, prefixed.size()});
      }
      text = std::move(prefixed);
    }
    spans.swap(next);
  }
  return OkStatus();
}

}  // namespace moraine
