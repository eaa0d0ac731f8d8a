#include "residency/similar_tokens.h"

#include <gtest/gtest.h>

#include <vector>

namespace moraine {
namespace {

// Two layers of eight experts, two of which a token takes: {a, b} in layer 0, {c, d} in layer 1.
class SimilarTokensTest : public testing::Test {
 protected:
  static constexpr uint32_t kExperts = 8, kTopK = 2;

  void Take(uint32_t layer, uint32_t a, uint32_t b) {
    tokens_.Add(layer, a, layer * kExperts + a);
    tokens_.Add(layer, b, layer * kExperts + b);
  }
  void Token(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    tokens_.BeginToken();
    Take(0, a, b);
    Take(1, c, d);
  }
  // Empty if nothing is known.
  std::vector<float> Expect(uint32_t layer) {
    std::vector<float> shares(kExperts, -1);
    if (!tokens_.Expect(layer, shares)) shares.clear();
    return shares;
  }

  const ExpertIndex index_{PolicyShape{{kExperts, kExperts}, kTopK, 4}};
  SimilarTokens tokens_{index_, kTopK};
};

TEST_F(SimilarTokensTest, ExpectsWhatFollowedTheTokenThatTookTheSame) {
  Token(0, 1, 0, 1);
  Token(2, 3, 4, 5);
  Token(6, 7, 6, 7);
  Token(0, 1, 0, 1);
  EXPECT_EQ(Expect(0), (std::vector<float>{0, 0, 1, 1, 0, 0, 0, 0}));
  EXPECT_EQ(Expect(1), (std::vector<float>{0, 0, 0, 0, 1, 1, 0, 0}));
}

TEST_F(SimilarTokensTest, TheOtherLayersDecideWhoIsSimilar) {
  Token(0, 1, 0, 1);
  Token(2, 3, 2, 3);
  Token(0, 1, 6, 7);  // the same in layer 0
  Token(4, 5, 4, 5);
  Token(6, 7, 6, 7);
  tokens_.BeginToken();
  Take(0, 0, 1);
  EXPECT_EQ(Expect(0), (std::vector<float>{0, 0, 0.5f, 0.5f, 0.5f, 0.5f, 0, 0}));
  Take(1, 0, 6);  // one of each
  // Similarity 3 of both, and the last token of those that took 6 has no follower but this one.
  EXPECT_EQ(Expect(1), (std::vector<float>{0, 0, 0.5f, 0.5f, 0.5f, 0.5f, 0, 0}));
  tokens_.BeginToken();
  Take(0, 0, 1);
  Take(1, 0, 1);  // 4 against 2 and 3 (its own predecessor does not count)
  const std::vector<float> shares = Expect(1);
  EXPECT_GT(shares[2], 0.9f);
  EXPECT_GT(shares[4], 0.0f);
  EXPECT_LT(shares[4], 0.1f);
  EXPECT_FLOAT_EQ(shares[2] + shares[4], 1.0f);
}

TEST_F(SimilarTokensTest, KnowsNothingWithoutASimilarTokenThatHasAFollower) {
  EXPECT_TRUE(Expect(0).empty());
  Token(0, 1, 0, 1);
  EXPECT_TRUE(Expect(0).empty());
  Token(0, 1, 0, 1);  // the one before is followed by this one
  EXPECT_TRUE(Expect(0).empty());
  Token(2, 3, 2, 3);
  EXPECT_TRUE(Expect(0).empty());
}

TEST_F(SimilarTokensTest, AChunkIsNobodysFollower) {
  Token(0, 1, 0, 1);
  tokens_.BeginToken();  // a chunk
  Token(2, 3, 2, 3);
  Token(0, 1, 0, 1);
  EXPECT_TRUE(Expect(0).empty());
}

TEST_F(SimilarTokensTest, ForgetsWhatIsOlderThanItsMemory) {
  Token(0, 1, 0, 1);
  Token(2, 3, 2, 3);
  for (uint32_t i = 0; i < SimilarTokens::kTokens - 3; ++i) Token(6, 7, 6, 7);
  Token(0, 1, 0, 1);  // the first one is the oldest that is left
  EXPECT_EQ(Expect(0), (std::vector<float>{0, 0, 1, 1, 0, 0, 0, 0}));
  Token(6, 7, 6, 7);
  Token(6, 7, 6, 7);
  tokens_.BeginToken();
  Take(0, 2, 3);  // its token and the first one's are gone
  EXPECT_TRUE(Expect(0).empty());
}

TEST_F(SimilarTokensTest, KeepsNoMoreThanTopKOfALayer) {
  Token(0, 1, 0, 1);
  tokens_.Add(0, 5, 5);
  Token(2, 3, 2, 3);
  tokens_.BeginToken();
  Take(0, 5, 6);
  EXPECT_TRUE(Expect(0).empty());
}

}  // namespace
}  // namespace moraine
