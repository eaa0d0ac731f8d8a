// Opening a store, its checks, heat and notes.
#include <gmock/gmock.h>

#include "store/profile_section.h"
#include "store_test_support.h"

namespace moraine {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class StoreTest : public ::testing::Test {
 protected:
  void SetUp() override {
    WriteShardedCheckpoint(directory_ / "source", shape_);
    ImportOptions options;
    options.pack_limit_bytes = 9 * 12288;
    const Status status = ImportCopy(directory_ / "source", path(), shape_, options);
    ASSERT_TRUE(status.ok()) << status.ToString();
  }
  std::string path() const { return directory_ / "store"; }
  Status OpenError(StoreMode mode = StoreMode::kReadOnly) {
    return Store::Open(path(), mode).status();
  }
  std::unique_ptr<Store> Open(StoreMode mode) {
    auto store = Store::Open(path(), mode);
    CHECK(store.ok(), store.status().ToString());
    return std::move(store).value();
  }

  TempDirectory directory_;
  CheckpointShape shape_;
};

TEST_F(StoreTest, TellsForeignMissingAndOtherVersionsApart) {
  EXPECT_EQ(Store::Open(path() + "x", StoreMode::kReadOnly).status().code(),
            StatusCode::kNotFound);
  const auto foreign = Store::Open(directory_ / "source", StoreMode::kReadOnly);
  EXPECT_EQ(foreign.status().code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(foreign.status().message(), HasSubstr("not a moraine store"));

  WriteText(path() + "/STORE_FORMAT", "moraine store, format 3\n");
  EXPECT_EQ(OpenError().code(), StatusCode::kUnsupported);
  EXPECT_THAT(OpenError().message(),
              AllOf(HasSubstr("format 3"), HasSubstr("format 2"), HasSubstr("newer")));
  EXPECT_EQ(ImportCopy(directory_ / "source", path(), shape_).code(), StatusCode::kUnsupported);
  WriteText(path() + "/STORE_FORMAT", "something else");
  EXPECT_EQ(OpenError().code(), StatusCode::kFailedPrecondition);
}

TEST_F(StoreTest, OpensOnceForWritingAndBesidesForReading) {
  const auto writer = Open(StoreMode::kReadWrite);
  EXPECT_EQ(OpenError(StoreMode::kReadWrite).code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(OpenError(StoreMode::kReadWrite).message(),
              AllOf(HasSubstr(path()), HasSubstr("already open for writing")));
  const auto reader = Open(StoreMode::kReadOnly);
  const auto second_reader = Open(StoreMode::kReadOnly);
  EXPECT_EQ(reader->manifest().ToJson(), writer->manifest().ToJson());
}

TEST_F(StoreTest, CanBeOpenedForWritingAgainAfterClosing) {
  Open(StoreMode::kReadWrite).reset();
  EXPECT_TRUE(OpenError(StoreMode::kReadWrite).ok());
}

TEST_F(StoreTest, ProfilesSurviveReopeningAndAreSeenByReaders) {
  auto writer = Open(StoreMode::kReadWrite);
  const auto reader = Open(StoreMode::kReadOnly);
  EXPECT_EQ(writer->LoadProfileSection("default", "heat").status().code(), StatusCode::kNotFound);
  ASSERT_TRUE(writer->SaveProfile("default", {{"heat", "abc"}, {"warm_set", ""}}).ok());
  ASSERT_TRUE(writer->SaveProfile("coding", {{"heat", "xyz"}}).ok());
  ASSERT_TRUE(writer->SaveProfile("default", {{"heat", "def"}}).ok());
  EXPECT_EQ(*reader->LoadProfileSection("default", "heat"), "def");
  EXPECT_EQ(*reader->LoadProfileSection("default", "warm_set"), "") << "the other sections stay";
  writer.reset();
  EXPECT_EQ(*Open(StoreMode::kReadWrite)->LoadProfileSection("coding", "heat"), "xyz");
  EXPECT_THAT(*reader->ListProfiles(), ElementsAre("coding", "default"));
  EXPECT_THAT(*reader->ListProfileSections("default"), ElementsAre("heat", "warm_set"));
  EXPECT_EQ(reader->SaveProfile("x", {{"heat", ""}}).code(), StatusCode::kFailedPrecondition);

  writer = Open(StoreMode::kReadWrite);
  EXPECT_THAT(writer->SaveProfile("a/b", {{"heat", ""}}).message(), HasSubstr("'a/b'"));
  EXPECT_EQ(writer->DeleteProfile("none").code(), StatusCode::kNotFound);
  ASSERT_TRUE(writer->ReplaceProfile("default", {{"heat", "ghi"}}).ok());
  EXPECT_THAT(*writer->ListProfileSections("default"), ElementsAre("heat"));
  ASSERT_TRUE(writer->SaveProfile("old", {{"other", ""}}).ok());
  EXPECT_EQ(writer->RenameProfile("none", "old").code(), StatusCode::kNotFound);
  ASSERT_TRUE(writer->RenameProfile("default", "old").ok());
  EXPECT_THAT(*writer->ListProfiles(), ElementsAre("coding", "old"));
  EXPECT_THAT(*writer->ListProfileSections("old"), ElementsAre("heat"));
  EXPECT_EQ(*writer->LoadProfileSection("old", "heat"), "ghi");
  ASSERT_TRUE(writer->DeleteProfile("old").ok());
  EXPECT_THAT(*writer->ListProfiles(), ElementsAre("coding"));
}

TEST(ProfileSection, OneThatIsNotWholeIsAnError) {
  const std::string whole = WrapProfileSection("routing of a workload");
  EXPECT_EQ(*UnwrapProfileSection(whole), "routing of a workload");
  for (size_t bytes = 0; bytes < whole.size(); ++bytes) {
    EXPECT_EQ(UnwrapProfileSection(whole.substr(0, bytes)).status().code(), StatusCode::kCorruption);
    std::string flipped = whole;
    flipped[bytes] = static_cast<char>(flipped[bytes] ^ 4);
    EXPECT_EQ(UnwrapProfileSection(flipped).status().code(), StatusCode::kCorruption) << bytes;
  }
}

TEST_F(StoreTest, NotesAreKept) {
  auto writer = Open(StoreMode::kReadWrite);
  EXPECT_EQ(writer->GetNote("drive").status().code(), StatusCode::kNotFound);
  ASSERT_TRUE(writer->PutNote("drive", "11 GB/s").ok());
  writer.reset();
  const auto reader = Open(StoreMode::kReadOnly);
  EXPECT_EQ(*reader->GetNote("drive"), "11 GB/s");
  EXPECT_EQ(reader->PutNote("drive", "").code(), StatusCode::kFailedPrecondition);
}

TEST_F(StoreTest, NamesATruncatedPackWithBothSizes) {
  const std::string pack = path() + "/packs/experts-001.pack";
  const uint64_t size = std::filesystem::file_size(pack);
  std::filesystem::resize_file(pack, size - 1);
  EXPECT_EQ(OpenError().code(), StatusCode::kCorruption);
  EXPECT_THAT(OpenError().message(), AllOf(HasSubstr("experts-001.pack"),
                                           HasSubstr(std::to_string(size)),
                                           HasSubstr(std::to_string(size - 1))));
  std::filesystem::remove(pack);
  EXPECT_THAT(OpenError().message(), AllOf(HasSubstr("experts-001.pack"), HasSubstr("missing")));
}

TEST_F(StoreTest, NamesATruncatedDensePack) {
  const std::string pack = path() + "/packs/dense-000.pack";
  std::filesystem::resize_file(pack, 4096);
  EXPECT_THAT(OpenError().message(), AllOf(HasSubstr("dense-000.pack"), HasSubstr("truncated")));
}

TEST_F(StoreTest, NoticesPacksOfAnotherStoreAndSwappedPacks) {
  WriteShardedCheckpoint(directory_ / "source2", shape_, /*seed=*/2);
  ImportOptions options;
  options.pack_limit_bytes = 9 * 12288;
  ASSERT_TRUE(ImportCopy(directory_ / "source2", directory_ / "store2", shape_, options).ok());
  const auto overwrite = std::filesystem::copy_options::overwrite_existing;
  std::filesystem::copy(path() + "/packs/experts-000.pack", path() + "/packs/experts-001.pack",
                        overwrite);
  EXPECT_THAT(OpenError().message(),
              AllOf(HasSubstr("experts-001.pack"), HasSubstr("expected expert pack 1")));
  std::filesystem::copy(directory_ / "store2/packs/experts-001.pack",
                        path() + "/packs/experts-001.pack", overwrite);
  EXPECT_THAT(OpenError().message(),
              AllOf(HasSubstr("experts-001.pack"), HasSubstr("another store")));
  std::string junk = ReadBytes(path() + "/packs/experts-001.pack");
  junk[0] = 'X';
  WriteText(path() + "/packs/experts-001.pack", junk);
  EXPECT_THAT(OpenError().message(), HasSubstr("no pack header"));
}

TEST_F(StoreTest, NamesEverythingAboutACorruptRecord) {
  const auto store = Open(StoreMode::kReadOnly);
  const ExpertKey key{LayerId(1), ExpertId(2)};
  const RecordLocation& location = store->Locate(key);
  std::string pack = ReadBytes(store->expert_pack_paths()[location.pack]);
  pack[location.offset + 5000] ^= 1;
  const Status status = store->VerifyRecord(
      key, std::as_bytes(std::span(pack)).subspan(location.offset, location.bytes));
  EXPECT_EQ(status.code(), StatusCode::kCorruption);
  EXPECT_THAT(status.message(),
              AllOf(HasSubstr("experts-001.pack"), HasSubstr(std::to_string(location.offset)),
                    HasSubstr("layer 1 expert 2"), HasSubstr("expected 0x")));
}

TEST_F(StoreTest, NamesACorruptDenseTensor) {
  const std::string pack = path() + "/packs/dense-000.pack";
  std::string bytes = ReadBytes(pack);
  bytes[4096 + 17] ^= 4;
  WriteText(pack, bytes);
  const auto store = Open(StoreMode::kReadOnly);
  const DenseTensor& tensor = store->manifest().dense[0];
  std::vector<std::byte> destination(tensor.bytes);
  const Status status = store->ReadDense(tensor, destination);
  EXPECT_EQ(status.code(), StatusCode::kCorruption);
  EXPECT_THAT(status.message(), AllOf(HasSubstr("dense-000.pack"), HasSubstr("'embed'")));
}

TEST_F(StoreTest, ADamagedCatalogueIsAnErrorAndNotACrash) {
  for (const auto& entry : std::filesystem::directory_iterator(path() + "/catalogue")) {
    if (entry.path().extension() != ".sst") continue;
    std::string bytes = ReadBytes(entry.path());
    for (size_t i = 0; i < bytes.size(); i += 97) bytes[i] ^= 0x55;
    WriteText(entry.path(), bytes);
  }
  EXPECT_FALSE(OpenError().ok());
  EXPECT_THAT(OpenError().message(), HasSubstr(path()));
}

using StoreDeathTest = StoreTest;

TEST_F(StoreDeathTest, LocatingAnExpertThatIsNotThereIsABug) {
  const auto store = Open(StoreMode::kReadOnly);
  EXPECT_DEATH((void)store->Locate({LayerId(0), ExpertId(8)}), "no layer 0 expert 8");
}

}  // namespace
}  // namespace moraine
