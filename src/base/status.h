// Status and Result<T>: how expected failures travel.
//
// No exception crosses a folder of src/; a function that can fail for a reason outside the program
// returns one of these, and the message names the file, the offset, the field, what was found and
// what was expected. Bugs of our own are CHECKs (check.h), never Statuses.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "base/check.h"

namespace moraine {

enum class StatusCode {
  kOk = 0,
  kInvalidArgument,     // the caller's input is wrong and will be wrong again
  kNotFound,            // a file, tensor or record that should be there is not
  kCorruption,          // bytes do not match their checksum or their format
  kIoError,             // the operating system refused or failed a read or a write
  kResourceExhausted,   // a budget, a queue, a disk is full
  kFailedPrecondition,  // right input, wrong state (store opened twice, import incomplete)
  kUnsupported,         // understood, but this build or version does not do it
  kCancelled,           // the caller gave up
  kDeadlineExceeded,
  kInternal,
};

std::string_view StatusCodeName(StatusCode code);

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == StatusCode::kOk; }
  StatusCode code() const { return code_; }
  const std::string& message() const { return message_; }
  // "corruption: <message>"; "ok" for success.
  std::string ToString() const;
  // The same status with `context + ": "` in front of its message.
  Status WithContext(std::string_view context) const;

 private:
  StatusCode code_ = StatusCode::kOk;
  std::string message_;
};

inline Status OkStatus() { return Status(); }
Status InvalidArgument(std::string message);
Status NotFound(std::string message);
Status Corruption(std::string message);
Status IoError(std::string message);
// "<what>: <strerror(error_number)>", kResourceExhausted for ENOSPC/EDQUOT/ENOMEM.
Status IoErrorFromErrno(std::string_view what, int error_number);
Status ResourceExhausted(std::string message);
Status FailedPrecondition(std::string message);
Status Unsupported(std::string message);
Status Cancelled(std::string message);
Status DeadlineExceeded(std::string message);
Status Internal(std::string message);

template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}  // NOLINT: implicit by design, as in absl
  Result(Status status) : status_(std::move(status)) {  // NOLINT
    CHECK(!status_.ok(), "a Result needs a value or an error");
  }

  bool ok() const { return value_.has_value(); }
  const Status& status() const { return status_; }
  T& value() & {
    CHECK(ok(), status_.message());
    return *value_;
  }
  const T& value() const& {
    CHECK(ok(), status_.message());
    return *value_;
  }
  T&& value() && {
    CHECK(ok(), status_.message());
    return std::move(*value_);
  }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

 private:
  Status status_;
  std::optional<T> value_;
};

#define MORAINE_CONCAT_INNER(a, b) a##b
#define MORAINE_CONCAT(a, b) MORAINE_CONCAT_INNER(a, b)

#define RETURN_IF_ERROR(expression)                       \
  do {                                                    \
    ::moraine::Status status_of_expression = (expression); \
    if (!status_of_expression.ok()) return status_of_expression; \
  } while (false)

// ASSIGN_OR_RETURN(auto file, OpenFile(path));
#define ASSIGN_OR_RETURN(declaration, expression) \
  ASSIGN_OR_RETURN_INNER(MORAINE_CONCAT(result_of_line_, __LINE__), declaration, expression)
#define ASSIGN_OR_RETURN_INNER(result, declaration, expression) \
  auto result = (expression);                                   \
  if (!result.ok()) return result.status();                     \
  declaration = std::move(result).value()

}  // namespace moraine
