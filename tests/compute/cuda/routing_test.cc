// Logits against double; the choice and the order against plain loops over the device's own logits.
#include "compute/cuda/routing.h"

#include <algorithm>
#include <numeric>

#include "gpu_test_support.h"

namespace moraine::gpu {
namespace {

struct Shape {
  uint32_t experts, hidden, tokens, top_k;
};

struct Routed {
  std::vector<float> logits, weights;
  std::vector<uint32_t> experts;
};

class RouterTest : public testing::Test {
 protected:
  // Expert 1 is as expert 0 (and 5 as 3): ties to the bit.
  Routed Run(const Shape& shape, const ExpertSelection& selection, bool bias, uint64_t seed) {
    Random random(seed);
    auto values = NormalValues(random, size_t{shape.experts} * shape.hidden,
                               2 / std::sqrt(static_cast<float>(shape.hidden)));
    const auto repeat = [&](uint32_t from, uint32_t to) {
      if (to >= shape.experts) return;
      std::copy_n(values.begin() + size_t{from} * shape.hidden, shape.hidden,
                  values.begin() + size_t{to} * shape.hidden);
    };
    repeat(0, 1);
    repeat(3, 5);
    matrix_ = std::make_unique<TestMatrix>(Encoding::kF32, shape.experts, shape.hidden, values);
    stride_ = (shape.hidden + 7) / 4 * 4;
    x_ = NormalValues(random, size_t{shape.tokens} * stride_, 3);
    norm_ = NormalValues(random, shape.hidden);
    bias_.assign(shape.experts, 0);
    for (uint32_t e = 8; bias && e < shape.experts; ++e) bias_[e] = random.Normal();
    correction_ = NormalValues(random, shape.experts, 0.3f);
    const auto x = OnDevice(x_), norm = OnDevice(norm_), device_bias = OnDevice(bias_);
    const auto correction = OnDevice(correction_);
    auto logits = Poisoned<float>(size_t{shape.tokens} * shape.experts);
    auto experts = Poisoned<uint32_t>(size_t{shape.tokens} * shape.top_k);
    auto weights = Poisoned<float>(size_t{shape.tokens} * shape.top_k);
    const auto counter = OnDevice(std::vector<uint32_t>{0});
    Router router = {.matrix = matrix_->device,
                     .bias = bias ? device_bias.data() : nullptr,
                     .input = {x.data(), stride_, norm.data(), 1e-6f},
                     .token_count = shape.tokens,
                     .top_k = shape.top_k,
                     .selection = selection,
                     .logits = logits.data(),
                     .experts = experts.data(),
                     .weights = weights.data(),
                     .counter = counter.data()};
    if (selection.correction != nullptr) router.selection.correction = correction.data();
    NeedOk(RunRouter(router, nullptr));
    Finish();
    EXPECT_EQ(Host(counter)[0], 0u);
    return {Host(logits), Host(weights), Host(experts)};
  }

  void CheckLogits(const Shape& shape, const Routed& routed) {
    Comparison compare("logits");
    for (uint32_t t = 0; t < shape.tokens; ++t) {
      const auto x = Normed(x_.data() + size_t{t} * stride_, norm_, 1e-6, shape.hidden);
      for (uint32_t e = 0; e < shape.experts; ++e) {
        const Sum sum = Dot(matrix_->row(e), x.data(), shape.hidden);
        compare.Check(
            t, e, routed.logits[size_t{t} * shape.experts + e], sum.value + bias_[e],
            sum.tolerance(shape.hidden) + sum.magnitude * (shape.tokens <= 8 ? 0x1p-20 : 0x1p-16));
      }
    }
  }

  // The experts of the best groups.
  template <typename Score>
  static std::vector<uint32_t> Choosable(const Shape& shape, const ExpertSelection& how,
                                         Score&& score) {
    const uint32_t size = shape.experts / how.group_count;
    std::vector<std::pair<float, uint32_t>> groups;  // by score, negated, and index
    for (uint32_t g = 0; g < how.group_count; ++g) {
      std::vector<float> scores;
      for (uint32_t e = g * size; e < (g + 1) * size; ++e) scores.push_back(score(e));
      std::ranges::sort(scores, std::greater<>());
      groups.emplace_back(-(how.two_best_of_group && size > 1 ? scores[0] + scores[1] : scores[0]),
                          g);
    }
    std::ranges::sort(groups);
    groups.resize(how.chosen_groups);
    std::vector<uint32_t> experts;
    for (const auto& [unused, g] : groups) {
      for (uint32_t e = g * size; e < (g + 1) * size; ++e) experts.push_back(e);
    }
    std::ranges::sort(experts);
    return experts;
  }

