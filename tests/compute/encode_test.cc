#include "compute/encode.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "compute_test_support.h"

namespace moraine {
namespace {

using testing::HasSubstr;

TEST(FloatBits, Bf16RoundsToNearestEven) {
  EXPECT_EQ(FloatToBf16(1.0f), 0x3F80);
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0x3F808000u)), 0x3F80);  // tie to even, down
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0x3F818000u)), 0x3F82);  // tie to even, up
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0x3F808001u)), 0x3F81);
  EXPECT_EQ(FloatToBf16(std::numeric_limits<float>::max()), 0x7F80);
  EXPECT_TRUE(std::isnan(Bf16ToFloat(FloatToBf16(std::bit_cast<float>(0x7F800001u)))));
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = Bf16ToFloat(static_cast<uint16_t>(bits));
    if (std::isnan(value)) continue;
    ASSERT_EQ(FloatToBf16(value), bits);
  }
}

// _Float16 conversions of the compiler are the independent oracle.
TEST(FloatBits, F16AgreesWithTheCompiler) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const uint16_t half = static_cast<uint16_t>(bits);
    const float expected = static_cast<float>(std::bit_cast<_Float16>(half));
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(F16ToFloat(half)));
    } else {
      ASSERT_EQ(std::bit_cast<uint32_t>(F16ToFloat(half)), std::bit_cast<uint32_t>(expected));
      ASSERT_EQ(FloatToF16(expected), half);
    }
  }
  const uint64_t seed = 1;
  Random random(seed);
  for (int i = 0; i < 2000000; ++i) {
    const float value = std::bit_cast<float>(static_cast<uint32_t>(random.Next()));
    if (std::isnan(value)) continue;
    ASSERT_EQ(FloatToF16(value), std::bit_cast<uint16_t>(static_cast<_Float16>(value)))
        << "seed " << seed << " value " << value;
  }
}

// The value of W[r][c] read by the formulas of encoding.h, not by the code under test.
float ByLayout(const MatrixView& view, uint32_t row, uint32_t col) {
  const uint32_t tile_bytes = TileBytes(view.encoding);
  const uint32_t tiles = (view.cols + 63) / 64;
  const std::byte* tile = view.data + (uint64_t{row / 16} * tiles + col / 64) * tile_bytes;
  const uint32_t r = row % 16, c = col % 64;
  uint16_t bits16 = 0;
  switch (view.encoding) {
    case Encoding::kF32: {
      float value;
      std::memcpy(&value, tile + (c * 16 + r) * 4, 4);
      return value;
    }
    case Encoding::kBf16: {
      const uint32_t p = c / 2;
      std::memcpy(&bits16, tile + (p * 16 + r) * 4 + (c & 1) * 2, 2);
      return std::bit_cast<float>(uint32_t{bits16} << 16);
    }
    case Encoding::kQ8: {
      std::memcpy(&bits16, tile + c / 32 * 32 + r * 2, 2);
      const uint32_t j = c / 4;
      const int8_t code = static_cast<int8_t>(tile[64 + (j * 16 + r) * 4 + c % 4]);
      return static_cast<float>(code) * static_cast<float>(std::bit_cast<_Float16>(bits16));
    }
    case Encoding::kQ4:
    case Encoding::kQ4Bf16:
    case Encoding::kMxfp4:
    case Encoding::kIq4Nl: {
      constexpr int kIq4Nl[] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                1,    13,   25,  38,  53,  69,  89,  113};
      constexpr int kTwiceE2M1[] = {0, 1, 2, 3, 4, 6, 8, 12};
      const uint32_t h = c / 32, k = c % 32;
      std::memcpy(&bits16, tile + h * 32 + r * 2, 2);
      const uint32_t j = k % 16 / 4;
      const int byte = static_cast<int>(tile[64 + 256 * h + (j * 16 + r) * 4 + k % 4]);
      const int nibble = k < 16 ? byte & 15 : byte >> 4;
      const float f16 = static_cast<float>(std::bit_cast<_Float16>(bits16));
      const float bf16 = std::bit_cast<float>(uint32_t{bits16} << 16);
      if (view.encoding == Encoding::kQ4Bf16) return static_cast<float>(nibble - 8) * bf16;
      if (view.encoding == Encoding::kIq4Nl) return static_cast<float>(kIq4Nl[nibble]) * f16;
      if (view.encoding == Encoding::kQ4) return static_cast<float>(nibble - 8) * f16;
      const int magnitude = kTwiceE2M1[nibble % 8];
      return static_cast<float>(nibble < 8 ? magnitude : -magnitude) * bf16;
    }
  }
  return 0;
}

