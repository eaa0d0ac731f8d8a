// Every way of driving io_uring reads the right bytes, and what the kernel refuses falls back with
// a log line that names it.
#include <gmock/gmock.h>
#include <liburing.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <sstream>

#include "base/bytes.h"
#include "io/io_uring_reader.h"
#include "scheduler_fixture.h"

namespace moraine {
namespace {

using testing::HasSubstr;
using TaskRun = IoUringTuning::TaskRun;

constexpr uint64_t kFileBlocks = 256;

// Takes the log over for its lifetime.
class CapturedLog {
 public:
  CapturedLog() : before_(spdlog::default_logger()) {
    spdlog::set_default_logger(std::make_shared<spdlog::logger>(
        "captured", std::make_shared<spdlog::sinks::ostream_sink_mt>(stream_)));
  }
  ~CapturedLog() { spdlog::set_default_logger(before_); }
  std::string text() const { return stream_.str(); }

 private:
  std::ostringstream stream_;
  std::shared_ptr<spdlog::logger> before_;
};

class IoUringTuningTest : public testing::Test {
 protected:
  void SetUp() override {
    path_ = std::string(MORAINE_BINARY_DIR) + "/io_uring_tuning_test." + std::to_string(getpid());
    contents_ = RandomBytes(kFileBlocks * kBlock, 5);
    std::ofstream(path_, std::ios::binary)
        .write(reinterpret_cast<const char*>(contents_.data()),
               static_cast<std::streamsize>(contents_.size()));
    auto arena = HostArena::Allocate(kFileBlocks * kBlock, {.huge_pages = false});
    ASSERT_TRUE(arena.ok()) << arena.status().ToString();
    arena_ = std::move(*arena);
  }
  void TearDown() override { std::remove(path_.c_str()); }

  // Null when this machine has no io_uring at all.
  static std::unique_ptr<BlockReader> Create(const IoUringTuning& tuning, const RingSetup& setup) {
    BlockReaderOptions options;
    options.kind = "io_uring";
    options.capacity = 16;
    options.uring = tuning;
    auto reader = CreateBlockReaderWithSetup(options, setup);
    return reader.ok() ? std::move(*reader) : nullptr;
  }

  // The whole file in requests of 8 blocks, at most 16 in flight, not in order of offset; some
  // cancelled reads before, whose completions must not be mistaken for others.
  void ReadsTheRightBytes(BlockReader* reader) {
    const auto file = reader->OpenFile(path_);
    ASSERT_TRUE(file.ok()) << file.status().ToString();
    const std::span<std::byte> buffers[] = {arena_.span()};
    ASSERT_TRUE(reader->RegisterBuffers(buffers).ok());
    std::memset(arena_.data(), 0, arena_.size_bytes());
    constexpr uint64_t kRequestBytes = 8 * kBlock, kRequests = kFileBlocks / 8;
    uint64_t next = 0, landed = 0;
    std::vector<BlockCompletion> completions;
    while (landed < kRequests) {
      std::vector<BlockRead> batch;
      while (next < kRequests && reader->in_flight() + batch.size() < reader->capacity()) {
        const uint64_t offset = next++ * 5 % kRequests * kRequestBytes;  // 5 and 32 are coprime
        batch.push_back({*file, offset, arena_.data() + offset, kRequestBytes, offset});
      }
      reader->Submit(batch);
      completions.clear();
      // Alternating: a poll that does not wait must make progress, too.
      reader->Reap(&completions, landed % 2 == 0 ? -1 : 0);
      for (const BlockCompletion& completion : completions) {
        ASSERT_EQ(completion.result, static_cast<int32_t>(kRequestBytes));
        ++landed;
      }
    }
    EXPECT_EQ(reader->in_flight(), 0u);
    EXPECT_EQ(std::memcmp(arena_.data(), contents_.data(), contents_.size()), 0);

    const BlockRead read = {*file, 0, arena_.data(), kRequestBytes, 77};
    reader->Submit({&read, 1});
    reader->Cancel(77);
    completions.clear();
    while (reader->in_flight() > 0) reader->Reap(&completions, -1);
    ASSERT_EQ(completions.size(), 1u);
    EXPECT_EQ(completions[0].tag, 77u);
  }

