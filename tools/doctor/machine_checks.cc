#include "doctor/machine_checks.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <map>

#include "base/bytes.h"
#include "doctor/drive_checks.h"
#include "memory/topology.h"

namespace moraine {
namespace {

// From <linux/capability.h>: lifts RLIMIT_MEMLOCK.
constexpr int kCapIpcLock = 14;

bool HasCapability(const SystemTree& tree, int capability) {
  const std::string mask = tree.ReadField("/proc/self/status", "CapEff:").value_or("");
  uint64_t bits = 0;
  std::from_chars(mask.data(), mask.data() + mask.size(), bits, 16);
  return (bits >> capability & 1) != 0;
}

}  // namespace

Finding CheckIoUring(const SystemTree& tree, const ProcessFacts& facts) {
  Finding finding{"io_uring", FindingStatus::kOk, "available", ""};
  const int64_t disabled = tree.ReadNumber("/proc/sys/kernel/io_uring_disabled").value_or(0);
  const std::string fallback = "; experts are read by pread threads, at several times the CPU time";
  if (facts.io_uring_error.value_or(0) != 0) {
    finding.status = FindingStatus::kProblem;
    finding.found = fmt::format("refused: {}", std::strerror(*facts.io_uring_error)) + fallback;
    if (*facts.io_uring_error == ENOSYS) {
      finding.advice = "use Linux 5.11 or newer, with CONFIG_IO_URING";
      return finding;
    }
  }
  if (disabled != 0) {
    if (finding.status == FindingStatus::kProblem || !facts.io_uring_error) {
      finding.status = FindingStatus::kProblem;
      finding.found = fmt::format("kernel.io_uring_disabled is {}", disabled) + fallback;
      finding.advice =
          "sudo sysctl -w kernel.io_uring_disabled=0 (for good: echo kernel.io_uring_disabled=0 | "
          "sudo tee /etc/sysctl.d/99-io-uring.conf)";
    } else {
      // 1: for those without CAP_SYS_ADMIN who are not in io_uring_group.
      finding.found = fmt::format("available to this user; io_uring_disabled is {}", disabled);
    }
    return finding;
  }
  if (finding.status == FindingStatus::kOk) {
    if (!facts.io_uring_error) finding.found = "not disabled; not tried";
    return finding;
  }
  const bool filtered = tree.ReadField("/proc/self/status", "Seccomp:").value_or("0") == "2";
  finding.advice =
      filtered ? "a seccomp filter, as containers have it: docker run --security-opt "
                 "seccomp=unconfined, or a profile that allows io_uring_setup, io_uring_enter and "
                 "io_uring_register"
               : "look for a security module that denies it: sudo journalctl -k | grep -i io_uring";
  return finding;
}

Finding CheckMemlock(const SystemTree& tree) {
  // "Max locked memory         8388608              8388608              bytes"
  const auto limits = tree.ReadField("/proc/self/limits", "Max locked memory");
  if (!limits || SplitWords(*limits).empty()) {
    return {"memlock", FindingStatus::kUnknown, "no limit is listed in /proc/self/limits", ""};
  }
  const std::string soft = SplitWords(*limits)[0];
  if (soft == "unlimited") return {"memlock", FindingStatus::kOk, "no limit of locked memory", ""};
  uint64_t limit_bytes = 0;
  std::from_chars(soft.data(), soft.data() + soft.size(), limit_bytes);
  const std::string found = FormatByteSize(limit_bytes) + " of memory may be locked";
  if (HasCapability(tree, kCapIpcLock)) {
    return {"memlock", FindingStatus::kOk, found + ", but this user is exempt (CAP_IPC_LOCK)", ""};
  }
  const Result<MemoryLimit> memory = DetectMemoryLimit(tree.root());
  if (memory.ok() && limit_bytes >= memory->limit_bytes) {
    return {"memlock", FindingStatus::kOk, found + ", more than there is", ""};
  }
  return {"memlock", FindingStatus::kWarning,
          found + ": expert slots beyond it are not registered with io_uring, and each read pins "
                  "its pages anew",
          "ulimit -l unlimited; for a user: echo \"$USER - memlock unlimited\" | sudo tee "
          "/etc/security/limits.d/99-moraine.conf, and log in again; in a systemd unit: "
          "LimitMEMLOCK=infinity; docker run --ulimit memlock=-1"};
}

Finding CheckMemory(const SystemTree& tree) {
  const Result<MemoryLimit> memory = DetectMemoryLimit(tree.root());
  if (!memory.ok()) return {"memory", FindingStatus::kUnknown, memory.status().message(), ""};
  const bool by_cgroup = memory->source != "MemTotal";
  Finding finding{"memory", FindingStatus::kOk,
                  fmt::format("{} may be used, {} are free ({})",
                              FormatByteSize(memory->limit_bytes),
                              FormatByteSize(memory->available_bytes),
                              by_cgroup ? memory->source : "the machine's memory"),
                  ""};
  if (by_cgroup) {
    finding.advice = "the cgroup's limit is below the machine's memory; to raise it: docker run "
                     "--memory, resources.limits.memory in Kubernetes, or sudo systemctl "
                     "set-property UNIT MemoryMax=";
  }
  // Less than this leaves no room for the dense weights of any model worth streaming.
  constexpr uint64_t kLittleBytes = 2 * kGiB;
  if (memory->available_bytes < kLittleBytes) {
    finding.status = FindingStatus::kWarning;
    if (!by_cgroup) finding.advice = "end what else uses memory: ps aux --sort -rss | head";
  }
  return finding;
}

Finding CheckSwap(const SystemTree& tree) {
  const auto swaps = tree.ReadText("/proc/swaps");
  if (!swaps) return {"swap", FindingStatus::kUnknown, "/proc/swaps cannot be read", ""};
  uint64_t size_kib = 0, used_kib = 0;
  for (const std::string& line : SplitAt(*swaps, '\n')) {
    const auto words = SplitWords(line);  // Filename Type Size Used Priority
    if (words.size() < 4 || words[0] == "Filename") continue;
    size_kib += std::strtoull(words[2].c_str(), nullptr, 10);
    used_kib += std::strtoull(words[3].c_str(), nullptr, 10);
  }
  if (size_kib == 0) return {"swap", FindingStatus::kOk, "none", ""};
  const int64_t swappiness = tree.ReadNumber("/proc/sys/vm/swappiness").value_or(60);
  Finding finding{"swap", FindingStatus::kOk,
                  fmt::format("{}, {} used, swappiness {}", FormatByteSize(size_kib * kKiB),
                              FormatByteSize(used_kib * kKiB), swappiness),
                  ""};
  constexpr int64_t kReluctant = 10;
  if (swappiness > kReluctant) {
    finding.status = FindingStatus::kWarning;
    finding.found += ": weights that wait for their turn may be swapped out, and every page of "
                     "them is then a fault in a token";
    finding.advice = "sudo sysctl -w vm.swappiness=1, or sudo swapoff -a";
  }
  return finding;
}

Finding CheckGovernor(const SystemTree& tree) {
  std::map<std::string, int> governors;
  for (const std::string& name : tree.List("/sys/devices/system/cpu/cpufreq")) {
    const auto governor =
        tree.ReadText("/sys/devices/system/cpu/cpufreq/" + name + "/scaling_governor");
    if (governor) ++governors[*governor];
  }
  if (governors.empty()) {
    return {"governor", FindingStatus::kUnknown,
            "the kernel does not set the CPU's frequency here (a virtual machine, or the firmware "
            "does)",
            ""};
  }
  Finding finding{"governor", FindingStatus::kOk, "", ""};
  for (const auto& [governor, count] : governors) {
    finding.found += fmt::format("{}{}", finding.found.empty() ? "" : ", ", governor);
    if (governor == "performance" || governor == "schedutil") continue;
    finding.status = FindingStatus::kWarning;
    finding.advice = "echo performance | sudo tee "
                     "/sys/devices/system/cpu/cpufreq/policy*/scaling_governor";
  }
  if (finding.status == FindingStatus::kWarning) {
    finding.found += ": cores that wait for reads clock down, and are slow when a read arrives";
  }
  return finding;
}

Finding CheckHugePages(const SystemTree& tree) {
  const auto transparent = tree.ReadText("/sys/kernel/mm/transparent_hugepage/enabled");
  const int64_t reserved =
      tree.ReadNumber("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages").value_or(0);
  const std::string reserved_text =
      fmt::format("{} reserved pages of 2 MiB free", std::max<int64_t>(reserved, 0));
  if (!transparent) {
    return {"huge_pages", reserved > 0 ? FindingStatus::kOk : FindingStatus::kWarning,
            "no transparent huge pages in this kernel; " + reserved_text,
            "reserve as many as the budget needs, 512 a GiB: sudo sysctl -w vm.nr_hugepages=N"};
  }
  const size_t begin = transparent->find('['), end = transparent->find(']');
  const std::string mode = begin == std::string::npos || end == std::string::npos
                               ? *transparent
                               : transparent->substr(begin + 1, end - begin - 1);
  Finding finding{"huge_pages", FindingStatus::kOk,
                  fmt::format("transparent huge pages: {}; {}", mode, reserved_text), ""};
  if (mode == "never" && reserved == 0) {
    finding.status = FindingStatus::kWarning;
    finding.found += ": slots are on 4 KiB pages, and each expert needs hundreds of TLB entries";
    finding.advice = "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled";
  }
  return finding;
}

Finding CheckNuma(const SystemTree& tree, const Target& target) {
  const std::string base = "/sys/devices/system/node";
  std::map<int, std::string> cpus_of;  // node -> its CPU list
  for (const std::string& name : tree.List(base)) {
    const auto cpus = tree.ReadText(base + "/" + name + "/cpulist");
    if (name.starts_with("node") && cpus) cpus_of[std::atoi(name.c_str() + 4)] = *cpus;
  }
  if (cpus_of.size() <= 1) {
    return {"numa", FindingStatus::kOk, "one node", ""};
  }
  Finding finding{"numa", FindingStatus::kOk, fmt::format("{} nodes", cpus_of.size()), ""};
  const std::string allowed =
      tree.ReadField("/proc/self/status", "Cpus_allowed_list:").value_or("");
  for (const std::string& disk : target.disks) {
    const int node = DriveNumaNode(tree, disk);
    const std::string name = disk.substr(disk.rfind('/') + 1);
    if (node < 0 || !cpus_of.contains(node)) {
      finding.found += fmt::format("; the node of {} is not known", name);
      continue;
    }
    finding.found += fmt::format("; {} is on node {}", name, node);
    const int first_cpu = FirstOfCpuList(cpus_of[node]);
    if (allowed.empty() || first_cpu < 0 || CpuListContains(allowed, first_cpu)) continue;
    finding.status = FindingStatus::kWarning;
    finding.found += fmt::format(", where this process may not run (CPUs {})", allowed);
    finding.advice = fmt::format("numactl --cpunodebind={} moraine ...", node);
  }
  return finding;
}

Finding CheckSimd(const ProcessFacts& facts) {
  if (!facts.isa_error.empty()) {
    return {"simd", FindingStatus::kProblem, facts.isa_error, "unset MORAINE_ISA"};
  }
  if (facts.isas.empty()) return {"simd", FindingStatus::kUnknown, "not looked at", ""};
  Finding finding{"simd", FindingStatus::kOk,
                  fmt::format("{}; {} is used", fmt::join(facts.isas, ", "), facts.chosen_isa), ""};
  if (facts.isas.size() == 1) {
    finding.status = FindingStatus::kProblem;
    finding.found += ": the kernels need AVX2 to be worth using";
    finding.advice = "in a virtual machine, show the host's CPU to it: qemu -cpu host, or the "
                     "cloud's newer machine types";
  } else if (facts.chosen_isa != facts.isas.back()) {
    finding.status = FindingStatus::kWarning;
    finding.advice = "MORAINE_ISA forces a narrower one than the CPU has: unset MORAINE_ISA";
  }
  return finding;
}

std::vector<Finding> CheckMachine(const SystemTree& tree, const Target& target,
                                  const ProcessFacts& facts) {
  return {CheckIoUring(tree, facts), CheckMemlock(tree),   CheckMemory(tree),
          CheckSwap(tree),           CheckGovernor(tree),  CheckHugePages(tree),
          CheckNuma(tree, target),   CheckSimd(facts)};
}

}  // namespace moraine
