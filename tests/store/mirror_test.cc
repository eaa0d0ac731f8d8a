// A store whose expert packs exist twice: the copies are the same bytes, and a copy that is missing,
// another store's, truncated, damaged or not a second one is named.
#include <gmock/gmock.h>

#include <atomic>
#include <condition_variable>
#include <mutex>

#include "store/drive_set.h"
#include "store_test_support.h"

namespace moraine {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

class MirrorTest : public ::testing::Test {
 protected:
  void SetUp() override { WriteShardedCheckpoint(directory_ / "source", shape_); }
  std::string path() const { return directory_ / "store"; }
  std::string primary() const { return path() + "/packs/experts-000.pack"; }
  std::string mirror() const { return directory_ / "mirror/experts-000.pack"; }
  DriveSet Drives() const {
    DriveSet drives;
    drives.mirror = {directory_ / "mirror", 1};
    return drives;
  }
  Status Make(const DriveSet& drives) {
    ImportOptions options;
    options.drives = drives;
    return ImportCopy(directory_ / "source", path(), shape_, options);
  }
  Status Open() const { return Store::Open(path(), StoreMode::kReadOnly).status(); }
  void ExpectSound() const {
    const auto report = VerifyStore(path(), nullptr);
    ASSERT_TRUE(report.ok()) << report.status().ToString();
    EXPECT_EQ(report->records, 48u);
    EXPECT_EQ(report->copies, 2u);
    EXPECT_THAT(report->problems, ElementsAre());
    EXPECT_TRUE(ReadBytes(primary()) == ReadBytes(mirror()));
  }