  void CheckChoice(const Shape& shape, const ExpertSelection& how, const Routed& routed) {
    const auto sigmoid = [](double x) { return 1 / (1 + std::exp(-x)); };
    Comparison experts("experts"), weights("weights");
    for (uint32_t t = 0; t < shape.tokens; ++t) {
      const float* logits = routed.logits.data() + size_t{t} * shape.experts;
      const auto score = [&](uint32_t e) {
        float value = logits[e];
        if (how.scoring == ExpertScoring::kSigmoid) value = 1.0f / (1.0f + std::exp(-value));
        return how.correction != nullptr ? value + correction_[e] : value;
      };
      std::vector<uint32_t> order = Choosable(shape, how, score);
      std::stable_sort(order.begin(), order.end(),
                       [&](uint32_t a, uint32_t b) { return score(a) > score(b); });
      double sum = 0, chosen = 0;
      std::vector<double> expected;
      for (uint32_t e = 0; e < shape.experts; ++e) sum += std::exp(double{logits[e]});
      for (uint32_t k = 0; k < shape.top_k; ++k) chosen += std::exp(double{logits[order[k]]});
      for (uint32_t k = 0; k < shape.top_k; ++k) {
        const double logit = logits[order[k]];
        expected.push_back(how.scoring == ExpertScoring::kSigmoid   ? sigmoid(logit)
                           : how.scoring == ExpertScoring::kSoftmax ? std::exp(logit) / sum
                                                                    : std::exp(logit) / chosen);
      }
      const double total = std::accumulate(expected.begin(), expected.end(), 0.0);
      for (uint32_t k = 0; k < shape.top_k; ++k) {
        const size_t at = size_t{t} * shape.top_k + k;
        double weight = expected[k];
        if (how.normalize) weight /= total + how.normalize_epsilon;
        // The device's sigmoid may differ in the last bit: near ties of it may change places.
        if (how.scoring != ExpertScoring::kSigmoid || routed.experts[at] == order[k]) {
          experts.Check(t, k, routed.experts[at], order[k], 0);
        } else {
          experts.Check(t, k, score(routed.experts[at]), score(order[k]), 1e-6);
        }
        weights.Check(t, k, routed.weights[at], weight * how.scale, 1e-5 * how.scale);
      }
    }
  }

  void CheckAll(const Shape& shape, const ExpertSelection& selection, bool bias, uint64_t seed) {
    SKIP_WITHOUT_GPU();
    SCOPED_TRACE(std::to_string(shape.experts) + " experts, " + std::to_string(shape.tokens) +
                 " tokens, seed " + std::to_string(seed));
    const Routed routed = Run(shape, selection, bias, seed);
    CheckLogits(shape, routed);
    CheckChoice(shape, selection, routed);
    const Routed again = Run(shape, selection, bias, seed);
    EXPECT_TRUE(routed.logits == again.logits && routed.experts == again.experts &&
                routed.weights == again.weights)
        << "two runs differ";
  }

