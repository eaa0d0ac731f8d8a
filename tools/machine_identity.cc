#include "machine_identity.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <set>

#include "base/bytes.h"
#include "doctor/target.h"
#include "engine/gpu/gpu_rates.h"
#include "memory/topology.h"

namespace moraine {
namespace {

std::string Gibibytes(uint64_t bytes) { return fmt::format("{} GiB", (bytes + kGiB / 2) / kGiB); }

// "Intel(R) ...": /proc/cpuinfo has the colon and blanks in front.
std::string CpuName(const SystemTree& tree) {
  std::string name = tree.ReadField("/proc/cpuinfo", "model name").value_or("");
  const size_t begin = name.find_first_not_of(": \t");
  return begin == std::string::npos ? "unknown" : name.substr(begin);
}

// What stays the same when disks are found in another order: model and serial number, where there are any, and
// the size. Names like vda where there is neither.
std::string DriveName(const SystemTree& tree, const std::string& directory) {
  std::error_code error;
  const std::filesystem::path path = std::filesystem::canonical(directory, error);
  if (error) return "unknown";
  Target target;
  LocateTarget(tree, path.string(), &target);
  std::vector<std::string> names;
  for (const std::string& disk : target.disks) {
    std::string name;
    for (const char* file : {"/device/model", "/device/serial", "/serial"}) {
      const std::vector<std::string> words = SplitWords(tree.ReadText(disk + file).value_or(""));
      for (const std::string& word : words) name += (name.empty() ? "" : " ") + word;
    }
    if (name.empty()) name = disk.substr(disk.rfind('/') + 1);
    const int64_t sectors = tree.ReadNumber(disk + "/size").value_or(0);
    names.push_back(fmt::format("{} {}", name, FormatByteSize(static_cast<uint64_t>(sectors) * 512)));
  }
  std::ranges::sort(names);
  if (names.empty()) return target.filesystem.empty() ? "unknown" : target.filesystem;
  return fmt::format("{}", fmt::join(names, ", "));
}

}  // namespace

std::vector<std::pair<std::string, std::string>> IdentifyMachine(const SystemTree& tree,
                                                                 const std::string& directory,
                                                                 bool with_gpu) {
  const Result<MemoryLimit> memory = DetectMemoryLimit(tree.root());
  std::vector<std::pair<std::string, std::string>> fields = {
      {"CPU", CpuName(tree)},
      {"CPUs", std::to_string(Topology::Detect().cpu_count())},
      {"memory", memory.ok() ? Gibibytes(memory->limit_bytes) : "unknown"},
      {"drive", DriveName(tree, directory)}};
  if (with_gpu) {
    const Result<GpuIdentity> gpu = IdentifyGpu();
    fields.emplace_back("GPU", gpu.ok() ? gpu->name : "none");
    if (gpu.ok()) fields.emplace_back("VRAM", Gibibytes(gpu->total_bytes));
  }
  return fields;
}

int PhysicalCoreCount(const SystemTree& tree) {
  std::set<std::string> cores;
  for (const NumaNode& node : Topology::Detect().nodes) {
    for (const int cpu : node.cpus) {
      const std::string file =
          fmt::format("/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list", cpu);
      cores.insert(tree.ReadText(file).value_or(std::to_string(cpu)));
    }
  }
  return static_cast<int>(cores.size());
}

}  // namespace moraine
