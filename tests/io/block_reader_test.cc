// The readers on real files: io_uring, pread and simulated behind the one interface, the choice
// between them, and what kernels and file systems refuse.
#include "io/block_reader.h"

#include <gmock/gmock.h>
#include <liburing.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <fstream>

#include "base/bytes.h"
#include "io/io_uring_reader.h"
#include "scheduler_fixture.h"

namespace moraine {
namespace {

constexpr size_t kFileBytes = 1024 * kBlock;
constexpr size_t kTailBytes = 1234;  // behind the last whole block

// A file in the build directory: the temporary directory may be a tmpfs without O_DIRECT.
class RealFile {
 public:
  RealFile()
      : path_(std::string(MORAINE_BINARY_DIR) + "/block_reader_test." + std::to_string(getpid()) +
              ".pack"),
        contents_(RandomBytes(kFileBytes + kTailBytes, 3)) {
    std::ofstream(path_, std::ios::binary)
        .write(reinterpret_cast<const char*>(contents_.data()),
               static_cast<std::streamsize>(contents_.size()));
  }
  ~RealFile() { std::remove(path_.c_str()); }
  const std::string& path() const { return path_; }
  const std::vector<std::byte>& contents() const { return contents_; }

 private:
  std::string path_;
  std::vector<std::byte> contents_;
};

const RealFile& SharedFile() {
  static const RealFile file;
  return file;
}

class BlockReaderTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    auto arena = HostArena::Allocate(4 * kMiB, {.huge_pages = false});
    ASSERT_TRUE(arena.ok());
    arena_ = std::move(*arena);
  }
  // Null when this machine has no io_uring.
  std::unique_ptr<BlockReader> Create(uint32_t capacity = 32, bool direct = true) {
    BlockReaderOptions options;
    options.kind = GetParam();
    options.capacity = capacity;
    options.direct = direct;
    options.pread_threads = 4;
    auto reader = CreateBlockReader(options);
    if (!reader.ok()) {
      EXPECT_EQ(reader.status().code(), StatusCode::kUnsupported) << reader.status().ToString();
      return nullptr;
    }
    EXPECT_STREQ((*reader)->name(), GetParam());
    return std::move(*reader);
  }
  static std::map<uint64_t, int32_t> ReapAll(BlockReader* reader) {
    std::vector<BlockCompletion> completions;
    while (reader->in_flight() > 0) EXPECT_GT(reader->Reap(&completions, -1), 0u);
    EXPECT_EQ(reader->Reap(&completions, -1), 0u) << "must not wait when nothing is in flight";
    std::map<uint64_t, int32_t> results;
    for (const BlockCompletion& c : completions) {
      EXPECT_TRUE(results.emplace(c.tag, c.result).second) << "tag " << c.tag << " twice";
    }
    return results;
  }
  void ReadEverything(BlockReader* reader);

  HostArena arena_;
};

#define CREATE_OR_SKIP(reader, ...)  \
  auto reader = Create(__VA_ARGS__); \
  if (reader == nullptr) GTEST_SKIP() << "no io_uring here"

// Every block of the file, 1 to 16 blocks at a time, in waves of the capacity.
void BlockReaderTest::ReadEverything(BlockReader* reader) {
  const RealFile& real = SharedFile();
  const auto file = reader->OpenFile(real.path());
  ASSERT_TRUE(file.ok()) << file.status().ToString();
  EXPECT_EQ(reader->path(*file), real.path());
  Random random(4);
  uint64_t offset = 0;
  while (offset < kFileBytes) {
    std::vector<BlockRead> reads;
    std::byte* buffer = arena_.data();
    while (reads.size() < reader->capacity() && offset < kFileBytes) {
      const uint64_t length = std::min((1 + random.Below(16)) * kBlock, kFileBytes - offset);
      if (buffer + length > arena_.data() + arena_.size_bytes()) break;
      reads.push_back({*file, offset, buffer, static_cast<uint32_t>(length), offset});
      offset += length;
      buffer += length;
    }
    reader->Submit(reads);
    const auto results = ReapAll(reader);
    ASSERT_EQ(results.size(), reads.size());
    for (const BlockRead& read : reads) {
      ASSERT_EQ(results.at(read.tag), static_cast<int32_t>(read.length));
      ASSERT_EQ(std::memcmp(read.buffer, real.contents().data() + read.offset, read.length), 0);
    }
  }
}

