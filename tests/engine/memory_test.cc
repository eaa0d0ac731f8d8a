// The RAM budget is hard: a process that serves a model several times its budget stays within it.
//
// The kernel is the judge: the child's peak RSS is read from wait4, and where this process may make
// memory cgroups (root), the child runs in one that kills it if it takes more.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <optional>

#include "base/bytes.h"
#include "engine/runner.h"
#include "test_store.h"

namespace moraine {
namespace {

// What the budget does not count: file-backed pages of the executable and its libraries (RocksDB alone
// is 10 MiB), which the kernel can drop at any time.
constexpr uint64_t kFileBackedBytes = 32 * kMiB;

// Runs a long prompt and some decode steps in a child; returns its exit code and peak RSS.
struct ChildResult {
  int exit_code = -1;  // -1: killed by a signal
  uint64_t peak_bytes = 0;
};

// A memory cgroup (v1 or v2) of its own; removed when the object goes.
class MemoryCgroup {
 public:
  static std::optional<MemoryCgroup> Create(uint64_t limit_bytes) {
    for (const auto& [parent, limit_file] :
         {std::pair("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
          std::pair("/sys/fs/cgroup", "memory.max")}) {
      MemoryCgroup group;
      group.path_ = std::string(parent) + "/moraine-test-" + std::to_string(getpid());
      std::error_code error;
      if (!std::filesystem::create_directory(group.path_, error)) continue;
      std::ofstream limit(group.path_ + "/" + limit_file);
      if (limit << limit_bytes << std::flush) return group;
      rmdir(group.path_.c_str());
    }
    return std::nullopt;
  }
  ~MemoryCgroup() {
    if (!path_.empty()) rmdir(path_.c_str());
  }
  MemoryCgroup(MemoryCgroup&& other) noexcept : path_(std::move(other.path_)) {
    other.path_.clear();
  }
  void EnterFromChild() const {
    std::ofstream procs(path_ + "/cgroup.procs");
    if (!(procs << getpid() << std::flush)) _exit(6);
  }

 private:
  MemoryCgroup() = default;
  std::string path_;
};

ChildResult RunInChild(const RunnerOptions& options, const MemoryCgroup* cgroup) {
  const pid_t child = fork();
  if (child == 0) {
    if (cgroup != nullptr) cgroup->EnterFromChild();
    const auto runner = Runner::Open(options);
    if (!runner.ok()) {
      std::fprintf(stderr, "%s\n", runner.status().ToString().c_str());
      _exit(2);
    }
    std::vector<int32_t> prompt(600);
    for (size_t i = 0; i < prompt.size(); ++i) prompt[i] = static_cast<int32_t>(i * 7 % 250);
    const Runner::ForwardOptions forward{.logits = Runner::LogitsMode::kNone};
    if (!(*runner)->Forward(prompt, forward).ok()) _exit(3);
    for (int i = 0; i < 50; ++i) {
      const int32_t token = i * 5 % 250;
      if (!(*runner)->Forward(std::span(&token, 1), forward).ok()) _exit(4);
    }
    _exit((*runner)->Stats().residency.evictions > 0 ? 0 : 5);
  }
  int status = 0;
  rusage usage{};
  wait4(child, &status, 0, &usage);
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1,
          static_cast<uint64_t>(usage.ru_maxrss) * 1024};
}

// 3 x 64 experts of 1.5 MiB: 288 MiB of experts.
class MemoryTest : public testing::Test {
 protected:
  static std::string Checkpoint() {
    const std::string directory = MakeScratchDirectory("checkpoint");
    WriteSyntheticCheckpoint(directory, {.layers = 3, .experts = 64, .top_k = 4, .hidden = 512,
                                         .intermediate = 512, .heads = 4, .kv_heads = 2,
                                         .head_dim = 64, .vocab = 256}, 3);
    return directory;
  }
  MemoryTest() : store_(Checkpoint(), Encoding::kBf16) {}

  RunnerOptions Options(const std::string& budget) {
    RunnerOptions options = TestRunnerOptions(store_, budget);
    options.prefill_chunk = 256;
    return options;
  }

  const TestStore store_;
};

TEST_F(MemoryTest, PeakResidentSetStaysWithinTheBudget) {
  for (const uint64_t budget : {uint64_t{140 * kMiB}, uint64_t{200 * kMiB}}) {
    const auto cgroup = MemoryCgroup::Create(budget + kFileBackedBytes);
    if (!cgroup) std::printf("no memory cgroup may be made here: judged by peak RSS alone\n");
    const ChildResult result =
        RunInChild(Options(std::to_string(budget)), cgroup ? &*cgroup : nullptr);
    EXPECT_EQ(result.exit_code, 0);
    std::printf("budget %s, peak RSS %s\n", FormatByteSize(budget).c_str(),
                FormatByteSize(result.peak_bytes).c_str());
    EXPECT_LE(result.peak_bytes, budget + kFileBackedBytes);
    EXPECT_GT(result.peak_bytes, budget / 2) << "the budget is used";
  }
}

TEST_F(MemoryTest, TheDefaultBudgetFitsTheCgroup) {
  const auto cgroup = MemoryCgroup::Create(220 * kMiB);
  if (!cgroup) GTEST_SKIP() << "no memory cgroup may be made here";
  const ChildResult result = RunInChild(Options("auto"), &*cgroup);
  EXPECT_EQ(result.exit_code, 0) << "-1: killed by the kernel";
  EXPECT_GT(result.peak_bytes, 110 * kMiB) << "the budget is used";
}

}  // namespace
}  // namespace moraine
