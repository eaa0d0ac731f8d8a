// Codes and scales of the fp8 cache against E4M3 as its definition has it: every code, values between and on the
// middle of two, and what is not finite.
#include "compute/e4m3.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "base/random.h"
#include "compute/kv_format.h"

namespace moraine {
namespace {

constexpr uint32_t kLargestCode = 0x7E;  // 448

// OCP 8-bit Floating Point Specification, 5.2.
double Definition(uint32_t code) {
  const int exponent = static_cast<int>(code >> 3 & 15), mantissa = static_cast<int>(code & 7);
  const double value = exponent == 0 ? std::ldexp(mantissa, -9)
                                     : std::ldexp(1 + mantissa / 8.0, exponent - 7);
  return code & 0x80 ? -value : value;
}

uint32_t ScaleOf(float largest) { return E4m3Scale(std::bit_cast<uint32_t>(largest)); }

TEST(E4m3Test, CodesAreTheirValues) {
  for (const uint32_t scale : {kE4m3LeastScale, 100u, 127u, 135u, 254u}) {
    for (uint32_t code = 0; code < 256; ++code) {
      if ((code & 0x7F) > kLargestCode) continue;
      const float value = E4m3Value(code, scale);
      EXPECT_EQ(value, std::ldexp(Definition(code), static_cast<int>(scale) - 135));
      EXPECT_EQ(E4m3Code(value, scale), code) << "scale " << scale;
    }
  }
}

TEST(E4m3Test, RoundsToNearestTiesToEven) {
  const uint32_t scale = 135;  // E4M3's own values
  for (uint32_t code = 0; code < kLargestCode; ++code) {
    const auto low = static_cast<float>(Definition(code)), high = static_cast<float>(Definition(code + 1));
    const float middle = (low + high) / 2;
    EXPECT_EQ(E4m3Code(middle, scale), code + code % 2) << middle;
    EXPECT_EQ(E4m3Code(std::nextafter(middle, 0.0f), scale), code) << middle;
    EXPECT_EQ(E4m3Code(std::nextafter(middle, 500.0f), scale), code + 1) << middle;
    EXPECT_EQ(E4m3Code(-middle, scale), (code + code % 2) | 0x80) << middle;
  }
}

TEST(E4m3Test, ScaleLeavesNothingToSaturate) {
  EXPECT_EQ(ScaleOf(448.0f), 135u);
  EXPECT_EQ(ScaleOf(std::nextafter(448.0f, 500.0f)), 136u);
  EXPECT_EQ(ScaleOf(224.5f), 135u);
  EXPECT_EQ(ScaleOf(0.0f), kE4m3LeastScale);
  EXPECT_EQ(ScaleOf(1e-40f), kE4m3LeastScale);
  EXPECT_EQ(ScaleOf(std::numeric_limits<float>::max()), kE4m3NanScale);
  const uint64_t seed = 3;
  Random random(seed);
  for (int i = 0; i < 100000; ++i) {
    const float x = std::ldexp(1 + static_cast<float>(random.Uniform()),
                               static_cast<int>(random.Below(200)) - 90);
    const uint32_t scale = ScaleOf(x), code = E4m3Code(x, scale);
    ASSERT_LE(code, kLargestCode) << x << " seed " << seed;
    ASSERT_GE(code, 0x76u) << x << ": half of the range is wasted, seed " << seed;
    ASSERT_LE(std::abs(E4m3Value(code, scale) - x), x / 16) << "seed " << seed;
  }
}

// As EncodeKv lays a head out: `heads` of 3 positions from the 62nd on, so into a second block.
TEST(E4m3Test, HeadsAreInPiecesOf64Positions) {
  constexpr uint32_t kDim = 10, kHeads = 2, kCount = 3, kFirst = 62;
  constexpr size_t kPiece = 64 * (kDim + 1), kBlock = kHeads * kPiece;
  const uint64_t seed = 6;
  Random random(seed);
  std::vector<float> x(kCount * kHeads * kDim);
  for (float& value : x) value = random.Normal() * 20;
  x[3] = std::numeric_limits<float>::quiet_NaN();           // position 62, head 0
  x[kHeads * kDim + 4] = -std::numeric_limits<float>::infinity();  // position 63, head 0
  for (uint32_t d = 0; d < kDim; ++d) x[kHeads * kDim + kDim + d] = 0;  // head 1
  std::vector<std::byte> out(2 * kBlock, std::byte{0x7F});
  EXPECT_EQ(KvHeadBytes(KvFormat::kFp8, kDim), kDim + 1);
  EncodeKv(KvFormat::kFp8, x.data(), kHeads * kDim, kCount, kHeads, kDim,
           {out.data(), {kBlock / 64, kPiece}, kFirst});
  size_t written = 0;
  for (uint32_t t = 0; t < kCount; ++t) {
    for (uint32_t head = 0; head < kHeads; ++head) {
      const uint32_t position = kFirst + t;
      const std::byte* piece = out.data() + position / 64 * kBlock + head * kPiece;
      const auto scale = static_cast<uint32_t>(piece[64 * kDim + position % 64]);
      const bool bad = head == 0 && t < 2;
      EXPECT_EQ(scale == kE4m3NanScale, bad) << position << " head " << head;
      for (uint32_t d = 0; d < kDim; ++d) {
        const float value = E4m3Value(static_cast<uint32_t>(piece[position % 64 * kDim + d]), scale);
        const float expected = x[(t * kHeads + head) * kDim + d];
        if (bad) {
          EXPECT_TRUE(std::isnan(value)) << "all of a head that is not finite";
        } else {
          EXPECT_LE(std::abs(value - expected), std::abs(expected) / 16 + 1e-3) << seed;
        }
      }
      written += kDim + 1;
    }
  }
  EXPECT_EQ(static_cast<size_t>(std::count(out.begin(), out.end(), std::byte{0x7F})),
            out.size() - written);
}

}  // namespace
}  // namespace moraine
