#include "memory/mount_table.h"

#include <algorithm>
#include <sstream>

namespace moraine {
namespace {

// mountinfo writes space, tab, newline and backslash as three octal digits.
std::string Unescape(const std::string& text) {
  std::string path;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 3 < text.size()) {
      path += static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 +
                                (text[i + 3] - '0'));
      i += 3;
    } else {
      path += text[i];
    }
  }
  return path;
}

void AppendOptions(const std::string& list, std::vector<std::string>* options) {
  std::istringstream items(list);
  for (std::string item; std::getline(items, item, ',');) options->push_back(item);
}

}  // namespace

bool Mount::HasOption(const std::string& option) const {
  return std::find(options.begin(), options.end(), option) != options.end();
}

std::vector<Mount> ParseMountTable(const std::string& mountinfo) {
  std::vector<Mount> mounts;
  std::istringstream lines(mountinfo);
  for (std::string line; std::getline(lines, line);) {
    // id parent major:minor root mount_point options [optional fields] - type source super_options
    const size_t separator = line.find(" - ");
    if (separator == std::string::npos) continue;
    std::istringstream before(line.substr(0, separator)), after(line.substr(separator + 3));
    std::string skipped, options, super_options;
    Mount mount;
    before >> skipped >> skipped >> mount.device >> mount.root >> mount.mount_point >> options;
    after >> mount.filesystem >> mount.source >> super_options;
    if (mount.source.empty()) continue;
    mount.root = Unescape(mount.root);
    mount.mount_point = Unescape(mount.mount_point);
    mount.source = Unescape(mount.source);
    AppendOptions(options, &mount.options);
    AppendOptions(super_options, &mount.options);
    mounts.push_back(std::move(mount));
  }
  return mounts;
}

}  // namespace moraine
