#include "base/bytes.h"

#include <gtest/gtest.h>

namespace moraine {
namespace {

TEST(ByteSize, ParsesBinaryAndDecimalUnits) {
  EXPECT_EQ(*ParseByteSize("4096"), 4096u);
  EXPECT_EQ(*ParseByteSize("8GiB"), 8 * kGiB);
  EXPECT_EQ(*ParseByteSize("1.5 GB"), 1'500'000'000u);
  EXPECT_EQ(*ParseByteSize("512m"), 512'000'000u);
  EXPECT_EQ(*ParseByteSize("2kib"), 2048u);
}

TEST(ByteSize, RefusesWhatIsNotASize) {
  for (const char* text : {"", "GiB", "-1", "8XB", "8GiBs", "1e30TB", "nan"}) {
    const auto parsed = ParseByteSize(text);
    ASSERT_FALSE(parsed.ok()) << text;
    EXPECT_EQ(parsed.status().code(), StatusCode::kInvalidArgument);
  }
}

TEST(ByteSize, FormatsWithTheUnitThatReadsWell) {
  EXPECT_EQ(FormatByteSize(17), "17 B");
  EXPECT_EQ(FormatByteSize(96 * kKiB), "96.0 KiB");
  EXPECT_EQ(FormatByteSize(3 * kGiB / 2), "1.50 GiB");
}

TEST(Status, ContextGoesInFrontAndKeepsTheCode) {
  const Status status = Corruption("checksum 1, expected 2").WithContext("experts-000.pack");
  EXPECT_EQ(status.ToString(), "corruption: experts-000.pack: checksum 1, expected 2");
}

}  // namespace
}  // namespace moraine
