#include "doctor/drive_checks.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/bytes.h"

namespace moraine {
namespace {

using Direct = Target::Direct;

bool HasOption(const Target& target, const std::string& prefix) {
  return std::any_of(target.mount_options.begin(), target.mount_options.end(),
                     [&](const std::string& option) { return option.starts_with(prefix); });
}

bool IsOneOf(const std::string& text, std::initializer_list<const char*> names) {
  return std::any_of(names.begin(), names.end(), [&](const char* name) { return text == name; });
}

std::string NameOf(const std::string& disk) { return disk.substr(disk.rfind('/') + 1); }

Finding NoDisk(const char* check, const Target& target) {
  return {check, FindingStatus::kUnknown,
          fmt::format("no block device is visible below {} ({})", target.mount_point,
                      target.filesystem),
          ""};
}

// The file in the disk's directory or in the nearest one above it that has it: the PCI function of
// a drive is some levels up, with the controller and the transport between.
std::string FindUpwards(const SystemTree& tree, std::string directory, const std::string& name) {
  while (directory.size() > std::string("/sys/devices").size()) {
    if (tree.Exists(directory + "/" + name)) return directory + "/" + name;
    directory.erase(directory.rfind('/'));
  }
  return "";
}

}  // namespace

int DriveNumaNode(const SystemTree& tree, const std::string& disk) {
  return static_cast<int>(tree.ReadNumber(FindUpwards(tree, disk, "numa_node")).value_or(-1));
}

Finding CheckFilesystem(const Target& target) {
  Finding finding{"filesystem", FindingStatus::kOk,
                  fmt::format("{} on {}, mounted at {}", target.filesystem, target.source,
                              target.mount_point),
                  ""};
  const auto say = [&](FindingStatus status, const std::string& found, const std::string& advice) {
    finding.status = status;
    finding.found += "; " + found;
    finding.advice = advice;
    return finding;
  };
  const std::string& type = target.filesystem;
  if (type.empty()) {
    finding.status = FindingStatus::kUnknown;
    finding.found = "the mount of " + target.path + " is not in /proc/self/mountinfo";
    return finding;
  }
  if (IsOneOf(type, {"tmpfs", "ramfs"})) {
    return say(FindingStatus::kProblem, "its files are memory, which the experts' cache needs",
               "put the store on an NVMe drive: moraine import CHECKPOINT /path/on/the/drive");
  }
  if (type == "overlay") {
    return say(FindingStatus::kWarning, "a container's layered file system",
               "mount the drive's directory into the container: docker run -v "
               "/path/on/the/drive:/store ...");
  }
  if (IsOneOf(type, {"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "virtiofs", "lustre"}) ||
      type.starts_with("fuse")) {
    return say(FindingStatus::kWarning,
               "a network or user-space file system: each miss waits for it",
               "copy the store to a local NVMe drive: cp -r " + target.path +
                   " /path/on/the/drive");
  }
  if (HasOption(target, "data=journal")) {
    return say(FindingStatus::kProblem, "data=journal: O_DIRECT reads go through the page cache",
               "remove data=journal from /etc/fstab and mount again, or use another file system");
  }
  if (target.encrypted) {
    return say(target.direct == Direct::kWorks ? FindingStatus::kWarning : FindingStatus::kProblem,
               "the directory is encrypted (fscrypt): every read is decrypted by the CPU",
               "weights are rarely secret: put the store into a directory without encryption");
  }
  if (type == "btrfs" && (target.compressed || HasOption(target, "compress"))) {
    return say(FindingStatus::kProblem,
               "compression is on: compressed extents are read through the page cache",
               "chattr +m DIRECTORY (or mount without compress) on a new directory, and import "
               "into it: packs that are there stay compressed");
  }
  if (type == "btrfs" && !HasOption(target, "nodatasum") && !HasOption(target, "nodatacow")) {
    return say(FindingStatus::kWarning,
               "btrfs verifies a checksum of every 4 KiB read, with the CPU that computes",
               "the store has checksums of its own: chattr +C DIRECTORY on a new, empty directory, "
               "and import into it");
  }
  if (type == "zfs") {
    return say(FindingStatus::kWarning,
               "zfs keeps a second cache (ARC) and honours O_DIRECT only from 2.3 on",
               "use ext4 or xfs, or: zfs set primarycache=metadata compression=off DATASET");
  }
  if (target.encrypted_below) {
    return say(FindingStatus::kWarning,
               "dm-crypt: every read is decrypted by the CPU, in the kernel's threads",
               "put the store on a partition without encryption, or let reads skip the work "
               "queues: cryptsetup refresh --perf-no_read_workqueue --persistent NAME");
  }
  return finding;
}

Finding CheckDirectIo(const Target& target) {
  const std::string advice =
      "use ext4 (without data=journal) or xfs; meanwhile the page cache needs memory beside "
      "--ram-budget";
  switch (target.direct) {
    case Direct::kRefused:
      return {"direct_io", FindingStatus::kProblem,
              target.filesystem + " refuses O_DIRECT: reads go through the page cache", advice};
    case Direct::kBuffered:
      return {"direct_io", FindingStatus::kProblem,
              target.filesystem + " opens with O_DIRECT but reads through the page cache "
                                  "(STATX_DIOALIGN says 0)",
              advice};
    case Direct::kUnknown:
      return {"direct_io", FindingStatus::kUnknown, "no file could be opened to try O_DIRECT", ""};
    case Direct::kWorks:
      break;
  }
  constexpr uint32_t kRecordAlignment = 4096;  // of every record in a pack
  const uint32_t coarsest =
      std::max(target.alignment.offset_bytes, target.alignment.memory_bytes);
  if (kRecordAlignment % coarsest != 0) {
    return {"direct_io", FindingStatus::kProblem,
            fmt::format("O_DIRECT asks for alignment to {} bytes; records are aligned to {}",
                        coarsest, kRecordAlignment),
            "format the file system with a block size of 4096 or less"};
  }
  return {"direct_io", FindingStatus::kOk,
          fmt::format("O_DIRECT works; offsets aligned to {} bytes, memory to {}",
                      target.alignment.offset_bytes, target.alignment.memory_bytes),
          ""};
}

Finding CheckFreeSpace(const Target& target) {
  if (!target.free_bytes || !target.size_bytes || *target.size_bytes == 0) {
    return {"free_space", FindingStatus::kUnknown, "the file system does not say", ""};
  }
  const uint64_t percent = 100 * *target.free_bytes / *target.size_bytes;
  Finding finding{"free_space", FindingStatus::kOk,
                  fmt::format("{} free of {} ({} %)", FormatByteSize(*target.free_bytes),
                              FormatByteSize(*target.size_bytes), percent),
                  ""};
  // Flash drives slow down and files fragment on a nearly full file system; an import needs room
  // for the whole store anyway.
  if (percent < 5) {
    finding.status = FindingStatus::kWarning;
    finding.advice = "an import needs the size of the store, and nearly full drives are slower: "
                     "du -xh --max-depth=1 " +
                     target.mount_point + " | sort -h";
  }
  return finding;
}

Finding CheckDrive(const SystemTree& tree, const Target& target) {
  if (target.disks.empty()) return NoDisk("drive", target);
  Finding finding{"drive", FindingStatus::kOk, "", ""};
  for (const std::string& disk : target.disks) {
    const std::string name = NameOf(disk);
    const std::string model = tree.ReadText(disk + "/device/model").value_or("");
    finding.found += (finding.found.empty() ? "" : "; ") + name;
    const auto words = SplitWords(model);
    if (!words.empty()) finding.found += fmt::format(" ({})", fmt::join(words, " "));
    if (tree.ReadNumber(disk + "/queue/rotational").value_or(0) == 0) continue;
    // A virtual drive says so by default, whatever it is backed by; the curve below tells.
    const bool is_virtual = name.starts_with("vd") || name.starts_with("xvd");
    finding.found += is_virtual ? ", a virtual drive that calls itself rotational" : ", rotational";
    if (is_virtual) continue;
    finding.status = FindingStatus::kProblem;
    finding.advice = "a turning disk seeks for every expert: put the store on an NVMe drive";
  }
  return finding;
}

Finding CheckIoScheduler(const SystemTree& tree, const Target& target) {
  Finding finding{"io_scheduler", FindingStatus::kOk, "", ""};
  for (const std::string& disk : target.disks) {
    // "none [mq-deadline] kyber": the one in use is in brackets.
    const std::string all = tree.ReadText(disk + "/queue/scheduler").value_or("");
    const size_t begin = all.find('['), end = all.find(']');
    if (begin == std::string::npos || end == std::string::npos) continue;
    const std::string scheduler = all.substr(begin + 1, end - begin - 1);
    const std::string name = NameOf(disk);
    finding.found += fmt::format("{}{}: {}", finding.found.empty() ? "" : "; ", name, scheduler);
    // Linux's defaults: none for NVMe, mq-deadline for drives with one queue, as virtual ones.
    const bool usual = scheduler == "none" ||
                       (scheduler == "mq-deadline" && !name.starts_with("nvme"));
    if (usual) continue;
    finding.status = FindingStatus::kWarning;
    finding.advice = "the drive orders requests itself: echo none | sudo tee /sys/block/" + name +
                     "/queue/scheduler";
  }
  if (finding.found.empty()) return NoDisk("io_scheduler", target);
  return finding;
}

Finding CheckReadahead(const SystemTree& tree, const Target& target) {
  Finding finding{"readahead", FindingStatus::kOk, "", ""};
  for (const std::string& disk : target.disks) {
    const auto kib = tree.ReadNumber(disk + "/queue/read_ahead_kb");
    if (!kib) continue;
    const std::string name = NameOf(disk);
    finding.found += fmt::format("{}{}: {} KiB", finding.found.empty() ? "" : "; ", name, *kib);
    // O_DIRECT reads pass it by. Buffered ones read what nobody asked for beyond Linux's 128 KiB.
    constexpr int64_t kUsualKib = 128;
    if (target.direct == Direct::kWorks || *kib <= kUsualKib) continue;
    finding.status = FindingStatus::kWarning;
    finding.advice = "reads go through the page cache here, and read ahead past every expert: echo "
                     "128 | sudo tee /sys/block/" +
                     name + "/queue/read_ahead_kb";
  }
  if (finding.found.empty()) return NoDisk("readahead", target);
  if (target.direct == Direct::kWorks) finding.found += " (not used by O_DIRECT reads)";
  return finding;
}

Finding CheckPcieLink(const SystemTree& tree, const Target& target) {
  Finding finding{"pcie_link", FindingStatus::kUnknown, "", ""};
  for (const std::string& disk : target.disks) {
    const std::string found = FindUpwards(tree, disk, "current_link_width");
    if (found.empty()) continue;
    const std::string device = found.substr(0, found.rfind('/'));
    const auto width = tree.ReadNumber(device + "/current_link_width");
    const auto max_width = tree.ReadNumber(device + "/max_link_width");
    const std::string speed = tree.ReadText(device + "/current_link_speed").value_or("");
    const std::string max_speed = tree.ReadText(device + "/max_link_speed").value_or("");
    if (!width || !max_width || *width == 0 || speed.empty()) continue;
    finding.found += fmt::format("{}{}: {} lanes of {}, {} of {}",
                                 finding.found.empty() ? "" : "; ", NameOf(disk), *width,
                                 *max_width, speed, max_speed);
    if (finding.status == FindingStatus::kUnknown) finding.status = FindingStatus::kOk;
    if (*width == *max_width && speed == max_speed) continue;
    finding.status = FindingStatus::kWarning;
    finding.advice = "the slot gives less than the drive can use: move it to a slot with all lanes "
                     "from the CPU, and check the BIOS's link speed (sudo lspci -vv -s " +
                     NameOf(device) + ")";
  }
  if (finding.found.empty()) finding.found = "no PCIe link is visible (a virtual machine, or SATA)";
  return finding;
}

std::vector<Finding> CheckTarget(const SystemTree& tree, const Target& target) {
  return {CheckFilesystem(target),         CheckDirectIo(target),
          CheckFreeSpace(target),          CheckDrive(tree, target),
          CheckIoScheduler(tree, target),  CheckReadahead(tree, target),
          CheckPcieLink(tree, target)};
}

}  // namespace moraine
