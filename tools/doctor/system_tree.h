// SystemTree: /proc and /sys under a prefix, so that a test can play any machine.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace moraine {

// Reads only. Every method takes a path as the kernel names it ("/proc/swaps"). Thread-compatible.
class SystemTree {
 public:
  explicit SystemTree(std::string root = "") : root_(std::move(root)) {}

  const std::string& root() const { return root_; }
  // The contents without the last newline; nothing if the file cannot be read.
  std::optional<std::string> ReadText(const std::string& path) const;
  // The first number in the file, which may be negative.
  std::optional<int64_t> ReadNumber(const std::string& path) const;
  // Rest of the line that starts with `key` ("CapEff:"), without blanks around it.
  std::optional<std::string> ReadField(const std::string& path, const std::string& key) const;
  bool Exists(const std::string& path) const;
  // Names in a directory, sorted; empty if there is none.
  std::vector<std::string> List(const std::string& path) const;
  // The path with symbolic links resolved, as the kernel names it; "" if it does not exist.
  std::string Resolve(const std::string& path) const;

 private:
  std::string root_;
};

// "a b  c" -> {"a", "b", "c"}.
std::vector<std::string> SplitWords(const std::string& text);
std::vector<std::string> SplitAt(const std::string& text, char separator);
// "0-3,8" contains 2.
bool CpuListContains(const std::string& list, int cpu);
// The first number of a CPU list, or -1.
int FirstOfCpuList(const std::string& list);

}  // namespace moraine