TEST(Encode, DecodeFollowsTheLayoutAndErrorsAreBounded) {
  const uint64_t seed = 2;
  Random random(seed);
  for (int round = 0; round < 60; ++round) {
    const uint32_t rows = 1 + static_cast<uint32_t>(random.Below(50));
    const uint32_t cols = 1 + static_cast<uint32_t>(random.Below(200));
    std::vector<float> values = RandomFloats(random, size_t{rows} * cols, 0.05f);
    for (float& value : values) value = Bf16ToFloat(FloatToBf16(value));
    for (const Encoding encoding : kAllEncodings) {
      const TestMatrix matrix(encoding, rows, cols, values);
      const std::vector<float> decoded = matrix.Decoded();
      double error = 0, power = 0;
      for (uint32_t r = 0; r < rows; ++r) {
        for (uint32_t c = 0; c < cols; ++c) {
          const size_t i = size_t{r} * cols + c;
          ASSERT_EQ(decoded[i], ByLayout(matrix.view, r, c)) << "seed " << seed;
          error += std::pow(decoded[i] - values[i], 2.0);
          power += values[i] * values[i];
        }
      }
      // 8 bits: a step of max/127 has an error of step/sqrt(12), at most 2.3e-3 of the maximum, and
      // the maximum of 32 normal values is under 4 sigma. 4 bits: 16 times the step.
      // E2M1 beside its largest values has steps of a sixth of them, a scale that is a power of two
      // may leave the upper half of its range unused.
      const double bound = encoding == Encoding::kQ8      ? 0.01
                           : encoding == Encoding::kMxfp4 ? 0.25
                           : IsQuantised(encoding)        ? 0.16
                                                          : 0;
      ASSERT_LE(std::sqrt(error), bound * std::sqrt(power)) << EncodingName(encoding);
    }
  }
}

TEST(Encode, PaddingIsZero) {
  Random random(3);
  for (const Encoding encoding : kAllEncodings) {
    const TestMatrix matrix(encoding, 17, 70, RandomFloats(random, 17 * 70, 1.0f));
    MatrixView padded = matrix.view;
    padded.rows = 32;
    padded.cols = 128;
    std::vector<float> row(128);
    // iq4_nl has no code for zero: what pads a group is only small.
    const uint32_t begin = encoding == Encoding::kIq4Nl ? 96 : 70;
    for (uint32_t r = 0; r < 32; ++r) {
      DecodeRow(padded, r, row.data());
      for (uint32_t c = r < 17 ? begin : 0; c < 128; ++c) ASSERT_EQ(row[c], 0.0f) << r << " " << c;
    }
  }
}

TEST(Encode, PanelsCanBeWrittenOneByOneAndBytesAreTheSameOnEveryIsa) {
  Random random(4);
  const std::vector<float> values = RandomFloats(random, 40 * 100, 1.0f);
  for (const Encoding encoding : kAllEncodings) {
    const TestMatrix whole(encoding, 40, 100, values);
    TestMatrix parts(encoding, 40, 100, std::vector<float>(40 * 100));
    for (uint32_t first = 0; first < 40; first += 16) {
      ASSERT_TRUE(EncodeRows(parts.view, first, std::min(16u, 40 - first),
                             values.data() + first * 100)
                      .ok());
    }
    EXPECT_EQ(std::memcmp(whole.bytes.data(), parts.bytes.data(), MatrixBytes(encoding, 40, 100)),
              0);
  }
  const ScaleSearch search = {.low = -8, .high = 7, .nominal = -8, .step = 0.1f, .steps = 9,
                              .limit = 1e6f};
  for (int round = 0; round < 1000; ++round) {
    const std::vector<float> group = RandomFloats(random, 32, 0.02f);
    int8_t expected[32], codes[32];
    float expected_scale, scale;
    kScalarKernels.search_group(group.data(), nullptr, search, expected, &expected_scale);
    for (const Isa isa : SupportedIsas()) {
      KernelsOf(isa).search_group(group.data(), nullptr, search, codes, &scale);
      ASSERT_EQ(std::memcmp(codes, expected, 32), 0) << IsaName(isa);
      ASSERT_EQ(scale, expected_scale) << IsaName(isa);
    }
  }
}

