// Products with few tokens against sums in double of exact weights.
#include "compute/cuda/gemv.h"

#include "gpu_test_support.h"

namespace moraine::gpu {
namespace {

constexpr float kEpsilon = 1e-6f;

struct Shape {
  uint32_t rows, cols, tokens;
  bool norm, add;
};

std::vector<float> RunDense(const TestMatrix& matrix, const Shape& shape,
                            const std::vector<float>& x, uint32_t stride,
                            const std::vector<float>& weight, const std::vector<float>& before) {
  const auto device_x = OnDevice(x), device_norm = OnDevice(weight);
  auto y = OnDevice(before);
  NeedOk(RunGemv(
      {.matrix = matrix.device,
       .input = {device_x.data(), stride, shape.norm ? device_norm.data() : nullptr, kEpsilon},
       .token_count = shape.tokens,
       .y = y.data(),
       .y_stride = shape.rows + 3,
       .add = shape.add},
      nullptr));
  Finish();
  return Host(y);
}

class GemvTest : public testing::TestWithParam<Encoding> {
 protected:
  void CheckShape(const Shape& shape, uint64_t seed) {
    SKIP_WITHOUT_GPU();
    SCOPED_TRACE(std::to_string(shape.rows) + " x " + std::to_string(shape.cols) + ", " +
                 std::to_string(shape.tokens) + " tokens, seed " + std::to_string(seed));
    Random random(seed);
    const TestMatrix matrix(random, GetParam(), shape.rows, shape.cols);
    const uint32_t stride = (shape.cols + 7) / 4 * 4;
    const auto x = NormalValues(random, size_t{shape.tokens} * stride, 3);
    const auto weight = NormalValues(random, shape.cols);
    auto before = NormalValues(random, size_t{shape.tokens} * (shape.rows + 3));
    if (!shape.add) std::fill(before.begin(), before.end(), NAN);
    const auto y = RunDense(matrix, shape, x, stride, weight, before);
    {
      Comparison compare(EncodingName(GetParam()));
      for (uint32_t t = 0; t < shape.tokens; ++t) {
        const auto normed =
            Normed(x.data() + size_t{t} * stride, shape.norm ? weight : std::vector<float>(),
                   kEpsilon, shape.cols);
        for (uint32_t r = 0; r < shape.rows; ++r) {
          const Sum sum = Dot(matrix.row(r), normed.data(), shape.cols);
          const size_t at = size_t{t} * (shape.rows + 3) + r;
          const double base = shape.add ? before[at] : 0;
          compare.Check(
              t, r, y[at], base + sum.value,
              sum.tolerance(shape.cols) + sum.magnitude * kSplit + std::fabs(base) * 0x1p-22);
        }
      }
    }
    const auto again = RunDense(matrix, shape, x, stride, weight, before);
    EXPECT_EQ(0, std::memcmp(y.data(), again.data(), y.size() * 4)) << "two runs differ";
    // The others in a call do not change a token's result.
    const std::vector<float> last(x.end() - stride, x.end());
    const std::vector<float> last_before(before.end() - (shape.rows + 3), before.end());
    Shape single = shape;
    single.tokens = 1;
    const auto alone = RunDense(matrix, single, last, stride, weight, last_before);
    EXPECT_EQ(0, std::memcmp(alone.data(), y.data() + y.size() - alone.size(), shape.rows * 4))
        << "a token alone differs";
  }
};

TEST_P(GemvTest, OneToken) { CheckShape({64, 256, 1, true, false}, 1); }
TEST_P(GemvTest, OddTails) { CheckShape({77, 203, 3, true, false}, 2); }
TEST_P(GemvTest, FourTokensAdded) { CheckShape({33, 640, 4, false, true}, 3); }
TEST_P(GemvTest, EightTokens) { CheckShape({160, 1088, 8, true, true}, 4); }
TEST_P(GemvTest, MoreThanEight) { CheckShape({48, 130, 19, true, false}, 5); }
TEST_P(GemvTest, LongRows) { CheckShape({40, 9000, 8, false, false}, 6); }
TEST_P(GemvTest, ManyPanels) { CheckShape({20000, 96, 2, true, false}, 7); }
TEST_P(GemvTest, RandomShapes) {
  Random random(8);
  for (uint64_t round = 0; round < 8; ++round) {
    CheckShape({static_cast<uint32_t>(1 + random.Below(700)),
                static_cast<uint32_t>(1 + random.Below(3000)),
                static_cast<uint32_t>(1 + random.Below(9)), random.Chance(0.5), random.Chance(0.5)},
               100 + round);
  }
}
INSTANTIATE_TEST_SUITE_P(All, GemvTest,
                         testing::Values(Encoding::kQ4, Encoding::kQ8, Encoding::kBf16,
                                         Encoding::kF32),
                         [](const auto& tested) { return EncodingName(tested.param); });

TEST(GemvContract, RefusesWhatItCannotRead) {
  SKIP_WITHOUT_GPU();
  Gemv gemv;
  gemv.matrix = {nullptr, Encoding::kMxfp4, 16, 64};
  gemv.token_count = 1;
  EXPECT_EQ(RunGemv(gemv, nullptr).code(), StatusCode::kUnsupported);
  ExpertGemv experts;
  experts.layout = {Encoding::kF32, Encoding::kQ4, 64, 64};
  experts.token_count = experts.top_k = 1;
  EXPECT_EQ(RunGateUpGemv(experts, nullptr).code(), StatusCode::kUnsupported);
  experts.top_k = 33;
  EXPECT_EQ(RunDownGemv(experts, nullptr).code(), StatusCode::kInvalidArgument);
}

// ---- Experts ----

struct ExpertShape {
  uint32_t hidden, intermediate, experts, tokens, top_k;
};

struct ExpertOutputs {
  std::vector<float> activated, out;
};

class ExpertGemvTest : public testing::TestWithParam<std::pair<Encoding, Encoding>> {
 protected:
  struct Fixture {
    Fixture(const ExpertShape& s, Encoding gate_up, Encoding down, uint64_t seed)
        : shape(s), random(seed) {
      layout = {gate_up, down, s.hidden, s.intermediate};
      for (uint32_t e = 0; e < s.experts; ++e) AddRecord();
      // The last expert is not here.
      std::vector<const std::byte*> addresses;
      for (const auto& record : device_records) addresses.push_back(record.data());
      addresses.back() = nullptr;
      records = OnDevice(addresses);
      for (uint32_t i = 0; i < s.tokens * s.top_k; ++i) {
        const uint32_t rank = i % s.top_k;
        const uint32_t first = rank == 0 ? (token_first = random.Below(s.experts)) : token_first;
        chosen.push_back((first + rank) % s.experts);
        weights.push_back(static_cast<float>(random.Uniform()));
      }
      x = NormalValues(random, size_t{s.tokens} * s.hidden, 2);
      norm = NormalValues(random, s.hidden);
      before = NormalValues(random, size_t{s.tokens} * s.hidden);
    }
    void AddRecord() {
      std::vector<std::byte> record(layout.record_bytes());
      const ExpertView view = ViewExpert(layout, record.data());
      for (const MatrixView& matrix : {view.gate, view.up, view.down}) {
        const auto values = NormalValues(random, size_t{matrix.rows} * matrix.cols,
                                         1 / std::sqrt(static_cast<float>(matrix.cols)));
        NeedOk(EncodeRows(matrix, 0, matrix.rows, values.data()));
      }
      device_records.push_back(OnDevice(record));
      host_records.push_back(std::move(record));
    }
    ExpertOutputs Run() const {
      const auto device_x = OnDevice(x), device_norm = OnDevice(norm);
      const auto device_weights = OnDevice(weights);
      const auto device_chosen = OnDevice(chosen);
      const size_t pairs = size_t{shape.tokens} * shape.top_k;
      auto activated = Poisoned<float>(pairs * ActivatedStride(shape.intermediate));
      auto out = OnDevice(before);
      const ExpertGemv gemv = {
          .layout = layout,
          .records = records.data(),
          .experts = device_chosen.data(),
          .token_count = shape.tokens,
          .top_k = shape.top_k,
          .input = {device_x.data(), shape.hidden, device_norm.data(), kEpsilon},
          .activated = activated.data(),
          .weights = device_weights.data(),
          .out = out.data(),
          .out_stride = shape.hidden,
          .add = true};
      NeedOk(RunGateUpGemv(gemv, nullptr));
      NeedOk(RunDownGemv(gemv, nullptr));
      Finish();
      return {Host(activated), Host(out)};
    }
    std::vector<float> Decoded(const MatrixView& matrix) const {
      std::vector<float> values(size_t{matrix.rows} * matrix.cols);
      for (uint32_t r = 0; r < matrix.rows; ++r) {
        DecodeRow(matrix, r, values.data() + size_t{r} * matrix.cols);
      }
      return values;
    }

