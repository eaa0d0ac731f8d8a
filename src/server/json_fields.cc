#include "server/json_fields.h"

#include <fmt/format.h>

#include <array>
#include <cmath>

namespace moraine {
namespace {

// Nesting and numbers of values and members, before anything is allocated for them. Counts
// punctuation outside strings; on malformed text the counts mean nothing, and the parser refuses it.
std::optional<ApiError> CheckJsonSize(std::string_view body) {
  std::array<size_t, kMaxJsonDepth + 1> members_at_depth{};
  int depth = 0;
  size_t values = 1, members = 0;
  bool in_string = false;
  for (size_t i = 0; i < body.size(); ++i) {
    const char c = body[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
      continue;
    }
    if (c == '"') in_string = true;
    if (c == '[' || c == '{') {
      if (++depth > kMaxJsonDepth) {
        return InvalidRequest(
            fmt::format("the body is nested deeper than {} levels at byte {}", kMaxJsonDepth, i));
      }
      members_at_depth[depth] = 0;
    }
    if ((c == ']' || c == '}') && depth > 0) --depth;
    if ((c == ',' || c == '[' || c == '{') && ++values > kMaxJsonValues) {
      return InvalidRequest(fmt::format("the body has more than {} values", kMaxJsonValues));
    }
    if (c == ':' && ++members > kMaxJsonMembers) {
      return InvalidRequest(fmt::format("the body has more than {} members", kMaxJsonMembers));
    }
    if (c == ':' && ++members_at_depth[depth] > kMaxJsonMembersOfObject) {
      return InvalidRequest(
          fmt::format("an object of the body has more than {} members", kMaxJsonMembersOfObject));
    }
  }
  return std::nullopt;
}

// nlohmann's "[json.exception.parse_error.101] parse error at line 1, column 3: ..." without the tag.
std::string WithoutTag(std::string_view what) {
  const size_t end = what.find("] ");
  return std::string(end == std::string_view::npos ? what : what.substr(end + 2));
}

// At most `limit` bytes, cut between characters.
std::string Shortened(const std::string& text, size_t limit) {
  if (text.size() <= limit) return text;
  size_t end = limit;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return text.substr(0, end) + "...";
}

}  // namespace

std::optional<ApiError> ParseJsonBody(std::string_view body, Json* out) {
  if (std::optional<ApiError> error = CheckJsonSize(body)) return error;
  try {
    *out = Json::parse(body);
  } catch (const nlohmann::json::exception& error) {
    return InvalidRequest("the body is not valid JSON: " + Shortened(WithoutTag(error.what()), 300));
  }
  if (!out->is_object()) {
    return InvalidRequest("the body: expected an object, found " + DescribeJson(*out));
  }
  return std::nullopt;
}

bool ParseJsonText(std::string_view text, Json* out) {
  if (CheckJsonSize(text)) return false;
  *out = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  return !out->is_discarded();
}

std::string DescribeJson(const Json& value) {
  switch (value.type()) {
    case Json::value_t::null: return "null";
    case Json::value_t::object: return "an object";
    case Json::value_t::array: return fmt::format("an array of {}", value.size());
    case Json::value_t::boolean: return value.get<bool>() ? "true" : "false";
    case Json::value_t::string:
      return fmt::format("the string \"{}\"", Shortened(value.get_ref<const std::string&>(), 40));
    default: return "the number " + value.dump();
  }
}

std::string NumberRange::ToString() const {
  return fmt::format("{} {} {} {}", low_open ? "above" : "from", low, high_open ? "to below" : "to",
                     high);
}

const Json* FieldReader::Get(const char* name) const {
  if (failed()) return nullptr;
  const auto found = object_.find(name);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

void FieldReader::Fail(ApiError error) {
  if (!failed()) error_ = std::move(error);
}

void FieldReader::Fail(const std::string& name, std::string_view expected, const Json& found) {
  Fail(InvalidRequest(
      fmt::format("{}{}: expected {}, found {}", prefix_, name, expected, DescribeJson(found)),
      prefix_ + name));
}

void FieldReader::Number(const char* name, const NumberRange& range, float* out) {
  const Json* value = Get(name);
  if (value == nullptr) return;
  const double number = value->is_number() ? value->get<double>() : std::nan("");
  const bool above = range.low_open ? number > range.low : number >= range.low;
  const bool below = range.high_open ? number < range.high : number <= range.high;
  if (!above || !below) return Fail(name, "a number " + range.ToString(), *value);
  *out = static_cast<float>(number);
}

void FieldReader::Integer(const char* name, int64_t low, int64_t high, int64_t* out) {
  const Json* value = Get(name);
  if (value == nullptr) return;
  const bool fits = value->is_number_integer() &&
                    !(value->is_number_unsigned() &&
                      value->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX));
  if (!fits || value->get<int64_t>() < low || value->get<int64_t>() > high) {
    return Fail(name, fmt::format("an integer from {} to {}", low, high), *value);
  }
  *out = value->get<int64_t>();
}

void FieldReader::Unsigned(const char* name, uint32_t low, uint32_t high, uint32_t* out) {
  int64_t wide = *out;
  Integer(name, low, high, &wide);
  *out = static_cast<uint32_t>(wide);
}

void FieldReader::Bool(const char* name, bool* out) {
  const Json* value = Get(name);
  if (value == nullptr) return;
  if (!value->is_boolean()) return Fail(name, "true or false", *value);
  *out = value->get<bool>();
}

void FieldReader::String(const char* name, std::string* out) {
  const Json* value = Get(name);
  if (value == nullptr) return;
  if (!value->is_string()) return Fail(name, "a string", *value);
  *out = value->get_ref<const std::string&>();
}

}  // namespace moraine
