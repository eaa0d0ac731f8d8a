// Reading fields of a JSON request with errors that name the field, what was found and what was
// expected; and the guarded parse in front of it.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "server/api_error.h"

namespace moraine {

using Json = nlohmann::ordered_json;

// Untrusted text -> value. Refused: nesting beyond kMaxJsonDepth, more than kMaxJsonValues values,
// invalid UTF-8, anything but an object. Of duplicate keys the last one wins, as everywhere.
std::optional<ApiError> ParseJsonBody(std::string_view body, Json* out);
// The same for text within a body, or by a model: any value; false if it is none or breaks a limit.
bool ParseJsonText(std::string_view text, Json* out);
// A message with parts is 5 deep; the rest is for template variables.
inline constexpr int kMaxJsonDepth = 64;
// A value takes 16 to 100 bytes in memory whatever it took on the wire (",1"): this bounds a hostile
// body to about what an honest one of 64 MiB needs. The longest prompts of token ids are 1 Mi.
inline constexpr size_t kMaxJsonValues = size_t{2} << 20;
// ordered_json looks keys up by a linear search, also while parsing: without these two limits a body of
// a million keys would cost hours. At them, the worst body takes about 0.3 s.
inline constexpr size_t kMaxJsonMembersOfObject = 1024;
inline constexpr size_t kMaxJsonMembers = 256 * 1024;

// "the number 3", "the string \"abc\"", "an array": for messages, cut to a readable length.
std::string DescribeJson(const Json& value);

struct NumberRange {
  double low, high;
  bool low_open = false, high_open = false;
  std::string ToString() const;  // "from 0 to 2", "above 0 to 100", "from 0 to below 1"
};

// Fields of one object. An absent or null field leaves the output as it was. The first error is kept
// and later reads do nothing, so that callers read all fields and ask once.
class FieldReader {
 public:
  // `prefix`: in front of field names in messages, e.g. "stream_options.".
  explicit FieldReader(const Json& object, std::string prefix = "")
      : object_(object), prefix_(std::move(prefix)) {}

  void Number(const char* name, const NumberRange& range, float* out);
  void Integer(const char* name, int64_t low, int64_t high, int64_t* out);
  void Unsigned(const char* name, uint32_t low, uint32_t high, uint32_t* out);
  void Bool(const char* name, bool* out);
  void String(const char* name, std::string* out);
  // Null if absent, null or after an error.
  const Json* Get(const char* name) const;

  // "NAME: expected WHAT, found ...".
  void Fail(const std::string& name, std::string_view expected, const Json& found);
  void Fail(ApiError error);
  bool failed() const { return error_.has_value(); }
  const std::optional<ApiError>& error() const { return error_; }

 private:
  const Json& object_;
  std::string prefix_;
  std::optional<ApiError> error_;
};

}  // namespace moraine
