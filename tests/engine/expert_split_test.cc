// What goes over the link and where answers are computed, found out from times alone.
#include "engine/expert_split.h"

#include <gtest/gtest.h>

#include "base/random.h"
#include "engine/decode_choice.h"

namespace moraine {
namespace {

// A machine with costs of its own, which the split is to find out.
struct Machine {
  double cpu_fixed_ns = 10'000, cpu_ns = 45'000, link_ns = 50'000, base_ns = 60'000;
  double jitter = 0.05;
  Random random{1};

  double Jitter() { return 1 + jitter * (static_cast<double>(random.Below(2001)) / 1000 - 1); }
  // A layer as the split has it; returns its time.
  double Run(ExpertSplit* split, uint32_t layer, uint32_t wanted) {
    const uint32_t over_link = split->Choose(layer, 1, wanted, 0);
    const double cpu =
        over_link == wanted ? 0 : (cpu_fixed_ns + cpu_ns * (wanted - over_link)) * Jitter();
    const double gap = base_ns * Jitter() + std::max(cpu, link_ns * over_link * Jitter());
    split->RecordCpu(1, wanted - over_link, static_cast<int64_t>(cpu));
    split->RecordLayer(layer, over_link, static_cast<int64_t>(cpu), static_cast<int64_t>(gap));
    return gap;
  }
  double Best(uint32_t wanted) const {
    double best = 1e18;
    for (uint32_t k = 0; k <= wanted; ++k) {
      const double cpu = k == wanted ? 0 : cpu_fixed_ns + cpu_ns * (wanted - k);
      best = std::min(best, base_ns + std::max(cpu, link_ns * k));
    }
    return best;
  }
};

TEST(ExpertSplit, FindsTheBalance) {
  const double links_ns[] = {2'000, 50'000, 60'000, 400'000, 5'000'000};
  for (const double link_ns : links_ns) {
    for (const double expected_ns : {10'000.0, 45'000.0, 300'000.0}) {
      SCOPED_TRACE(testing::Message() << "link " << link_ns << " ns, expected " << expected_ns);
      Machine machine;
      machine.link_ns = link_ns;
      ExpertSplit split(16);
      split.set_link_expected_ns(expected_ns);
      double spent = 0, best = 0;
      for (int step = 0; step < 600; ++step) {
        for (uint32_t layer = 0; layer < 16; ++layer) {
          // Some are in VRAM: the CPU's line must be learnt from different numbers.
          const auto wanted = static_cast<uint32_t>(machine.random.Below(7)) + 2;
          const double ns = machine.Run(&split, layer, wanted);
          if (step < 300) continue;
          spent += ns;
          best += machine.Best(wanted);
        }
      }
      EXPECT_LT(spent, 1.12 * best);
    }
  }
}

// Ten times as slow for a while, as when a prompt of somebody else has the link: it comes back.
TEST(ExpertSplit, ForgetsWhatHasPassed) {
  Machine machine;
  ExpertSplit split(4);
  split.set_link_expected_ns(50'000);
  const auto run = [&](int steps) {
    double ns = 0;
    for (int step = 0; step < steps; ++step) {
      for (uint32_t layer = 0; layer < 4; ++layer) ns += machine.Run(&split, layer, 8);
    }
    return ns / (steps * 4);
  };
  run(300);
  const double before = run(200);
  EXPECT_LT(before, 1.12 * machine.Best(8));
  machine.link_ns *= 10;
  run(300);
  EXPECT_LT(run(200), 1.12 * machine.Best(8));
  machine.link_ns /= 10;
  run(3000);
  EXPECT_LT(run(200), 1.12 * machine.Best(8));
}

TEST(ExpertSplit, WithoutALinkAllIsTheCpus) {
  Machine machine;
  ExpertSplit split(2);
  for (int step = 0; step < 100; ++step) {
    ASSERT_EQ(split.Choose(0, 1, 8, 0), 0u);
    split.RecordCpu(1, 8, 400'000);
  }
}

int64_t Spend(DecodeChoice* choice, int steps, int64_t gpu_ns, int64_t cpu_ns, int* on_gpu) {
  int64_t spent = 0;
  *on_gpu = 0;
  for (int i = 0; i < steps; ++i) {
    const bool gpu = choice->OnGpu(1);
    *on_gpu += gpu;
    choice->Record(gpu, 1, gpu ? gpu_ns : cpu_ns);
    spent += gpu ? gpu_ns : cpu_ns;
  }
  return spent;
}

TEST(DecodeChoice, TheFasterOneWinsAndIsLookedAtAgain) {
  int on_gpu = 0;
  DecodeChoice choice(false);
  Spend(&choice, 16, 100, 900, &on_gpu);
  EXPECT_EQ(on_gpu, 8) << "both are tried";
  // The CPU is 9 times as slow: what it is tried again for costs little, and ever less.
  EXPECT_LT(Spend(&choice, 4000, 100, 900, &on_gpu), 4000 * 102);
  EXPECT_LT(Spend(&choice, 4000, 100, 900, &on_gpu), 4000 * 103);
  EXPECT_GT(on_gpu, 3950);
  // Now the CPU is faster, which the next look finds.
  Spend(&choice, 5000, 900, 100, &on_gpu);
  EXPECT_LT(Spend(&choice, 2000, 900, 100, &on_gpu), 2000 * 130);
  EXPECT_LT(on_gpu, 60);
  // And back.
  Spend(&choice, 5000, 100, 900, &on_gpu);
  Spend(&choice, 2000, 100, 900, &on_gpu);
  EXPECT_GT(on_gpu, 1900);
}

TEST(DecodeChoice, EachNumberOfTokensByItself) {
  DecodeChoice choice(false);
  for (int i = 0; i < 16; ++i) {
    choice.Record(choice.OnGpu(1), 1, choice.OnGpu(1) ? 900 : 100);
    choice.Record(choice.OnGpu(8), 8, choice.OnGpu(8) ? 100 : 900);
  }
  EXPECT_FALSE(choice.OnGpu(1));
  EXPECT_TRUE(choice.OnGpu(8));
  EXPECT_TRUE(choice.OnGpu(20)) << "as of 8";
  EXPECT_EQ(choice.median_ns(true, 8), 100);
  EXPECT_EQ(choice.median_ns(true, 2), 0) << "not known";
  DecodeChoice always(true);
  for (int i = 0; i < 100; ++i) always.Record(true, 1, 1'000'000);
  EXPECT_TRUE(always.OnGpu(1));
}

}  // namespace
}  // namespace moraine
