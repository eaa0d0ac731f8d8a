#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/bytes.h"
#include "memory/topology.h"

namespace moraine {
namespace {

// A tree with /proc and /sys as a machine or a container would show them.
class MemoryLimitTest : public testing::Test {
 protected:
  void SetUp() override {
    root_ = testing::TempDir() + "/memory_limit_" + std::to_string(getpid()) + "_" +
            testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(root_);
    Write("/proc/meminfo",
          "MemTotal:       67108864 kB\nMemFree:         1000000 kB\n"
          "MemAvailable:   50331648 kB\n");  // 64 GiB, 48 GiB
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  void Write(const std::string& path, const std::string& contents) {
    const std::filesystem::path full = root_ + path;
    std::filesystem::create_directories(full.parent_path());
    std::ofstream(full) << contents;
  }
  void MountV2(const std::string& mount_root, const std::string& cgroup) {
    Write("/proc/self/mountinfo",
          "25 30 0:23 / /proc rw - proc proc rw\n"
          "35 25 0:30 " +
              mount_root + " /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n");
    Write("/proc/self/cgroup", "0::" + cgroup + "\n");
  }
  MemoryLimit Detect() {
    const auto limit = DetectMemoryLimit(root_);
    EXPECT_TRUE(limit.ok()) << limit.status().ToString();
    return limit.ok() ? *limit : MemoryLimit();
  }

  std::string root_;
};

TEST_F(MemoryLimitTest, WithoutCgroupsThePhysicalMemoryCounts) {
  const MemoryLimit limit = Detect();
  EXPECT_EQ(limit.limit_bytes, 64 * kGiB);
  EXPECT_EQ(limit.available_bytes, 48 * kGiB);
  EXPECT_EQ(limit.source, "MemTotal");
}

TEST_F(MemoryLimitTest, V2OwnLimitAndUsageWithoutThePageCache) {
  MountV2("/", "/user.slice/app.service");
  const std::string own = "/sys/fs/cgroup/user.slice/app.service";
  Write(own + "/memory.max", std::to_string(16 * kGiB) + "\n");
  Write(own + "/memory.current", std::to_string(10 * kGiB) + "\n");
  Write(own + "/memory.stat", "anon 1\nfile 2\ninactive_file " + std::to_string(5 * kGiB) +
                                  "\nactive_file " + std::to_string(2 * kGiB) +
                                  "\nslab_reclaimable " + std::to_string(1 * kGiB) + "\n");
  const MemoryLimit limit = Detect();
  EXPECT_EQ(limit.limit_bytes, 16 * kGiB);
  EXPECT_EQ(limit.available_bytes, 14 * kGiB);  // 16 - (10 - 8)
  EXPECT_EQ(limit.source, "cgroup v2 memory.max");
}

TEST_F(MemoryLimitTest, V2AnAncestorIsTighter) {
  MountV2("/", "/kubepods/pod1/container");
  Write("/sys/fs/cgroup/kubepods/pod1/container/memory.max", "max\n");
  Write("/sys/fs/cgroup/kubepods/pod1/memory.max", std::to_string(8 * kGiB) + "\n");
  Write("/sys/fs/cgroup/kubepods/pod1/memory.current", std::to_string(7 * kGiB) + "\n");
  Write("/sys/fs/cgroup/kubepods/memory.max", std::to_string(32 * kGiB) + "\n");
  const MemoryLimit limit = Detect();
  EXPECT_EQ(limit.limit_bytes, 8 * kGiB);
  EXPECT_EQ(limit.available_bytes, 1 * kGiB);
}

TEST_F(MemoryLimitTest, V2InsideACgroupNamespaceReadsTheMountPoint) {
  MountV2("/", "/");
  Write("/sys/fs/cgroup/memory.max", std::to_string(4 * kGiB) + "\n");
  EXPECT_EQ(Detect().limit_bytes, 4 * kGiB);
}

TEST_F(MemoryLimitTest, V2APathOfAnotherNamespaceReadsTheMountPoint) {
  MountV2("/", "/../other");
  Write("/sys/fs/cgroup/memory.max", std::to_string(4 * kGiB) + "\n");
  EXPECT_EQ(Detect().limit_bytes, 4 * kGiB);
}

TEST_F(MemoryLimitTest, V2UsageAboveTheLimitLeavesNothing) {
  MountV2("/", "/a");
  Write("/sys/fs/cgroup/a/memory.max", std::to_string(1 * kGiB));
  Write("/sys/fs/cgroup/a/memory.current", std::to_string(2 * kGiB));
  EXPECT_EQ(Detect().available_bytes, 0u);
}

TEST_F(MemoryLimitTest, V1HybridWithTheUnlimitedValueAbove) {
  Write("/proc/self/mountinfo",
        "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
        "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n");
  Write("/proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/api/job\n0::/\n");
  Write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  Write("/sys/fs/cgroup/memory/api/memory.limit_in_bytes", "9223372036854771712\n");
  Write("/sys/fs/cgroup/memory/api/job/memory.limit_in_bytes", std::to_string(12 * kGiB) + "\n");
  Write("/sys/fs/cgroup/memory/api/job/memory.usage_in_bytes", std::to_string(6 * kGiB) + "\n");
  Write("/sys/fs/cgroup/memory/api/job/memory.stat",
        "inactive_file 1\ntotal_inactive_file " + std::to_string(3 * kGiB) +
            "\ntotal_active_file " + std::to_string(1 * kGiB) + "\n");
  const MemoryLimit limit = Detect();
  EXPECT_EQ(limit.limit_bytes, 12 * kGiB);
  EXPECT_EQ(limit.available_bytes, 10 * kGiB);
  EXPECT_EQ(limit.source, "cgroup v1 memory.limit_in_bytes");
}

TEST_F(MemoryLimitTest, V1InAContainerThatSeesOnlyItsSubtree) {
  Write("/proc/self/mountinfo",
        "35 31 0:32 /docker/abc /sys/fs/cgroup/my\\040memory ro - cgroup cgroup rw,memory\n");
  Write("/proc/self/cgroup", "4:memory:/docker/abc\n");
  Write("/sys/fs/cgroup/my memory/memory.limit_in_bytes", std::to_string(2 * kGiB) + "\n");
  EXPECT_EQ(Detect().limit_bytes, 2 * kGiB);
}

TEST_F(MemoryLimitTest, ALimitAboveThePhysicalMemoryIsNone) {
  MountV2("/", "/a");
  Write("/sys/fs/cgroup/a/memory.max", std::to_string(128 * kGiB));
  const MemoryLimit limit = Detect();
  EXPECT_EQ(limit.limit_bytes, 64 * kGiB);
  EXPECT_EQ(limit.source, "MemTotal");
}

TEST_F(MemoryLimitTest, AMeminfoThatSaysNothingIsAnError) {
  Write("/proc/meminfo", "nothing here\n");
  EXPECT_EQ(DetectMemoryLimit(root_).status().code(), StatusCode::kCorruption);
  EXPECT_EQ(DetectMemoryLimit(root_ + "/absent").status().code(), StatusCode::kNotFound);
}

TEST(MemoryLimit, OfThisMachineIsPlausible) {
  const auto limit = DetectMemoryLimit();
  ASSERT_TRUE(limit.ok()) << limit.status().ToString();
  EXPECT_GT(limit->limit_bytes, 64 * kMiB);
  EXPECT_LE(limit->available_bytes, limit->limit_bytes);
}

}  // namespace
}  // namespace moraine