TEST(Encode, SearchIsNeverWorseThanTheNominalScale) {
  Random random(5);
  for (const float low : {-127.0f, -8.0f}) {
    const float high = low == -8 ? 7 : 127;
    for (int round = 0; round < 500; ++round) {
      const std::vector<float> x = RandomFloats(random, 32, 1.0f);
      const auto error = [&](int steps) {
        const ScaleSearch search = {low, high, low == -8 ? -8.0f : 127.0f,
                                    low == -8 ? 0.1f : 0.5f, steps, 1e6f};
        int8_t codes[32];
        float scale;
        kScalarKernels.search_group(x.data(), nullptr, search, codes, &scale);
        double sum = 0;
        for (int i = 0; i < 32; ++i) sum += std::pow(x[i] - scale * codes[i], 2.0);
        return sum;
      };
      // The search compares sums of about 32 float32 terms: 16 eps of the group's power.
      double power = 0;
      for (const float value : x) power += value * value;
      ASSERT_LE(error(9), error(0) + 0x1p-20 * power);
    }
  }
}

constexpr ScaleSearch kSearchQ4 = {.low = -8, .high = 7, .nominal = -8, .step = 0.1f, .steps = 9,
                                   .limit = 1e6f};
constexpr ScaleSearch kSearchQ8 = {.low = -127, .high = 127, .nominal = 127, .step = 0.5f,
                                   .steps = 2, .limit = 1e6f};

// As EncodeRows makes them: positive, at most 1, over the range that it allows.
std::vector<float> RandomWeights(Random& random) {
  std::vector<float> weights(32);
  for (float& weight : weights) weight = std::exp2(-10 * static_cast<float>(random.Uniform()));
  return weights;
}

TEST(EncodeWithImportance, IsNeverWorseByTheWeightsThanWithout) {
  const uint64_t seed = 7;
  Random random(seed);
  for (const ScaleSearch& search : {kSearchQ4, kSearchQ8}) {
    int better = 0;
    for (int round = 0; round < 1000; ++round) {
      const std::vector<float> x = RandomFloats(random, 32, 1.0f);
      const std::vector<float> weights = RandomWeights(random);
      double power = 0;
      for (int i = 0; i < 32; ++i) power += weights[i] * x[i] * x[i];
      const auto error = [&](const float* used) {
        int8_t codes[32];
        float scale;
        kScalarKernels.search_group(x.data(), used, search, codes, &scale);
        double sum = 0;
        for (int i = 0; i < 32; ++i) sum += weights[i] * std::pow(x[i] - scale * codes[i], 2.0);
        return sum;
      };
      const double weighted = error(weights.data()), plain = error(nullptr);
      // Sums of 32 float32 terms are compared: 16 eps of the group's weighted power.
      ASSERT_LE(weighted, plain + 0x1p-20 * power) << "seed " << seed << " round " << round;
      better += weighted < plain;
    }
    EXPECT_GT(better, 900);  // the least-squares scale alone is almost always another
  }
}

