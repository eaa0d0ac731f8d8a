// fio, the yardstick of `moraine bench io`: run as a child process on the same files, with the same
// request size and depth. Nothing but the benchmark needs it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"

namespace moraine {

struct FioOptions {
  std::vector<std::string> paths;
  uint64_t request_bytes = 0;
  uint32_t depth = 1;
  double seconds = 1;
  bool direct = true;
};

struct FioResult {
  double gb_per_s = 0;
  double p50_us = 0, p99_us = 0;  // of one request, from submission to completion
  double cpu_s_per_gb = 0;
  double core_percent = 0;
};

// The command line, program first: random reads by io_uring with registered buffers and files, one
// job. For messages and documentation as well.
std::vector<std::string> FioCommand(const FioOptions& options);

// The figures of fio's JSON output. kCorruption names the missing field.
Result<FioResult> ParseFioOutput(const std::string& output);

// Runs it and waits. kNotFound if fio is not installed, kIoError if it fails (its messages go to
// stderr).
Result<FioResult> RunFio(const FioOptions& options);

}  // namespace moraine
