// A store over several directories: the records are where the weights say, and a directory that is
// missing, swapped or another store's is named.
#include <gmock/gmock.h>

#include "store/drive_set.h"
#include "store_test_support.h"

namespace moraine {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class StripingTest : public ::testing::Test {
 protected:
  void SetUp() override { WriteShardedCheckpoint(directory_ / "source", shape_); }
  std::string path() const { return directory_ / "store"; }
  DriveSet Drives(uint32_t first = 2, uint32_t second = 1) const {
    DriveSet drives;
    drives.stripes = {{directory_ / "a", first}, {directory_ / "b", second}};
    return drives;
  }
  Status Make(const DriveSet& drives, uint64_t seed_of_source = 1) {
    if (seed_of_source != 1) WriteShardedCheckpoint(directory_ / "source", shape_, seed_of_source);
    ImportOptions options;
    options.drives = drives;
    return ImportCopy(directory_ / "source", path(), shape_, options);
  }
  Status Open() const { return Store::Open(path(), StoreMode::kReadOnly).status(); }
  static void ReplaceInFile(const std::string& file, const std::string& from,
                            const std::string& to) {
    std::string text = ReadBytes(file);
    const size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos) << text;
    WriteText(file, text.replace(at, from.size(), to));
  }

  TempDirectory directory_;
  CheckpointShape shape_;  // 3 layers of 8 experts
};

TEST_F(StripingTest, RecordsAreSpreadByWeightInEveryLayerAndHoldTheSameBytes) {
  ASSERT_TRUE(Make(Drives()).ok());
  const auto store = Store::Open(path(), StoreMode::kReadOnly);
  ASSERT_TRUE(store.ok()) << store.status().ToString();
  const std::vector<std::string> packs = {directory_ / "a/experts-000.pack",
                                          directory_ / "b/experts-001.pack"};
  EXPECT_EQ((*store)->expert_pack_paths(), packs);
  for (uint32_t layer = 0; layer < shape_.layers; ++layer) {
    uint32_t in_first = 0;
    for (uint32_t expert = 0; expert < shape_.experts; ++expert) {
      const ExpertKey key{LayerId(layer), ExpertId(expert)};
      const RecordLocation& location = (*store)->Locate(key);
      in_first += location.pack == 0;
      const std::string pack = ReadBytes(packs[location.pack]);
      const std::string record = pack.substr(location.offset, location.bytes);
      EXPECT_TRUE((*store)->VerifyRecord(key, std::as_bytes(std::span(record))).ok());
    }
    // Two of three, as exactly as eight records can be.
    EXPECT_GE(in_first, 5u);
    EXPECT_LE(in_first, 6u);
  }
  const auto report = VerifyStore(path(), nullptr);
  ASSERT_TRUE(report.ok()) << report.status().ToString();
  EXPECT_EQ(report->records, 24u);
  EXPECT_TRUE(report->problems.empty());
}

TEST_F(StripingTest, NeighboursAlternateWithEqualWeights) {
  ASSERT_TRUE(Make(Drives(1, 1)).ok());
  const auto store = Store::Open(path(), StoreMode::kReadOnly);
  ASSERT_TRUE(store.ok());
  for (uint32_t expert = 0; expert + 1 < shape_.experts; ++expert) {
    EXPECT_NE((*store)->Locate({LayerId(1), ExpertId(expert)}).pack,
              (*store)->Locate({LayerId(1), ExpertId(expert + 1)}).pack);
  }
}

TEST_F(StripingTest, SmallPacksOfUnevenStripesOpen) {
  ImportOptions options;
  options.drives = Drives(7, 1);
  options.pack_limit_bytes = 3 * 12288;  // header page and two records
  ASSERT_TRUE(ImportCopy(directory_ / "source", path(), shape_, options).ok());
  const auto report = VerifyStore(path(), nullptr);
  ASSERT_TRUE(report.ok()) << report.status().ToString();
  EXPECT_EQ(report->records, 24u);
  EXPECT_TRUE(report->problems.empty());
}

TEST_F(StripingTest, AMissingSwappedOrForeignDirectoryIsNamed) {
  ASSERT_TRUE(Make(Drives(1, 1)).ok());
  namespace fs = std::filesystem;
  const std::string a = directory_ / "a", b = directory_ / "b", aside = directory_ / "aside";
  fs::rename(b, aside);
  EXPECT_THAT(Open().message(),
              AllOf(HasSubstr(b + "/experts-001.pack: the pack is missing"), HasSubstr("DRIVES")));
  fs::rename(a, b);
  fs::rename(aside, a);  // swapped
  EXPECT_THAT(Open().message(), HasSubstr(a + "/experts-000.pack: the pack is missing"));
  fs::rename(a + "/experts-001.pack", a + "/experts-000.pack");
  EXPECT_THAT(Open().message(),
              AllOf(HasSubstr(a + "/experts-000.pack"), HasSubstr("expert pack 0, found pack 1")));
}

