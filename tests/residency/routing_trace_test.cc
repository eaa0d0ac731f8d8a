#include "residency/routing_trace.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>

namespace moraine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr char kHeader[] = "# layers=2 experts=8 top_k=2 tokens=2 prefill_tokens=1 note=a b=c\n# columns\n";

std::string Failure(const std::string& text) {
  const auto trace = ParseRoutingTrace(text, "t.csv");
  return trace.ok() ? "parsed" : trace.status().message();
}
std::string TracePath(const char* name) {
  return std::string(MORAINE_SOURCE_DIR) + "/tests/residency/traces/" + name;
}

TEST(RoutingTraceTest, ReadsEveryVariantOfColumns) {
  const struct {
    const char* columns;
    bool lookahead, weights;
  } variants[] = {{"", false, false}, {",0.75 0.25", false, true}, {",4 5,6 7", true, false},
                  {",4 5,6 7,0.75 0.25", true, true}};
  for (const auto& variant : variants) {
    std::string text = kHeader;
    for (const char* row : {"0,0,1 2", "0,1,3 0", "1,0,2 7", "1,1,5 6"}) {
      text += std::string(row) + variant.columns + "\n";
    }
    const auto trace = ParseRoutingTrace(text, "t.csv");
    ASSERT_TRUE(trace.ok()) << trace.status().message();
    EXPECT_EQ(trace->tokens(), 2u);
    EXPECT_EQ(trace->prefill_tokens, 1u);
    EXPECT_EQ(trace->note, "a b=c");
    EXPECT_THAT(trace->At(1, 0), ElementsAre(2, 7));
    EXPECT_EQ(!trace->next.empty(), variant.lookahead);
    if (variant.lookahead) {
      EXPECT_THAT(trace->Lookahead(0, 1, 2), ElementsAre(6, 7));
    }
    EXPECT_EQ(trace->gate_weights.size(), variant.weights ? 8u : 0u);
    // And back again.
    const auto again = ParseRoutingTrace(FormatRoutingTrace(*trace), "again.csv");
    ASSERT_TRUE(again.ok()) << again.status().message();
    EXPECT_EQ(again->picks, trace->picks);
    EXPECT_EQ(again->after_next, trace->after_next);
    EXPECT_EQ(again->gate_weights, trace->gate_weights);
  }
}

TEST(RoutingTraceTest, LayersThatARecorderLostAreEmpty) {
  const auto trace = ParseRoutingTrace(std::string(kHeader) + "0,0,1 2\n1,0,2 7\n1,1,5 6\n", "t.csv");
  ASSERT_TRUE(trace.ok()) << trace.status().message();
  EXPECT_THAT(trace->At(0, 1), IsEmpty());
  EXPECT_THAT(trace->At(1, 1), ElementsAre(5, 6));
}

TEST(RoutingTraceTest, ErrorsNameTheLineAndWhatWasExpected) {
  const std::string header = kHeader;
  EXPECT_THAT(Failure(""), HasSubstr("t.csv: empty"));
  EXPECT_THAT(Failure("0,0,1 2\n"), HasSubstr("t.csv:1: expected '# layers="));
  EXPECT_THAT(Failure("# layers=2 top_k=2\n"), HasSubstr("t.csv:1: field 'experts' is missing"));
  EXPECT_THAT(Failure("# layers=2 experts=1 top_k=2\n"), HasSubstr("field 'top_k' is 2"));
  EXPECT_THAT(Failure("# layers=99999999 experts=8 top_k=2\n"), HasSubstr("field 'layers' is"));
  EXPECT_THAT(Failure("# layers=4096 experts=99 top_k=64\n"), HasSubstr("expected at most 8192"));
  EXPECT_THAT(Failure(header + "0,0,1 8\n"), HasSubstr("t.csv:3: experts: '8', expected"));
  EXPECT_THAT(Failure(header + "0,0,1 1\n"), HasSubstr("expert 1 twice"));
  EXPECT_THAT(Failure(header + "0,0,1 2 3\n"), HasSubstr("more than top_k = 2"));
  EXPECT_THAT(Failure(header + "0,0,1 2,0.5\n"), HasSubstr("1 found, expected one for each of 2"));
  EXPECT_THAT(Failure(header + "0,0,1 2,0.5 x\n"), HasSubstr("gate weights: 'x'"));
  EXPECT_THAT(Failure(header + "0,0,1 2\n0,1,1 2,3,4\n"), HasSubstr("t.csv:4: 5 columns, expected 3"));
  EXPECT_THAT(Failure(header + "1,0,1 2\n"), HasSubstr("t.csv:3: token 1, layer 0: expected token 0"));
  EXPECT_THAT(Failure(header + "0,0,1 2\n"), HasSubstr("1 tokens, the header announced 2"));
  EXPECT_THAT(Failure(header + "0,0\n"), HasSubstr("2 columns"));
}

TEST(RoutingTraceTest, FilesAreReadAndWritten) {
  const auto trace = ReadRoutingTrace(TracePath("qwen3-30b-a3b-q4km.csv.gz"));
  ASSERT_TRUE(trace.ok()) << trace.status().message();
  EXPECT_EQ(trace->tokens(), 156u);
  for (const char* name : {"routing_trace_test.csv.gz", "routing_trace_test.csv"}) {
    const std::string path = ::testing::TempDir() + name;
    ASSERT_TRUE(WriteRoutingTrace(*trace, path).ok());
    const auto again = ReadRoutingTrace(path);
    ASSERT_TRUE(again.ok()) << again.status().message();
    EXPECT_EQ(again->picks, trace->picks);
    std::remove(path.c_str());
  }
  EXPECT_EQ(ReadRoutingTrace("/no/such/file").status().code(), StatusCode::kIoError);
}

TEST(RoutingTraceTest, ATruncatedArchiveIsAnError) {
  std::ifstream in(TracePath("gpt-oss-120b-q4km.csv.gz"), std::ios::binary);
  std::string bytes(20000, '\0');
  in.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  const std::string path = ::testing::TempDir() + "routing_trace_truncated.csv.gz";
  std::ofstream(path, std::ios::binary) << bytes;
  EXPECT_FALSE(ReadRoutingTrace(path).ok());
  std::remove(path.c_str());
}

}  // namespace
}  // namespace moraine