TEST_P(BlockReaderTest, ReadsAFileDirectAndBufferedRegisteredAndNot) {
  for (const bool direct : {true, false}) {
    for (const bool registered : {true, false}) {
      SCOPED_TRACE(std::string(direct ? "direct" : "buffered") +
                   (registered ? ", registered" : ""));
      CREATE_OR_SKIP(reader, 32, direct);
      // In pieces, not in order of address, and the last part of the arena in none.
      const std::span<std::byte> buffers[] = {arena_.span().subspan(kMiB, kMiB),
                                              arena_.span().first(kMiB)};
      if (registered) {
        ASSERT_TRUE(reader->RegisterBuffers(buffers).ok());
      }
      ReadEverything(reader.get());
    }
  }
}

TEST_P(BlockReaderTest, TheEndOfTheFile) {
  CREATE_OR_SKIP(reader);
  const RealFile& real = SharedFile();
  const FileId file = *reader->OpenFile(real.path());
  const BlockRead reads[] = {
      {file, kFileBytes - kBlock, arena_.data(), 4 * kBlock, 1},  // over the unaligned tail
      {file, kFileBytes, arena_.data() + 4 * kBlock, kBlock, 2},  // the tail only
      {file, kFileBytes + kBlock, arena_.data() + 8 * kBlock, kBlock, 3}};  // behind the end
  reader->Submit(reads);
  const auto results = ReapAll(reader.get());
  EXPECT_EQ(results.at(1), static_cast<int32_t>(kBlock + kTailBytes));
  EXPECT_EQ(results.at(2), static_cast<int32_t>(kTailBytes));
  EXPECT_EQ(results.at(3), 0);
  EXPECT_EQ(
      std::memcmp(arena_.data(), real.contents().data() + kFileBytes - kBlock, kBlock + kTailBytes),
      0);
}

TEST_P(BlockReaderTest, TheSchedulerSeesTheTruncationOfARealPack) {
  CREATE_OR_SKIP(reader);
  ReadScheduler scheduler(std::move(reader), {.chunk_bytes = 4 * kBlock});
  const FileId file = *scheduler.reader().OpenFile(SharedFile().path());
  const ReadId whole =
      scheduler.Enqueue({file, 0, 64 * kBlock, arena_.data(), ReadPriority::kDemand, 0});
  scheduler.Enqueue({file, kFileBytes - 8 * kBlock, 16 * kBlock, arena_.data() + 64 * kBlock,
                     ReadPriority::kDemand, 0});
  std::vector<ReadOutcome> outcomes;
  while (!scheduler.idle()) scheduler.Poll(&outcomes, -1);
  ASSERT_EQ(outcomes.size(), 2u);
  for (const ReadOutcome& outcome : outcomes) {
    if (outcome.id == whole) {
      EXPECT_TRUE(outcome.status.ok()) << outcome.status.ToString();
      EXPECT_EQ(std::memcmp(arena_.data(), SharedFile().contents().data(), 64 * kBlock), 0);
    } else {
      EXPECT_EQ(outcome.status.code(), StatusCode::kCorruption);
      EXPECT_THAT(outcome.status.message(),
                  testing::HasSubstr("found " + std::to_string(8 * kBlock + kTailBytes)));
    }
  }
}

TEST_P(BlockReaderTest, ACancelledReadStillCompletes) {
  CREATE_OR_SKIP(reader);
  const FileId file = *reader->OpenFile(SharedFile().path());
  std::vector<BlockRead> reads;
  for (uint64_t i = 0; i < 32; ++i) {
    reads.push_back({file, i * 16 * kBlock, arena_.data() + i * 16 * kBlock, 16 * kBlock, 100 + i});
  }
  reader->Submit(reads);
  for (const BlockRead& read : reads) reader->Cancel(read.tag);
  reader->Cancel(7);  // not there
  const auto results = ReapAll(reader.get());
  ASSERT_EQ(results.size(), 32u);
  for (const auto& [tag, result] : results) {
    EXPECT_TRUE(result == 16 * static_cast<int32_t>(kBlock) || result == -ECANCELED ||
                result == -EINTR)
        << result;
  }
  ReadEverything(reader.get());  // and the reader goes on
}