TEST_F(StripingTest, AnotherStoresDirectoryIsNeitherOverwrittenNorRead) {
  ASSERT_TRUE(Make(Drives(1, 1)).ok());
  std::filesystem::rename(path(), directory_ / "first");
  const std::string before = ReadBytes(directory_ / "a/experts-000.pack");
  const Status status = Make(Drives(1, 1), /*seed_of_source=*/2);
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition) << status.ToString();
  EXPECT_THAT(status.message(), AllOf(HasSubstr(directory_ / "a/experts-000.pack"),
                                      HasSubstr("another store")));
  EXPECT_TRUE(ReadBytes(directory_ / "a/experts-000.pack") == before);

  DriveSet elsewhere;
  elsewhere.stripes = {{directory_ / "c", 1}, {directory_ / "d", 1}};
  std::filesystem::remove_all(path());
  ASSERT_TRUE(Make(elsewhere).ok());
  ReplaceInFile(path() + "/DRIVES", directory_ / "c", directory_ / "a");
  EXPECT_THAT(Open().message(), AllOf(HasSubstr(directory_ / "a/experts-000.pack"),
                                      HasSubstr("a pack of another store")));
}

TEST_F(StripingTest, AMovedStoreOpensWhenDrivesSaysWhere) {
  ASSERT_TRUE(Make(Drives(1, 1)).ok());
  std::filesystem::rename(directory_ / "a", directory_ / "moved");
  EXPECT_EQ(Open().code(), StatusCode::kCorruption);
  ReplaceInFile(path() + "/DRIVES", directory_ / "a", "../moved");  // relative to the store
  EXPECT_TRUE(Open().ok()) << Open().ToString();
}

TEST_F(StripingTest, AResumeWritesWhatIsGoneAndOtherWeightsAreRefused) {
  class Stopping final : public CopyPlan {
   public:
    using CopyPlan::CopyPlan;
    Status EncodeExpert(const Checkpoint& checkpoint, ExpertKey key,
                        std::span<std::byte> record) const override {
      if (key.layer.value() == 2) return IoError("stopped");
      return CopyPlan::EncodeExpert(checkpoint, key, record);
    }
  };
  const auto checkpoint = MustOpen(directory_ / "source");
  ImportOptions options;
  options.store_directory = path();
  options.drives = Drives();
  EXPECT_EQ(Import(*checkpoint, Stopping(*checkpoint, shape_), options).code(),
            StatusCode::kIoError);
  EXPECT_FALSE(Open().ok());
  const Status other = Make(Drives(1, 1));
  EXPECT_EQ(other.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(other.message(), HasSubstr("stripes"));

  std::filesystem::remove_all(directory_ / "b");  // a drive was replaced
  uint64_t resumed = 0;
  options.on_progress = [&](const ImportProgress& progress) { resumed = progress.resumed_bytes; };
  const Status status = ImportCopy(directory_ / "source", path(), shape_, options);
  ASSERT_TRUE(status.ok()) << status.ToString();
  EXPECT_GT(resumed, 0u);
  const auto report = VerifyStore(path(), nullptr);
  ASSERT_TRUE(report.ok()) << report.status().ToString();
  EXPECT_TRUE(report->problems.empty()) << report->problems.front();
}

TEST_F(StripingTest, ABadDrivesFileIsNamedByLine) {
  ASSERT_TRUE(Make(Drives()).ok());
  ReplaceInFile(path() + "/DRIVES", "stripe 2", "stripe two");
  EXPECT_EQ(Open().code(), StatusCode::kCorruption);
  EXPECT_THAT(Open().message(), AllOf(HasSubstr("DRIVES: line 2"), HasSubstr("stripe two")));
}

TEST(DriveSet, RefusesWhatIsNoStriping) {
  DriveSet drives;
  drives.stripes = {{"/x", 1}, {"/x/", 1}};
  EXPECT_THAT(drives.Check().message(), HasSubstr("named twice"));
  drives.stripes = {{"/x", 0}, {"/y", 1}};
  EXPECT_THAT(drives.Check().message(), HasSubstr("weight 0"));
  drives.stripes = {{"/x", 1}, {"/y", 1}};
  drives.mirror = {"/y", 1};
  EXPECT_THAT(drives.Check().message(), HasSubstr("named twice"));
}

}  // namespace
}  // namespace moraine
