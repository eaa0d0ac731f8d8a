// What bench io asks of fio and understands of its answer.
#include "fio_process.h"

#include <gmock/gmock.h>

namespace moraine {
namespace {

using testing::Contains;
using testing::HasSubstr;

constexpr const char* kOutput = R"(fio: a warning first
{"fio version": "fio-3.33", "jobs": [{"jobname": "moraine", "usr_cpu": 2.0, "sys_cpu": 6.0,
 "read": {"bw_bytes": 2000000000, "clat_ns": {"percentile": {"50.000000": 4000000,
 "99.000000": 9000000}}}}]})";

TEST(FioProcess, TheCommandHasOurSizesAndEscapesColons) {
  const auto command = FioCommand({{"/a/x:1.pack", "/a/y.pack"}, 524288, 32, 1.5, true});
  EXPECT_EQ(command.front(), "fio");
  for (const char* word : {"--filename=/a/x\\:1.pack:/a/y.pack", "--bs=524288", "--iodepth=32",
                           "--runtime=1500ms", "--direct=1", "--readonly"}) {
    EXPECT_THAT(command, Contains(word));
  }
}

TEST(FioProcess, ItsOutput) {
  const auto result = ParseFioOutput(kOutput);
  ASSERT_TRUE(result.ok()) << result.status().ToString();
  EXPECT_DOUBLE_EQ(result->gb_per_s, 2);
  EXPECT_DOUBLE_EQ(result->p50_us, 4000);
  EXPECT_DOUBLE_EQ(result->p99_us, 9000);
  EXPECT_DOUBLE_EQ(result->core_percent, 8);
  EXPECT_DOUBLE_EQ(result->cpu_s_per_gb, 0.04);
}

TEST(FioProcess, OutputThatLacksAFieldNamesIt) {
  std::string output = kOutput;
  output.replace(output.find("bw_bytes"), 8, "bw_other");
  EXPECT_THAT(ParseFioOutput(output).status().message(), HasSubstr("/jobs/0/read/bw_bytes"));
  EXPECT_EQ(ParseFioOutput("fio: no such file").status().code(), StatusCode::kCorruption);
}

}  // namespace
}  // namespace moraine
