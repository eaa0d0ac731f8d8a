// What needs a process of its own: kills, file size limits, peak memory. The children are this same
// program, executed anew (a forked copy would inherit RocksDB's locks but not its threads).
#include <fcntl.h>
#include <gmock/gmock.h>
#include <signal.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>

#include <cstdio>

#include "base/clock.h"
#include "store_test_support.h"

extern char** environ;

namespace moraine {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

const CheckpointShape kShape = {
    .layers = 3, .experts = 24, .expert_floats = 15000, .dense_rows = 400, .dense_cols = 500};

ImportOptions SmallBatches(const std::string& store) {
  ImportOptions options;
  options.store_directory = store;
  options.thread_count = 3;
  options.commit_bytes = 200'000;  // some 20 commits, so that kills land between and inside them
  options.pack_limit_bytes = 1'000'000;
  // Two drives, each with several packs, and a mirror: one drive is a case of this.
  options.drives.stripes = {{"drive-a", 2}, {"drive-b", 1}};
  options.drives.mirror = {"drive-c", 1};
  return options;
}

struct ChildResult {
  int status = 0;  // as waitpid gives it
  rusage usage{};
  bool killed() const { return WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL; }
  int exit_code() const { return WIFEXITED(status) ? WEXITSTATUS(status) : -1; }
};

// Exit codes of the child.
constexpr int kImported = 0;
constexpr int kFailed = 10;
constexpr int kNoSpace = 11;

ChildResult RunChild(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "import-child");
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  pid_t pid = 0;
  CHECK(posix_spawn(&pid, "/proc/self/exe", nullptr, nullptr, argv.data(), environ) == 0);
  ChildResult result;
  CHECK(wait4(pid, &result.status, 0, &result.usage) == pid);
  return result;
}

ChildResult RunImport(const std::string& source, const std::string& store, int64_t kill_after_ns,
                      uint64_t file_limit_bytes = 0) {
  return RunChild({source, store, std::to_string(kill_after_ns), std::to_string(file_limit_bytes)});
}

class ImportProcessTest : public ::testing::Test {
 protected:
  std::string source() const { return directory_ / "source"; }
  TempDirectory directory_;
};

TEST_F(ImportProcessTest, KilledAnywhereItResumesToTheSameBytes) {
  WriteShardedCheckpoint(source(), kShape);
  const std::string whole = directory_ / "whole";
  const int64_t start_ns = RealClock().NowNs();
  ASSERT_EQ(RunImport(source(), whole, 0).exit_code(), kImported);
  const int64_t duration_ns = RealClock().NowNs() - start_ns;

  const uint64_t seed = static_cast<uint64_t>(start_ns);
  std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
  Random random(seed);
  constexpr int kKills = 20;
  int killed = 0, resumed_kills = 0;
  // Some timers will find the import finished already, so more rounds than kills are allowed for.
  for (int round = 0; killed < kKills && round < 10 * kKills; ++round) {
    const std::string store = directory_ / ("killed-" + std::to_string(round));
    bool finished = false;
    // A resume may be killed as well, up to three times in a row.
    for (int attempt = 0; attempt < 3 && !finished; ++attempt) {
      const int64_t delay_ns =
          1 + static_cast<int64_t>(random.Below(static_cast<uint64_t>(duration_ns)));
      const ChildResult child = RunImport(source(), store, delay_ns);
      if (!child.killed()) {
        ASSERT_EQ(child.exit_code(), kImported);
        finished = true;
        break;
      }
      ++killed;
      resumed_kills += attempt > 0;
      for (const StoreMode mode : {StoreMode::kReadOnly, StoreMode::kReadWrite}) {
        const Status status = Store::Open(store, mode).status();
        // Either nothing of it is there yet, or it says that it is not finished. A kill after the
        // manifest was written has lost nothing: then the store opens and must be whole.
        finished = status.ok();
        if (finished) break;
        EXPECT_THAT(status.code(), ::testing::AnyOf(StatusCode::kFailedPrecondition,
                                                    StatusCode::kNotFound))
            << status.ToString();
      }
    }
    if (!finished) {
      ASSERT_EQ(RunImport(source(), store, 0).exit_code(), kImported);
    }
    ExpectSameStore(store, whole);
    std::filesystem::remove_all(store);
  }
  EXPECT_GE(killed, kKills);
  std::printf("%d kills, %d of them in a resume\n", killed, resumed_kills);
}

