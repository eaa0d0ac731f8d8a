// Every number format of a checkpoint decodes as its specification says: blocks written by hand, and
// random ones beside a slow decoder that goes element by element and computes in double.
#include "store/source_type.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/random.h"

namespace moraine {
namespace {

using Bytes = std::vector<uint8_t>;

std::vector<float> Decode(SourceType type, const Bytes& bytes) {
  const SourceTypeInfo& info = InfoOf(type);
  EXPECT_EQ(bytes.size() % info.block.bytes, 0u) << info.name;
  const uint64_t count = bytes.size() / info.block.bytes;
  std::vector<float> values(count * info.block.elements);
  info.decode(reinterpret_cast<const std::byte*>(bytes.data()), count, values.data());
  return values;
}
Bytes operator+(Bytes a, const Bytes& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}
Bytes Little16(uint16_t bits) {
  return {static_cast<uint8_t>(bits), static_cast<uint8_t>(bits >> 8)};
}
Bytes Repeat(size_t count, uint8_t byte) { return Bytes(count, byte); }
// Byte i has i in its low nibble and 15 - i in its high one: elements 0..15 are 0..15, then 15..0.
Bytes AllNibbles() {
  Bytes bytes;
  for (int i = 0; i < 16; ++i) bytes.push_back(static_cast<uint8_t>(i | (15 - i) << 4));
  return bytes;
}
constexpr uint16_t kOneHalf = 0x3800, kMinusTwo = 0xC000, kSmallestHalf = 0x0001;

TEST(SourceType, FloatsOfAllKinds) {
  EXPECT_EQ(FromF16(0x0000), 0.0f);
  EXPECT_TRUE(std::signbit(FromF16(0x8000)));
  EXPECT_EQ(FromF16(kSmallestHalf), 0x1p-24f);
  EXPECT_EQ(FromF16(0x03FF), 0x3FFp-24f);
  EXPECT_EQ(FromF16(0x7BFF), 65504.0f);
  EXPECT_EQ(FromF16(0xFC00), -INFINITY);
  EXPECT_TRUE(std::isnan(FromF16(0x7C01)));
  EXPECT_EQ(FromBf16(0x3F81), 1.0078125f);
  EXPECT_EQ(FromE8M0(127), 1.0f);
  EXPECT_EQ(FromE8M0(0), 0x1p-127f);
  EXPECT_EQ(FromE8M0(1), 0x1p-126f);
  EXPECT_EQ(FromE8M0(254), 0x1p127f);
  EXPECT_TRUE(std::isnan(FromE8M0(255)));
}

// The table of the 8-bit floating point specification.
TEST(SourceType, Fp8) {
  for (const SourceType type : {SourceType::kF8E4M3, SourceType::kFp8}) {
    const std::vector<float> v =
        Decode(type, {0x00, 0x80, 0x01, 0x07, 0x08, 0x38, 0x39, 0xC0, 0x7E, 0xFE, 0x7F, 0xFF});
    EXPECT_EQ(v[0], 0.0f);
    EXPECT_TRUE(v[1] == 0 && std::signbit(v[1]));
    EXPECT_EQ(v[2], 0x1p-9f);         // smallest subnormal
    EXPECT_EQ(v[3], 0.875f * 0x1p-6f);  // largest subnormal
    EXPECT_EQ(v[4], 0x1p-6f);         // smallest normal
    EXPECT_EQ(v[5], 1.0f);
    EXPECT_EQ(v[6], 1.125f);
    EXPECT_EQ(v[7], -2.0f);
    EXPECT_EQ(v[8], 448.0f);
    EXPECT_EQ(v[9], -448.0f);
    EXPECT_TRUE(std::isnan(v[10]) && std::isnan(v[11]));
  }
  for (int code = 0; code < 256; ++code) {
    const int exponent = code >> 3 & 15, mantissa = code & 7;
    if ((code & 127) == 127) continue;
    const double magnitude = exponent == 0 ? std::ldexp(mantissa, -9)
                                           : std::ldexp(1 + mantissa / 8.0, exponent - 7);
    EXPECT_EQ(Decode(SourceType::kF8E4M3, {static_cast<uint8_t>(code)})[0],
              code < 128 ? magnitude : -magnitude);
  }
  const std::vector<float> v = Decode(SourceType::kF8E5M2, {0x01, 0x3C, 0x7B, 0x7C, 0xFC, 0x7D});
  EXPECT_EQ(v[0], 0x1p-16f);
  EXPECT_EQ(v[1], 1.0f);
  EXPECT_EQ(v[2], 57344.0f);
  EXPECT_EQ(v[3], INFINITY);
  EXPECT_EQ(v[4], -INFINITY);
  EXPECT_TRUE(std::isnan(v[5]));
}

TEST(SourceType, NibblesByHand) {
  const auto expect = [](SourceType type, const Bytes& block, auto value_of_nibble) {
    const std::vector<float> v = Decode(type, block);
    for (int i = 0; i < 16; ++i) {
      EXPECT_EQ(v[i], value_of_nibble(i)) << SourceTypeName(type) << " " << i;
      EXPECT_EQ(v[16 + i], value_of_nibble(15 - i)) << SourceTypeName(type) << " " << i;
    }
  };
  expect(SourceType::kQ4_0, Little16(kOneHalf) + AllNibbles(),
         [](int n) { return (n - 8) * 0.5f; });
  expect(SourceType::kInt4, Little16(0x3F00) + AllNibbles(), [](int n) { return (n - 8) * 0.5f; });
  Bytes wide = {0, 0, 0, 0x3F};  // 0.5
  for (int i = -16; i < 16; ++i) wide.push_back(static_cast<uint8_t>(i * 8));
  const std::vector<float> eight = Decode(SourceType::kInt8, wide);
  for (int i = 0; i < 32; ++i) EXPECT_EQ(eight[static_cast<size_t>(i)], (i - 16) * 4.0f);
  expect(SourceType::kQ4_1, Little16(kOneHalf) + Little16(kMinusTwo) + AllNibbles(),
         [](int n) { return n * 0.5f - 2; });
  const float iq4_nl[] = {-127, -104, -83, -65, -49, -35, -22, -10,
                          1,    13,   25,  38,  53,  69,  89,  113};
  expect(SourceType::kIq4Nl, Little16(kMinusTwo) + AllNibbles(),
         [&](int n) { return iq4_nl[n] * -2; });
  const float e2m1[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6, 0, -0.5f, -1, -1.5f, -2, -3, -4, -6};
  expect(SourceType::kMxfp4, Bytes{127} + AllNibbles(), [&](int n) { return e2m1[n]; });
  expect(SourceType::kMxfp4, Bytes{0} + AllNibbles(), [&](int n) { return e2m1[n] * 0x1p-127f; });
  expect(SourceType::kMxfp4, Bytes{253} + AllNibbles(), [&](int n) { return e2m1[n] * 0x1p126f; });
  EXPECT_TRUE(std::isnan(Decode(SourceType::kMxfp4, Bytes{255} + AllNibbles())[3]));
  EXPECT_TRUE(std::isnan(Decode(SourceType::kQ4_0, Little16(0x7E00) + AllNibbles())[3]));
  // Fifth bits: of elements 1, 16 and 31.
  const Bytes fifth = {0x02, 0x00, 0x01, 0x80};
  std::vector<float> v = Decode(SourceType::kQ5_0, Little16(kOneHalf) + fifth + AllNibbles());
  EXPECT_EQ(v[0], -8.0f);
  EXPECT_EQ(v[1], (1 + 16 - 16) * 0.5f);
  EXPECT_EQ(v[16], (15 + 16 - 16) * 0.5f);
  EXPECT_EQ(v[17], (14 - 16) * 0.5f);
  EXPECT_EQ(v[31], (0 + 16 - 16) * 0.5f);
  v = Decode(SourceType::kQ5_1, Little16(kOneHalf) + Little16(kMinusTwo) + fifth + AllNibbles());
  EXPECT_EQ(v[0], -2.0f);
  EXPECT_EQ(v[16], 31 * 0.5f - 2);
}

// Sub-block s of a super-block has scale s + 1 wherever the format allows it; codes are all 1.
TEST(SourceType, SuperBlocksByHand) {
  // Q4_K: six bits each, scales 1..8, minima 0, 9, 18, .. 63: the last four straddle the bytes.
  Bytes pairs = {1, 2, 3, 4, 0, 9, 18, 27, 5 | (36 & 15) << 4, 6 | (45 & 15) << 4,
                 7 | (54 & 15) << 4, 8 | (63 & 15) << 4};
  for (int j = 4; j < 8; ++j) {
    const int minimum = 9 * j;
    pairs[static_cast<size_t>(j)] |= static_cast<uint8_t>(minimum >> 4 << 6);
  }
  const Bytes head = Little16(kOneHalf) + Little16(kOneHalf) + pairs;
  std::vector<float> v = Decode(SourceType::kQ4_K, head + Repeat(128, 0x11));
  for (int i = 0; i < 256; ++i) EXPECT_EQ(v[i], 0.5f * (i / 32 + 1) - 0.5f * (9 * (i / 32))) << i;
  // Q5_K: the fifth bit of sub-blocks 0 and 7 set.
  v = Decode(SourceType::kQ5_K, head + Repeat(32, 0x81) + Repeat(128, 0x11));
  for (int i = 0; i < 256; ++i) {
    const int code = i / 32 == 0 || i / 32 == 7 ? 17 : 1;
    EXPECT_EQ(v[i], 0.5f * (i / 32 + 1) * code - 0.5f * (9 * (i / 32))) << i;
  }
  // Q6_K: scales -8 .. 7; low nibble 1, upper bits 3 only for elements 96..127 and 224..255.
  Bytes q6 = Repeat(128, 0x11) + Repeat(64, 0xC0);
  for (int s = -8; s < 8; ++s) q6.push_back(static_cast<uint8_t>(s));
  v = Decode(SourceType::kQ6_K, q6 + Little16(kMinusTwo));
  for (int i = 0; i < 256; ++i) {
    EXPECT_EQ(v[i], -2.0f * (i / 16 - 8) * ((i % 128 >= 96 ? 49 : 1) - 32)) << i;
  }
  // Q2_K: scale s, minimum 15 - s; codes 0, 1, 2, 3 for the runs of 32.
  Bytes q2;
  for (int s = 0; s < 16; ++s) q2.push_back(static_cast<uint8_t>(s | (15 - s) << 4));
  v = Decode(SourceType::kQ2_K,
             q2 + Repeat(64, 0xE4) + Little16(kOneHalf) + Little16(kMinusTwo));
  for (int i = 0; i < 256; ++i) {
    EXPECT_EQ(v[i], 0.5f * (i / 16) * (i / 32 % 4) + 2.0f * (15 - i / 16)) << i;
  }
  // Q3_K: scales -32 + 4 s; codes as above with the third bit of the odd runs set.
  Bytes q3 = Repeat(32, 0xAA) + Repeat(64, 0xE4), packed(12);
  for (int s = 0; s < 16; ++s) {
    const int scale = 4 * s;
    packed[static_cast<size_t>(s % 8)] |= static_cast<uint8_t>((scale & 15) << (s / 8 * 4));
    packed[static_cast<size_t>(8 + s % 4)] |= static_cast<uint8_t>(scale >> 4 << (s / 4 * 2));
  }
  v = Decode(SourceType::kQ3_K, q3 + packed + Little16(kOneHalf));
  for (int i = 0; i < 256; ++i) {
    const int run = i / 32;
    EXPECT_EQ(v[i], 0.5f * (4 * (i / 16) - 32) * (run % 4 - (run % 2 == 1 ? 0 : 4))) << i;
  }
  // IQ4_XS: scales -32 + 9 s.
  Bytes high(2), low(4);
  for (int s = 0; s < 8; ++s) {
    const int scale = 9 * s;
    high[static_cast<size_t>(s / 4)] |= static_cast<uint8_t>(scale >> 4 << (s % 4 * 2));
    low[static_cast<size_t>(s / 2)] |= static_cast<uint8_t>((scale & 15) << (s % 2 * 4));
  }
  v = Decode(SourceType::kIq4Xs, Little16(kOneHalf) + high + low + Repeat(128, 0x8F));
  for (int i = 0; i < 256; ++i) {
    EXPECT_EQ(v[i], 0.5f * (9 * (i / 32) - 32) * (i % 32 < 16 ? 113 : 1)) << i;
  }
}

// Ternary digits as the format's author wrote them down: a byte is the smallest that has the digits, as a
// fraction in base 3 rounded up.
uint8_t PackTrits(const std::vector<int>& digits) {
  int value = 0;
  for (int i = 0; i < 5; ++i) {
    value = 3 * value + (i < static_cast<int>(digits.size()) ? digits[static_cast<size_t>(i)] : 0);
  }
  return static_cast<uint8_t>((value * 256 + 242) / 243);
}

TEST(SourceType, TernaryByHand) {
  // Element i is i % 3 in one round, (i / 7) % 3 in the next: all digits at all places.
  for (const int divisor : {1, 7}) {
    const auto digit = [&](int i) { return i / divisor % 3; };
    Bytes block;
    for (const auto& [first, bytes, digits] :
         {std::array{0, 32, 5}, std::array{160, 16, 5}, std::array{240, 4, 4}}) {
      for (int b = 0; b < bytes; ++b) {
        std::vector<int> of_byte;
        for (int p = 0; p < digits; ++p) of_byte.push_back(digit(first + p * bytes + b));
        block.push_back(PackTrits(of_byte));
      }
    }
    const std::vector<float> one = Decode(SourceType::kTq1_0, block + Little16(kMinusTwo));
    Bytes pairs(64);
    for (int i = 0; i < 256; ++i) {
      pairs[static_cast<size_t>(i / 128 * 32 + i % 32)] |=
          static_cast<uint8_t>(digit(i) << (i / 32 % 4 * 2));
    }
    const std::vector<float> two = Decode(SourceType::kTq2_0, pairs + Little16(kOneHalf));
    for (int i = 0; i < 256; ++i) {
      EXPECT_EQ(one[static_cast<size_t>(i)], -2.0f * static_cast<float>(digit(i) - 1)) << i;
      EXPECT_EQ(two[static_cast<size_t>(i)], 0.5f * static_cast<float>(digit(i) - 1)) << i;
    }
  }
}

// A block as a string of bits, so that nothing here is shared with the decoders' bytes and shifts.
class Bits {
 public:
  explicit Bits(const uint8_t* bytes) : bytes_(bytes) {}
  int At(int byte, int first, int count) const {
    int value = 0;
    for (int i = 0; i < count; ++i) {
      value += (bytes_[byte + (first + i) / 8] >> ((first + i) % 8) & 1) << i;
    }
    return value;
  }
  int Signed8(int byte) const { return At(byte, 0, 7) - 128 * At(byte, 7, 1); }
  double Half(int byte) const {
    const int mantissa = At(byte, 0, 10), exponent = At(byte, 10, 5);
    const double value = exponent == 0 ? std::ldexp(mantissa, -24)
                                       : std::ldexp(1024 + mantissa, exponent - 25);
    return At(byte, 15, 1) == 1 ? -value : value;
  }