TEST(EncodeWithImportance, AllIsasFindTheSame) {
  const uint64_t seed = 8;
  Random random(seed);
  for (const ScaleSearch& search : {kSearchQ4, kSearchQ8}) {
    for (int round = 0; round < 1000; ++round) {
      const std::vector<float> x = RandomFloats(random, 32, 0.02f);
      const std::vector<float> weights = RandomWeights(random);
      int8_t expected[32], codes[32];
      float expected_scale, scale;
      ASSERT_TRUE(kScalarKernels.search_group(x.data(), weights.data(), search, expected,
                                              &expected_scale));
      for (const Isa isa : SupportedIsas()) {
        ASSERT_TRUE(KernelsOf(isa).search_group(x.data(), weights.data(), search, codes, &scale));
        ASSERT_EQ(std::memcmp(codes, expected, 32), 0) << IsaName(isa) << " seed " << seed;
        ASSERT_EQ(scale, expected_scale) << IsaName(isa) << " seed " << seed;
      }
    }
  }
}

// Equal within each group of 32: only ratios there count, whatever the groups are beside each other.
TEST(EncodeWithImportance, EqualImportanceGivesTheBytesThatNoneGives) {
  const uint64_t seed = 9;
  Random random(seed);
  const uint32_t rows = 33, cols = 200;
  const std::vector<float> values = RandomFloats(random, rows * cols, 0.3f);
  for (const Encoding encoding : kAllEncodings) {
    const TestMatrix plain(encoding, rows, cols, values);
    TestMatrix weighted(encoding, rows, cols, std::vector<float>(values.size()));
    for (const float unit : {0.0f, 1.0f, 3e-39f, 0.7f, 1e37f}) {
      std::vector<float> importance(cols);
      for (uint32_t c = 0; c < cols; ++c) importance[c] = unit * static_cast<float>(1 + c / 32);
      ASSERT_TRUE(EncodeRows(weighted.view, 0, rows, values.data(), importance).ok());
      ASSERT_EQ(std::memcmp(plain.bytes.data(), weighted.bytes.data(),
                            MatrixBytes(encoding, rows, cols)),
                0)
          << EncodingName(encoding) << " " << unit << " seed " << seed;
    }
  }
}

TEST(EncodeWithImportance, MovesTheErrorToColumnsThatMatterLess) {
  const uint64_t seed = 10;
  Random random(seed);
  const uint32_t rows = 64, cols = 96;
  const std::vector<float> values = RandomFloats(random, rows * cols, 1.0f);
  std::vector<float> importance(cols);
  for (float& value : importance) value = std::exp2(-8 * static_cast<float>(random.Uniform()));
  importance[40] = 0;  // a column that never met anything must not spoil its group
  const auto error = [&](const TestMatrix& matrix, bool by_importance) {
    const std::vector<float> decoded = matrix.Decoded();
    double sum = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      const double weight = by_importance ? importance[i % cols] : 1.0;
      sum += weight * std::pow(decoded[i] - values[i], 2.0);
    }
    return sum;
  };
  for (const Encoding encoding : kAllEncodings) {
    if (!IsQuantised(encoding)) continue;
    const TestMatrix plain(encoding, rows, cols, values);
    TestMatrix weighted(encoding, rows, cols, std::vector<float>(values.size()));
    ASSERT_TRUE(EncodeRows(weighted.view, 0, rows, values.data(), importance).ok());
    // mxfp4 has one scale in three to choose from.
    const double most = encoding == Encoding::kMxfp4 ? 1.0 : 0.95;
    EXPECT_LT(error(weighted, true), most * error(plain, true))
        << EncodingName(encoding) << " seed " << seed;
    EXPECT_GT(error(weighted, false), error(plain, false))
        << EncodingName(encoding) << " seed " << seed;
  }
}

