// Embedding, norms and gated activations against double.
#include "compute/cuda/row_ops.h"

#include "compute/cuda/projection_rows.h"

#include "gpu_test_support.h"

namespace moraine::gpu {
namespace {

class EmbeddingTest : public testing::TestWithParam<Encoding> {};

TEST_P(EmbeddingTest, RowsAreExact) {
  SKIP_WITHOUT_GPU();
  Random random(1);
  for (const uint32_t cols : {64u, 203u, 16u}) {
    const TestMatrix matrix(random, GetParam(), 95, cols);
    const std::vector<int32_t> tokens = {94, 0, 17, 17, 63, 16};
    const auto device_tokens = OnDevice(tokens);
    auto x = Poisoned<float>(tokens.size() * (cols + 5));
    NeedOk(RunEmbedding({matrix.device, device_tokens.data(), static_cast<uint32_t>(tokens.size()),
                         x.data(), cols + 5},
                        nullptr));
    Finish();
    const auto found = Host(x);
    Comparison compare("embedding");
    for (size_t t = 0; t < tokens.size(); ++t) {
      for (uint32_t c = 0; c < cols; ++c) {
        compare.Check(t, c, found[t * (cols + 5) + c], matrix.row(tokens[t])[c], 0);
      }
      EXPECT_TRUE(std::isnan(found[t * (cols + 5) + cols])) << "written past the row";
    }
  }
}
INSTANTIATE_TEST_SUITE_P(All, EmbeddingTest,
                         testing::Values(Encoding::kQ4, Encoding::kQ8, Encoding::kBf16,
                                         Encoding::kF32),
                         [](const auto& tested) { return EncodingName(tested.param); });

void CheckNorm(uint32_t cols, uint32_t tokens, bool add) {
  SCOPED_TRACE(std::to_string(cols) + " columns, " + std::to_string(tokens) + " tokens");
  Random random(cols);
  const uint32_t stride = (cols + 7) / 4 * 4;
  auto x = NormalValues(random, size_t{tokens} * stride, 2);
  const auto addend = NormalValues(random, x.size()), weight = NormalValues(random, cols);
  auto device_x = OnDevice(x);
  const auto device_addend = OnDevice(addend), device_weight = OnDevice(weight);
  auto operand = Poisoned<uint16_t>(size_t{tokens} * OperandStride(cols));
  auto natural = Poisoned<uint16_t>(size_t{tokens} * cols);
  auto normed = Poisoned<float>(size_t{tokens} * cols);
  NeedOk(RunRowNorm({.x = device_x.data(),
                     .x_stride = stride,
                     .addend = add ? device_addend.data() : nullptr,
                     .addend_stride = stride,
                     .weight = device_weight.data(),
                     .epsilon = 1e-5f,
                     .token_count = tokens,
                     .cols = cols,
                     .operand = operand.data(),
                     .natural = natural.data(),
                     .normed = normed.data()},
                    nullptr));
  Finish();
  const auto new_x = Host(device_x), f32 = Host(normed);
  const auto in_order = Host(operand), plain = Host(natural);
  Comparison sums("x"), floats("float32"), naturals("natural order"), operands("operand order");
  for (uint32_t t = 0; t < tokens; ++t) {
    float* const row = x.data() + size_t{t} * stride;
    for (uint32_t c = 0; add && c < cols; ++c) row[c] += addend[size_t{t} * stride + c];
    const auto expected = Normed(row, weight, 1e-5, cols);
    for (uint32_t c = 0; c < OperandStride(cols); ++c) {
      const size_t at = size_t{t} * OperandStride(cols) + OperandPosition(c);
      if (c >= cols) {
        operands.Check(t, c, Bf16ToFloat(in_order[at]), 0, 0);
        continue;
      }
      const double off = std::fabs(expected[c]) * 2e-6 + 1e-30;
      const double half = std::fabs(expected[c]) * kHalfUlp + off;
      sums.Check(t, c, new_x[size_t{t} * stride + c], row[c], 0);
      floats.Check(t, c, f32[size_t{t} * cols + c], expected[c], off);
      naturals.Check(t, c, Bf16ToFloat(plain[size_t{t} * cols + c]), expected[c], half);
      operands.Check(t, c, Bf16ToFloat(in_order[at]), expected[c], half);
    }
  }
}

TEST(RowNormTest, WholeTiles) {
  SKIP_WITHOUT_GPU();
  CheckNorm(2048, 3, true);
  CheckNorm(128, 70, false);
}
TEST(RowNormTest, OddTails) {
  SKIP_WITHOUT_GPU();
  CheckNorm(203, 5, true);
  CheckNorm(7, 2, false);
  CheckNorm(13001, 2, true);
}

// Queries with bias and norm, keys with a norm, values with a bias; what lies beside them stays.
void CheckProjectionRows(uint32_t q, uint32_t kv, uint32_t tokens, bool bf16) {
  SCOPED_TRACE(std::to_string(q) + " and " + std::to_string(kv) + " columns, " +
               std::to_string(tokens) + " tokens");
  Random random(q + kv);
  const uint32_t cols = q + 2 * kv, stride = cols + 3;
  auto values = NormalValues(random, size_t{tokens} * stride, 2);
  std::vector<uint16_t> rounded;
  for (float& value : values) {
    rounded.push_back(FloatToBf16(value));
    if (bf16) value = Bf16ToFloat(rounded.back());
  }
  const auto bias = NormalValues(random, cols), norm = NormalValues(random, cols);
  const auto device_bias = OnDevice(bias), device_norm = OnDevice(norm);
  auto device_values = OnDevice(values);
  auto device_rounded = OnDevice(rounded);
  ProjectionRows rows = {.stride = stride, .token_count = tokens, .epsilon = 1e-5f};
  (bf16 ? void(rows.bf16 = device_rounded.data()) : void(rows.f32 = device_values.data()));
  rows.parts[0] = {0, q, device_bias.data(), device_norm.data()};
  rows.parts[1] = {q, kv, nullptr, device_norm.data() + q};
  rows.parts[2] = {q + kv, kv, device_bias.data() + q + kv, nullptr};
  NeedOk(RunProjectionRows(rows, nullptr));
  Finish();
  const auto floats = Host(device_values);
  const auto halves = Host(device_rounded);
  Comparison compare("projected rows");
  for (uint32_t t = 0; t < tokens; ++t) {
    float* const row = values.data() + size_t{t} * stride;
    for (uint32_t c = 0; c < q; ++c) row[c] += bias[c];
    for (uint32_t c = q + kv; c < cols; ++c) row[c] += bias[c];
    const auto queries = Normed(row, {norm.begin(), norm.begin() + q}, 1e-5, q);
    const auto keys = Normed(row + q, {norm.begin() + q, norm.begin() + q + kv}, 1e-5, kv);
    for (uint32_t c = 0; c < stride; ++c) {
      const double expected = c < q ? queries[c] : c < q + kv ? keys[c - q] : row[c];
      const size_t at = size_t{t} * stride + c;
      const double off = std::fabs(expected) * 2e-6 + 1e-30;
      compare.Check(t, c, bf16 ? Bf16ToFloat(halves[at]) : floats[at], expected,
                    bf16 ? std::fabs(expected) * kHalfUlp + off : off);
    }
  }
}

TEST(ProjectionRowsTest, BiasesAndWholeNorms) {
  SKIP_WITHOUT_GPU();
  for (const bool bf16 : {false, true}) {
    CheckProjectionRows(128, 64, 3, bf16);
    CheckProjectionRows(6144, 1024, 70, bf16);
    CheckProjectionRows(77, 13, 5, bf16);
  }
}

TEST(GatedRowsTest, BothFormats) {
  SKIP_WITHOUT_GPU();
  for (const uint32_t n : {64u, 300u, 2047u}) {
    Random random(n);
    const uint32_t tokens = 3, stride = 2 * n + 6;
    const auto values = NormalValues(random, size_t{tokens} * stride, 2);
    std::vector<uint16_t> rounded;
    for (const float value : values) rounded.push_back(FloatToBf16(value));
    const auto device_values = OnDevice(values);
    const auto device_rounded = OnDevice(rounded);
    auto operand = Poisoned<uint16_t>(size_t{tokens} * OperandStride(n));
    auto activated = Poisoned<float>(size_t{tokens} * n);
    NeedOk(RunGatedRows({.bf16 = device_rounded.data(),
                         .stride = stride,
                         .token_count = tokens,
                         .intermediate = n,
                         .operand = operand.data()},
                        nullptr));
    NeedOk(RunGatedRows({.f32 = device_values.data(),
                         .stride = stride,
                         .token_count = tokens,
                         .intermediate = n,
                         .activated = activated.data()},
                        nullptr));
    Finish();
    const auto in_order = Host(operand);
    const auto floats = Host(activated);
    Comparison compare("gated rows of " + std::to_string(n));
    for (uint32_t t = 0; t < tokens; ++t) {
      for (uint32_t c = 0; c < OperandStride(n); ++c) {
        const double found =
            Bf16ToFloat(in_order[size_t{t} * OperandStride(n) + OperandPosition(c)]);
        if (c >= n) {
          compare.Check(t, c, found, 0, 0);
          continue;
        }
        const size_t at = size_t{t} * stride + c;
        const double of_bf16 = Silu(Bf16ToFloat(rounded[at])) * Bf16ToFloat(rounded[at + n]);
        const double of_f32 = Silu(values[at]) * values[at + n];
        compare.Check(t, c, found, of_bf16, std::fabs(of_bf16) * (kHalfUlp + 1e-5));
        compare.Check(t, c, floats[size_t{t} * n + c], of_f32, std::fabs(of_f32) * 1e-5);
      }
    }
  }
}

}  // namespace
}  // namespace moraine::gpu
