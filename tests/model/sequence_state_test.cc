// SequenceState and KvPlanes: sizes, that no two layers or positions share memory, and that only Commit
// moves a sequence on.
#include "model/sequence_state.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

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

TEST(SequenceStateTest, BytesAreKeysAndValuesOfAllLayers) {
  // A layer is padded to 64 bytes.
  EXPECT_EQ(SequenceState::BytesFor(SmallConfig(), 10), 3u * 960);
  EXPECT_EQ(SequenceState::BytesFor(SmallConfig(), 10, KvFormat::kBf16), 3u * 512);
  EXPECT_EQ(SequenceState::BytesFor(SmallConfig(), 16, KvFormat::kQ8), 3u * 2 * 16 * 2 * (4 + 8));
  // 64 layers x 1 Mi positions x 8 heads x 128: 2^40 / 2 bytes, beyond 32 bits on the way.
  EXPECT_EQ(SequenceState::BytesFor(ConfigOf(64, 8, 128), 1u << 20), uint64_t{1} << 39);
}

// Every value of every layer is its own, and reads back as what the format makes of it.
TEST(KvPlanesTest, WhatIsWrittenIsThere) {
  constexpr uint32_t kPositions = 7, kFloats = 12;
  for (const KvFormat format : {KvFormat::kF32, KvFormat::kBf16, KvFormat::kQ8}) {
    auto state = SequenceState::Allocate(SmallConfig(), kPositions, format);
    ASSERT_TRUE(state.ok()) << state.status().message();
    EXPECT_EQ(state->max_positions(), kPositions);
    EXPECT_EQ(state->length(), 0u);
    const auto planes = [&](SequenceState& of, uint32_t layer) {
      return KvPlanes(of.positions(layer), kHeads, kHeadDim, format, kPositions);
    };
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

TEST(KvFormatTest, ANanStaysVisible) {
  std::vector<float> x(6, 1.0f);
  x[3] = std::numeric_limits<float>::quiet_NaN();
  std::vector<std::byte> out(KvHeadBytes(KvFormat::kQ8, 6));
  EncodeKv(KvFormat::kQ8, x.data(), 6, 1, 1, 6, out.data(), {});
  float scale;
  std::memcpy(&scale, out.data(), 4);
  EXPECT_TRUE(std::isnan(scale));
}

TEST(KvFormatTest, FormatsByName) {
  EXPECT_EQ(*ParseKvFormat("q8"), KvFormat::kQ8);
  EXPECT_THAT(ParseKvFormat("q4").status().message(), testing::HasSubstr("'q4': expected f32"));
}

SequenceState Allocated(std::vector<LayerStateShape> layers, uint32_t positions) {
  auto state = SequenceState::Allocate(std::move(layers), positions, KvFormat::kF32);
  CHECK(state.ok(), state.status().message());
  return std::move(*state);
}

TEST(SequenceStateTest, LayersDoNotOverlap) {
  const std::vector<LayerStateShape> shapes = {{12, 0}, {0, 100}, {4, 7}};
  constexpr uint32_t kPositions = 9;
  SequenceState state = Allocated(shapes, kPositions);
  // Every part is filled with its own number, then all are looked at.
  const auto for_parts = [&](const auto& function) {
    uint8_t number = 1;
    for (uint32_t i = 0; i < shapes.size(); ++i) {
      function(state.positions(i), shapes[i].position_bytes * kPositions, number++);
      function(state.pending(i), shapes[i].recurrent_bytes, number++);
      function(const_cast<std::byte*>(state.committed(i)), shapes[i].recurrent_bytes, number++);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(state.positions(i)) % 64, 0u);
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
