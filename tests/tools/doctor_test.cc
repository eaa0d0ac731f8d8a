// Each trap that `moraine doctor` knows, on a machine that has it: a tree of /proc and /sys files.
#include <gmock/gmock.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>

#include "base/bytes.h"
#include "doctor/drive_checks.h"
#include "doctor/drive_curve.h"
#include "doctor/machine_checks.h"

namespace moraine {

void PrintTo(const Finding& finding, std::ostream* stream) {
  *stream << FindingStatusName(finding.status) << ": " << finding.found << " -> "
          << finding.advice;
}

namespace {

using testing::AllOf;
using testing::Field;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr const char* kPciDrive = "/sys/devices/pci0000:00/0000:00:1d.0/0000:02:00.0";
constexpr const char* kDisk = "/sys/devices/pci0000:00/0000:00:1d.0/0000:02:00.0/nvme0/nvme0n1";

auto Says(FindingStatus status, const std::string& found, const std::string& advice) {
  return AllOf(Field("status", &Finding::status, status),
               Field("found", &Finding::found, HasSubstr(found)),
               Field("advice", &Finding::advice, HasSubstr(advice)));
}
auto IsOk(const std::string& found) {
  return AllOf(Field("status", &Finding::status, FindingStatus::kOk),
               Field("found", &Finding::found, HasSubstr(found)));
}

// A healthy machine: ext4 on a partition of an NVMe drive. Each test breaks one thing.
class DoctorTest : public testing::Test {
 protected:
  void SetUp() override {
    root_ = testing::TempDir() + "/doctor_" + std::to_string(getpid()) + "_" +
            testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(root_);
    std::filesystem::create_directories(root_);
    root_ = std::filesystem::canonical(root_).string();
    const std::string disk = kDisk;
    Write(disk + "/queue/scheduler", "[none] mq-deadline kyber");
    Write(disk + "/queue/rotational", "0");
    Write(disk + "/queue/read_ahead_kb", "128");
    Write(disk + "/device/model", "FAST 990   ");
    Write(disk + "/nvme0n1p2/partition", "2");
    Write(std::string(kPciDrive) + "/numa_node", "1");
    Write(std::string(kPciDrive) + "/current_link_width", "4");
    Write(std::string(kPciDrive) + "/max_link_width", "4");
    Write(std::string(kPciDrive) + "/current_link_speed", "16.0 GT/s PCIe");
    Write(std::string(kPciDrive) + "/max_link_speed", "16.0 GT/s PCIe");
    Link("/sys/dev/block/259:2", disk + "/nvme0n1p2");
    Link("/sys/class/block/nvme0n1p2", disk + "/nvme0n1p2");
    Mount("ext4", "/dev/nvme0n1p2", "rw");
    Write("/proc/meminfo", "MemTotal: 67108864 kB\nMemAvailable: 50331648 kB\n");
    Write("/proc/self/status", "CapEff:\t0000000000000000\nSeccomp:\t0\n"
                               "Cpus_allowed_list:\t0-15\n");
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  void Write(const std::string& path, const std::string& contents) {
    const std::filesystem::path full = root_ + path;
    std::filesystem::create_directories(full.parent_path());
    std::ofstream(full) << contents << "\n";
  }
  void Link(const std::string& path, const std::string& to) {
    const std::filesystem::path full = root_ + path;
    std::filesystem::create_directories(full.parent_path());
    std::filesystem::create_directories(root_ + to);
    std::filesystem::create_symlink(root_ + to, full);
  }
  void Mount(const std::string& type, const std::string& source, const std::string& options,
             const std::string& device = "259:2") {
    Write("/proc/self/mountinfo",
          "20 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
          "30 20 " + device + " / /mnt rw,relatime shared:1 - " + type + " " + source + " " +
              options + "\n"
          "31 20 0:50 / /mntother rw - tmpfs tmpfs rw\n");
  }
  Target Located() const {
    Target target;
    LocateTarget(tree(), "/mnt/store", &target);
    target.direct = Target::Direct::kWorks;
    target.alignment = {512, 4};
    return target;
  }
  SystemTree tree() const { return SystemTree(root_); }

  std::string root_;
};

TEST_F(DoctorTest, AHealthyDriveIsFoundThroughItsPartition) {
  const Target target = Located();
  EXPECT_EQ(target.mount_point, "/mnt");
  EXPECT_EQ(target.disks, std::vector<std::string>{kDisk});
  EXPECT_THAT(CheckFilesystem(target), IsOk("ext4 on /dev/nvme0n1p2"));
  EXPECT_THAT(CheckDirectIo(target), IsOk("512 bytes"));
  EXPECT_THAT(CheckDrive(tree(), target), IsOk("nvme0n1 (FAST 990)"));
  EXPECT_THAT(CheckIoScheduler(tree(), target), IsOk("none"));
  EXPECT_THAT(CheckReadahead(tree(), target), IsOk("128 KiB"));
  EXPECT_THAT(CheckPcieLink(tree(), target), IsOk("4 lanes of 4"));
  EXPECT_EQ(DriveNumaNode(tree(), kDisk), 1);
}

TEST_F(DoctorTest, StackedDevicesLeadToTheirDisksAndDmCryptIsSeen) {
  Link("/sys/dev/block/254:0", "/sys/devices/virtual/block/dm-0");
  Write("/sys/devices/virtual/block/dm-0/dm/uuid", "CRYPT-LUKS2-abc-store");
  Link("/sys/devices/virtual/block/dm-0/slaves/nvme0n1p2", std::string(kDisk) + "/nvme0n1p2");
  Mount("xfs", "/dev/mapper/store", "rw", "254:0");
  const Target target = Located();
  EXPECT_EQ(target.disks, std::vector<std::string>{kDisk});
  EXPECT_THAT(CheckFilesystem(target), Says(FindingStatus::kWarning, "dm-crypt", "cryptsetup"));
}

TEST_F(DoctorTest, FilesystemTraps) {
  const struct {
    const char *type, *source, *options;
    FindingStatus status;
    const char *found, *advice;
  } kTraps[] = {
      {"tmpfs", "tmpfs", "rw", FindingStatus::kProblem, "memory", "NVMe"},
      {"overlay", "overlay", "rw", FindingStatus::kWarning, "container", "docker run -v"},
      {"nfs4", "nas:/x", "rw", FindingStatus::kWarning, "network", "cp -r"},
      {"fuse.sshfs", "host:", "rw", FindingStatus::kWarning, "user-space", "cp -r"},
      {"ext4", "/dev/nvme0n1p2", "rw,data=journal", FindingStatus::kProblem, "data=journal",
       "/etc/fstab"},
      {"btrfs", "/dev/nvme0n1p2", "rw,compress=zstd:1", FindingStatus::kProblem, "compress",
       "chattr +m"},
      {"btrfs", "/dev/nvme0n1p2", "rw,compress-force=lzo", FindingStatus::kProblem, "compress",
       "chattr +m"},
      {"btrfs", "/dev/nvme0n1p2", "rw", FindingStatus::kWarning, "checksum", "chattr +C"},
      {"zfs", "tank/store", "rw", FindingStatus::kWarning, "ARC", "zfs set"},
  };
  for (const auto& trap : kTraps) {
    SCOPED_TRACE(std::string(trap.type) + " " + trap.options);
    Mount(trap.type, trap.source, trap.options, "0:77");
    EXPECT_THAT(CheckFilesystem(Located()), Says(trap.status, trap.found, trap.advice));
  }
  Mount("btrfs", "/dev/nvme0n1p2", "rw,nodatacow", "0:77");
  EXPECT_THAT(CheckFilesystem(Located()), IsOk("btrfs"));
  EXPECT_EQ(Located().disks, std::vector<std::string>{kDisk}) << "by the source's name";

  Target encrypted = Located();
  encrypted.filesystem = "ext4";
  encrypted.encrypted = true;
  EXPECT_THAT(CheckFilesystem(encrypted), Says(FindingStatus::kWarning, "fscrypt", "directory"));
  encrypted.direct = Target::Direct::kBuffered;
  EXPECT_EQ(CheckFilesystem(encrypted).status, FindingStatus::kProblem);
}

TEST_F(DoctorTest, DirectIo) {
  Target target = Located();
  target.direct = Target::Direct::kRefused;
  EXPECT_THAT(CheckDirectIo(target), Says(FindingStatus::kProblem, "refuses O_DIRECT", "xfs"));
  target.direct = Target::Direct::kBuffered;
  EXPECT_THAT(CheckDirectIo(target), Says(FindingStatus::kProblem, "page cache", "xfs"));
  target.direct = Target::Direct::kUnknown;
  EXPECT_EQ(CheckDirectIo(target).status, FindingStatus::kUnknown);
  target.direct = Target::Direct::kWorks;
  target.alignment = {16384, 512};
  EXPECT_THAT(CheckDirectIo(target), Says(FindingStatus::kProblem, "16384", "block size"));
}

TEST_F(DoctorTest, FreeSpace) {
  Target target = Located();
  EXPECT_EQ(CheckFreeSpace(target).status, FindingStatus::kUnknown);
  target.size_bytes = 1000 * kGiB;
  target.free_bytes = 400 * kGiB;
  EXPECT_THAT(CheckFreeSpace(target), IsOk("400.0 GiB"));
  target.free_bytes = 20 * kGiB;
  EXPECT_THAT(CheckFreeSpace(target), Says(FindingStatus::kWarning, "(2 %)", "du "));
}

TEST_F(DoctorTest, TheDrivesQueue) {
  const std::string disk = kDisk;
  Write(disk + "/queue/scheduler", "none [bfq] kyber");
  EXPECT_THAT(CheckIoScheduler(tree(), Located()),
              Says(FindingStatus::kWarning, "bfq", "/sys/block/nvme0n1/queue/scheduler"));
  Write(disk + "/queue/rotational", "1");
  EXPECT_THAT(CheckDrive(tree(), Located()), Says(FindingStatus::kProblem, "rotational", "NVMe"));
  Write(disk + "/queue/read_ahead_kb", "8192");
  EXPECT_THAT(CheckReadahead(tree(), Located()), IsOk("8192 KiB"));
  Target buffered = Located();
  buffered.direct = Target::Direct::kBuffered;
  EXPECT_THAT(CheckReadahead(tree(), buffered),
              Says(FindingStatus::kWarning, "8192 KiB", "/sys/block/nvme0n1/queue/read_ahead_kb"));
  Write(std::string(kPciDrive) + "/current_link_width", "2");
  EXPECT_THAT(CheckPcieLink(tree(), Located()),
              Says(FindingStatus::kWarning, "2 lanes of 4", "lspci -vv -s 0000:02:00.0"));
}

TEST_F(DoctorTest, AVirtualDriveMayCallItselfRotational) {
  Link("/sys/dev/block/254:0", "/sys/devices/pci0000:00/0000:00:02.0/virtio1/block/vda");
  Write("/sys/devices/pci0000:00/0000:00:02.0/virtio1/block/vda/queue/rotational", "1");
  Mount("ext4", "/dev/vda", "rw", "254:0");
  EXPECT_THAT(CheckDrive(tree(), Located()), IsOk("a virtual drive"));
  EXPECT_EQ(CheckPcieLink(tree(), Located()).status, FindingStatus::kUnknown);
}

TEST_F(DoctorTest, WithoutADriveTheQueueIsUnknown) {
  Mount("tmpfs", "tmpfs", "rw", "0:77");
  for (const Finding& finding : {CheckDrive(tree(), Located()), CheckIoScheduler(tree(), Located()),
                                 CheckReadahead(tree(), Located())}) {
    EXPECT_EQ(finding.status, FindingStatus::kUnknown) << finding.check;
  }
}

TEST_F(DoctorTest, IoUring) {
  ProcessFacts facts;
  facts.io_uring_error = 0;
  EXPECT_THAT(CheckIoUring(tree(), facts), IsOk("available"));
  facts.io_uring_error = EPERM;
  EXPECT_THAT(CheckIoUring(tree(), facts), Says(FindingStatus::kProblem, "refused", "journalctl"));
  Write("/proc/self/status", "Seccomp:\t2");
  EXPECT_THAT(CheckIoUring(tree(), facts),
              Says(FindingStatus::kProblem, "refused", "--security-opt seccomp"));
  Write("/proc/sys/kernel/io_uring_disabled", "2");
  EXPECT_THAT(CheckIoUring(tree(), facts),
              Says(FindingStatus::kProblem, "io_uring_disabled is 2",
                   "sysctl -w kernel.io_uring_disabled=0"));
  facts.io_uring_error = 0;  // 1 leaves it to some
  Write("/proc/sys/kernel/io_uring_disabled", "1");
  EXPECT_THAT(CheckIoUring(tree(), facts), IsOk("available to this user"));
  facts.io_uring_error = ENOSYS;
  Write("/proc/sys/kernel/io_uring_disabled", "0");
  EXPECT_THAT(CheckIoUring(tree(), facts), Says(FindingStatus::kProblem, "refused", "Linux 5.11"));
}

TEST_F(DoctorTest, Memlock) {
  EXPECT_EQ(CheckMemlock(tree()).status, FindingStatus::kUnknown);
  const auto limit = [&](const std::string& soft) {
    Write("/proc/self/limits", "Limit                     Soft Limit           Hard Limit  Units\n"
                               "Max locked memory         " + soft + "   unlimited   bytes");
    return CheckMemlock(tree());
  };
  EXPECT_THAT(limit("unlimited"), IsOk("no limit"));
  EXPECT_THAT(limit("8388608"),
              Says(FindingStatus::kWarning, "8.00 MiB", "ulimit -l unlimited"));
  EXPECT_THAT(limit(std::to_string(128 * kGiB)), IsOk("more than there is"));
  Write("/proc/self/status", "CapEff:\t0000000000004000");
  EXPECT_THAT(limit("8388608"), IsOk("CAP_IPC_LOCK"));
}

TEST_F(DoctorTest, Memory) {
  EXPECT_THAT(CheckMemory(tree()), IsOk("64.0 GiB may be used"));
  Write("/proc/self/cgroup", "0::/app");
  Write("/proc/self/mountinfo", "35 25 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw");
  Write("/sys/fs/cgroup/app/memory.max", std::to_string(16 * kGiB));
  EXPECT_THAT(CheckMemory(tree()), IsOk("16.0 GiB may be used"));
  Write("/sys/fs/cgroup/app/memory.max", std::to_string(kGiB));
  EXPECT_THAT(CheckMemory(tree()),
              Says(FindingStatus::kWarning, "cgroup v2 memory.max", "MemoryMax="));
}

TEST_F(DoctorTest, Swap) {
  const std::string header = "Filename Type Size Used Priority\n";
  EXPECT_EQ(CheckSwap(tree()).status, FindingStatus::kUnknown);
  Write("/proc/swaps", header);
  EXPECT_THAT(CheckSwap(tree()), IsOk("none"));
  Write("/proc/swaps", header + "/swap.img file 8388604 1024 -2");
  Write("/proc/sys/vm/swappiness", "60");
  EXPECT_THAT(CheckSwap(tree()), Says(FindingStatus::kWarning, "8.00 GiB", "vm.swappiness=1"));
  Write("/proc/sys/vm/swappiness", "1");
  EXPECT_THAT(CheckSwap(tree()), IsOk("swappiness 1"));
}

TEST_F(DoctorTest, Governor) {
  EXPECT_EQ(CheckGovernor(tree()).status, FindingStatus::kUnknown);
  Write("/sys/devices/system/cpu/cpufreq/policy0/scaling_governor", "performance");
  EXPECT_THAT(CheckGovernor(tree()), IsOk("performance"));
  Write("/sys/devices/system/cpu/cpufreq/policy1/scaling_governor", "powersave");
  EXPECT_THAT(CheckGovernor(tree()), Says(FindingStatus::kWarning, "powersave", "governor"));
}

TEST_F(DoctorTest, HugePages) {
  const std::string enabled = "/sys/kernel/mm/transparent_hugepage/enabled";
  EXPECT_EQ(CheckHugePages(tree()).status, FindingStatus::kWarning);
  Write(enabled, "always [madvise] never");
  EXPECT_THAT(CheckHugePages(tree()), IsOk("madvise"));
  Write(enabled, "always madvise [never]");
  EXPECT_THAT(CheckHugePages(tree()), Says(FindingStatus::kWarning, "never", "echo madvise"));
  Write("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "4096");
  EXPECT_THAT(CheckHugePages(tree()), IsOk("4096 reserved"));
}

TEST_F(DoctorTest, Numa) {
  Write("/sys/devices/system/node/node0/cpulist", "0-7");
  EXPECT_THAT(CheckNuma(tree(), Located()), IsOk("one node"));
  Write("/sys/devices/system/node/node1/cpulist", "8-15");
  EXPECT_THAT(CheckNuma(tree(), Located()), IsOk("nvme0n1 is on node 1"));
  Write("/proc/self/status", "Cpus_allowed_list:\t0-3,6");
  EXPECT_THAT(CheckNuma(tree(), Located()),
              Says(FindingStatus::kWarning, "may not run", "numactl --cpunodebind=1"));
  Write(std::string(kPciDrive) + "/numa_node", "-1");
  EXPECT_THAT(CheckNuma(tree(), Located()), IsOk("not known"));
}

TEST_F(DoctorTest, Simd) {
  EXPECT_THAT(CheckSimd({0, {"scalar", "avx2", "avx512"}, "avx512", ""}), IsOk("avx512 is used"));
  EXPECT_THAT(CheckSimd({0, {"scalar", "avx2", "avx512"}, "avx2", ""}),
              Says(FindingStatus::kWarning, "avx2 is used", "unset MORAINE_ISA"));
  EXPECT_THAT(CheckSimd({0, {"scalar"}, "scalar", ""}),
              Says(FindingStatus::kProblem, "AVX2", "-cpu host"));
  EXPECT_THAT(CheckSimd({0, {"scalar"}, "", "unknown ISA \"sse\""}),
              Says(FindingStatus::kProblem, "sse", "unset MORAINE_ISA"));
}

TEST(DriveCurve, SaysWhereTheDriveIsFull) {
  std::vector<CurvePoint> curve = {{4096, 1, 0.05, 12000}, {4096, 64, 0.8, 200000},
                                   {512 * kKiB, 1, 2.0, 4000}, {512 * kKiB, 4, 3.3, 6600},
                                   {512 * kKiB, 64, 3.4, 6800}};
  EXPECT_THAT(CheckDriveCurve(curve), IsOk("3.40 GB/s at best (512.0 KiB x 64); 90 % of it from "
                                           "512.0 KiB x 4 on"));
  for (CurvePoint& point : curve) point.gb_per_s /= 10;
  EXPECT_THAT(CheckDriveCurve(curve), Says(FindingStatus::kWarning, "slower", "3.4 tokens/s"));
}

TEST(DriveCurve, OfAScratchFileThatLeavesNothingBehind) {
  const std::string directory =
      std::string(MORAINE_BINARY_DIR) + "/doctor_scratch_" + std::to_string(getpid());
  std::filesystem::create_directory(directory);
  {
    const auto scratch = ScratchFile::Create(directory, 32 * kMiB);  // a quarter: 8 MiB
    ASSERT_TRUE(scratch.ok()) << scratch.status().ToString();
    EXPECT_TRUE(std::filesystem::is_empty(directory));
    const auto curve = MeasureDriveCurve({scratch->path()}, 0.16);
    ASSERT_TRUE(curve.ok()) << curve.status().ToString();
    EXPECT_EQ(curve->size(), 16u);
    for (const CurvePoint& point : *curve) {
      EXPECT_GT(point.gb_per_s, 0) << point.request_bytes << " x " << point.depth;
    }
    Target target;
    ProbeFile(scratch->path(), &target);
    EXPECT_NE(target.direct, Target::Direct::kUnknown);
    EXPECT_GT(target.free_bytes.value_or(0), 0u);
  }
  EXPECT_TRUE(std::filesystem::is_empty(directory));
  EXPECT_EQ(ScratchFile::Create(directory, kMiB).status().code(), StatusCode::kResourceExhausted);
  std::filesystem::remove(directory);
  EXPECT_EQ(MeasureDriveCurve({"/absent"}, 1).status().code(), StatusCode::kIoError);
}

}  // namespace
}  // namespace moraine
