// BulkFile: the same bytes past the page cache and through it, whatever the offsets, and what stays behind.
#include "store/bulk_file.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/mman.h>

#include <cstring>

#include "store_test_support.h"

namespace moraine {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class BulkFileTest : public ::testing::Test {
 protected:
  // Not a whole number of pages.
  static constexpr uint64_t kBytes = 5 * kMiB + 1234;

  void SetUp() override {
    Random random(1);
    for (char& byte : contents_) byte = static_cast<char>(random.Below(256));
    WriteText(path_, contents_);
  }

  std::unique_ptr<BulkFile> Open(BulkFile::Access access = BulkFile::Access::kRead) {
    const int flags = access == BulkFile::Access::kRead ? O_RDONLY : O_RDWR | O_CREAT;
    Result<PosixFile> file = PosixFile::Open(path_, flags);
    CHECK(file.ok(), file.status().ToString());
    return std::make_unique<BulkFile>(std::move(*file), access);
  }

  void DropCache() {
    Result<PosixFile> file = PosixFile::Open(path_, O_RDWR);
    ASSERT_TRUE(file.ok() && file->SyncData().ok());
    file->DropCache(0, 0);
  }

  uint64_t CachedPages() {
    Result<PosixFile> file = PosixFile::Open(path_, O_RDONLY);
    CHECK(file.ok(), path_);
    void* const mapping = mmap(nullptr, kBytes, PROT_READ, MAP_SHARED, file->fd(), 0);
    CHECK(mapping != MAP_FAILED, path_);
    std::vector<unsigned char> pages((kBytes + 4095) / 4096);
    CHECK(mincore(mapping, kBytes, pages.data()) == 0, path_);
    munmap(mapping, kBytes);
    return static_cast<uint64_t>(std::ranges::count_if(pages, [](auto p) { return p & 1; }));
  }

  TempDirectory directory_;
  const std::string path_ = directory_ / "bulk";
  std::string contents_ = std::string(kBytes, '\0');
};

TEST_F(BulkFileTest, ReadsTheSameWhereverItBeginsCachedOrNot) {
  const uint64_t seed = static_cast<uint64_t>(getpid());
  SCOPED_TRACE("seed " + std::to_string(seed));
  Random random(seed);
  const std::unique_ptr<BulkFile> file = Open();
  for (int round = 0; round < 60; ++round) {
    if (round % 2 == 0) DropCache();
    const uint64_t unit = 1 + random.Below(300);
    const uint64_t wanted = round % 3 == 0 ? 1 + random.Below(kMiB / 2) : kMiB + random.Below(3 * kMiB);
    const uint64_t bytes = (wanted + unit - 1) / unit * unit;
    const uint64_t offset = round % 4 == 0 ? kBytes - bytes : random.Below(kBytes - bytes + 1);
    std::string found;
    const Status status = file->ReadPieces(offset, bytes, unit, [&](std::span<const std::byte> piece) {
      EXPECT_EQ(piece.size() % unit, 0u);
      found.append(reinterpret_cast<const char*>(piece.data()), piece.size());
    });
    ASSERT_TRUE(status.ok()) << status.ToString();
    ASSERT_EQ(found.size(), bytes);
    ASSERT_TRUE(contents_.compare(offset, bytes, found) == 0)
        << "offset " << offset << ", " << bytes << " bytes, unit " << unit << ", round " << round;
  }
  EXPECT_GT(file->reading_ns(), 0);
}

TEST_F(BulkFileTest, LargeReadsLeaveThePageCacheAsItWas) {
  const std::unique_ptr<BulkFile> file = Open();
  DropCache();
  if (CachedPages() > 0 || !file->direct()) GTEST_SKIP() << "the file system has no O_DIRECT";
  const auto ignore = [](std::span<const std::byte>) {};
  ASSERT_TRUE(file->ReadPieces(8, kBytes - 8, 1, ignore).ok());
  EXPECT_EQ(CachedPages(), 0u);
  // What is there stays, and is read from there.
  std::ifstream warm(path_, std::ios::binary);
  std::string all(kBytes, '\0');
  warm.read(all.data(), static_cast<std::streamsize>(kBytes));
  const uint64_t cached = CachedPages();
  EXPECT_EQ(cached, (kBytes + 4095) / 4096);
  ASSERT_TRUE(file->ReadPieces(8, kBytes - 8, 1, ignore).ok());
  EXPECT_EQ(CachedPages(), cached);
}

TEST_F(BulkFileTest, AFileThatEndsEarlyIsNamedWithItsSizes) {
  const std::unique_ptr<BulkFile> file = Open();
  DropCache();
  uint64_t taken = 0;
  const Status status = file->ReadPieces(kBytes - 3 * kMiB, 3 * kMiB + 1, 1,
                                         [&](auto piece) { taken += piece.size(); });
  EXPECT_EQ(status.code(), StatusCode::kCorruption);
  EXPECT_THAT(status.message(),
              AllOf(HasSubstr(path_), HasSubstr("ends at byte " + std::to_string(kBytes))));
  EXPECT_LE(taken, 3 * kMiB);
}

TEST_F(BulkFileTest, WritesTheSameWhateverIsAligned) {
  const std::unique_ptr<BulkFile> file = Open(BulkFile::Access::kReadWrite);
  const bool direct = file->direct();
  file->Reserve(8 * kMiB);
  const std::unique_ptr<std::byte, decltype(&std::free)> buffer(
      static_cast<std::byte*>(std::aligned_alloc(4096, 2 * kMiB)), &std::free);
  const auto write = [&](uint64_t offset, uint64_t from, uint64_t bytes, int value) {
    std::memset(buffer.get(), value, 2 * kMiB);
    ASSERT_TRUE(file->WriteAt(offset, {buffer.get() + from, bytes}).ok());
    if (contents_.size() < offset + bytes) contents_.resize(offset + bytes);
    std::memset(contents_.data() + offset, value, bytes);
  };
  write(kMiB, 0, kMiB, 'a');
  write(4096, 1, 4096, 'b');          // memory
  write(3 * kMiB + 5, 0, 8192, 'c');  // offset
  write(6 * kMiB, 0, 5000, 'd');      // size
  write(7 * kMiB, 0, kMiB, 'e');
  EXPECT_EQ(file->direct(), direct) << "something aligned was refused";
  ASSERT_TRUE(file->buffered().SyncData().ok());
  const std::string found = ReadBytes(path_);
  ASSERT_EQ(found.size(), contents_.size());
  // Between the old end and what was written beyond it, there are zeros in both.
  EXPECT_TRUE(found == contents_);
}

}  // namespace
}  // namespace moraine