  std::string path_;
  std::vector<std::byte> contents_;
  HostArena arena_;
};

TEST_F(IoUringTuningTest, EveryCombinationReadsTheRightBytes) {
  for (const TaskRun task_run : {TaskRun::kDeferred, TaskRun::kCooperative, TaskRun::kInterrupt}) {
    for (int bits = 0; bits < 16; ++bits) {
      IoUringTuning tuning;
      tuning.task_run = task_run;
      tuning.registered_buffers = (bits & 1) != 0;
      tuning.registered_files = (bits & 2) != 0;
      tuning.submission_thread = (bits & 4) != 0;
      tuning.poll_completions = (bits & 8) != 0;
      SCOPED_TRACE("task run " + std::to_string(static_cast<int>(task_run)) + ", bits " +
                   std::to_string(bits));
      auto reader = Create(tuning, KernelRingSetup());
      if (reader == nullptr) GTEST_SKIP() << "no io_uring here";
      ASSERT_NO_FATAL_FAILURE(ReadsTheRightBytes(reader.get()));
      if (!tuning.registered_buffers) {
        EXPECT_THAT(reader->configuration(), HasSubstr("plain buffers"));
      }
      EXPECT_THAT(reader->configuration(),
                  HasSubstr(tuning.registered_files ? "registered files" : "plain files"));
    }
  }
}

// A kernel that refuses set-ups with any of `refused`.
RingSetup Refusing(unsigned refused, int error_number, std::vector<unsigned>* tried) {
  return [=](unsigned entries, io_uring* ring, io_uring_params* params) {
    tried->push_back(params->flags);
    if ((params->flags & refused) != 0) return -error_number;
    return KernelRingSetup()(entries, ring, params);
  };
}

TEST_F(IoUringTuningTest, ARefusedSubmissionThreadFallsBackWithALogLine) {
  std::vector<unsigned> tried;
  const CapturedLog log;
  auto reader =
      Create({.submission_thread = true}, Refusing(IORING_SETUP_SQPOLL, EPERM, &tried));
  if (reader == nullptr) GTEST_SKIP() << "no io_uring here";
  EXPECT_TRUE(tried.front() & IORING_SETUP_SQPOLL);
  EXPECT_THAT(log.text(), HasSubstr("submission thread refused"));
  ASSERT_NO_FATAL_FAILURE(ReadsTheRightBytes(reader.get()));
  EXPECT_THAT(reader->configuration(), Not(HasSubstr("submission thread")));
}

TEST_F(IoUringTuningTest, RefusedPollingKeepsTheOtherWishes) {
  std::vector<unsigned> tried;
  const CapturedLog log;
  auto reader = Create({.task_run = TaskRun::kCooperative, .poll_completions = true},
                       Refusing(IORING_SETUP_IOPOLL, EOPNOTSUPP, &tried));
  if (reader == nullptr) GTEST_SKIP() << "no io_uring here";
  EXPECT_THAT(log.text(), HasSubstr("polled completions refused"));
  ASSERT_NO_FATAL_FAILURE(ReadsTheRightBytes(reader.get()));
  EXPECT_THAT(reader->configuration(), HasSubstr("cooperative task runs"));
  EXPECT_THAT(reader->configuration(), Not(HasSubstr("polled")));
}

// A buffered file cannot be polled, whatever the drive: the kernel says so only at the read.
TEST_F(IoUringTuningTest, PollingThatAFileRefusesIsGivenUpAtTheFirstSubmit) {
  const CapturedLog log;
  BlockReaderOptions options;
  options.kind = "io_uring";
  options.capacity = 16;
  options.direct = false;
  options.uring.poll_completions = true;
  auto reader = CreateBlockReader(options);
  if (!reader.ok()) GTEST_SKIP() << "no io_uring here";
  ASSERT_NO_FATAL_FAILURE(ReadsTheRightBytes(reader->get()));
  EXPECT_THAT(log.text(), AllOf(HasSubstr(path_), HasSubstr("polled completions refused")));
  EXPECT_THAT((*reader)->configuration(), Not(HasSubstr("polled")));
  EXPECT_THAT((*reader)->configuration(), HasSubstr("registered files"));
}

TEST_F(IoUringTuningTest, OldKernelsGetFewerTaskRunFlagsAndALogLine) {
  std::vector<unsigned> tried;
  const CapturedLog log;
  auto reader = Create({}, Refusing(IORING_SETUP_DEFER_TASKRUN, EINVAL, &tried));
  if (reader == nullptr) GTEST_SKIP() << "no io_uring here";
  EXPECT_EQ(tried.size(), 2u);
  EXPECT_THAT(log.text(), AllOf(HasSubstr("deferred task runs refused"),
                                HasSubstr("go on with cooperative task runs")));
}

}  // namespace
}  // namespace moraine