TEST_P(BlockReaderTest, DestructionWaitsForWhatIsInFlight) {
  for (int round = 0; round < 20; ++round) {
    CREATE_OR_SKIP(reader);
    const FileId file = *reader->OpenFile(SharedFile().path());
    std::vector<BlockRead> reads;
    for (uint64_t i = 0; i < 32; ++i) {
      reads.push_back({file, i * 16 * kBlock, arena_.data() + i * 16 * kBlock, 16 * kBlock, i});
    }
    reader->Submit(reads);
    reader.reset();
    // The buffers are ours again: a late write would be seen here.
    std::memset(arena_.data(), 0x11, arena_.size_bytes());
    ASSERT_TRUE(std::all_of(arena_.data(), arena_.data() + 512 * kBlock,
                            [](std::byte b) { return b == std::byte{0x11}; }));
  }
}

TEST_P(BlockReaderTest, WaitsAreBounded) {
  CREATE_OR_SKIP(reader);
  const FileId file = *reader->OpenFile(SharedFile().path());
  const BlockRead read = {file, 0, arena_.data(), kBlock, 5};
  reader->Submit({&read, 1});
  std::vector<BlockCompletion> completions;
  while (completions.empty()) reader->Reap(&completions, 1'000'000);
  EXPECT_EQ(completions[0].tag, 5u);
  EXPECT_EQ(reader->Reap(&completions, 1'000'000'000'000), 0u) << "nothing is in flight";
}

TEST_P(BlockReaderTest, AMissingFileIsNotFound) {
  CREATE_OR_SKIP(reader);
  const auto file = reader->OpenFile("/absent/experts-000.pack");
  EXPECT_EQ(file.status().code(), StatusCode::kNotFound);
  EXPECT_THAT(file.status().message(), testing::HasSubstr("/absent/experts-000.pack"));
}

INSTANTIATE_TEST_SUITE_P(Readers, BlockReaderTest,
                         testing::Values("io_uring", "pread", "simulated"),
                         [](const auto& param_info) { return std::string(param_info.param); });

// procfs refuses O_DIRECT with EINVAL, as tmpfs did before Linux 6.6.
TEST(BufferedFallback, AFileSystemWithoutODirectIsReadBuffered) {
  std::ifstream version_file("/proc/version");
  const std::string version((std::istreambuf_iterator<char>(version_file)), {});
  auto arena = HostArena::Allocate(kBlock, {.huge_pages = false});
  ASSERT_TRUE(arena.ok());
  for (const char* kind : {"auto", "pread"}) {
    auto reader = CreateBlockReader({.kind = kind, .capacity = 4, .pread_threads = 1});
    ASSERT_TRUE(reader.ok());
    const auto file = (*reader)->OpenFile("/proc/version");
    ASSERT_TRUE(file.ok()) << file.status().ToString();
    EXPECT_EQ((*reader)->alignment(*file).offset_bytes, 1u);
    const BlockRead read = {*file, 0, arena->data(), kBlock, 1};
    (*reader)->Submit({&read, 1});
    std::vector<BlockCompletion> completions;
    (*reader)->Reap(&completions, -1);
    ASSERT_EQ(completions.size(), 1u);
    ASSERT_EQ(completions[0].result, static_cast<int32_t>(version.size()));
    EXPECT_EQ(std::memcmp(arena->data(), version.data(), version.size()), 0);
  }
}

TEST(IoUringRegistration, BuffersAboveOneGibibyteAreSplit) {
  constexpr uint64_t kBytes = kGiB + 8 * kMiB;
  auto arena = HostArena::Allocate(kBytes, {});
  if (!arena.ok()) GTEST_SKIP() << arena.status().ToString();
  auto reader = CreateBlockReader({.kind = "io_uring", .capacity = 8});
  if (!reader.ok()) GTEST_SKIP() << reader.status().ToString();
  const RealFile& real = SharedFile();
  const FileId file = *(*reader)->OpenFile(real.path());
  const std::span<std::byte> buffers[] = {arena->span()};
  const Status registered = (*reader)->RegisterBuffers(buffers);
  ASSERT_TRUE(registered.ok()) << registered.ToString();
  // In the first piece, in the second, and across the seam of both.
  for (const uint64_t position : {uint64_t{0}, kGiB + kMiB, kGiB - 2 * kBlock}) {
    const BlockRead read = {file, kBlock, arena->data() + position, 4 * kBlock, 1};
    (*reader)->Submit({&read, 1});
    std::vector<BlockCompletion> completions;
    (*reader)->Reap(&completions, -1);
    ASSERT_EQ(completions.size(), 1u);
    EXPECT_EQ(completions[0].result, static_cast<int32_t>(4 * kBlock));
    EXPECT_EQ(std::memcmp(read.buffer, real.contents().data() + kBlock, 4 * kBlock), 0);
  }
}

