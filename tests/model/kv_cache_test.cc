// KvCache: sizes, and that no two layers or positions share memory.
#include "model/kv_cache.h"

#include <gtest/gtest.h>

#include <algorithm>

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
  // 64 layers x 1 Mi positions x 8 heads x 128: 2^40 / 2 bytes, beyond 32 bits on the way.
  ModelConfig large;
  large.kv_heads = 8;
  large.head_dim = 128;
  large.layers.resize(64);
  EXPECT_EQ(KvCache::BytesFor(large, 1u << 20), uint64_t{1} << 39);
}

TEST(KvCacheTest, EveryLayerHasItsOwnMemory) {
  constexpr uint32_t kPositions = 7;
  auto cache = KvCache::Allocate(SmallConfig(), kPositions);
  ASSERT_TRUE(cache.ok()) << cache.status().message();
  EXPECT_EQ(cache->max_positions(), kPositions);
  EXPECT_EQ(cache->length(), 0u);
  EXPECT_EQ(cache->stride(), 12u);
  const size_t floats = cache->stride() * kPositions;
  float value = 1;
  for (uint32_t layer = 0; layer < 3; ++layer) {
    std::fill_n(cache->keys(layer), floats, value++);
    std::fill_n(cache->values(layer), floats, value++);
  }
  value = 1;
  for (uint32_t layer = 0; layer < 3; ++layer) {
    for (const float* block : {cache->keys(layer), cache->values(layer)}) {
      for (size_t i = 0; i < floats; ++i) ASSERT_EQ(block[i], value) << layer << " at " << i;
      value++;
    }
  }
}

TEST(KvCacheTest, MovedCacheKeepsItsContents) {
  auto allocated = KvCache::Allocate(SmallConfig(), 4);
  ASSERT_TRUE(allocated.ok());
  allocated->values(2)[47] = 5.0f;
  allocated->set_length(3);
  KvCache cache = std::move(*allocated);
  EXPECT_EQ(cache.values(2)[47], 5.0f);
  EXPECT_EQ(cache.length(), 3u);
}

TEST(KvCacheDeathTest, LengthBeyondTheCapacityIsABug) {
  auto cache = KvCache::Allocate(SmallConfig(), 4);
  ASSERT_TRUE(cache.ok());
  cache->set_length(4);
  EXPECT_DEATH(cache->set_length(5), "max_positions");
}

}  // namespace
}  // namespace moraine
