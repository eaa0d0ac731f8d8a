#include "fio_process.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

extern char** environ;

namespace moraine {
namespace {

// fio separates file names with colons.
std::string JoinPaths(const std::vector<std::string>& paths) {
  std::string joined;
  for (const std::string& path : paths) {
    if (!joined.empty()) joined += ':';
    for (const char c : path) {
      if (c == ':' || c == '\\') joined += '\\';
      joined += c;
    }
  }
  return joined;
}

Result<std::string> ReadToEnd(int descriptor) {
  std::string text;
  std::array<char, 65536> buffer;
  while (true) {
    const ssize_t count = read(descriptor, buffer.data(), buffer.size());
    if (count == 0) return text;
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return IoErrorFromErrno("reading fio's output", errno);
    text.append(buffer.data(), static_cast<size_t>(count));
  }
}

// Standard output of a child process that succeeds.
Result<std::string> RunAndCapture(const std::vector<std::string>& command) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return IoErrorFromErrno("pipe", errno);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
  std::vector<char*> arguments;
  for (const std::string& word : command) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  pid_t child = -1;
  const int error =
      posix_spawnp(&child, arguments[0], &actions, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  close(ends[1]);
  if (error != 0) {
    close(ends[0]);
    if (error == ENOENT) return NotFound(command[0] + " is not installed");
    return IoErrorFromErrno("starting " + command[0], error);
  }
  Result<std::string> output = ReadToEnd(ends[0]);
  close(ends[0]);
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  RETURN_IF_ERROR(output.status());
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    return IoError(command[0] + " failed" +
                   (WIFEXITED(status) ? " with exit code " + std::to_string(WEXITSTATUS(status))
                                      : std::string()) +
                   ": " + output->substr(0, 400));
  }
  return output;
}

}  // namespace

std::vector<std::string> FioCommand(const FioOptions& options) {
  return {"fio",
          "--name=moraine",
          "--filename=" + JoinPaths(options.paths),
          "--file_service_type=random",
          "--readonly",
          "--rw=randread",
          "--norandommap",
          "--randrepeat=0",
          "--bs=" + std::to_string(options.request_bytes),
          "--iodepth=" + std::to_string(options.depth),
          "--direct=" + std::to_string(options.direct ? 1 : 0),
          "--ioengine=io_uring",
          "--fixedbufs",
          "--registerfiles",
          "--time_based",
          "--runtime=" + std::to_string(std::lround(options.seconds * 1000)) + "ms",
          "--output-format=json"};
}

Result<FioResult> ParseFioOutput(const std::string& output) {
  using Json = nlohmann::json;
  // Warnings may come first.
  const size_t begin = output.find('{');
  const Json document =
      begin == std::string::npos ? Json() : Json::parse(output.substr(begin), nullptr, false);
  if (!document.is_object()) return Corruption("fio printed no JSON: " + output.substr(0, 200));
  const auto number = [&](const char* pointer) -> Result<double> {
    const Json::json_pointer place(pointer);
    if (!document.contains(place) || !document[place].is_number()) {
      return Corruption(std::string("fio's output: no number at ") + pointer);
    }
    return document[place].get<double>();
  };
  ASSIGN_OR_RETURN(const double bytes_per_s, number("/jobs/0/read/bw_bytes"));
  ASSIGN_OR_RETURN(const double p50_ns, number("/jobs/0/read/clat_ns/percentile/50.000000"));
  ASSIGN_OR_RETURN(const double p99_ns, number("/jobs/0/read/clat_ns/percentile/99.000000"));
  ASSIGN_OR_RETURN(const double user_percent, number("/jobs/0/usr_cpu"));
  ASSIGN_OR_RETURN(const double system_percent, number("/jobs/0/sys_cpu"));
  if (bytes_per_s <= 0) return Corruption("fio read nothing");
  FioResult result;
  result.gb_per_s = bytes_per_s * 1e-9;
  result.p50_us = p50_ns * 1e-3;
  result.p99_us = p99_ns * 1e-3;
  result.core_percent = user_percent + system_percent;
  result.cpu_s_per_gb = result.core_percent / 100 / result.gb_per_s;
  return result;
}

Result<FioResult> RunFio(const FioOptions& options) {
  ASSIGN_OR_RETURN(const std::string output, RunAndCapture(FioCommand(options)));
  return ParseFioOutput(output);
}

}  // namespace moraine
