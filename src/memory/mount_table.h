// The mounts of this process, as /proc/self/mountinfo lists them.
#pragma once

#include <string>
#include <vector>

namespace moraine {

struct Mount {
  std::string device;      // "259:2"
  std::string root;        // what of the file system is seen at mount_point
  std::string mount_point;
  std::string filesystem;  // "ext4"
  std::string source;      // "/dev/nvme0n1p2"
  std::vector<std::string> options;  // of the mount, then of the super block

  bool HasOption(const std::string& option) const;
};

// In the order of the text; lines that are not understood are left out.
std::vector<Mount> ParseMountTable(const std::string& mountinfo);

}  // namespace moraine
