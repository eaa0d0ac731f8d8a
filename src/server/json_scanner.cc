#include "server/json_scanner.h"

#include <nlohmann/json.hpp>
#include <utility>

namespace moraine {
namespace {

bool IsBlank(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; }

// The state within a string; false if `c` is not part of one.
bool FeedString(char c, bool* in_string, bool* escaped) {
  if (!*in_string) return false;
  if (*escaped) {
    *escaped = false;
  } else if (c == '\\') {
    *escaped = true;
  } else if (c == '"') {
    *in_string = false;
  }
  return true;
}

}  // namespace

void JsonSpan::Feed(char c) {
  if (complete_ || failed_) return;
  if (FeedString(c, &in_string_, &escaped_)) return;
  if (depth_ == 0 && c != '{' && c != '[') {
    failed_ = !IsBlank(c);
    return;
  }
  if (c == '"') in_string_ = true;
  if (c == '{' || c == '[') ++depth_;
  if (c == '}' || c == ']') complete_ = --depth_ == 0;
}

void JsonCallReader::Feed(char c) {
  if (complete_ || failed_) return;
  switch (place_) {
    case Place::kBefore:
      if (c == '{') place_ = Place::kBetween;
      failed_ = c != '{' && !IsBlank(c);
      return;
    case Place::kBetween:
      if (c == '"') {
        key_.assign(1, c);
        in_string_ = true;
        place_ = Place::kKey;
      } else if (c == '}') {
        complete_ = true;
      } else {
        failed_ = c != ',' && !IsBlank(c);
      }
      return;
    case Place::kKey: return FeedKey(c);
    case Place::kColon:
      if (c == ':') {
        place_ = Place::kValue;
        value_.clear();
        depth_ = 0;
        streams_ = false;
      } else {
        failed_ = !IsBlank(c);
      }
      return;
    case Place::kValue: return FeedValue(c);
  }
}

void JsonCallReader::FeedKey(char c) {
  key_ += c;
  FeedString(c, &in_string_, &escaped_);
  if (in_string_) return;
  const auto key = nlohmann::json::parse(key_, nullptr, false);
  failed_ = !key.is_string();
  if (!failed_) key_ = key.get<std::string>();
  place_ = Place::kColon;
}

void JsonCallReader::FeedValue(char c) {
  const bool was_in_string = in_string_;
  if (!FeedString(c, &in_string_, &escaped_)) {
    if (depth_ == 0 && (c == ',' || c == '}')) {
      EndValue();
      place_ = Place::kBetween;
      complete_ = c == '}';
      return;
    }
    if (depth_ == 0 && IsBlank(c)) return;
    if (c == '"') in_string_ = true;
    if (c == '{' || c == '[') ++depth_;
    if (c == '}' || c == ']') --depth_;
    if (depth_ < 0) failed_ = true;
  }
  if (value_.empty() && !was_in_string) {
    streams_ = c == '{' && (key_ == "arguments" || key_ == "parameters");
  }
  value_ += c;
  if (streams_) arguments_ += c;
}

void JsonCallReader::EndValue() {
  if (streams_) return;
  const auto value = nlohmann::json::parse(value_, nullptr, false);
  if (key_ == "name") {
    has_name_ = value.is_string();
    failed_ = !has_name_;
    if (has_name_) name_ = value.get<std::string>();
  }
  // Some models write the arguments as a string of JSON.
  if (key_ == "arguments" || key_ == "parameters") {
    arguments_ += value.is_string() ? value.get<std::string>() : value.is_null() ? "{}" : value_;
  }
}

}  // namespace moraine
