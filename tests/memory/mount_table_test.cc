#include "memory/mount_table.h"

#include <gtest/gtest.h>

namespace moraine {
namespace {

TEST(MountTable, FieldsOptionsAndEscapes) {
  const auto mounts = ParseMountTable(
      "not a line of mountinfo\n"
      "35 31 259:2 /@store /mnt/fast\\040drive rw,noatime shared:9 master:2 - btrfs /dev/nvme0n1p2 "
      "rw,compress=zstd:3\n"
      "36 31 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
  ASSERT_EQ(mounts.size(), 2u);
  EXPECT_EQ(mounts[0].device, "259:2");
  EXPECT_EQ(mounts[0].root, "/@store");
  EXPECT_EQ(mounts[0].mount_point, "/mnt/fast drive");
  EXPECT_EQ(mounts[0].filesystem, "btrfs");
  EXPECT_EQ(mounts[0].source, "/dev/nvme0n1p2");
  EXPECT_TRUE(mounts[0].HasOption("noatime"));
  EXPECT_TRUE(mounts[0].HasOption("compress=zstd:3"));
  EXPECT_FALSE(mounts[0].HasOption("compress"));
  EXPECT_EQ(mounts[1].filesystem, "cgroup2");
}

}  // namespace
}  // namespace moraine
