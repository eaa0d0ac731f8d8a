// Records on their way to a GPU: whole, of the right expert, and held until the copy has been made, however
// late that is and whatever becomes of the slots meanwhile.
#include "engine/leased_experts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>

#include "engine_world.h"
#include "late_copier.h"

namespace moraine {
namespace {

using testing::HasSubstr;

struct Shape {
  uint32_t slots, ring_slots;
};

constexpr uint32_t kLayers = 4, kExperts = 8, kTopK = 2;

EngineWorldOptions Options(const Shape& shape, uint64_t seed) {
  EngineWorldOptions options;
  options.layers = kLayers;
  options.experts = kExperts;
  options.top_k = kTopK;
  options.slot_count = shape.slots;
  options.ring_slots = shape.ring_slots;
  options.max_tokens = 4;
  options.seed = seed;
  options.faults = {.min_latency_ns = 1000, .max_latency_ns = 50'000, .script = {}};
  return options;
}

// All layers of a chunk, into memory that is looked at only when the copies have been made.
Status RunChunk(EngineWorld& world, LeasedExperts& experts, DeviceCopier& copier) {
  const uint64_t bytes = world.record_bytes();
  std::vector<std::byte> device(kLayers * kExperts * bytes);
  world.manager().BeginStep(100);
  Status status;
  for (uint32_t layer = 0; layer < kLayers && status.ok(); ++layer) {
    status = experts.CopyLayer({.layer = layer,
                                .next = layer + 1 < kLayers ? layer + 1 : kNoLayer,
                                .record_bytes = bytes,
                                .to = device.data() + layer * kExperts * bytes},
                               copier);
    world.manager().CheckInvariants();
  }
  experts.Finish(copier);
  CHECK(world.manager().leases() == 0, "a lease is left");
  for (uint32_t i = 0; i < kLayers * kExperts && status.ok(); ++i) {
    const ExpertKey key{LayerId(i / kExperts), ExpertId(i % kExperts)};
    status = world.Verify(key, 0, {device.data() + i * bytes, bytes});
  }
  return status;
}

class LeasedExpertsTest : public testing::TestWithParam<Shape> {};

TEST_P(LeasedExpertsTest, EveryRecordArrivesWhole) {
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    EngineWorld world(Options(GetParam(), seed));
    LeasedExperts experts(world.manager(), std::vector<uint32_t>(kLayers, kExperts));
    LateCopier copier(seed);
    Random random(seed);
    for (int step = 0; step < 4; ++step) {
      const Status status = RunChunk(world, experts, copier);
      ASSERT_TRUE(status.ok()) << status.message();
      // Answers in between, which leave other experts in memory.
      for (int token = 0; token < 3; ++token) {
        world.BeginStep(1, AcquireMode::kCached);
        for (uint32_t layer = 0; layer < kLayers; ++layer) {
          const auto first = static_cast<uint32_t>(random.Below(kExperts));
          const uint32_t chosen[kTopK] = {first, (first + 1) % kExperts};
          const float weights[kTopK] = {0.5f, 0.5f};
          const RoutingDecision routing = {.token_count = 1, .top_k = kTopK, .experts = chosen,
                                           .weights = weights, .lookaheads = {}};
          ASSERT_TRUE(world.RunLayer(LayerId(layer), routing).ok());
          ASSERT_TRUE(world.OutputIsRight(LayerId(layer), routing));
        }
      }
    }
    EXPECT_EQ(experts.copied_bytes(), 4 * kLayers * kExperts * world.record_bytes());
  }
}

INSTANTIATE_TEST_SUITE_P(Slots, LeasedExpertsTest,
                         testing::Values(Shape{4, 2}, Shape{6, 3}, Shape{17, 8}, Shape{34, 2}),
                         [](const auto& shape) {
                           return std::to_string(shape.param.slots) + "Slots" +
                                  std::to_string(shape.param.ring_slots) + "Ring";
                         });

TEST(LeasedExperts, AReadThatFailsNamesItsExpert) {
  EngineWorldOptions options = Options({6, 3}, 1);
  const EngineWorld healthy(options);
  const uint64_t begin = (2 * kExperts + 5 + 1) * healthy.record_bytes();
  options.faults.script = [&](const BlockRead& read) {
    return read.offset >= begin && read.offset < begin + healthy.record_bytes() ? -EIO : 1 << 30;
  };
  EngineWorld world(options);
  LeasedExperts experts(world.manager(), std::vector<uint32_t>(kLayers, kExperts));
  LateCopier copier(1);
  const Status status = RunChunk(world, experts, copier);
  EXPECT_EQ(status.code(), StatusCode::kIoError);
  EXPECT_THAT(status.message(), HasSubstr("layer 2 expert 5"));
  EXPECT_TRUE(copier.idle());
}

}  // namespace
}  // namespace moraine
