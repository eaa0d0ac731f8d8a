// Faults of the drive under a whole engine: the request fails by name, the engine lives.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <fstream>
#include <filesystem>

#include "engine/runner.h"
#include "io/simulated_reader.h"
#include "store/drive_set.h"
#include "test_store.h"

namespace moraine {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr int32_t kNoOpinion = 1 << 30;  // SimulatedFaults::script: let the dice decide

class FaultTest : public testing::Test {
 protected:
  FaultTest() : store_(GoldenPath("fixtures/qwen3_moe"), Encoding::kBf16) {}

  // A runner at the smallest budget on a device that `script` may break.
  std::unique_ptr<Runner> Open(std::function<int32_t(const BlockRead&)> script) {
    RunnerOptions options = TestRunnerOptions(store_, "12.5%");
    options.reader_factory = [script] {
      SimulatedReaderOptions reader;
      reader.faults.script = script;
      return Result<std::unique_ptr<BlockReader>>(CreateSimulatedReader(std::move(reader)));
    };
    auto runner = Runner::Open(options);
    CHECK(runner.ok(), runner.status().message());
    return std::move(*runner);
  }

  // The last logits of a fixed prompt.
  Result<std::vector<float>> Logits(Runner& runner) {
    std::vector<float> copy;
    const Runner::LogitsSink sink = [&](uint32_t, std::span<const float> logits) {
      copy.assign(logits.begin(), logits.end());
    };
    runner.ResetSequence();
    const std::vector<int32_t> prompt = {109, 277, 235, 177, 125, 58, 215, 213};
    RETURN_IF_ERROR(runner.Forward(prompt, {.sink = &sink}));
    return copy;
  }

  std::vector<float> Healthy() {
    const auto runner = Open(nullptr);
    return *Logits(*runner);
  }

