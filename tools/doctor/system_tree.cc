#include "doctor/system_tree.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>

namespace moraine {
namespace {

std::string Trim(const std::string& text) {
  const auto blank = [](unsigned char c) { return std::isspace(c) != 0; };
  auto begin = std::find_if_not(text.begin(), text.end(), blank);
  auto end = std::find_if_not(text.rbegin(), text.rend(), blank).base();
  return begin < end ? std::string(begin, end) : std::string();
}

}  // namespace

std::optional<std::string> SystemTree::ReadText(const std::string& path) const {
  std::error_code error;
  // Opening a directory succeeds, reading from it throws in some libraries.
  if (!std::filesystem::is_regular_file(root_ + path, error)) return std::nullopt;
  std::ifstream file(root_ + path);
  if (!file) return std::nullopt;
  std::string text{std::istreambuf_iterator<char>(file), {}};
  // sysfs answers some reads with an error (EINVAL for a link that is down).
  if (file.bad()) return std::nullopt;
  if (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

std::optional<int64_t> SystemTree::ReadNumber(const std::string& path) const {
  const auto text = ReadText(path);
  if (!text) return std::nullopt;
  const std::string trimmed = Trim(*text);
  int64_t value = 0;
  const auto [end, error] =
      std::from_chars(trimmed.data(), trimmed.data() + trimmed.size(), value);
  if (error != std::errc()) return std::nullopt;
  return value;
}

std::optional<std::string> SystemTree::ReadField(const std::string& path,
                                                 const std::string& key) const {
  const auto text = ReadText(path);
  if (!text) return std::nullopt;
  for (const std::string& line : SplitAt(*text, '\n')) {
    if (line.starts_with(key)) return Trim(line.substr(key.size()));
  }
  return std::nullopt;
}

bool SystemTree::Exists(const std::string& path) const {
  std::error_code error;
  return std::filesystem::exists(root_ + path, error);
}

std::vector<std::string> SystemTree::List(const std::string& path) const {
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(root_ + path, error)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::string SystemTree::Resolve(const std::string& path) const {
  std::error_code error;
  const std::string resolved = std::filesystem::canonical(root_ + path, error).string();
  if (error) return "";
  const std::string root = root_.empty() ? "" : std::filesystem::canonical(root_, error).string();
  // A link that leads out of the tree is none of this machine's.
  return resolved.starts_with(root) ? resolved.substr(root.size()) : "";
}

std::vector<std::string> SplitWords(const std::string& text) {
  std::istringstream stream(text);
  return {std::istream_iterator<std::string>(stream), {}};
}

std::vector<std::string> SplitAt(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  return parts;
}

bool CpuListContains(const std::string& list, int cpu) {
  for (const std::string& range : SplitAt(list, ',')) {
    int first = 0, last = 0;
    const char* const end = range.data() + range.size();
    const auto parsed = std::from_chars(range.data(), end, first);
    if (parsed.ec != std::errc()) continue;
    last = first;
    if (parsed.ptr < end && *parsed.ptr == '-') std::from_chars(parsed.ptr + 1, end, last);
    if (first <= cpu && cpu <= last) return true;
  }
  return false;
}

int FirstOfCpuList(const std::string& list) {
  int first = -1;
  const auto parsed = std::from_chars(list.data(), list.data() + list.size(), first);
  return parsed.ec == std::errc() ? first : -1;
}

}  // namespace moraine
