#include "compute/random_tiles.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "base/random.h"
#include "compute/encode.h"

namespace moraine {
namespace {

constexpr uint32_t kScaleBytes = 64;  // in front of a quantised tile: 32 of 16 bits

void StoreWord(std::byte* destination, uint64_t word) {
  std::memcpy(destination, &word, sizeof(word));
}

// Odd values only: symmetric about zero, and int8's -128 does not occur.
// q8: -127, -125, .., 127; the variance of n equally spaced values 2 apart is (n^2 - 1) / 3.
constexpr uint64_t kOddBytes = 0x0101010101010101ull;
constexpr float kQ8Deviation = 73.9f;   // sqrt((128^2 - 1) / 3)
// q4: nibbles 1, 3, .., 15 stand for -7, -5, .., 7.
constexpr uint64_t kOddNibbles = 0x1111111111111111ull;
constexpr float kQ4Deviation = 4.583f;  // sqrt((8^2 - 1) / 3)
// mxfp4: all nibbles, as the negatives are there; the root of the mean square of twice E2M1.
constexpr float kMxfp4Deviation = 5.853f;  // sqrt(274 / 8)
// iq4_nl: the odd half of the table; its mean is 2.4.
constexpr float kIq4NlDeviation = 66.62f;  // sqrt(35509 / 8)

void FillQuantised(uint32_t tile_bytes, uint64_t odd, uint16_t scale, Random& random,
                   std::span<std::byte> tiles) {
  const uint64_t scales = scale * 0x0001000100010001ull;
  for (size_t tile = 0; tile < tiles.size(); tile += tile_bytes) {
    std::byte* const data = tiles.data() + tile;
    for (uint32_t i = 0; i < kScaleBytes; i += 8) StoreWord(data + i, scales);
    for (uint32_t i = kScaleBytes; i < tile_bytes; i += 8) StoreWord(data + i, random.Next() | odd);
  }
}

// Random sign and mantissa over a fixed exponent: 2^k (1 + m), m uniform in [0, 1), whose deviation is
// 2^k sqrt(7/3).
void FillBf16(float standard_deviation, Random& random, std::span<std::byte> tiles) {
  const int exponent = static_cast<int>(std::lround(std::log2(standard_deviation / 1.5275f)));
  const uint64_t base = static_cast<uint64_t>(std::clamp(exponent + 127, 1, 254)) << 7;
  for (size_t i = 0; i < tiles.size(); i += 8) {
    StoreWord(tiles.data() + i, (random.Next() & 0x807F807F807F807Full) | base * 0x0001000100010001ull);
  }
}

void FillF32(float standard_deviation, Random& random, std::span<std::byte> tiles) {
  // Uniform in [-w, w) has deviation w / sqrt(3).
  const float width = standard_deviation * 1.7320508f;
  for (size_t i = 0; i < tiles.size(); i += 4) {
    const float value = (2 * static_cast<float>(random.Uniform()) - 1) * width;
    std::memcpy(tiles.data() + i, &value, sizeof(value));
  }
}

}  // namespace

void FillRandomTiles(Encoding encoding, float standard_deviation, uint64_t seed,
                     std::span<std::byte> tiles) {
  CHECK(tiles.size() % TileBytes(encoding) == 0, "whole tiles only");
  Random random(seed);
  switch (encoding) {
    case Encoding::kQ4:
      return FillQuantised(TileBytes(encoding), kOddNibbles,
                           FloatToF16(standard_deviation / kQ4Deviation), random, tiles);
    case Encoding::kQ4Bf16:
      return FillQuantised(TileBytes(encoding), kOddNibbles,
                           FloatToBf16(standard_deviation / kQ4Deviation), random, tiles);
    case Encoding::kMxfp4: {
      const float power = std::exp2(std::round(std::log2(standard_deviation / kMxfp4Deviation)));
      return FillQuantised(TileBytes(encoding), 0, FloatToBf16(power), random, tiles);
    }
    case Encoding::kIq4Nl:
      return FillQuantised(TileBytes(encoding), kOddNibbles,
                           FloatToF16(standard_deviation / kIq4NlDeviation), random, tiles);
    case Encoding::kQ8:
      return FillQuantised(TileBytes(encoding), kOddBytes,
                           FloatToF16(standard_deviation / kQ8Deviation), random, tiles);
    case Encoding::kBf16: return FillBf16(standard_deviation, random, tiles);
    case Encoding::kF32: return FillF32(standard_deviation, random, tiles);
  }
}

}  // namespace moraine
