// The RAM budget is hard: a process that serves a model several times its budget stays within it.
//
// The kernel is the judge: the child runs under RLIMIT_DATA (which counts anonymous memory that is
// mapped privately and writable, committed or not) and its peak RSS is read from wait4.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>

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
  int exit_code = -1;
  uint64_t peak_bytes = 0;
};
ChildResult RunInChild(const RunnerOptions& options) {
  const pid_t child = fork();
  if (child == 0) {
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

TEST(Memory, PeakResidentSetStaysWithinTheBudget) {
  const std::string checkpoint = MakeScratchDirectory("checkpoint");
  // 3 x 64 experts of 1.5 MiB: 288 MiB of experts.
  WriteSyntheticCheckpoint(checkpoint, {.layers = 3, .experts = 64, .top_k = 4, .hidden = 512,
                                        .intermediate = 512, .heads = 4, .kv_heads = 2,
                                        .head_dim = 64, .vocab = 256}, 3);
  const TestStore store(checkpoint, Encoding::kBf16);
  std::filesystem::remove_all(checkpoint);
  for (const uint64_t budget : {uint64_t{140 * kMiB}, uint64_t{200 * kMiB}}) {
    RunnerOptions options = TestRunnerOptions(store, std::to_string(budget));
    options.prefill_chunk = 256;
    const ChildResult result = RunInChild(options);
    EXPECT_EQ(result.exit_code, 0);
    std::printf("budget %s, peak RSS %s\n", FormatByteSize(budget).c_str(),
                FormatByteSize(result.peak_bytes).c_str());
    EXPECT_LE(result.peak_bytes, budget + kFileBackedBytes);
    EXPECT_GT(result.peak_bytes, budget / 2) << "the budget is used";
  }
}

}  // namespace
}  // namespace moraine
