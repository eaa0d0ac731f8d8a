#include "engine/token_expert_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace moraine {
namespace {

using testing::HasSubstr;

std::vector<ExpertId> Known(const TokenExpertTable& table, int32_t token) {
  std::vector<ExpertId> experts;
  table.Append(token, &experts);
  return experts;
}

TEST(TokenExpertTable, KnowsATokensLastExpertsAndNothingOfOthers) {
  TokenExpertTable table(10, 2);
  EXPECT_TRUE(Known(table, 3).empty());
  const uint32_t first[] = {5, 1}, second[] = {7, 5};
  table.Learn(3, first);
  table.Learn(3, second);
  EXPECT_EQ(Known(table, 3), (std::vector<ExpertId>{ExpertId(7), ExpertId(5)}));
  EXPECT_TRUE(Known(table, 4).empty());
}

TEST(TokenExpertTable, WhatWasSavedComesBack) {
  TokenExpertTable table(10, 2), restored(10, 2);
  const uint32_t experts[] = {5, 1};
  table.Learn(0, experts);
  table.Learn(9, experts);
  ASSERT_TRUE(restored.Restore(table.Serialize(), 8).ok());
  EXPECT_EQ(Known(restored, 9), Known(table, 9));
  EXPECT_TRUE(Known(restored, 5).empty());
  EXPECT_EQ(restored.Serialize(), table.Serialize());
}

TEST(TokenExpertTable, BytesOfAnotherModelChangeNothing) {
  TokenExpertTable table(10, 2);
  const uint32_t experts[] = {5, 1};
  table.Learn(9, experts);
  const std::string bytes = table.Serialize();
  TokenExpertTable smaller(9, 2), fewer(10, 2);
  EXPECT_THAT(smaller.Restore(bytes, 8).message(), HasSubstr("token 9, the vocabulary has 9"));
  EXPECT_THAT(fewer.Restore(bytes, 5).message(), HasSubstr("expert 5 of token 9, the layer has 5"));
  EXPECT_TRUE(Known(fewer, 9).empty());
  EXPECT_EQ(fewer.Restore(bytes.substr(1), 8).code(), StatusCode::kCorruption);
}

}  // namespace
}  // namespace moraine