  std::unique_ptr<TestMatrix> matrix_;
  uint32_t stride_ = 0;
  std::vector<float> x_, norm_, bias_, correction_;
};

constexpr float kMarked = 0;  // any address: the test has values of its own

TEST_F(RouterTest, OneToken) { CheckAll({128, 2048, 1, 8}, {.normalize = true}, false, 1); }
TEST_F(RouterTest, FewTokens) { CheckAll({32, 256, 8, 4}, {}, true, 2); }
TEST_F(RouterTest, ManyTokens) {
  CheckAll({128, 256, 200, 8}, {.normalize = true, .scale = 2.5f}, false, 3);
}
TEST_F(RouterTest, OddTails) {
  CheckAll({77, 203, 131, 5}, {}, true, 4);
  CheckAll({9, 41, 3, 9}, {.normalize = true}, false, 5);
}
TEST_F(RouterTest, SoftmaxOfChosen) {
  CheckAll({32, 64, 70, 4}, {.scoring = ExpertScoring::kSoftmaxOfChosen}, true, 6);
}
TEST_F(RouterTest, SigmoidWithCorrection) {
  CheckAll({64, 128, 90, 6},
           {.scoring = ExpertScoring::kSigmoid,
            .correction = &kMarked,
            .normalize = true,
            .normalize_epsilon = 1e-20f},
           false, 7);
}
TEST_F(RouterTest, Groups) {
  CheckAll({256, 128, 90, 8}, {.group_count = 8, .chosen_groups = 4}, false, 10);
  CheckAll({160, 64, 3, 6}, {.group_count = 8, .chosen_groups = 3, .normalize = true}, true, 11);
  CheckAll({512, 64, 70, 16}, {.group_count = 32, .chosen_groups = 1, .scale = 2.5f}, false, 12);
  CheckAll({9, 41, 40, 2}, {.group_count = 9, .chosen_groups = 2, .two_best_of_group = true}, false, 13);
}
TEST_F(RouterTest, GroupsByTheirTwoBest) {
  for (const uint32_t tokens : {1u, 8u, 200u}) {
    CheckAll({256, 128, tokens, 8},
             {.scoring = ExpertScoring::kSigmoid,
              .correction = &kMarked,
              .group_count = 8,
              .chosen_groups = 4,
              .two_best_of_group = true,
              .normalize = true,
              .normalize_epsilon = 1e-20f,
              .scale = 2.5f},
             false, 14 + tokens);
  }
}
TEST_F(RouterTest, MostExperts) {
  CheckAll({1024, 96, 20, 32}, {}, false, 8);
  CheckAll({1024, 96, 2, 32}, {}, false, 9);
}
TEST_F(RouterTest, Refusals) {
  SKIP_WITHOUT_GPU();
  Router router;
  router.matrix = {nullptr, Encoding::kBf16, 8, 64};
  router.token_count = router.top_k = 1;
  EXPECT_EQ(RunRouter(router, nullptr).code(), StatusCode::kUnsupported);
  router.matrix.encoding = Encoding::kF32;
  router.top_k = 9;
  EXPECT_EQ(RunRouter(router, nullptr).code(), StatusCode::kInvalidArgument);
  router.top_k = 3;
  router.selection.group_count = 4;  // of two experts, one of them
  EXPECT_EQ(RunRouter(router, nullptr).code(), StatusCode::kInvalidArgument);
  router.selection.group_count = 3;
  router.selection.chosen_groups = 2;
  EXPECT_EQ(RunRouter(router, nullptr).code(), StatusCode::kInvalidArgument);
}

void CheckOrder(const Shape& shape, uint64_t seed) {
  SCOPED_TRACE(std::to_string(shape.experts) + " experts, " + std::to_string(shape.tokens) +
               " tokens");
  Random random(seed);
  const uint32_t pairs = shape.tokens * shape.top_k;
  std::vector<uint32_t> experts;
  const uint64_t used = 1 + random.Below(shape.experts);
  for (uint32_t i = 0; i < pairs; ++i) {
    experts.push_back(shape.experts - 1 - static_cast<uint32_t>(random.Below(used)));
  }
  const auto device_experts = OnDevice(experts);
  auto offsets = Poisoned<uint32_t>(shape.experts + 1);
  auto token_rows = Poisoned<uint32_t>(pairs + 1), positions = Poisoned<uint32_t>(pairs + 1);
  NeedOk(SortByExpert({device_experts.data(), shape.tokens, shape.top_k, shape.experts,
                       offsets.data(), token_rows.data(), positions.data()},
                      nullptr));
  Finish();
  std::vector<uint32_t> order(pairs), starts(shape.experts + 1), rows(pairs + 1, ~0u),
      places(pairs + 1, ~0u);
  std::iota(order.begin(), order.end(), 0u);
  std::stable_sort(order.begin(), order.end(),
                   [&](uint32_t a, uint32_t b) { return experts[a] < experts[b]; });
  for (const uint32_t e : experts) ++starts[e + 1];
  std::partial_sum(starts.begin(), starts.end(), starts.begin());
  for (uint32_t i = 0; i < pairs; ++i) {
    rows[i] = order[i] / shape.top_k;
    places[order[i]] = i;
  }
  EXPECT_EQ(Host(offsets), starts);
  EXPECT_EQ(Host(token_rows), rows);
  EXPECT_EQ(Host(positions), places);
}

TEST(SortByExpertTest, AgainstStableSort) {
  SKIP_WITHOUT_GPU();
  CheckOrder({128, 0, 300, 8}, 1);
  CheckOrder({1, 0, 1, 1}, 2);
  CheckOrder({1024, 0, 8192, 8}, 3);
  CheckOrder({77, 0, 1111, 3}, 4);
  CheckOrder({8, 0, 17, 2}, 5);
}

}  // namespace
}  // namespace moraine::gpu