  TempDirectory directory_;
  CheckpointShape shape_;  // 3 layers of 8 experts
};

TEST_F(MirrorTest, BothCopiesAreWrittenAndTheStoreIsTheOneWithoutAMirror) {
  ASSERT_TRUE(Make(Drives()).ok());
  ExpectSound();
  const std::string mirrored = ReadBytes(primary());
  fs::rename(path(), directory_ / "mirrored");
  ASSERT_TRUE(Make({}).ok());
  EXPECT_TRUE(ReadBytes(primary()) == mirrored);
}

TEST_F(MirrorTest, StripesAndAMirrorOfAllOfThem) {
  DriveSet drives = Drives();
  drives.stripes = {{"a", 1}, {"b", 1}};
  ASSERT_TRUE(Make(drives).ok());
  const auto store = Store::Open(path(), StoreMode::kReadOnly);
  ASSERT_TRUE(store.ok()) << store.status().ToString();
  EXPECT_THAT((*store)->expert_pack_copies(1),
              ElementsAre(path() + "/b/experts-001.pack", directory_ / "mirror/experts-001.pack"));
  const auto report = VerifyStore(path(), nullptr);
  ASSERT_TRUE(report.ok()) << report.status().ToString();
  EXPECT_EQ(report->records, 48u);
  EXPECT_THAT(report->problems, ElementsAre());
}

TEST_F(MirrorTest, VerifySaysWhichCopyIsBad) {
  ASSERT_TRUE(Make(Drives()).ok());
  uint64_t offset[3];
  for (uint32_t expert = 0; expert < 3; ++expert) {
    const auto store = Store::Open(path(), StoreMode::kReadOnly);
    offset[expert] = (*store)->Locate({LayerId(1), ExpertId(expert)}).offset;
  }
  FlipBit(primary(), offset[0] + 100);
  FlipBit(mirror(), offset[1] + 100);
  FlipBit(primary(), offset[2] + 100);
  FlipBit(mirror(), offset[2] + 200);
  const auto report = VerifyStore(path(), nullptr);
  ASSERT_TRUE(report.ok()) << report.status().ToString();
  const auto problem = [](const std::string& bad, const char* expert, const std::string& other,
                          const char* state) {
    return AllOf(::testing::StartsWith(bad), HasSubstr(expert), HasSubstr("expected 0x"),
                 ::testing::EndsWith("its copy in " + other + state));
  };
  EXPECT_THAT(report->problems,
              ElementsAre(problem(primary(), "layer 1 expert 0", mirror(), " is right"),
                          problem(mirror(), "layer 1 expert 1", primary(), " is right"),
                          problem(primary(), "layer 1 expert 2", mirror(), " is bad too"),
                          problem(mirror(), "layer 1 expert 2", primary(), " is bad too")));
}

TEST_F(MirrorTest, AMissingTruncatedOrForeignMirrorIsNamed) {
  ASSERT_TRUE(Make(Drives()).ok());
  fs::rename(directory_ / "mirror", directory_ / "aside");
  EXPECT_EQ(Open().code(), StatusCode::kCorruption);
  EXPECT_THAT(Open().message(), AllOf(HasSubstr(mirror() + ": the pack is missing"),
                                      HasSubstr(path() + "/DRIVES")));
  fs::copy(directory_ / "aside", directory_ / "mirror");
  EXPECT_TRUE(Open().ok());
  fs::resize_file(mirror(), 8192);
  EXPECT_THAT(Open().message(), AllOf(HasSubstr(mirror()), HasSubstr("truncated")));

  // Another store's.
  fs::rename(path(), directory_ / "first");
  fs::rename(directory_ / "aside", directory_ / "of-first");
  WriteShardedCheckpoint(directory_ / "source", shape_, /*seed=*/2);
  const Status refused = Make(Drives());
  EXPECT_EQ(refused.code(), StatusCode::kFailedPrecondition) << refused.ToString();
  EXPECT_THAT(refused.message(), AllOf(HasSubstr(mirror()), HasSubstr("another store")));
  fs::remove_all(path());
  fs::remove_all(directory_ / "mirror");
  ASSERT_TRUE(Make(Drives()).ok());
  fs::remove_all(directory_ / "mirror");
  fs::rename(directory_ / "of-first", directory_ / "mirror");
  EXPECT_THAT(Open().message(), AllOf(HasSubstr(mirror()), HasSubstr("a pack of another store")));
}

TEST_F(MirrorTest, AMirrorThatIsTheStoreItselfIsRefused) {
  DriveSet drives;
  drives.mirror = {path() + "/packs", 1};
  EXPECT_THAT(Make(drives).message(), HasSubstr("a directory of its own"));
  fs::remove_all(path());
  ASSERT_TRUE(Make(Drives()).ok());
  fs::remove_all(directory_ / "mirror");
  fs::create_directory_symlink(path() + "/packs", directory_ / "mirror");
  EXPECT_THAT(Open().message(), AllOf(HasSubstr(mirror()), HasSubstr("are one file")));
}

// What docs/drives.md tells the operator.
TEST_F(MirrorTest, AMirrorIsAddedByCopyingAndALostDriveIsTakenOutByEditing) {
  ASSERT_TRUE(Make({}).ok());
  const Status later = Make(Drives());
  EXPECT_EQ(later.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(later.message(), AllOf(HasSubstr("without a mirror"), HasSubstr("/DRIVES")));
  fs::create_directory(directory_ / "mirror");
  fs::copy(primary(), mirror());
  WriteText(path() + "/DRIVES", "moraine drives, format 1\nmirror 1 " + (directory_ / "mirror") + "\n");
  ExpectSound();
  ASSERT_TRUE(Make(Drives()).ok());  // the same import again has nothing to do

  fs::remove(primary());
  EXPECT_THAT(Open().message(), AllOf(HasSubstr(primary() + ": the pack is missing"),
                                      HasSubstr("name the other copy alone")));
  WriteText(path() + "/DRIVES", "moraine drives, format 1\nstripe 1 " + (directory_ / "mirror") + "\n");
  const auto report = VerifyStore(path(), nullptr);
  ASSERT_TRUE(report.ok()) << report.status().ToString();
  EXPECT_EQ(report->records, 24u);
  EXPECT_THAT(report->problems, ElementsAre());
}

// Fails at expert `stop`; with `overtake`, only once layer 1 has been written by another thread.
class StoppingPlan final : public CopyPlan {
 public:
  StoppingPlan(const Checkpoint& checkpoint, const CheckpointShape& shape, ExpertKey stop,
               bool overtake)
      : CopyPlan(checkpoint, shape), stop_(stop), overtake_(overtake) {}
  Status EncodeExpert(const Checkpoint& checkpoint, ExpertKey key,
                      std::span<std::byte> record) const override {
    std::unique_lock lock(mutex_);
    if (key == stop_) {
      layer_1_written_.wait(lock, [&] { return !overtake_ || written_; });
      return IoError("stopped");
    }
    if (key.layer.value() == 2) {
      written_ = true;
      layer_1_written_.notify_all();
      return IoError("stopped");
    }
    return CopyPlan::EncodeExpert(checkpoint, key, record);
  }

 private:
  const ExpertKey stop_;
  const bool overtake_;
  mutable std::mutex mutex_;
  mutable std::condition_variable layer_1_written_;
  mutable bool written_ = false;
};

TEST_F(MirrorTest, AMirrorLostHalfwayIsWrittenAgainEvenIfTheResumeStopsToo) {
  const auto checkpoint = MustOpen(directory_ / "source");
  ImportOptions options;
  options.store_directory = path();
  options.drives = Drives();
  options.thread_count = 2;
  const ExpertKey first{LayerId(0), ExpertId(0)}, last{LayerId(2), ExpertId(0)};
  EXPECT_FALSE(Import(*checkpoint, StoppingPlan(*checkpoint, shape_, last, false), options).ok());
  fs::remove_all(directory_ / "mirror");
  // The resume writes what is behind the first record, which leaves a hole in the new file.
  EXPECT_FALSE(Import(*checkpoint, StoppingPlan(*checkpoint, shape_, first, true), options).ok());
  EXPECT_GT(fs::file_size(mirror()), 8u * 12288);
  const Status status = ImportCopy(directory_ / "source", path(), shape_, options);
  ASSERT_TRUE(status.ok()) << status.ToString();
  ExpectSound();
}

}  // namespace
}  // namespace moraine