  const TestStore store_;
};

TEST_F(FaultTest, OneEioIsRetriedAndUnnoticed) {
  int failures = 1;
  const auto runner = Open([&](const BlockRead&) { return failures-- > 0 ? -EIO : kNoOpinion; });
  const auto logits = Logits(*runner);
  ASSERT_TRUE(logits.ok()) << logits.status().message();
  EXPECT_EQ(*logits, Healthy());
  EXPECT_EQ(runner->Stats().reads.retries, 1u);
}

TEST_F(FaultTest, EioForEverFailsTheRequestNamingTheExpertAndTheNextOneWorks) {
  bool broken = true;
  const auto runner = Open([&](const BlockRead&) { return broken ? -EIO : kNoOpinion; });
  const auto failed = Logits(*runner);
  ASSERT_FALSE(failed.ok());
  EXPECT_EQ(failed.status().code(), StatusCode::kIoError);
  EXPECT_THAT(failed.status().message(), AllOf(HasSubstr("layer"), HasSubstr("expert")));
  runner->CheckInvariants();
  broken = false;
  const auto logits = Logits(*runner);
  ASSERT_TRUE(logits.ok()) << logits.status().message();
  EXPECT_EQ(*logits, Healthy());
}

TEST_F(FaultTest, ShortReadsAreResumed) {
  int calls = 0;
  const auto runner = Open([&](const BlockRead& read) {
    return ++calls % 2 == 1 && read.length > 4096 ? 4096 : kNoOpinion;
  });
  const auto logits = Logits(*runner);
  ASSERT_TRUE(logits.ok()) << logits.status().message();
  EXPECT_EQ(*logits, Healthy());
  EXPECT_GT(runner->Stats().reads.short_reads, 0u);
}

TEST_F(FaultTest, AFlippedBitQuarantinesThatExpertOnly) {
  // Every record of the pack but one stays good; find one that the prompt uses by breaking each.
  const std::vector<float> healthy = Healthy();
  std::fstream pack(store_.pack_path(), std::ios::in | std::ios::out | std::ios::binary);
  const auto store = Store::Open(store_.directory(), StoreMode::kReadOnly);
  ASSERT_TRUE(store.ok());
  const auto flip = [&](uint64_t offset) {
    pack.seekg(static_cast<std::streamoff>(offset));
    const char byte = static_cast<char>(pack.get() ^ 0x10);
    pack.seekp(static_cast<std::streamoff>(offset));
    pack.put(byte);
    pack.flush();
  };
  int failures = 0;
  for (uint32_t expert = 0; expert < 8; ++expert) {
    const RecordLocation& place = (*store)->Locate({LayerId(2), ExpertId(expert)});
    flip(place.offset + 1000);
    const auto runner = Open(nullptr);
    const auto logits = Logits(*runner);
    if (logits.ok()) {
      EXPECT_EQ(*logits, healthy) << "the broken expert was not used";
    } else {
      ++failures;
      EXPECT_EQ(logits.status().code(), StatusCode::kCorruption);
      EXPECT_THAT(logits.status().message(),
                  AllOf(HasSubstr("layer 2"), HasSubstr("expert " + std::to_string(expert)),
                        HasSubstr("experts-000.pack")));
      EXPECT_EQ(runner->Stats().residency.quarantined, 1u);
      // It fails again without another read, and everything else goes on working.
      EXPECT_FALSE(Logits(*runner).ok());
      const std::vector<int32_t> other = {5};
      runner->ResetSequence();
      (void)runner->Forward(other, {.logits = Runner::LogitsMode::kNone});
      runner->CheckInvariants();
    }
    flip(place.offset + 1000);
  }
  EXPECT_GT(failures, 0) << "eight tokens use more than no expert of layer 2";
}

TEST_F(FaultTest, ATruncatedPackDoesNotOpen) {
  const auto size = std::filesystem::file_size(store_.pack_path());
  std::filesystem::resize_file(store_.pack_path(), size - 4096);
  const auto runner = Runner::Open(TestRunnerOptions(store_, "50%"));
  ASSERT_FALSE(runner.ok());
  EXPECT_THAT(runner.status().message(), HasSubstr("experts-000.pack"));
}

TEST_F(FaultTest, ABudgetBelowTheMinimumNamesTheMinimum) {
  const auto runner = Runner::Open(TestRunnerOptions(store_, "5%"));
  ASSERT_FALSE(runner.ok());
  EXPECT_THAT(runner.status().message(), HasSubstr("12.5%"));
  EXPECT_TRUE(Runner::Open(TestRunnerOptions(store_, "12.5%")).ok());
}

TEST_F(FaultTest, AnErrorInDecodeLeavesTheSequenceWhereItWas) {
  int healthy_reads = 1 << 20;
  const auto runner = Open([&](const BlockRead&) {
    return healthy_reads-- > 0 ? kNoOpinion : -EIO;
  });
  ASSERT_TRUE(Logits(*runner).ok());
  EXPECT_EQ(runner->position(), 8u);
  healthy_reads = 0;
  const std::vector<int32_t> next = {17};
  Status status;
  // At the smallest budget a few tokens must miss.
  for (int i = 0; i < 20 && status.ok(); ++i) {
    const uint32_t before = runner->position();
    status = runner->Forward(next, {.logits = Runner::LogitsMode::kNone});
    EXPECT_EQ(runner->position(), status.ok() ? before + 1 : before);
  }
  EXPECT_EQ(status.code(), StatusCode::kIoError);
}

// The store's packs once more, beside it.
class MirroredFaultTest : public FaultTest {
 protected:
  MirroredFaultTest() {
    std::filesystem::create_directory(mirror_);
    std::filesystem::copy(store_.pack_path(), mirror_ + "/experts-000.pack");
    DriveSet drives;
    drives.mirror = {mirror_, 1};
    CHECK(drives.Write(store_.directory()).ok(), "DRIVES");
  }
  const std::string mirror_ = store_.directory() + "/mirror";
};

TEST_F(MirroredFaultTest, BothDrivesAreReadAndADeadOneIsNotNoticed) {
  bool broken = false;
  const auto runner = Open([&](const BlockRead& read) {
    return broken && read.file == FileId(1) ? -EIO : kNoOpinion;
  });
  const auto healthy = Logits(*runner);
  ASSERT_TRUE(healthy.ok()) << healthy.status().message();
  EngineStats stats = runner->Stats();
  ASSERT_EQ(stats.drives.size(), 2u);
  EXPECT_EQ(stats.drives[1].directory, mirror_);
  EXPECT_GT(stats.drives[0].bytes, 0u);
  EXPECT_GT(stats.drives[1].bytes, 0u);
  EXPECT_EQ(stats.drives[0].bytes + stats.drives[1].bytes,
            stats.reads.demand_bytes + stats.reads.speculative_bytes);
  broken = true;
  const auto logits = Logits(*runner);
  ASSERT_TRUE(logits.ok()) << logits.status().message();
  EXPECT_EQ(*logits, *healthy);
  stats = runner->Stats();
  EXPECT_GT(stats.drives[1].healed, 0u);
  EXPECT_EQ(stats.drives[1].healed, stats.drives[1].errors);
  EXPECT_EQ(stats.residency.failed_reads, 0u);
}

TEST_F(MirroredFaultTest, ACopyThatIsRottenThroughoutIsHealedFromTheOther) {
  const std::vector<float> healthy = Healthy();
  {
    std::fstream pack(mirror_ + "/experts-000.pack", std::ios::in | std::ios::out | std::ios::binary);
    const auto size = std::filesystem::file_size(mirror_ + "/experts-000.pack");
    for (uint64_t offset = 4096; offset < size; offset += 4096) {
      pack.seekp(static_cast<std::streamoff>(offset));
      pack.write("rotten", 6);
    }
  }
  const auto runner = Open(nullptr);
  const auto logits = Logits(*runner);
  ASSERT_TRUE(logits.ok()) << logits.status().message();
  EXPECT_EQ(*logits, healthy);
  EXPECT_GT(runner->Stats().residency.healed, 0u);
  EXPECT_EQ(runner->Stats().residency.quarantined, 0u);
}

}  // namespace
}  // namespace moraine
