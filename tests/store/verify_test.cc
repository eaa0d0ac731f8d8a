#include <gmock/gmock.h>

#include "store_test_support.h"

namespace moraine {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class VerifyTest : public ::testing::Test {
 protected:
  void SetUp() override {
    shape_.dense_rows = 9000;  // 3.6 MB: a tensor of two pieces
    WriteShardedCheckpoint(directory_ / "source", shape_);
    const Status status = ImportCopy(directory_ / "source", path(), shape_);
    ASSERT_TRUE(status.ok()) << status.ToString();
  }
  std::string path() const { return directory_ / "store"; }

  TempDirectory directory_;
  CheckpointShape shape_;
};

TEST_F(VerifyTest, ASoundStoreHasNoProblemsAndEveryByteIsRead) {
  uint64_t last_done = 0, last_total = 0;
  const auto report = VerifyStore(path(), [&](uint64_t done, uint64_t total) {
    EXPECT_GT(done, last_done);
    last_done = done;
    last_total = total;
  });
  ASSERT_TRUE(report.ok()) << report.status().ToString();
  EXPECT_THAT(report->problems, ElementsAre());
  EXPECT_EQ(report->records, 24u);
  EXPECT_EQ(report->bytes, 24u * 12288 + 9000 * 400 + 400);
  EXPECT_EQ(last_done, last_total);
  EXPECT_EQ(last_total, report->bytes);
}

TEST_F(VerifyTest, NamesEveryFlippedBit) {
  uint64_t record_offset = 0, dense_offset = 0;
  {
    const auto store = Store::Open(path(), StoreMode::kReadOnly);
    ASSERT_TRUE(store.ok());
    record_offset = (*store)->Locate({LayerId(2), ExpertId(3)}).offset;
    dense_offset = (*store)->manifest().dense[0].offset;
  }
  FlipBit(path() + "/packs/experts-000.pack", record_offset + 12287);  // in the padding, too
  FlipBit(path() + "/packs/dense-000.pack", dense_offset + 3'500'000);
  const auto report = VerifyStore(path(), nullptr);
  ASSERT_TRUE(report.ok()) << report.status().ToString();
  EXPECT_THAT(report->problems,
              ElementsAre(AllOf(HasSubstr("dense-000.pack"), HasSubstr("'embed'"),
                                HasSubstr("at offset " + std::to_string(dense_offset))),
                          AllOf(HasSubstr("experts-000.pack"), HasSubstr("layer 2 expert 3"),
                                HasSubstr("at offset " + std::to_string(record_offset)),
                                HasSubstr("expected 0x"))));
  EXPECT_EQ(report->records, 24u);
}

TEST_F(VerifyTest, ATruncatedPackIsNamed) {
  std::filesystem::resize_file(path() + "/packs/experts-000.pack", 8192);
  EXPECT_EQ(VerifyStore(path(), nullptr).status().code(), StatusCode::kCorruption);
  EXPECT_THAT(VerifyStore(path(), nullptr).status().message(), HasSubstr("experts-000.pack"));
}

}  // namespace
}  // namespace moraine
