// The modes that change what is computed: what they promise, and that nobody has them without asking.
#include <gtest/gtest.h>

#include "engine/evaluation.h"
#include "engine_world.h"
#include "model/decoder_model.h"
#include "test_store.h"

namespace moraine {
namespace {

TEST(RoutePreferring, WithoutStrengthItIsTheRouter) {
  ExpertChooser chooser({.normalize = true}, 16, 4);
  Random random(1);
  for (int i = 0; i < 200; ++i) {
    float logits[16], weights_a[4], weights_b[4];
    uint8_t resident[16];
    uint32_t experts_a[4], experts_b[4];
    for (int e = 0; e < 16; ++e) {
      logits[e] = static_cast<float>(random.Uniform() * 8 - 4);
      resident[e] = random.Chance(0.5);
    }
    chooser.Choose(logits, experts_a, weights_a);
    chooser.ChoosePreferring(logits, resident, 0, experts_b, weights_b);
    for (int k = 0; k < 4; ++k) {
      EXPECT_EQ(experts_a[k], experts_b[k]);
      EXPECT_NEAR(weights_a[k], weights_b[k], 1e-6);
    }
  }
}

TEST(RoutePreferring, TheBestStaysAndResidentsWinTheRest) {
  const float logits[] = {3.0f, 1.0f, 0.9f, 0.0f};
  const uint8_t resident[] = {0, 0, 1, 1};
  uint32_t experts[2];
  float weights[2];
  ExpertChooser({.normalize = true}, 4, 2)
      .ChoosePreferring(logits, resident, 0.1f, experts, weights);
  EXPECT_EQ(experts[0], 0u);
  EXPECT_EQ(experts[1], 2u) << "0.9 + 0.3 beats 1.0";
  EXPECT_NEAR(weights[0], std::exp(3.0f) / (std::exp(3.0f) + std::exp(0.9f)), 1e-6)
      << "weights are the logits' own";
}

// With kernels whose output does not depend on the layer before, deferring moves terms from one layer's
// sum to the next one's and loses none.
TEST(ExpertDeferral, EveryTermArrivesOneLayerLater) {
  EngineWorldOptions options;
  options.layers = 4;
  options.experts = 16;
  options.top_k = 4;
  options.slot_count = 24;
  EngineWorld exact(options), deferring(options);
  deferring.executor().set_deferral(2);
  deferring.executor().set_lookahead(false);
  Random random(7);
  uint64_t moved = 0;
  for (int step = 0; step < 50; ++step) {
    for (EngineWorld* world : {&exact, &deferring}) world->BeginStep(1, AcquireMode::kCached);
    double total_exact = 0, total_deferring = 0;
    for (uint32_t layer = 0; layer < options.layers; ++layer) {
      std::vector<uint32_t> experts;
      while (experts.size() < options.top_k) {
        const auto pick = static_cast<uint32_t>(random.Below(options.experts));
        if (std::find(experts.begin(), experts.end(), pick) == experts.end()) experts.push_back(pick);
      }
      const float weights[] = {0.5f, 0.25f, 0.125f, 0.125f};
      RoutingDecision routing;
      routing.token_count = 1;
      routing.top_k = options.top_k;
      routing.experts = experts.data();
      routing.weights = weights;
      ASSERT_TRUE(exact.RunLayer(LayerId(layer), routing).ok());
      ASSERT_TRUE(exact.OutputIsRight(LayerId(layer), routing));
      ASSERT_TRUE(deferring.RunLayer(LayerId(layer), routing).ok());
      total_exact += exact.out()[0];
      total_deferring += deferring.out()[0];
      moved += exact.out()[0] != deferring.out()[0];
      deferring.manager().CheckInvariants();
    }
    EXPECT_NEAR(total_deferring, total_exact, 1e-5 * total_exact) << "step " << step;
    EXPECT_EQ(deferring.manager().leases(), 0u) << "the last layer defers nothing";
  }
  EXPECT_GT(moved, 50u);
  EXPECT_GT(deferring.executor().deferred(), 50u);
}

std::string DigestOf(const TestStore& store, const std::string& budget, uint32_t defer, float prefer) {
  RunnerOptions options = TestRunnerOptions(store, budget);
  options.prefill_chunk = 1;  // token by token: the modes are decode's
  options.defer_experts = defer;
  options.prefer_resident = prefer;
  const auto runner = Runner::Open(options);
  CHECK(runner.ok(), runner.status().message());
  EXPECT_EQ((*runner)->Stats().lossy.empty(), defer == 0 && prefer == 0);
  const auto evaluation = Evaluation::Create(**runner);
  const Status status = (*evaluation)->AddReference(GoldenPath("demo/reference.json"));
  CHECK(status.ok(), status.message());
  (*runner)->CheckInvariants();
  return (*evaluation)->Finish().digest;
}

TEST(LossyModes, AreOffByDefaultAndChangeResultsWhenOn) {
  const TestStore store(DemoModelPath(), Encoding::kQ4);
  const std::string exact = DigestOf(store, "25%", 0, 0);
  EXPECT_EQ(DigestOf(store, "50%", 0, 0), exact);
  EXPECT_NE(DigestOf(store, "25%", 2, 0), exact);
  EXPECT_NE(DigestOf(store, "25%", 0, 0.2f), exact);
}

}  // namespace
}  // namespace moraine
