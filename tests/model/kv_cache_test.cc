// KvCache: sizes, and that no two layers or positions share memory.
#include "model/kv_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "compute/encode.h"

namespace moraine {
namespace {

ModelConfig SmallConfig() {
  ModelConfig config;
  config.kv_heads = 2;
  config.head_dim = 6;
  config.layers.resize(3);
  return config;
}

TEST(KvCacheTest, BytesAreKeysAndValuesOfAllLayers) {
  EXPECT_EQ(KvCache::BytesFor(SmallConfig(), 10), 2u * 3 * 10 * 2 * 6 * 4);
  EXPECT_EQ(KvCache::BytesFor(SmallConfig(), 10, KvFormat::kBf16), 2u * 3 * 10 * 2 * 6 * 2);
  EXPECT_EQ(KvCache::BytesFor(SmallConfig(), 10, KvFormat::kQ8), 2u * 3 * 10 * 2 * (4 + 8));
  // 64 layers x 1 Mi positions x 8 heads x 128: 2^40 / 2 bytes, beyond 32 bits on the way.
  ModelConfig large;
  large.kv_heads = 8;
  large.head_dim = 128;
  large.layers.resize(64);
  EXPECT_EQ(KvCache::BytesFor(large, 1u << 20), uint64_t{1} << 39);
}

// Every value of every layer is its own, and reads back as what the format makes of it.
TEST(KvCacheTest, WhatIsWrittenIsThere) {
  constexpr uint32_t kPositions = 7, kFloats = 12;
  for (const KvFormat format : {KvFormat::kF32, KvFormat::kBf16, KvFormat::kQ8}) {
    auto cache = KvCache::Allocate(SmallConfig(), kPositions, format);
    ASSERT_TRUE(cache.ok()) << cache.status().message();
    EXPECT_EQ(cache->max_positions(), kPositions);
    EXPECT_EQ(cache->length(), 0u);
    const auto value = [](uint32_t layer, bool is_value, uint32_t position, uint32_t i) {
      return static_cast<float>((layer * 2 + is_value) * 1000 + position * 100 + i) / 3 - 400;
    };
    for (uint32_t layer = 0; layer < 3; ++layer) {
      for (uint32_t position = 0; position < kPositions; position += 2) {  // two at a time
        const uint32_t count = std::min(2u, kPositions - position);
        std::vector<float> keys(2 * kFloats), values(2 * kFloats);
        for (uint32_t i = 0; i < count * kFloats; ++i) {
          keys[i] = value(layer, false, position + i / kFloats, i % kFloats);
          values[i] = value(layer, true, position + i / kFloats, i % kFloats);
        }
        cache->Write(layer, position, count, keys.data(), values.data());
      }
    }
    const KvCache moved = std::move(*cache);
    for (uint32_t layer = 0; layer < 3; ++layer) {
      const KvView view = moved.layer(layer);
      EXPECT_EQ(view.format, format);
      for (uint32_t i = 0; i < 2 * kPositions * kFloats; ++i) {
        const bool is_value = i % 2 == 1;
        const uint32_t position = i / 2 / kFloats, at = i / 2 % kFloats, head = at / 6;
        const std::byte* row = (is_value ? view.values : view.keys) +
                               position * view.strides.position + head * view.strides.head;
        const float expected = value(layer, is_value, position, at);
        float largest = 0;
        for (uint32_t d = 0; d < 6; ++d) {
          largest = std::max(largest, std::abs(value(layer, is_value, position, head * 6 + d)));
        }
        if (format == KvFormat::kF32) {
          float read;
          std::memcpy(&read, row + at % 6 * 4, 4);
          ASSERT_EQ(read, expected);
        } else if (format == KvFormat::kBf16) {
          uint16_t bits;
          std::memcpy(&bits, row + at % 6 * 2, 2);
          ASSERT_EQ(bits, FloatToBf16(expected));
        } else {
          float scale;
          std::memcpy(&scale, row, 4);
          ASSERT_FLOAT_EQ(scale, largest / 127);
          const auto code = static_cast<int8_t>(row[4 + at % 6]);
          ASSERT_LE(std::abs(scale * code - expected), 0.5001f * scale);
        }
      }
    }
  }
}

TEST(KvCacheTest, ANanStaysVisible) {
  std::vector<float> x(6, 1.0f);
  x[3] = std::numeric_limits<float>::quiet_NaN();
  std::vector<std::byte> out(KvHeadBytes(KvFormat::kQ8, 6));
  EncodeKv(KvFormat::kQ8, x.data(), 6, 1, 1, 6, out.data(), {});
  float scale;
  std::memcpy(&scale, out.data(), 4);
  EXPECT_TRUE(std::isnan(scale));
}

TEST(KvCacheTest, FormatsByName) {
  EXPECT_EQ(*ParseKvFormat("q8"), KvFormat::kQ8);
  EXPECT_THAT(ParseKvFormat("q4").status().message(), testing::HasSubstr("'q4': expected f32"));
}

TEST(KvCacheDeathTest, LengthBeyondTheCapacityIsABug) {
  auto cache = KvCache::Allocate(SmallConfig(), 4);
  ASSERT_TRUE(cache.ok());
  cache->set_length(4);
  EXPECT_DEATH(cache->set_length(5), "max_positions");
}

}  // namespace
}  // namespace moraine
