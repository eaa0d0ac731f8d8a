// GroupedGemm::Dense against sums in double, with weights as the kernel rounds them.
#include "gpu_test_support.h"

namespace moraine::gpu {
namespace {

using Output = DenseProduct::Output;
using Case = std::tuple<GemmPath, Encoding, Output>;

class DenseProductTest : public testing::TestWithParam<Case> {
 protected:
  void CheckShape(uint32_t rows, uint32_t cols, uint32_t tokens, uint32_t more, uint64_t seed) {
    const Encoding encoding = std::get<1>(GetParam());
    const Output output = std::get<2>(GetParam());
    Result<GroupedGemm> gemm = GroupedGemm::Create(std::get<0>(GetParam()));
    if (!gemm.ok()) GTEST_SKIP() << gemm.status().ToString();
    SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(cols) + ", " +
                 std::to_string(tokens) + " tokens, seed " + std::to_string(seed));
    Random random(seed);
    const TestMatrix matrix(random, encoding, rows, cols);
    std::vector<float> x(size_t{tokens} * cols);
    std::vector<uint16_t> operand(size_t{tokens} * OperandStride(cols));
    for (uint32_t t = 0; t < tokens; ++t) {
      for (uint32_t c = 0; c < cols; ++c) {
        const uint16_t bits = FloatToBf16(random.Normal());
        x[size_t{t} * cols + c] = Bf16ToFloat(bits);
        operand[size_t{t} * OperandStride(cols) + OperandPosition(c)] = bits;
      }
    }
    const uint32_t stride = RowStride(rows) + more;
    const auto before = NormalValues(random, size_t{tokens} * stride);
    const auto device_operand = OnDevice(operand);
    const auto run = [&] {
      auto floats =
          output == Output::kAddF32 ? OnDevice(before) : Poisoned<float>(size_t{tokens} * stride);
      NeedOk(gemm->Dense({.matrix = matrix.device,
                          .operand = device_operand.data(),
                          .token_count = tokens,
                          .output = output,
                          .y = floats.data(),
                          .stride = stride},
                         nullptr));
      Finish();
      return Host(floats);
    };
    const std::vector<float> found = run();
    const auto* bf16 = reinterpret_cast<const uint16_t*>(found.data());
    {
      Comparison compare("dense product");
      for (uint32_t t = 0; t < tokens; ++t) {
        for (uint32_t r = 0; r < RowStride(rows); ++r) {
          const size_t at = size_t{t} * stride + r;
          const Sum sum = r < rows ? Dot(matrix.row(r), x.data() + size_t{t} * cols, cols) : Sum{};
          const double base = output == Output::kAddF32 ? before[at] : 0;
          // A weight is rounded to bf16 (bf16 ones are not): independent errors, of which the sum
          // of many is small against their largest.
          const double weights = encoding == Encoding::kBf16 ? 0 : sum.magnitude * kHalfUlp * 0.7;
          const double rounded = output == Output::kBf16 ? std::fabs(sum.value) * kHalfUlp : 0;
          compare.Check(t, r, output == Output::kBf16 ? Bf16ToFloat(bf16[at]) : found[at],
                        base + sum.value,
                        sum.tolerance(cols) + weights + rounded + std::fabs(base) * 0x1p-22);
        }
      }
    }
    const auto again = run();
    EXPECT_EQ(0, std::memcmp(found.data(), again.data(), found.size() * 4)) << "two runs differ";
  }
};

TEST_P(DenseProductTest, WholeTiles) { CheckShape(256, 128, 64, 0, 1); }
TEST_P(DenseProductTest, OddTails) { CheckShape(283, 203, 131, 0, 2); }
TEST_P(DenseProductTest, OneToken) { CheckShape(40, 64, 1, 16, 3); }
TEST_P(DenseProductTest, ManyTokens) { CheckShape(96, 64, 700, 32, 4); }

std::string CaseName(const testing::TestParamInfo<Case>& tested) {
  const auto [path, encoding, output] = tested.param;
  return std::string(path == GemmPath::kWgmma ? "wgmma_" : "mmasync_") + EncodingName(encoding) +
         (output == Output::kBf16  ? "_bf16"
          : output == Output::kF32 ? "_f32"
                                   : "_added");
}
INSTANTIATE_TEST_SUITE_P(
    All, DenseProductTest,
    testing::Combine(testing::Values(GemmPath::kMmaSync, GemmPath::kWgmma),
                     testing::Values(Encoding::kQ4, Encoding::kQ8, Encoding::kBf16),
                     testing::Values(Output::kBf16, Output::kF32, Output::kAddF32)),
    CaseName);

TEST(DenseProductContract, RefusesStridesThatAreTooSmall) {
  Result<GroupedGemm> gemm = GroupedGemm::Create();
  if (!gemm.ok()) GTEST_SKIP() << gemm.status().ToString();
  DenseProduct product;
  product.matrix = {nullptr, Encoding::kQ4, 40, 64};
  product.token_count = 1;
  product.stride = 40;
  EXPECT_EQ(gemm->Dense(product, nullptr).code(), StatusCode::kInvalidArgument);
  product.matrix.encoding = Encoding::kF32;
  EXPECT_EQ(gemm->Dense(product, nullptr).code(), StatusCode::kUnsupported);
}

}  // namespace
}  // namespace moraine::gpu
