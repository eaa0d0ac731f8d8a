// DetectMemoryLimit and ReadProcessMemory: parsing of /proc and of the cgroup file systems.
//
// Limits of every ancestor apply, not only the leaf's: Kubernetes limits the pod's cgroup, systemd
// the slice's. So each directory from the process's own up to the mount point is read.
#include <algorithm>
#include <charconv>
#include <fstream>
#include <limits>
#include <sstream>

#include "memory/mount_table.h"
#include "memory/topology.h"

namespace moraine {
namespace {

constexpr uint64_t kNoLimit = std::numeric_limits<uint64_t>::max();

std::optional<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path);
  if (!file) return std::nullopt;
  std::stringstream contents;
  contents << file.rdbuf();
  return contents.str();
}

std::optional<uint64_t> ParseNumber(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end == text.data()) return std::nullopt;
  return value;
}

// The number behind `key` at the start of a line ("MemTotal:", "total_inactive_file ").
std::optional<uint64_t> FieldOf(const std::string& text, std::string_view key) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.compare(0, key.size(), key) == 0) {
      return ParseNumber(std::string_view(line).substr(key.size()));
    }
  }
  return std::nullopt;
}

bool HasListItem(const std::string& list, std::string_view wanted) {
  std::istringstream items(list);
  for (std::string item; std::getline(items, item, ',');) {
    if (item == wanted) return true;
  }
  return false;
}

// Where a (part of a) cgroup hierarchy is visible. version: 1 finds the hierarchy of the memory
// controller, 2 the unified one.
std::optional<Mount> FindCgroupMount(const std::string& mountinfo, int version) {
  for (const Mount& mount : ParseMountTable(mountinfo)) {
    const bool matches = version == 2 ? mount.filesystem == "cgroup2"
                                      : mount.filesystem == "cgroup" && mount.HasOption("memory");
    if (matches) return mount;
  }
  return std::nullopt;
}

// The process's cgroup: the third field of "<id>:<controllers>:<path>".
std::optional<std::string> FindCgroupPath(const std::string& cgroup, int version) {
  std::istringstream lines(cgroup);
  for (std::string line; std::getline(lines, line);) {
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool matches = version == 2 ? line.compare(0, first, "0") == 0 && controllers.empty()
                                      : HasListItem(controllers, "memory");
    if (matches) return line.substr(second + 1);
  }
  return std::nullopt;
}

// The cgroup's path below the mount point: "" or "/a/b". A container may see only its own subtree,
// or a path of another namespace ("/../x"); then the mount point itself is all there is to read.
std::string PathBelowMount(const std::string& cgroup_path, const std::string& mount_root) {
  std::string path = cgroup_path;
  if (mount_root != "/") {
    const bool inside = path.compare(0, mount_root.size(), mount_root) == 0 &&
                        (path.size() == mount_root.size() || path[mount_root.size()] == '/');
    if (!inside) return "";
    path.erase(0, mount_root.size());
  }
  if (path == "/" || path.find("/..") != std::string::npos) return "";
  return path;
}

// What a cgroup uses and cannot give back: page cache and reclaimable slab do not count, since the
// kernel drops them before it refuses memory.
uint64_t UnreclaimableUsage(const std::string& directory, int version) {
  const auto usage =
      ReadFile(directory + (version == 2 ? "/memory.current" : "/memory.usage_in_bytes"));
  const uint64_t used_bytes = usage ? ParseNumber(*usage).value_or(0) : 0;
  const auto stat = ReadFile(directory + "/memory.stat");
  if (!stat) return used_bytes;
  uint64_t reclaimable_bytes = 0;
  if (version == 2) {
    for (const char* key : {"inactive_file ", "active_file ", "slab_reclaimable "}) {
      reclaimable_bytes += FieldOf(*stat, key).value_or(0);
    }
  } else {
    for (const char* key : {"total_inactive_file ", "total_active_file "}) {
      reclaimable_bytes += FieldOf(*stat, key).value_or(0);
    }
  }
  return used_bytes - std::min(used_bytes, reclaimable_bytes);
}

// Lowers `limit` by every limit on the path of this process in the given hierarchy.
void ApplyCgroupLimits(const std::string& root, int version, MemoryLimit* limit) {
  const auto cgroup = ReadFile(root + "/proc/self/cgroup");
  const auto mountinfo = ReadFile(root + "/proc/self/mountinfo");
  if (!cgroup || !mountinfo) return;
  const auto cgroup_path = FindCgroupPath(*cgroup, version);
  const auto mount = FindCgroupMount(*mountinfo, version);
  if (!cgroup_path || !mount) return;

  const char* const limit_file = version == 2 ? "memory.max" : "memory.limit_in_bytes";
  std::string path = PathBelowMount(*cgroup_path, mount->root);
  while (true) {
    const std::string directory = root + mount->mount_point + path;
    const auto text = ReadFile(directory + "/" + limit_file);
    // "max", and v1's 2^63 minus a page, mean none; so does anything above the physical memory.
    const uint64_t limit_bytes = text ? ParseNumber(*text).value_or(kNoLimit) : kNoLimit;
    if (limit_bytes < limit->limit_bytes) {
      limit->limit_bytes = limit_bytes;
      limit->source = "cgroup v" + std::to_string(version) + " " + limit_file;
    }
    if (limit_bytes != kNoLimit) {
      const uint64_t used_bytes = UnreclaimableUsage(directory, version);
      limit->available_bytes =
          std::min(limit->available_bytes, limit_bytes - std::min(limit_bytes, used_bytes));
    }
    if (path.empty()) break;
    path.erase(path.rfind('/'));
  }
}

}  // namespace

Result<MemoryLimit> DetectMemoryLimit(const std::string& root) {
  const std::string meminfo_path = root + "/proc/meminfo";
  const auto meminfo = ReadFile(meminfo_path);
  if (!meminfo) return NotFound(meminfo_path + ": cannot be read");
  const auto total_kib = FieldOf(*meminfo, "MemTotal:");
  if (!total_kib) return Corruption(meminfo_path + ": no MemTotal");
  MemoryLimit limit;
  limit.limit_bytes = *total_kib * 1024;
  limit.available_bytes = FieldOf(*meminfo, "MemAvailable:").value_or(*total_kib) * 1024;
  limit.source = "MemTotal";
  // Both: in the hybrid layout the memory controller is in one of them, and only there are limits.
  ApplyCgroupLimits(root, 2, &limit);
  ApplyCgroupLimits(root, 1, &limit);
  return limit;
}

ProcessMemory ReadProcessMemory() {
  ProcessMemory memory;
  const auto status = ReadFile("/proc/self/status");
  if (!status) return memory;
  memory.resident_bytes = FieldOf(*status, "VmRSS:").value_or(0) * 1024;
  memory.peak_resident_bytes = FieldOf(*status, "VmHWM:").value_or(0) * 1024;
  return memory;
}

}  // namespace moraine
