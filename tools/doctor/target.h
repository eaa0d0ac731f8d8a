// Target: where the store is (or will be), with everything about its file system and drive that
// takes a system call to learn. What /proc and /sys tell about it, the checks read for themselves.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "doctor/system_tree.h"
#include "io/block_reader.h"

namespace moraine {

struct Target {
  std::string path;     // of the directory, absolute
  bool is_store = false;

  // Of the mount that holds it, from /proc/self/mountinfo.
  std::string mount_point, filesystem, source;
  std::vector<std::string> mount_options;  // per mount and per super block

  // Sysfs directories of the drives below, partitions, LVM, RAID and dm-crypt followed down to the
  // disks ("/sys/devices/.../nvme0n1"). Empty for a file system without a block device.
  std::vector<std::string> disks;
  bool encrypted_below = false;  // a dm-crypt layer

  // By system calls on a file in it; unset where the system does not say.
  enum class Direct { kUnknown, kRefused, kBuffered, kWorks };
  Direct direct = Direct::kUnknown;  // kBuffered: O_DIRECT opens and reads through the page cache
  IoAlignment alignment;             // for kWorks
  bool encrypted = false, compressed = false;  // FS_IOC_GETFLAGS
  std::optional<uint64_t> free_bytes, size_bytes;
};

// Fills in the mount and the drives of `path` (absolute) from the tree.
void LocateTarget(const SystemTree& tree, const std::string& path, Target* target);
// Asks the kernel about a file: O_DIRECT and its alignment, encryption, compression; and about the
// free space around it. Leaves unknown what the kernel does not say.
void ProbeFile(const std::string& file_path, Target* target);

}  // namespace moraine