    ExpertShape shape;
    Random random;
    ExpertLayout layout;
    uint32_t token_first = 0;
    std::vector<std::vector<std::byte>> host_records;
    std::vector<DeviceArray<std::byte>> device_records;
    DeviceArray<const std::byte*> records = Poisoned<const std::byte*>(1);
    std::vector<uint32_t> chosen;
    std::vector<float> weights, x, norm, before;
  };

  void CheckShape(const ExpertShape& shape, uint64_t seed) {
    SKIP_WITHOUT_GPU();
    SCOPED_TRACE("hidden " + std::to_string(shape.hidden) + ", intermediate " +
                 std::to_string(shape.intermediate) + ", seed " + std::to_string(seed));
    if (shape.hidden % 4 != 0) GTEST_FAIL() << "strides are multiples of 4";
    Fixture fixture(shape, GetParam().first, GetParam().second, seed);
    const ExpertOutputs found = fixture.Run();
    CheckActivated(fixture, found);
    CheckOut(fixture, found);
    const ExpertOutputs again = fixture.Run();
    EXPECT_EQ(0, std::memcmp(found.out.data(), again.out.data(), found.out.size() * 4));
  }

  static void CheckActivated(const Fixture& fixture, const ExpertOutputs& found) {
    const ExpertShape& shape = fixture.shape;
    const uint32_t stride = ActivatedStride(shape.intermediate);
    Comparison compare("gate and up");
    for (uint32_t pair = 0; pair < shape.tokens * shape.top_k; ++pair) {
      const uint32_t e = fixture.chosen[pair];
      if (e == shape.experts - 1) continue;
      const ExpertView view = ViewExpert(fixture.layout, fixture.host_records[e].data());
      const auto gate = fixture.Decoded(view.gate), up = fixture.Decoded(view.up);
      const auto x = Normed(fixture.x.data() + size_t{pair / shape.top_k} * shape.hidden,
                            fixture.norm, kEpsilon, shape.hidden);
      for (uint32_t i = 0; i < stride; ++i) {
        const double value = found.activated[size_t{pair} * stride + i];
        if (i >= shape.intermediate) {
          compare.Check(pair, i, value, 0, 0);
          continue;
        }
        const Sum g = Dot(gate.data() + size_t{i} * shape.hidden, x.data(), shape.hidden);
        const Sum u = Dot(up.data() + size_t{i} * shape.hidden, x.data(), shape.hidden);
        const double silu = Silu(g.value);
        const double g_off = g.tolerance(shape.hidden) + g.magnitude * kSplit;
        const double u_off = u.tolerance(shape.hidden) + u.magnitude * kSplit;
        compare.Check(pair, i, value, silu * u.value,
                      1.1 * g_off * std::fabs(u.value) + u_off * std::fabs(silu) +
                          2 * g_off * u_off + std::fabs(silu * u.value) * 1e-5);
      }
    }
  }

