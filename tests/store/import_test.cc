// What an import produces, and what it refuses. Kills, full disks and memory: import_process_test.cc.
#include <gmock/gmock.h>

#include <mutex>

#include "store_test_support.h"

namespace moraine {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class ImportTest : public ::testing::Test {
 protected:
  void SetUp() override { WriteShardedCheckpoint(source(), shape_); }
  std::string source() const { return directory_ / "source"; }
  std::string store() const { return directory_ / "store"; }

  TempDirectory directory_;
  CheckpointShape shape_;
};

std::vector<float> Floats(const std::string& bytes, uint64_t offset, uint64_t count) {
  std::vector<float> floats(count);
  std::memcpy(floats.data(), bytes.data() + offset, count * 4);
  return floats;
}

TEST_F(ImportTest, PutsEveryTensorWhereTheIndexSays) {
  ASSERT_TRUE(ImportCopy(source(), store(), shape_).ok());
  const auto opened = Store::Open(store(), StoreMode::kReadOnly);
  ASSERT_TRUE(opened.ok()) << opened.status().ToString();
  const Store& imported = **opened;
  const auto checkpoint = MustOpen(source());
  const std::string pack = ReadBytes(imported.expert_pack_paths()[0]);
  std::vector<float> expected(shape_.expert_floats);
  for (uint32_t layer = 0; layer < shape_.layers; ++layer) {
    for (uint32_t expert = 0; expert < shape_.experts; ++expert) {
      const ExpertKey key{LayerId(layer), ExpertId(expert)};
      const RecordLocation& location = imported.Locate(key);
      EXPECT_EQ(location.offset % 4096, 0u);
      const SourceTensor* tensor = checkpoint->Find(ExpertTensorName(layer, expert));
      ASSERT_TRUE(checkpoint->ReadFloats(*tensor, 0, expected).ok());
      EXPECT_EQ(Floats(pack, location.offset, expected.size()), expected);
      EXPECT_TRUE(imported.VerifyRecord(key, std::as_bytes(std::span(pack)).subspan(
                                                 location.offset, location.bytes)).ok());
    }
  }
  for (const DenseTensor& tensor : imported.manifest().dense) {
    std::vector<float> values(tensor.bytes / 4), source_values(tensor.bytes / 4);
    ASSERT_TRUE(imported.ReadDense(tensor, std::as_writable_bytes(std::span(values))).ok());
    ASSERT_TRUE(
        checkpoint->ReadFloats(*checkpoint->Find(tensor.name), 0, source_values).ok());
    EXPECT_EQ(values, source_values);
    EXPECT_EQ(tensor.offset % 4096, 0u);
  }
  const CopyPlan plan(*checkpoint, shape_);
  EXPECT_EQ(imported.manifest().files, plan.manifest().files);
  EXPECT_EQ(imported.manifest().notes, plan.manifest().notes);
}

TEST_F(ImportTest, ThreadsPacksAndCommitSizesDoNotChangeRecords) {
  ImportOptions options;
  options.thread_count = 1;
  options.pack_limit_bytes = 5 * 12288;  // header page and four records
  ASSERT_TRUE(ImportCopy(source(), store(), shape_, options).ok());
  options.thread_count = 7;
  options.commit_bytes = 1;
  ASSERT_TRUE(ImportCopy(source(), directory_ / "other", shape_, options).ok());
  ExpectSameStore(store(), directory_ / "other");
  const auto opened = Store::Open(store(), StoreMode::kReadOnly);
  EXPECT_EQ((*opened)->expert_pack_paths().size(), 6u);
}

TEST_F(ImportTest, ReportsProgressUpToTheEnd) {
  std::mutex mutex;
  std::vector<ImportProgress> seen;
  ImportOptions options;
  options.on_progress = [&](const ImportProgress& progress) {
    const std::lock_guard lock(mutex);
    seen.push_back(progress);
  };
  ASSERT_TRUE(ImportCopy(source(), store(), shape_, options).ok());
  ASSERT_FALSE(seen.empty());
  EXPECT_TRUE(seen.back().finished);
  EXPECT_EQ(seen.back().done_bytes, seen.back().total_bytes);
  EXPECT_EQ(seen.back().total_bytes, 24u * 12288 + 40 * 100 * 4 + 100 * 4);
}

TEST_F(ImportTest, AFinishedStoreIsNotImportedOver) {
  ASSERT_TRUE(ImportCopy(source(), store(), shape_).ok());
  const auto written = std::filesystem::last_write_time(store() + "/packs/experts-000.pack");
  ImportProgress last;
  ImportOptions options;
  options.on_progress = [&](const ImportProgress& progress) { last = progress; };
  ASSERT_TRUE(ImportCopy(source(), store(), shape_, options).ok());
  EXPECT_TRUE(last.finished);
  EXPECT_EQ(last.resumed_bytes, last.total_bytes);
  EXPECT_EQ(std::filesystem::last_write_time(store() + "/packs/experts-000.pack"), written);

  WriteShardedCheckpoint(directory_ / "other", shape_, /*seed=*/2);
  const Status other = ImportCopy(directory_ / "other", store(), shape_);
  EXPECT_EQ(other.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(other.message(), AllOf(HasSubstr("finished import"),
                                     HasSubstr("the source was source, now other")));
  EXPECT_TRUE(Store::Open(store(), StoreMode::kReadOnly).ok());
}

// Fails at one expert, as a source with a broken shard does.
class FailingPlan : public CopyPlan {
 public:
  using CopyPlan::CopyPlan;
  Status EncodeExpert(const Checkpoint& checkpoint, ExpertKey key,
                      std::span<std::byte> record) const override {
    if (key == ExpertKey{LayerId(1), ExpertId(5)}) return Corruption("the planned failure");
    ++encoded_;
    return CopyPlan::EncodeExpert(checkpoint, key, record);
  }
  int encoded() const { return encoded_; }

 private:
  mutable std::atomic<int> encoded_{0};
};

TEST_F(ImportTest, AFailedImportDoesNotOpenAndGoesOnWhereItStopped) {
  const auto checkpoint = MustOpen(source());
  const FailingPlan failing(*checkpoint, shape_);
  ImportOptions options;
  options.store_directory = store();
  options.thread_count = 1;
  const Status failed = Import(*checkpoint, failing, options);
  EXPECT_EQ(failed.code(), StatusCode::kCorruption);
  EXPECT_THAT(failed.message(), AllOf(HasSubstr("the planned failure"), HasSubstr("continue")));
  EXPECT_EQ(failing.encoded(), 8 + 5);
  for (const StoreMode mode : {StoreMode::kReadOnly, StoreMode::kReadWrite}) {
    const auto opened = Store::Open(store(), mode);
    EXPECT_EQ(opened.status().code(), StatusCode::kFailedPrecondition);
    EXPECT_THAT(opened.status().message(), HasSubstr("not finished"));
  }
  uint64_t resumed_bytes = 0;
  options.on_progress = [&](const ImportProgress& p) { resumed_bytes = p.resumed_bytes; };
  ASSERT_TRUE(Import(*checkpoint, CopyPlan(*checkpoint, shape_), options).ok());
  EXPECT_EQ(resumed_bytes, 13u * 12288 + 40 * 100 * 4 + 100 * 4);
  ASSERT_TRUE(ImportCopy(source(), directory_ / "whole", shape_).ok());
  ExpectSameStore(store(), directory_ / "whole");
}

TEST_F(ImportTest, AnUnfinishedImportOfSomethingElseIsNamed) {
  const auto checkpoint = MustOpen(source());
  ImportOptions options;
  options.store_directory = store();
  ASSERT_FALSE(Import(*checkpoint, FailingPlan(*checkpoint, shape_), options).ok());

  CopyPlan other_encoding(*checkpoint, shape_);
  other_encoding.mutable_manifest().layers[2].down_encoding = "q4";
  const Status encoding = Import(*checkpoint, other_encoding, options);
  EXPECT_EQ(encoding.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(encoding.message(), HasSubstr("layer 2's experts was f32, now q4"));

  CopyPlan other_dense(*checkpoint, shape_);
  other_dense.mutable_manifest().dense[0].encoding = "bf16";
  EXPECT_THAT(Import(*checkpoint, other_dense, options).message(),
              HasSubstr("the encoding of embed was f32, now bf16"));

  const std::string shard = source() + "/model-0.safetensors";
  std::filesystem::last_write_time(
      shard, std::filesystem::last_write_time(shard) + std::chrono::seconds(1));
  EXPECT_THAT(ImportCopy(source(), store(), shape_).message(), HasSubstr("has changed since"));
}

TEST_F(ImportTest, DoneUnitsWhoseBytesAreGoneAreDoneAgain) {
  const auto checkpoint = MustOpen(source());
  ImportOptions options;
  options.store_directory = store();
  ASSERT_FALSE(Import(*checkpoint, FailingPlan(*checkpoint, shape_), options).ok());
  std::filesystem::resize_file(store() + "/packs/experts-000.pack", 20000);
  std::filesystem::remove(store() + "/packs/dense-000.pack");
  ASSERT_TRUE(ImportCopy(source(), store(), shape_).ok());
  ASSERT_TRUE(ImportCopy(source(), directory_ / "whole", shape_).ok());
  ExpectSameStore(store(), directory_ / "whole");
}

TEST_F(ImportTest, AskingForMoreThanTheDiskHasNamesBothSizes) {
  const auto checkpoint = MustOpen(source());
  CopyPlan plan(*checkpoint, shape_);
  plan.mutable_manifest().layers[0].record_bytes = 1ull << 60;
  ImportOptions options;
  options.store_directory = store();
  const Status status = Import(*checkpoint, plan, options);
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(status.message(), AllOf(HasSubstr("needs"), HasSubstr("9223372036"),
                                      HasSubstr("free")));
  EXPECT_FALSE(std::filesystem::exists(store() + "/packs"));
  // The directory does not insist on what was refused.
  EXPECT_TRUE(ImportCopy(source(), store(), shape_).ok());
}

TEST_F(ImportTest, AForeignDirectoryIsLeftAlone) {
  std::filesystem::create_directory(store());
  WriteText(store() + "/thesis.txt", "do not touch");
  const Status status = ImportCopy(source(), store(), shape_);
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(status.message(), HasSubstr("not empty and not a moraine store"));
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(store()), {}), 1);
}

TEST_F(ImportTest, AnEmptyDirectoryAndALeftoverOfItsFirstStepAreFine) {
  std::filesystem::create_directory(store());
  WriteText(store() + "/STORE_FORMAT.123", "moraine st");
  EXPECT_TRUE(ImportCopy(source(), store(), shape_).ok());
}

TEST_F(ImportTest, TwoImportsIntoOneStoreDoNotMix) {
  const auto checkpoint = MustOpen(source());
  // The second import starts from inside the first one.
  class NestingPlan : public CopyPlan {
   public:
    NestingPlan(const Checkpoint& checkpoint, const CheckpointShape& shape, ImportOptions inner)
        : CopyPlan(checkpoint, shape), inner_(std::move(inner)) {}
    Status EncodeExpert(const Checkpoint& checkpoint, ExpertKey key,
                        std::span<std::byte> record) const override {
      if (key == ExpertKey{}) nested_ = Import(checkpoint, CopyPlan(checkpoint, shape_), inner_);
      return CopyPlan::EncodeExpert(checkpoint, key, record);
    }
    mutable Status nested_;
    ImportOptions inner_;
  };
  ImportOptions options;
  options.store_directory = store();
  const NestingPlan plan(*checkpoint, shape_, options);
  EXPECT_TRUE(Import(*checkpoint, plan, options).ok());
  EXPECT_EQ(plan.nested_.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(plan.nested_.message(), AllOf(HasSubstr(store()), HasSubstr("open for writing")));
}

}  // namespace
}  // namespace moraine
