// Finding: what one check of `moraine doctor` says.
#pragma once

#include <string>

namespace moraine {

enum class FindingStatus {
  kOk,
  kWarning,  // works, slower or less surely than it could
  kProblem,  // far from what the drive can do, or will not work
  kUnknown,  // this machine does not tell
};

struct Finding {
  std::string check;  // "io_uring", "memlock"
  FindingStatus status = FindingStatus::kOk;
  std::string found;   // what is so
  std::string advice;  // what to do, with the command; empty if nothing
};

constexpr const char* FindingStatusName(FindingStatus status) {
  switch (status) {
    case FindingStatus::kOk:
      return "ok";
    case FindingStatus::kWarning:
      return "warning";
    case FindingStatus::kProblem:
      return "problem";
    case FindingStatus::kUnknown:
      break;
  }
  return "unknown";
}

}  // namespace moraine
