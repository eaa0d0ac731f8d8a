#include "doctor/target.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "memory/mount_table.h"

namespace moraine {
namespace {

bool IsBelow(const std::string& path, const std::string& directory) {
  if (directory == "/") return true;
  return path.starts_with(directory) &&
         (path.size() == directory.size() || path[directory.size()] == '/');
}

// Follows partitions and stacked devices (LVM, md, dm-crypt) down to the disks.
void FollowDown(const SystemTree& tree, const std::string& device, int levels, Target* target) {
  if (device.empty() || levels == 0) return;
  if (tree.Exists(device + "/partition")) {
    FollowDown(tree, device.substr(0, device.rfind('/')), levels - 1, target);
    return;
  }
  const auto uuid = tree.ReadText(device + "/dm/uuid");
  if (uuid && uuid->starts_with("CRYPT")) target->encrypted_below = true;
  const std::vector<std::string> below = tree.List(device + "/slaves");
  for (const std::string& name : below) {
    FollowDown(tree, tree.Resolve(device + "/slaves/" + name), levels - 1, target);
  }
  if (!below.empty()) return;
  if (std::find(target->disks.begin(), target->disks.end(), device) == target->disks.end()) {
    target->disks.push_back(device);
  }
}

void ProbeDirect(const std::string& path, Target* target) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
  if (descriptor < 0) {
    if (errno == EINVAL) target->direct = Target::Direct::kRefused;
    return;
  }
  target->direct = Target::Direct::kWorks;
#ifdef STATX_DIOALIGN  // Linux 6.1
  struct statx status = {};
  if (statx(descriptor, "", AT_EMPTY_PATH, STATX_DIOALIGN, &status) == 0 &&
      (status.stx_mask & STATX_DIOALIGN) != 0) {
    if (status.stx_dio_offset_align == 0) {
      target->direct = Target::Direct::kBuffered;
    } else {
      target->alignment = {status.stx_dio_offset_align, status.stx_dio_mem_align};
    }
  }
#endif
  close(descriptor);
}

}  // namespace

void LocateTarget(const SystemTree& tree, const std::string& path, Target* target) {
  target->path = path;
  std::string device;
  for (const Mount& mount : ParseMountTable(tree.ReadText("/proc/self/mountinfo").value_or(""))) {
    // The longest mount point wins, and of two on one place the later one, which hides the other.
    if (!IsBelow(path, mount.mount_point)) continue;
    if (mount.mount_point.size() < target->mount_point.size()) continue;
    target->mount_point = mount.mount_point;
    target->filesystem = mount.filesystem;
    target->source = mount.source;
    target->mount_options = mount.options;
    device = mount.device;
  }
  std::string directory = device.empty() ? "" : tree.Resolve("/sys/dev/block/" + device);
  // btrfs and others mount with a device number of their own; the source names a real one.
  if (directory.empty() && target->source.starts_with("/dev/")) {
    std::string source = tree.Resolve(target->source);  // /dev/mapper/x is a link to /dev/dm-0
    if (source.empty()) source = target->source;
    directory = tree.Resolve("/sys/class/block/" + source.substr(source.rfind('/') + 1));
  }
  constexpr int kMaxLevels = 8;  // of stacked devices; real ones have up to four
  FollowDown(tree, directory, kMaxLevels, target);
}

void ProbeFile(const std::string& file_path, Target* target) {
  ProbeDirect(file_path, target);
  const int descriptor = open(file_path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return;
  long flags = 0;  // the kernel writes an int, some FUSE file systems a long
  if (ioctl(descriptor, FS_IOC_GETFLAGS, &flags) == 0) {
    target->encrypted = (flags & FS_ENCRYPT_FL) != 0;
    target->compressed = (flags & FS_COMPR_FL) != 0;
  }
  struct statvfs space = {};
  if (fstatvfs(descriptor, &space) == 0 && space.f_blocks > 0) {
    target->free_bytes = static_cast<uint64_t>(space.f_bavail) * space.f_frsize;
    target->size_bytes = static_cast<uint64_t>(space.f_blocks) * space.f_frsize;
  }
  close(descriptor);
}

}  // namespace moraine
