// CHECK: an invariant of our own code does not hold. Prints where and why, and aborts; kept in
// release builds, because a broken residency invariant silently computes wrong tokens.
#pragma once

#include <string>
#include <string_view>

namespace moraine {

[[noreturn]] void CheckFailed(const char* file, int line, const char* condition,
                              std::string_view message);

}  // namespace moraine

#define CHECK(condition, ...)                                                     \
  do {                                                                            \
    if (!(condition)) [[unlikely]]                                                \
      ::moraine::CheckFailed(__FILE__, __LINE__, #condition, std::string{__VA_ARGS__}); \
  } while (false)
