// SequenceState and KvPlanes: sizes, that no two layers or positions share memory, and that only Commit
// moves a sequence on.
#include "model/sequence_state.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "base/random.h"
#include "compute/e4m3.h"
#include "compute/encode.h"
#include "model/kv_planes.h"

namespace moraine {
namespace {

constexpr uint32_t kHeads = 2, kHeadDim = 6;

ModelConfig ConfigOf(uint32_t layers, uint32_t heads, uint32_t head_dim) {
  ModelConfig config;
  LayerConfig layer;
  layer.mixer = GqaConfig{.query_heads = heads, .kv_heads = heads, .head_dim = head_dim, .rope = {}};
  config.layers.assign(layers, layer);
  return config;
}
ModelConfig SmallConfig() { return ConfigOf(3, kHeads, kHeadDim); }

// Of the arena alone.
uint64_t ArenaBytes(const ModelConfig& config, uint32_t blocks, KvFormat format = KvFormat::kF32) {
  return KvPool::BytesFor(StateShapesOf(config, format), blocks) - KvPool::BytesFor({}, blocks);
}

TEST(SequenceStateTest, BytesAreKeysAndValuesOfAllLayers) {
  EXPECT_EQ(ArenaBytes(SmallConfig(), 2), 3u * 2 * 128 * kHeads * kHeadDim * 4);
  EXPECT_EQ(ArenaBytes(SmallConfig(), 1, KvFormat::kBf16), 3u * 2 * 64 * kHeads * kHeadDim * 2);
  EXPECT_EQ(ArenaBytes(SmallConfig(), 1, KvFormat::kQ8), 3u * 2 * 64 * kHeads * (4 + 8));
  EXPECT_EQ(ArenaBytes(SmallConfig(), 1, KvFormat::kFp8), 3u * 2 * 64 * kHeads * (6 + 1));
  // 64 layers x 1 Mi positions x 8 heads x 128: 2^40 / 2 bytes, beyond 32 bits on the way.
  EXPECT_EQ(ArenaBytes(ConfigOf(64, 8, 128), KvPool::BlocksFor(1u << 20)), uint64_t{1} << 39);
  EXPECT_EQ(KvPool::BlocksFor(64), 1u);
  EXPECT_EQ(KvPool::BlocksFor(65), 2u);
}

// Every value of every layer is its own, and reads back as what the format makes of it.
TEST(KvPlanesTest, WhatIsWrittenIsThere) {
  constexpr uint32_t kPositions = 67, kFloats = 12;  // one block and a little
  for (const KvFormat format : {KvFormat::kF32, KvFormat::kBf16, KvFormat::kQ8, KvFormat::kFp8}) {
    auto state = SequenceState::Allocate(SmallConfig(), kPositions, format);
    ASSERT_TRUE(state.ok()) << state.status().message();
    EXPECT_EQ(state->max_positions(), kPositions);
    EXPECT_EQ(state->length(), 0u);
    ASSERT_TRUE(state->Reserve(kPositions));
    const auto planes = [&](SequenceState& of, uint32_t layer) {
      return KvPlanes(of.positions(layer), kHeads, kHeadDim, format);
    };
    const auto value = [](uint32_t layer, bool is_value, uint32_t position, uint32_t i) {
      return static_cast<float>((layer * 2 + is_value) * 1000 + position * 100 + i) / 3 - 400;
    };
    for (uint32_t layer = 0; layer < 3; ++layer) {
      for (uint32_t position = 0; position < kPositions; position += 3) {  // across the blocks' border
        const uint32_t count = std::min(3u, kPositions - position);
        std::vector<float> keys(3 * kFloats), values(3 * kFloats);
        for (uint32_t i = 0; i < count * kFloats; ++i) {
          keys[i] = value(layer, false, position + i / kFloats, i % kFloats);
          values[i] = value(layer, true, position + i / kFloats, i % kFloats);
        }
        planes(*state, layer).Write(position, count, keys.data(), values.data());
      }
    }
    SequenceState moved = std::move(*state);
    for (uint32_t layer = 0; layer < 3; ++layer) {
      const KvView view = planes(moved, layer).view();
      EXPECT_EQ(view.format, format);
      for (uint32_t i = 0; i < 2 * kPositions * kFloats; ++i) {
        const bool is_value = i % 2 == 1;
        const uint32_t position = i / 2 / kFloats, at = i / 2 % kFloats, head = at / 6;
        const std::byte* piece = (is_value ? view.values : view.keys) +
                                 view.blocks[position / 64] * view.block_bytes +
                                 head * view.strides.head;
        const std::byte* row = piece + position % 64 * view.strides.position;
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
        } else if (format == KvFormat::kFp8) {
          const auto code = static_cast<uint32_t>(piece[position % 64 * kHeadDim + at % 6]);
          const auto scale = static_cast<uint32_t>(piece[64 * kHeadDim + position % 64]);
          ASSERT_EQ(scale, E4m3Scale(std::bit_cast<uint32_t>(largest)));
          ASSERT_EQ(code, E4m3Code(expected, scale));
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

TEST(KvFormatTest, ANanStaysVisible) {
  std::vector<float> x(6, 1.0f);
  x[3] = std::numeric_limits<float>::quiet_NaN();
  std::vector<std::byte> out(KvHeadBytes(KvFormat::kQ8, 6));
  EncodeKv(KvFormat::kQ8, x.data(), 6, 1, 1, 6, {out.data(), {}});
  float scale;
  std::memcpy(&scale, out.data(), 4);
  EXPECT_TRUE(std::isnan(scale));
}

TEST(KvFormatTest, FormatsByName) {
  EXPECT_EQ(*ParseKvFormat("q8"), KvFormat::kQ8);
  EXPECT_EQ(*ParseKvFormat("fp8"), KvFormat::kFp8);
  EXPECT_THAT(ParseKvFormat("q4").status().message(),
              testing::HasSubstr("'q4': expected f32, bf16, q8 or fp8"));
}

SequenceState Allocated(std::vector<LayerStateShape> layers, uint32_t positions) {
  auto state = SequenceState::Allocate(std::move(layers), positions, KvFormat::kF32);
  CHECK(state.ok(), state.status().message());
  return std::move(*state);
}

TEST(SequenceStateTest, LayersDoNotOverlap) {
  const std::vector<LayerStateShape> shapes = {{12, 0}, {0, 100}, {4, 7}};
  constexpr uint32_t kBlocks = 3;
  SequenceState state = Allocated(shapes, kBlocks * kKvBlockPositions);
  ASSERT_TRUE(state.Reserve(kBlocks * kKvBlockPositions));
  // Every part is filled with its own number, then all are looked at.
  const auto for_parts = [&](const auto& function) {
    uint8_t number = 1;
    for (uint32_t i = 0; i < shapes.size(); ++i) {
      for (uint32_t block = 0; block < kBlocks; ++block) {
        std::byte* const data = state.positions(i).BlockOf(block * kKvBlockPositions);
        function(data, shapes[i].position_bytes * kKvBlockPositions, number++);
        EXPECT_EQ(reinterpret_cast<uintptr_t>(data) % 64, 0u);
      }
      function(state.pending(i), shapes[i].recurrent_bytes, number++);
      function(const_cast<std::byte*>(state.committed(i)), shapes[i].recurrent_bytes, number++);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(state.pending(i)) % 64, 0u);
    }
  };
  for_parts([](std::byte* data, uint64_t bytes, uint8_t n) { std::memset(data, n, bytes); });
  for_parts([](const std::byte* data, uint64_t bytes, uint8_t n) {
    for (uint64_t i = 0; i < bytes; ++i) ASSERT_EQ(data[i], std::byte{n});
  });
}

TEST(SequenceStateTest, OnlyCommitMovesRecurrentStateOn) {
  SequenceState state = Allocated({{4, 1}}, 10);
  EXPECT_EQ(*state.committed(0), std::byte{0});
  *state.pending(0) = std::byte{1};  // a chunk that fails
  EXPECT_EQ(*state.committed(0), std::byte{0});
  *state.pending(0) = std::byte{2};
  state.Commit(3);
  EXPECT_EQ(*state.committed(0), std::byte{2});
  *state.pending(0) = std::byte{3};
  state.Commit(1);
  EXPECT_EQ(*state.committed(0), std::byte{3});
  EXPECT_EQ(state.length(), 4u);
  state.Reset();
  EXPECT_EQ(*state.committed(0), std::byte{0});
  EXPECT_EQ(state.length(), 0u);
}

class PooledTest : public testing::Test {
 protected:
  static constexpr uint32_t kBlocks = 6;

  SequenceState NewSequence() {
    auto state = SequenceState::Create(shapes_, pool_.get(), kBlocks * kKvBlockPositions);
    CHECK(state.ok(), state.status().message());
    return std::move(*state);
  }
  // Begins with `tokens`, all of them computed and published.
  void Fill(SequenceState* state, std::span<const int32_t> tokens) {
    state->Reset();
    const uint32_t rest = static_cast<uint32_t>(tokens.size()) - state->TakePrefix(tokens);
    ASSERT_TRUE(state->Reserve(rest));
    state->Commit(rest);
    state->Publish(tokens);
    pool_->CheckInvariants();
  }
  static std::vector<int32_t> Tokens(size_t count, int32_t seed) {
    std::vector<int32_t> tokens(count);
    for (size_t i = 0; i < count; ++i) tokens[i] = static_cast<int32_t>(i) * 7 + seed;
    return tokens;
  }

  std::vector<LayerStateShape> shapes_ = {{4, 0}};
  std::unique_ptr<KvPool> pool_ =
      std::move(KvPool::Create(shapes_, KvFormat::kF32, kBlocks)).value();
};

TEST_F(PooledTest, SequencesShareThePoolAndGiveItBack) {
  SequenceState a = NewSequence(), b = NewSequence();
  EXPECT_TRUE(a.Reserve(4 * kKvBlockPositions));
  EXPECT_FALSE(b.Reserve(2 * kKvBlockPositions + 1));
  EXPECT_EQ(pool_->available(), 0u) << "what b could get it has";
  a.Reset();
  EXPECT_TRUE(b.Reserve(2 * kKvBlockPositions + 1));
  EXPECT_EQ(pool_->available(), 3u);
  { const SequenceState c = std::move(b); }
  EXPECT_EQ(pool_->available(), kBlocks);
  pool_->CheckInvariants();
}

TEST_F(PooledTest, APrefixIsFoundByItsTokensInWholeBlocks) {
  SequenceState a = NewSequence(), b = NewSequence();
  std::vector<int32_t> tokens = Tokens(3 * kKvBlockPositions + 5, 1);
  Fill(&a, tokens);
  std::byte* const second = a.positions(0).BlockOf(kKvBlockPositions);
  // While it is held, and then from the cache.
  for (int round = 0; round < 2; ++round) {
    std::vector<int32_t> other = tokens;
    other[2 * kKvBlockPositions] += 1;
    b.Reset();
    EXPECT_EQ(b.TakePrefix(other), 2 * kKvBlockPositions);
    EXPECT_EQ(b.positions(0).BlockOf(kKvBlockPositions), second);
    b.Reset();
    EXPECT_EQ(b.TakePrefix(std::span(tokens).first(2 * kKvBlockPositions)), kKvBlockPositions)
        << "the last token's logits are wanted";
    pool_->CheckInvariants();
    a.Reset();
  }
  // The same block behind another one is another block.
  b.Reset();
  std::rotate(tokens.begin(), tokens.begin() + kKvBlockPositions, tokens.end());
  EXPECT_EQ(b.TakePrefix(tokens), 0u);
  EXPECT_EQ(pool_->stats().cached, 3u);
}

TEST_F(PooledTest, TwoWhoComputeTheSameEndUpWithOneCopy) {
  SequenceState a = NewSequence(), b = NewSequence();
  const std::vector<int32_t> tokens = Tokens(2 * kKvBlockPositions, 1);
  ASSERT_TRUE(a.Reserve(2 * kKvBlockPositions) && b.Reserve(2 * kKvBlockPositions));
  for (SequenceState* state : {&a, &b}) {
    state->Commit(2 * kKvBlockPositions);
    state->Publish(tokens);
    pool_->CheckInvariants();
  }
  EXPECT_EQ(pool_->available(), kBlocks - 2);
  EXPECT_EQ(a.positions(0).BlockOf(100), b.positions(0).BlockOf(100));
  a.Reset();
  pool_->CheckInvariants();
  b.Reset();
  EXPECT_EQ(pool_->stats().cached, 2u);
}

TEST_F(PooledTest, WhatWasHeldLeastRecentlyIsEvictedFromItsEnd) {
  SequenceState a = NewSequence();
  const std::vector<int32_t> old = Tokens(2 * kKvBlockPositions + 1, 1);
  const std::vector<int32_t> young = Tokens(2 * kKvBlockPositions + 1, 2);
  Fill(&a, old);
  Fill(&a, young);
  a.Reset();
  ASSERT_EQ(pool_->stats().cached, 4u);
  ASSERT_TRUE(a.Reserve(3 * kKvBlockPositions));  // two are free
  pool_->CheckInvariants();
  EXPECT_EQ(pool_->stats().evicted, 1u);
  a.Reset();
  EXPECT_EQ(a.TakePrefix(young), 2 * kKvBlockPositions);
  a.Reset();
  EXPECT_EQ(a.TakePrefix(old), kKvBlockPositions);
  a.Reset();
  pool_->DropCached();
  EXPECT_EQ(a.TakePrefix(young), 0u);
  pool_->CheckInvariants();
}

// Whatever sequences do, no block is lost and a prefix that is found is the one that was asked for.
TEST_F(PooledTest, RandomUseKeepsTheInvariants) {
  constexpr uint64_t kSeed = 20240607;
  SCOPED_TRACE(testing::Message() << "seed " << kSeed);
  Random random(kSeed);
  std::vector<SequenceState> states;
  for (int i = 0; i < 4; ++i) states.push_back(NewSequence());
  std::vector<std::vector<int32_t>> tokens(states.size());
  for (int step = 0; step < 20000; ++step) {
    const size_t i = random.Below(states.size());
    SequenceState& state = states[i];
    if (tokens[i].empty()) {
      tokens[i] = Tokens(1 + random.Below(4 * kKvBlockPositions), 0);
      // Few beginnings, so that they meet.
      for (size_t at = 0; at < tokens[i].size(); at += kKvBlockPositions) {
        tokens[i][at] = static_cast<int32_t>(random.Below(2));
      }
      state.TakePrefix(tokens[i]);
    }
    const uint32_t left = static_cast<uint32_t>(tokens[i].size()) - state.length();
    const uint32_t count = 1 + static_cast<uint32_t>(random.Below(100));
    if (left > 0 && state.Reserve(std::min(count, left)) && random.Chance(0.9)) {
      // The first float of each block says which prefix it is the end of.
      const uint32_t first = state.length();
      ForBlocks(first, std::min(count, left), [&](uint32_t position, uint32_t, uint32_t index) {
        if (index > 0) return;
        float sum = 0;
        for (uint32_t b = 0; b <= position; b += kKvBlockPositions) {
          sum = 2 * sum + static_cast<float>(1 + tokens[i][b]);
        }
        std::memcpy(state.positions(0).BlockOf(position), &sum, sizeof(sum));
      });
      state.Commit(std::min(count, left));
      state.Publish(tokens[i]);
    } else {
      state.Reset();
      tokens[i].clear();
    }
    float expected = 0;
    for (uint32_t b = 0; b < state.length(); b += kKvBlockPositions) {
      expected = 2 * expected + static_cast<float>(1 + tokens[i][b]);
      float found;
      std::memcpy(&found, state.positions(0).BlockOf(b), sizeof(found));
      ASSERT_EQ(found, expected) << "step " << step;
    }
    pool_->CheckInvariants();
  }
  EXPECT_GT(pool_->stats().evicted, 100u);
  for (SequenceState& state : states) state.Reset();
  EXPECT_EQ(pool_->available(), kBlocks);
}

TEST(SequenceStateTest, RecurrentStateIsNotSharedAndNotFound) {
  const std::vector<LayerStateShape> shapes = {{4, 8}};
  const auto pool = std::move(KvPool::Create(shapes, KvFormat::kF32, 2)).value();
  SequenceState state = std::move(SequenceState::Create(shapes, pool.get(), 128)).value();
  const std::vector<int32_t> tokens(100, 3);
  ASSERT_TRUE(state.Reserve(100));
  state.Commit(100);
  state.Publish(tokens);
  state.Reset();
  EXPECT_EQ(state.TakePrefix(tokens), 0u);
  EXPECT_EQ(pool->stats().cached, 0u);
}

TEST(SequenceStateTest, WhatHasRecurrentStateGoesBackToNothingOnly) {
  SequenceState recurrent = Allocated({{4, 0}, {0, 8}}, 10), plain = Allocated({{4, 0}}, 10);
  recurrent.Commit(5);
  plain.Commit(5);
  EXPECT_TRUE(plain.Truncate(2).ok());
  EXPECT_EQ(plain.length(), 2u);
  EXPECT_TRUE(recurrent.Truncate(5).ok());
  const Status status = recurrent.Truncate(2);
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(status.message(), testing::HasSubstr("layer 1 has recurrent state"));
  EXPECT_THAT(status.message(), testing::HasSubstr("from 5 tokens to 2"));
  EXPECT_EQ(recurrent.length(), 5u);
  EXPECT_TRUE(recurrent.Truncate(0).ok());
  EXPECT_EQ(recurrent.length(), 0u);
}

TEST(SequenceStateDeathTest, LengthBeyondTheCapacityIsABug) {
  SequenceState state = Allocated({{4, 0}}, 4);
  state.Commit(4);
  EXPECT_DEATH(state.Commit(1), "max_positions");
  EXPECT_DEATH((void)state.Truncate(5), "not extended");
}

}  // namespace
}  // namespace moraine