 private:
  const uint8_t* bytes_;
};

double SlowCodebook(int nibble) {
  constexpr int kTable[] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89,
                            113};
  return kTable[nibble];
}
double SlowE2M1(int nibble) {
  const int exponent = nibble / 2 % 4, mantissa = nibble % 2;
  const double value = exponent == 0 ? mantissa * 0.5
                                     : std::ldexp(1 + mantissa * 0.5, exponent - 1);
  return nibble >= 8 ? -value : value;
}

// Two terms: what is added is rounded in the sum only.
struct Terms {
  double product, addend = 0;
};
Terms SlowValue(SourceType type, const Bits& b, int i) {
  const int in_half = i % 16, nibble_bit = i % 32 < 16 ? 0 : 4;
  const int run = i / 32, sub = i / 16;
  switch (type) {
    case SourceType::kQ4_0: return {(b.At(2 + in_half, nibble_bit, 4) - 8) * b.Half(0)};
    case SourceType::kQ4_1: return {b.At(4 + in_half, nibble_bit, 4) * b.Half(0), b.Half(2)};
    case SourceType::kQ5_0:
      return {(b.At(6 + in_half, nibble_bit, 4) + 16 * b.At(2, i, 1) - 16) * b.Half(0)};
    case SourceType::kQ5_1:
      return {(b.At(8 + in_half, nibble_bit, 4) + 16 * b.At(4, i, 1)) * b.Half(0), b.Half(2)};
    case SourceType::kQ8_0: return {b.Signed8(2 + i) * b.Half(0)};
    case SourceType::kIq4Nl: return {SlowCodebook(b.At(2 + in_half, nibble_bit, 4)) * b.Half(0)};
    case SourceType::kMxfp4:
      return {SlowE2M1(b.At(1 + in_half, nibble_bit, 4)) * std::ldexp(1, b.At(0, 0, 8) - 127)};
    case SourceType::kQ2_K: {
      const int code = b.At(16 + i / 128 * 32 + i % 32, run % 4 * 2, 2);
      return {b.Half(80) * b.At(sub, 0, 4) * code, -b.Half(82) * b.At(sub, 4, 4)};
    }
    case SourceType::kQ3_K: {
      const int scale = b.At(96 + sub % 8, sub < 8 ? 0 : 4, 4) +
                        16 * b.At(104 + sub % 4, sub / 4 * 2, 2) - 32;
      const int code = b.At(32 + i / 128 * 32 + i % 32, run % 4 * 2, 2);
      return {b.Half(108) * scale * (b.At(i % 32, run, 1) == 1 ? code : code - 4)};
    }
    case SourceType::kQ4_K:
    case SourceType::kQ5_K: {
      const bool five = type == SourceType::kQ5_K;
      int scale = b.At(4 + run, 0, 6), min = b.At(8 + run, 0, 6);
      if (run >= 4) {
        scale = b.At(8 + run, 0, 4) + 16 * b.At(run, 6, 2);
        min = b.At(8 + run, 4, 4) + 16 * b.At(4 + run, 6, 2);
      }
      int code = b.At((five ? 48 : 16) + i / 64 * 32 + i % 32, run % 2 * 4, 4);
      if (five) code += 16 * b.At(16 + i % 32, run, 1);
      return {b.Half(0) * scale * code, -b.Half(2) * min};
    }
    case SourceType::kQ6_K: {
      const int low = b.At(i / 128 * 64 + i % 64, i % 128 < 64 ? 0 : 4, 4);
      const int high = b.At(128 + i / 128 * 32 + i % 32, run % 4 * 2, 2);
      return {b.Half(208) * b.Signed8(192 + sub) * (low + 16 * high - 32)};
    }
    case SourceType::kIq4Xs: {
      const int scale = b.At(4 + run / 2, run % 2 * 4, 4) + 16 * b.At(2, 2 * run, 2) - 32;
      return {b.Half(0) * scale * SlowCodebook(b.At(8 + run * 16 + in_half, nibble_bit, 4))};
    }
    case SourceType::kTq1_0: {
      // Digit after digit: three times the fraction, of which the whole part is the digit. What a byte
      // has beyond 8 bits is dropped at each place.
      const int byte = i < 160 ? i % 32 : i < 240 ? 32 + i % 16 : 48 + i % 4;
      const int place = i < 160 ? i / 32 : i < 240 ? (i - 160) / 16 : (i - 240) / 4;
      int fraction = b.At(byte, 0, 8), digit = 0;
      for (int p = 0; p <= place; ++p) {
        digit = fraction * 3 / 256;
        fraction = fraction * 3 % 256;
      }
      return {(digit - 1) * b.Half(52)};
    }
    case SourceType::kTq2_0:
      return {(b.At(i / 128 * 32 + i % 32, run % 4 * 2, 2) - 1) * b.Half(64)};
    default: ADD_FAILURE() << "no slow decoder for " << SourceTypeName(type); return {0};
  }
}

// Where the f16 numbers of a block lie.
std::vector<int> HalvesOf(SourceType type) {
  switch (type) {
    case SourceType::kQ2_K: return {80, 82};
    case SourceType::kQ3_K: return {108};
    case SourceType::kTq1_0: return {52};
    case SourceType::kTq2_0: return {64};
    case SourceType::kQ6_K: return {208};
    case SourceType::kMxfp4: return {};
    case SourceType::kQ4_1:
    case SourceType::kQ5_1:
    case SourceType::kQ4_K:
    case SourceType::kQ5_K: return {0, 2};
    default: return {0};
  }
}

TEST(SourceType, RandomBlocksBesideASlowDecoder) {
  const uint64_t seed = 20;
  Random random(seed);
  int types = 0;
  for (int t = 0; t < kSourceTypeCount; ++t) {
    const SourceTypeInfo& info = InfoOf(static_cast<SourceType>(t));
    if (info.ggml_type < 0 || !info.quantised) continue;
    ++types;
    for (int round = 0; round < 200; ++round) {
      Bytes block(info.block.bytes);
      for (uint8_t& byte : block) byte = static_cast<uint8_t>(random.Next());
      // Finite scales: of all sizes, subnormal and zero too.
      for (const int at : HalvesOf(info.type)) {
        uint16_t bits = static_cast<uint16_t>(random.Next());
        if ((bits & 0x7C00) == 0x7C00) bits &= 0xBFFF;
        if (round % 10 == 0) bits &= 0x83FF;
        if (round == 0) bits = 0;
        std::memcpy(block.data() + at, &bits, 2);
      }
      if (info.type == SourceType::kMxfp4 && block[0] == 255) block[0] = 0;
      if (info.type == SourceType::kMxfp4 && block[0] > 252) block[0] = 252;  // or 6 x 2^127
      const std::vector<float> fast = Decode(info.type, block);
      for (uint32_t i = 0; i < info.block.elements; ++i) {
        const Terms terms = SlowValue(info.type, Bits(block.data()), static_cast<int>(i));
        // Both terms are floats, so that the sum is rounded once.
        const float slow = static_cast<float>(terms.product) + static_cast<float>(terms.addend);
        ASSERT_EQ(static_cast<double>(static_cast<float>(terms.product)), terms.product);
        ASSERT_EQ(fast[i], slow) << info.name << " element " << i << " seed " << seed << " round "
                                 << round;
      }
    }
  }
  EXPECT_EQ(types, 15);
}

TEST(SourceType, NumbersAndNamesLeadToTheirTypes) {
  for (int t = 0; t < kSourceTypeCount; ++t) {
    const SourceTypeInfo& info = InfoOf(static_cast<SourceType>(t));
    if (info.ggml_type >= 0) {
      EXPECT_EQ(SourceTypeOfGgml(static_cast<uint32_t>(info.ggml_type)), info.type);
    }
    if (info.safetensors != nullptr) {
      EXPECT_EQ(SourceTypeOfSafetensors(info.safetensors), info.type);
    }
  }
  EXPECT_EQ(SourceTypeOfGgml(UINT32_MAX), std::nullopt);
  EXPECT_EQ(SourceTypeOfSafetensors("INT4"), std::nullopt);
  EXPECT_EQ(SourceBytes(SourceType::kQ6_K, 512), 420u);
}

}  // namespace
}  // namespace moraine