TEST_F(ImportProcessTest, AFullDiskIsNamedAndTheImportGoesOnWhenThereIsRoom) {
  WriteShardedCheckpoint(source(), kShape);
  const std::string store = directory_ / "store", whole = directory_ / "whole";
  // A file size limit, with SIGXFSZ ignored, fails writes in the middle of a pack as a full disk
  // does, on any filesystem and without privileges.
  EXPECT_EQ(RunImport(source(), store, 0, /*file_limit_bytes=*/600'000).exit_code(), kNoSpace);
  EXPECT_EQ(Store::Open(store, StoreMode::kReadOnly).status().code(),
            StatusCode::kFailedPrecondition);
  ASSERT_EQ(RunImport(source(), store, 0).exit_code(), kImported);
  ASSERT_EQ(RunImport(source(), whole, 0).exit_code(), kImported);
  ExpectSameStore(store, whole);
}

TEST_F(ImportProcessTest, PeakMemoryIsAFewUnitsHoweverLargeTheModel) {
  // 192 MiB, sparse: the zeros cost neither disk nor time.
  const CheckpointShape shape = {
      .layers = 4, .experts = 48, .expert_floats = 256 * 1024, .dense_rows = 7, .dense_cols = 100};
  const CheckpointShape tiny = {.layers = 1, .experts = 1, .expert_floats = 1024,
                                .dense_rows = 7, .dense_cols = 100};
  const auto write_sparse = [](const std::string& directory, const CheckpointShape& sparse) {
    std::filesystem::create_directories(directory);
    std::string header = "{";
    uint64_t offset = 0;
    const auto add = [&](const std::string& name, uint64_t count) {
      header += (offset == 0 ? "" : ",") + TensorEntry(name, "F32", "[" + std::to_string(count) + "]",
                                                       offset, offset + count * 4);
      offset += count * 4;
    };
    for (uint32_t layer = 0; layer < sparse.layers; ++layer) {
      for (uint32_t expert = 0; expert < sparse.experts; ++expert) {
        add(ExpertTensorName(layer, expert), sparse.expert_floats);
      }
    }
    add("embed", uint64_t{sparse.dense_rows} * sparse.dense_cols);
    add("norm", sparse.dense_cols);
    const std::string file = SafetensorsBytes(header + "}", "");
    WriteText(directory + "/model.safetensors", file);
    std::filesystem::resize_file(directory + "/model.safetensors", file.size() + offset);
    return offset;
  };
  const uint64_t model_bytes = write_sparse(source(), shape);
  write_sparse(directory_ / "tiny", tiny);
  const auto peak_bytes = [&](const std::string& from, const std::string& to, const char* which) {
    const ChildResult child = RunChild({directory_ / from, directory_ / to, "0", "0", which});
    EXPECT_EQ(child.exit_code(), kImported);
    return static_cast<uint64_t>(child.usage.ru_maxrss) * 1024;
  };
  const uint64_t base = peak_bytes("tiny", "tiny-store", "tiny");
  const uint64_t peak = peak_bytes("source", "store", "large");
  std::printf("peak RSS %.1f MiB for a model of %.1f MiB, %.1f MiB for one of 8 KiB\n",
              static_cast<double>(peak) / kMiB, static_cast<double>(model_bytes) / kMiB,
              static_cast<double>(base) / kMiB);
#ifndef __SANITIZE_ADDRESS__  // whose quarantine keeps freed memory
  // Three workers, each with a record, the plan's floats and a piece that is read, of 1 MiB; 16 MiB for the rest.
  EXPECT_LT(peak, base + 3 * 3 * kMiB + 16 * kMiB);
#endif
}

void LimitFileSize(uint64_t bytes) {
  signal(SIGXFSZ, SIG_IGN);
  const rlimit limit = {bytes, bytes};
  CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
}

// The kernel delivers a real SIGKILL at a moment that nothing in the program can prepare for.
void KillSelfAfter(int64_t delay_ns) {
  sigevent event{};
  event.sigev_notify = SIGEV_SIGNAL;
  event.sigev_signo = SIGKILL;
  timer_t timer;
  CHECK(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0);
  itimerspec when{};
  when.it_value = {static_cast<time_t>(delay_ns / 1'000'000'000), delay_ns % 1'000'000'000};
  CHECK(timer_settime(timer, 0, &when, nullptr) == 0);
}

int ImportChild(const std::vector<std::string>& arguments) {
  const int64_t kill_after_ns = std::stoll(arguments.at(2));
  const uint64_t file_limit_bytes = std::stoull(arguments.at(3));
  if (kill_after_ns > 0) KillSelfAfter(kill_after_ns);
  if (file_limit_bytes > 0) LimitFileSize(file_limit_bytes);
  CheckpointShape shape = kShape;
  ImportOptions options = SmallBatches(arguments.at(1));
  if (arguments.size() > 4) {
    options = ImportOptions{};
    options.thread_count = 3;
    options.commit_bytes = 16 * kMiB;
    shape = arguments[4] == "tiny"
                ? CheckpointShape{.layers = 1, .experts = 1, .expert_floats = 1024,
                                  .dense_rows = 7, .dense_cols = 100}
                : CheckpointShape{.layers = 4, .experts = 48, .expert_floats = 256 * 1024,
                                  .dense_rows = 7, .dense_cols = 100};
  }
  const Status status = ImportCopy(arguments.at(0), arguments.at(1), shape, options);
  if (status.ok()) return kImported;
  std::fprintf(stderr, "child: %s\n", status.ToString().c_str());
  return status.code() == StatusCode::kResourceExhausted ? kNoSpace : kFailed;
}

}  // namespace
}  // namespace moraine

int main(int argc, char** argv) {
  if (std::string(argv[0]) == "import-child") {
    return moraine::ImportChild(std::vector<std::string>(argv + 1, argv + argc));
  }
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
