// Readers of JSON that arrives byte by byte, as a model writes it: where a value ends, and the name and
// arguments of a tool call.
#pragma once

#include <string>

namespace moraine {

// Finds the end of one object or array. Thread-compatible.
class JsonSpan {
 public:
  // Before the value only blanks may come; anything but { or [ is `failed`.
  void Feed(char c);
  bool begun() const { return depth_ > 0 || complete_; }
  bool complete() const { return complete_; }
  bool failed() const { return failed_; }

 private:
  int depth_ = 0;
  bool in_string_ = false, escaped_ = false, complete_ = false, failed_ = false;
};

// {"name": "f", "arguments": {...}}, members in any order; "parameters" is taken for arguments too.
// Arguments are handed out as they come. Thread-compatible.
class JsonCallReader {
 public:
  void Feed(char c);
  bool complete() const { return complete_; }
  bool failed() const { return failed_; }
  bool has_name() const { return has_name_; }
  const std::string& name() const { return name_; }
  // The arguments' bytes since the last call.
  std::string TakeArguments() { return std::move(arguments_); }

 private:
  enum class Place : char { kBefore, kBetween, kKey, kColon, kValue };

  void FeedKey(char c);
  void FeedValue(char c);
  void EndValue();

  Place place_ = Place::kBefore;
  std::string key_, value_;
  int depth_ = 0;  // within the value
  bool in_string_ = false, escaped_ = false, streams_ = false;
  bool complete_ = false, failed_ = false, has_name_ = false;
  std::string name_, arguments_;
};

}  // namespace moraine