  static void CheckOut(const Fixture& fixture, const ExpertOutputs& found) {
    const ExpertShape& shape = fixture.shape;
    const uint32_t stride = ActivatedStride(shape.intermediate);
    Comparison compare("down");
    for (uint32_t t = 0; t < shape.tokens; ++t) {
      std::vector<double> expected(shape.hidden), off(shape.hidden);
      for (uint32_t rank = 0; rank < shape.top_k; ++rank) {
        const uint32_t pair = t * shape.top_k + rank, e = fixture.chosen[pair];
        if (e == shape.experts - 1) continue;
        const auto down =
            fixture.Decoded(ViewExpert(fixture.layout, fixture.host_records[e].data()).down);
        const float* h = found.activated.data() + size_t{pair} * stride;
        for (uint32_t i = 0; i < shape.hidden; ++i) {
          const Sum sum = Dot(down.data() + size_t{i} * shape.intermediate, h, shape.intermediate);
          expected[i] += fixture.weights[pair] * sum.value;
          off[i] +=
              fixture.weights[pair] * (sum.tolerance(shape.intermediate) + sum.magnitude * kSplit);
        }
      }
      for (uint32_t i = 0; i < shape.hidden; ++i) {
        const size_t at = size_t{t} * shape.hidden + i;
        compare.Check(t, i, found.out[at], fixture.before[at] + expected[i],
                      off[i] + std::fabs(fixture.before[at]) * 0x1p-22);
      }
    }
  }
};

TEST_P(ExpertGemvTest, OneToken) { CheckShape({256, 128, 9, 1, 8}, 1); }
TEST_P(ExpertGemvTest, SeveralTokens) { CheckShape({128, 64, 12, 8, 4}, 2); }
TEST_P(ExpertGemvTest, OddTails) { CheckShape({204, 77, 5, 3, 2}, 3); }
TEST_P(ExpertGemvTest, LongRows) { CheckShape({2048, 768, 4, 2, 3}, 4); }
TEST_P(ExpertGemvTest, OneExpertAToken) { CheckShape({100, 300, 3, 5, 1}, 5); }
TEST_P(ExpertGemvTest, ManyExpertsAToken) { CheckShape({64, 80, 40, 2, 32}, 6); }
TEST_P(ExpertGemvTest, TenExpertsAToken) { CheckShape({64, 512, 16, 2, 10}, 7); }
INSTANTIATE_TEST_SUITE_P(All, ExpertGemvTest,
                         testing::Values(std::pair{Encoding::kQ4, Encoding::kQ4},
                                         std::pair{Encoding::kQ8, Encoding::kBf16},
                                         std::pair{Encoding::kBf16, Encoding::kQ8}),
                         [](const auto& tested) {
                           return std::string(EncodingName(tested.param.first)) + "_" +
                                  EncodingName(tested.param.second);
                         });

}  // namespace
}  // namespace moraine::gpu