TEST(Encode, Extremes) {
  for (const Encoding encoding : {Encoding::kQ8, Encoding::kQ4}) {
    // The extreme value of a group keeps its sign and is exact to the f16 scale: 2^-11 relative, or
    // half a step of the subnormals below 2^-14, times the largest code.
    for (const float extreme : {-3.0f, 3.0f, 1e-3f, 40000.0f, -40000.0f}) {
      std::vector<float> values(32, 0.0f);
      values[5] = extreme;
      const std::vector<float> decoded = TestMatrix(encoding, 1, 32, values).Decoded();
      EXPECT_NEAR(decoded[5], extreme, std::fabs(extreme) / 2048 + 127 * 0x1p-25);
      EXPECT_EQ(decoded[6], 0.0f);
    }
    for (const float tiny : {0.0f, 1e-45f, -1e-39f, 1e-30f, 2e-9f}) {
      const std::vector<float> decoded =
          TestMatrix(encoding, 1, 40, std::vector<float>(40, tiny)).Decoded();
      for (const float value : decoded) ASSERT_EQ(value, 0.0f) << tiny;
    }
  }
}

TEST(Encode, CodesFollowASubnormalScale) {
  Random random(6);
  std::vector<float> values = RandomFloats(random, 32, 1e-4f);  // scales near 2e-6, steps of 6e-8
  const std::vector<float> decoded = TestMatrix(Encoding::kQ8, 1, 32, values).Decoded();
  float largest = 0;
  for (const float value : values) largest = std::max(largest, std::fabs(value));
  for (uint32_t i = 0; i < 32; ++i) {
    // Half a code step; where the scale was rounded down, the largest ones saturate at 127 steps.
    const float saturation = std::fabs(values[i]) > 0.97f * largest ? 127 * 0x1p-25f : 0.0f;
    const float bound = 0.52f * largest / 127 + saturation;
    ASSERT_NEAR(decoded[i], values[i], bound);
  }
}

TEST(Encode, QuantisedEncodingsRefuseWhatTheyCannotHold) {
  for (const Encoding encoding : kQuantisedEncodings) {
    std::vector<float> values(20 * 70, 0.5f);
    const TestMatrix matrix(encoding, 20, 70, values);
    const auto encode_with = [&](float value) {
      values[18 * 70 + 66] = value;
      return EncodeRows(matrix.view, 0, 20, values.data());
    };
    for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity(), 1e30f}) {
      const Status status = encode_with(bad);
      ASSERT_EQ(status.code(), StatusCode::kInvalidArgument);
      EXPECT_THAT(status.message(), HasSubstr("row 18, column 66"));
    }
    EXPECT_TRUE(encode_with(1000.0f).ok());
  }
  const float nan = std::nanf("");
  EXPECT_TRUE(std::isnan(TestMatrix(Encoding::kBf16, 1, 1, {nan}).Decoded()[0]));
}

TEST(Encoding, NamesRoundTripAndSizesFollowTheTiles) {
  for (const Encoding encoding : kAllEncodings) {
    EXPECT_EQ(ParseEncoding(EncodingName(encoding)), encoding);
  }
  EXPECT_EQ(ParseEncoding("q5"), std::nullopt);
  EXPECT_EQ(MatrixBytes(Encoding::kQ4, 17, 65), 2u * 2 * 576);
  EXPECT_EQ(MatrixBytes(Encoding::kQ8, 16, 64), 1088u);
}

TEST(Encoding, ExpertViewInterleavesGateAndUp) {
  const ExpertLayout layout = {Encoding::kQ4, Encoding::kQ8, 130, 40};
  const uint64_t size = layout.payload_bytes();
  EXPECT_EQ(size, 2u * 3 * 3 * 576 + 9u * 1 * 1088);
  EXPECT_EQ(layout.record_bytes() % 4096, 0u);
  const AlignedArray<std::byte> record(layout.record_bytes());
  const ExpertView view = ViewExpert(layout, record.data());
  EXPECT_EQ(view.gate.tile(0, 0), record.data());
  EXPECT_EQ(view.up.tile(0, 0), record.data() + 576);
  EXPECT_EQ(view.gate.tile(0, 1), record.data() + 2 * 576);
  EXPECT_EQ(view.up.tile(2, 2), record.data() + 2 * 3 * 3 * 576 - 576);
  EXPECT_EQ(view.down.tile(0, 0), record.data() + 2 * 3 * 3 * 576);
  EXPECT_EQ(view.down.tile(8, 0) + 1088, record.data() + size);
}

}  // namespace
}  // namespace moraine