TEST(IoUringRegistration, MemoryThatIsNotMappedIsAnError) {
  auto reader = CreateBlockReader({.kind = "io_uring"});
  if (!reader.ok()) GTEST_SKIP() << reader.status().ToString();
  const std::span<std::byte> nowhere[] = {{reinterpret_cast<std::byte*>(kBlock), kMiB}};
  EXPECT_EQ((*reader)->RegisterBuffers(nowhere).code(), StatusCode::kInvalidArgument);
}

class ReaderChoice : public testing::Test {
 protected:
  void SetUp() override { unsetenv("MORAINE_IO"); }
  void TearDown() override { unsetenv("MORAINE_IO"); }
};

TEST_F(ReaderChoice, AutoFallsBackToPreadWhereIoUringIsRefused) {
  for (const int error_number : {EPERM, ENOSYS, EINVAL, ENOMEM}) {
    const RingSetup refuse = [error_number](unsigned, io_uring*, io_uring_params*) {
      return -error_number;
    };
    auto reader = CreateBlockReaderWithSetup({.kind = "auto"}, refuse);
    ASSERT_TRUE(reader.ok()) << reader.status().ToString();
    EXPECT_STREQ((*reader)->name(), "pread");
    const auto forced = CreateBlockReaderWithSetup({.kind = "io_uring"}, refuse);
    EXPECT_EQ(forced.status().code(), StatusCode::kUnsupported);
    EXPECT_THAT(forced.status().message(), testing::HasSubstr(std::strerror(error_number)));
  }
}

TEST_F(ReaderChoice, AnOldKernelThatKnowsNoTaskRunFlagsStillGetsIoUring) {
  std::vector<unsigned> tried;
  const RingSetup old_kernel = [&tried](unsigned entries, io_uring* ring, io_uring_params* params) {
    tried.push_back(params->flags);
    constexpr unsigned kKnown = IORING_SETUP_R_DISABLED | IORING_SETUP_CLAMP;
    if ((params->flags & ~kKnown) != 0) return -EINVAL;
    return KernelRingSetup()(entries, ring, params);
  };
  auto reader = CreateBlockReaderWithSetup({.kind = "io_uring", .capacity = 4}, old_kernel);
  if (!reader.ok()) GTEST_SKIP() << reader.status().ToString();
  EXPECT_EQ(tried.size(), 3u);
  auto arena = HostArena::Allocate(kBlock, {.huge_pages = false});
  const FileId file = *(*reader)->OpenFile(SharedFile().path());
  const BlockRead read = {file, 0, arena->data(), kBlock, 1};
  (*reader)->Submit({&read, 1});
  std::vector<BlockCompletion> completions;
  EXPECT_EQ((*reader)->Reap(&completions, -1), 1u);
  EXPECT_EQ(std::memcmp(arena->data(), SharedFile().contents().data(), kBlock), 0);
}

TEST_F(ReaderChoice, AKernelThatCannotWaitWithATimeoutIsRefused) {
  const RingSetup linux_5_10 = [](unsigned entries, io_uring* ring, io_uring_params* params) {
    const int result = KernelRingSetup()(entries, ring, params);
    params->features &= ~IORING_FEAT_EXT_ARG;
    return result;
  };
  auto reader = CreateBlockReaderWithSetup({.kind = "auto"}, linux_5_10);
  ASSERT_TRUE(reader.ok());
  EXPECT_STREQ((*reader)->name(), "pread");
}

TEST_F(ReaderChoice, TheEnvironmentReplacesAutoOnly) {
  setenv("MORAINE_IO", "pread", 1);
  EXPECT_STREQ((*CreateBlockReader({.kind = "auto"}))->name(), "pread");
  setenv("MORAINE_IO", "simulated", 1);
  EXPECT_STREQ((*CreateBlockReader({.kind = "auto"}))->name(), "simulated");
  EXPECT_STREQ((*CreateBlockReader({.kind = "pread"}))->name(), "pread");
  setenv("MORAINE_IO", "fast", 1);
  const auto unknown = CreateBlockReader({.kind = "auto"});
  EXPECT_EQ(unknown.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(unknown.status().message(), testing::HasSubstr("\"fast\""));
}

TEST_F(ReaderChoice, ACapacityOfZeroIsRefused) {
  for (const char* kind : {"auto", "io_uring", "pread"}) {
    EXPECT_EQ(CreateBlockReader({.kind = kind, .capacity = 0}).status().code(),
              StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace moraine
