// Every kernel of every ISA: against double arithmetic under a derived tolerance for the scalar
// table, and bit for bit against the scalar table for the others (kernel_table.h promises that).
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "compute/cpu/activations.h"
#include "compute/cpu/panel.h"
#include "compute/cpu/peak.h"
#include "compute_test_support.h"
#if defined(MORAINE_X86_KERNELS)
#include "emulated_amx.h"
#endif

namespace moraine {
namespace {

// Runs all panels of w on the given activations.
std::vector<float> Multiply(const KernelTable& kernels, const MatrixView& w,
                            const std::vector<float>& x, uint32_t tokens,
                            const uint32_t* token_rows = nullptr, uint32_t x_rows = 0) {
  ThreadPool pool(TopologyOf(1), {.thread_count = 1});
  if (x_rows == 0) x_rows = tokens;
  Activations activations(x_rows, w.cols);
  const bool codes = IsQuantised(w.encoding);
  activations.Prepare(kernels, pool, x.data(), w.cols, x_rows, w.cols, !codes, codes);
  PackedActivations packed(BlockCount(tokens), w.cols);
  const bool packs = codes && tokens >= kernels.packed_tokens;
  packed.Shape(BlockCount(tokens), w.cols);
  for (uint32_t t = 0; packs && t < tokens; t += kPackedTokens) {
    packed.PackBlock(t / kPackedTokens, activations, token_rows ? token_rows + t : nullptr, t,
                     std::min(kPackedTokens, tokens - t));
  }
  std::vector<float> y(size_t{tokens} * w.rows, 12345.0f);
  for (uint32_t p = 0; p < PanelCount(w.rows); p += kMaxPanels) {
    PanelArguments arguments = ArgumentsForPanels(
        w, p, std::min(kMaxPanels, PanelCount(w.rows) - p), y.data() + p * kTileRows);
    activations.FillArguments(0, &arguments);
    if (packs) packed.FillArguments(0, &arguments);
    arguments.token_rows = token_rows;
    arguments.token_count = tokens;
    arguments.y_stride = w.rows;
    PanelKernel(kernels, w.encoding)(arguments);
  }
  return y;
}

// What a value becomes as an activation of a quantised matrix.
std::vector<float> QuantisedActivations(const std::vector<float>& x, uint32_t cols) {
  const uint32_t padded = TileCount(cols) * kTileCols;
  std::vector<int8_t> q(padded);
  std::vector<ActivationGroup> groups(padded / 32);
  std::vector<float> out(x.size());
  for (size_t row = 0; row * cols < x.size(); ++row) {
    kScalarKernels.quantise(x.data() + row * cols, cols, padded, q.data(), groups.data());
    for (uint32_t c = 0; c < cols; ++c) {
      out[row * cols + c] = static_cast<float>(q[c]) * groups[c / 32].scale;
    }
  }
  return out;
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

TEST(PanelKernels, ScalarMatchesDoubleArithmetic) {
  const uint64_t seed = 11;
  Random random(seed);
  for (int round = 0; round < 60; ++round) {
    const uint32_t rows = 1 + static_cast<uint32_t>(random.Below(50));
    const uint32_t cols = 1 + static_cast<uint32_t>(random.Below(200));
    const uint32_t tokens = 1 + static_cast<uint32_t>(random.Below(4));
    const std::vector<float> values = RandomFloats(random, size_t{rows} * cols, 0.05f);
    const std::vector<float> x = RandomFloats(random, size_t{tokens} * cols, 2.0f);
    for (const Encoding encoding : kAllEncodings) {
      const TestMatrix w(encoding, rows, cols, values);
      const std::vector<float> weights = w.Decoded();
      const std::vector<float> inputs = IsQuantised(encoding) ? QuantisedActivations(x, cols) : x;
      const std::vector<float> y = Multiply(kScalarKernels, w.view, x, tokens);
      for (uint32_t t = 0; t < tokens; ++t) {
        for (uint32_t r = 0; r < rows; ++r) {
          double sum = 0, magnitude = 0;
          for (uint32_t c = 0; c < cols; ++c) {
            const double term = double{weights[r * cols + c]} * inputs[t * cols + c];
            sum += term;
            magnitude += std::fabs(term);
          }
          // A chain of n fused multiply-adds errs by at most n eps sum|w x| (Higham, Accuracy and
          // Stability, 3.1). Float: two chains of cols/2 and one addition. Quantised: cols/32 terms
          // plus three roundings a term (the decoded activation here, the scales' product there).
          const double steps = cols / 2 + 4;
          ASSERT_NEAR(y[t * rows + r], sum, steps * kEpsilon * magnitude)
              << EncodingName(encoding) << " " << rows << "x" << cols << " seed " << seed;
        }
      }
    }
  }
}

TEST(PanelKernels, EveryIsaGivesTheScalarBits) {
  const uint64_t seed = 12;
  Random random(seed);
  for (int round = 0; round < 80; ++round) {
    // Every eighth has rows long enough for several stretches, and more tokens than a block.
    const bool large = round % 8 == 7;
    const uint32_t rows = 1 + static_cast<uint32_t>(random.Below(large ? 120 : 50));
    const uint32_t cols = 1 + static_cast<uint32_t>(random.Below(large ? 1800 : 200));
    const uint32_t tokens = 1 + static_cast<uint32_t>(random.Below(large ? 40 : 21));
    const std::vector<float> values = RandomFloats(random, size_t{rows} * cols, 0.05f);
    const std::vector<float> x = RandomFloats(random, size_t{tokens} * cols, 2.0f);
    std::vector<uint32_t> token_rows(tokens);
    for (uint32_t& row : token_rows) row = static_cast<uint32_t>(random.Below(tokens));
    for (const Encoding encoding : kAllEncodings) {
      const TestMatrix w(encoding, rows, cols, values);
      const std::vector<float> expected = Multiply(kScalarKernels, w.view, x, tokens);
      for (const Isa isa : SupportedIsas()) {
        KernelTable kernels = KernelsOf(isa);
        // Packed also where a table would rather have rows: every number of tokens is allowed.
        if (round % 2 == 0 && kernels.packed_tokens != kNeverPacked) kernels.packed_tokens = 1;
        ASSERT_TRUE(SameBits(Multiply(kernels, w.view, x, tokens), expected))
            << IsaName(isa) << " " << EncodingName(encoding) << " " << rows << "x" << cols << " x "
            << tokens << " seed " << seed;
        // Gathered rows are the same rows in another order.
        const std::vector<float> gathered =
            Multiply(kernels, w.view, x, tokens, token_rows.data(), tokens);
        for (uint32_t t = 0; t < tokens; ++t) {
          ASSERT_EQ(std::memcmp(&gathered[t * rows], &expected[token_rows[t] * rows], rows * 4), 0)
              << IsaName(isa) << " " << EncodingName(encoding) << " seed " << seed;
        }
      }
    }
  }
}

#if defined(MORAINE_X86_KERNELS)
// The AMX kernels but for the instruction itself, on every CPU that has AVX-512: all numbers of
// tokens in a block, several blocks and stretches, rows and panels that are not whole.
TEST(PanelKernels, AmxOverAnEmulatedTileUnitGivesTheScalarBits) {
  if (!IsaSupported(Isa::kAvx512)) GTEST_SKIP() << "no AVX-512";
  KernelTable kernels = KernelsOf(Isa::kAvx512);
  kernels.panel_q8 = EmulatedAmxQ8;
  kernels.panel_q4 = EmulatedAmxQ4;
  kernels.panel_q4_bf16 = EmulatedAmxQ4Bf16;
  kernels.panel_mxfp4 = EmulatedAmxMxfp4;
  kernels.panel_iq4_nl = EmulatedAmxIq4Nl;
  kernels.packed_tokens = 1;
  const uint64_t seed = 16;
  Random random(seed);
  for (uint32_t round = 0; round < 48; ++round) {
    const uint32_t tokens = round < 40 ? 1 + round : 1 + static_cast<uint32_t>(random.Below(100));
    const uint32_t rows = 1 + static_cast<uint32_t>(random.Below(120));
    const uint32_t cols = 1 + static_cast<uint32_t>(random.Below(round % 8 == 0 ? 1100 : 200));
    const std::vector<float> values = RandomFloats(random, size_t{rows} * cols, 0.05f);
    const std::vector<float> x = RandomFloats(random, size_t{tokens} * cols, 2.0f);
    std::vector<uint32_t> token_rows(tokens);
    for (uint32_t& row : token_rows) row = static_cast<uint32_t>(random.Below(tokens));
    for (const Encoding encoding : kQuantisedEncodings) {
      const TestMatrix w(encoding, rows, cols, values);
      ASSERT_TRUE(SameBits(Multiply(kernels, w.view, x, tokens, token_rows.data(), tokens),
                           Multiply(kScalarKernels, w.view, x, tokens, token_rows.data(), tokens)))
          << EncodingName(encoding) << " " << rows << "x" << cols << " x " << tokens << " seed "
          << seed;
    }
  }
}
#endif

// Codes at both ends, -128 included (a foreign q8 file may hold it), against the largest
// activations: an int16 intermediate that overflowed would show here and nowhere else.
TEST(PanelKernels, ExtremeCodesAreExact) {
  for (const Encoding encoding : kQuantisedEncodings) {
    const uint32_t cols = 128;
    TestMatrix w(encoding, 16, cols, std::vector<float>(16 * cols, 1.0f));
    for (const int pattern : {0, 1, 2, 3}) {
      for (uint32_t tile = 0; tile < 2; ++tile) {
        std::byte* data = w.bytes.data() + tile * TileBytes(encoding);
        for (uint32_t i = 0; i < 32; ++i) {
          const uint16_t one =
              HasBf16Scales(encoding) ? FloatToBf16(1.0f) : FloatToF16(1.0f);
          std::memcpy(data + i * 2, &one, 2);
        }
        // mxfp4's largest codes are nibbles 7 and 15.
        const uint8_t fill[] = {0x80, 0x7F, 0x00, 0xFF};
        std::memset(data + 64, fill[pattern], TileBytes(encoding) - 64);
      }
      const std::vector<float> weights = w.Decoded();
      for (const float sign : {1.0f, -1.0f}) {
        const std::vector<float> x(17 * cols, 127.0f * sign);
        double expected = 0;
        for (uint32_t c = 0; c < cols; ++c) expected += double{weights[c]} * x[c];
        for (const Isa isa : SupportedIsas()) {
          for (const uint32_t tokens : {1u, 2u, 4u, 16u, 17u}) {
            for (const float y : Multiply(KernelsOf(isa), w.view, x, tokens)) {
              ASSERT_EQ(y, expected) << IsaName(isa) << " " << EncodingName(encoding) << pattern;
            }
          }
        }
      }
    }
  }
}

TEST(PanelKernels, ZerosDenormalsHugeValuesAndNan) {
  for (const Encoding encoding : kAllEncodings) {
    const TestMatrix w(encoding, 5, 70, std::vector<float>(5 * 70, 0.5f));
    for (const Isa isa : SupportedIsas()) {
      const auto first = [&](float value) {
        std::vector<float> x(70, 0.0f);
        x[69] = value;
        return Multiply(KernelsOf(isa), w.view, x, 1)[0];
      };
      EXPECT_EQ(first(0.0f), 0.0f);
      // Half of a denormal; quantised activations under 1e-30 count as zero.
      EXPECT_EQ(first(4e-40f), IsQuantised(encoding) ? 0.0f : 0.5f * 4e-40f);
      // The scale of iq4_nl is rounded where 0.5 is no code times a power of two.
      EXPECT_NEAR(first(1e37f), 0.5e37f, 0.5e37f / 200);
      EXPECT_TRUE(std::isnan(first(std::nanf("")))) << IsaName(isa) << EncodingName(encoding);
      EXPECT_FALSE(std::isfinite(first(std::numeric_limits<float>::infinity())));
    }
  }
}

TEST(LaneKernels, QuantiseRoundsToNearest) {
  Random random(13);
  for (int round = 0; round < 200; ++round) {
    const uint32_t cols = 1 + static_cast<uint32_t>(random.Below(200));
    const uint32_t padded = TileCount(cols) * kTileCols;
    const std::vector<float> x = RandomFloats(random, cols, 3.0f);
    std::vector<int8_t> expected_q(padded), q(padded);
    std::vector<ActivationGroup> expected_groups(padded / 32), groups(padded / 32);
    kScalarKernels.quantise(x.data(), cols, padded, expected_q.data(),
                            expected_groups.data());
    for (uint32_t c = 0; c < padded; ++c) {
      // Half a step and the rounding of 127/max, x * that and scale * code: 3 eps of the value.
      const double value = c < cols ? x[c] : 0;
      ASSERT_NEAR(expected_q[c] * double{expected_groups[c / 32].scale}, value,
                  expected_groups[c / 32].scale * (0.5 + 127 * 4 * kEpsilon));
    }
    for (uint32_t g = 0; g < padded / 32; ++g) {
      int32_t sum = 0;
      for (uint32_t i = 0; i < 32; ++i) sum += expected_q[g * 32 + i];
      ASSERT_EQ(expected_groups[g].offsets[kQ4Offset], -8 * sum);
      ASSERT_EQ(expected_groups[g].offsets[kQ8Offset], -128 * sum);
    }
    for (const Isa isa : SupportedIsas()) {
      KernelsOf(isa).quantise(x.data(), cols, padded, q.data(), groups.data());
      ASSERT_EQ(q, expected_q) << IsaName(isa);
      ASSERT_EQ(std::memcmp(groups.data(), expected_groups.data(), sizeof(groups[0]) * groups.size()),
                0)
          << IsaName(isa);
    }
  }
}

TEST(LaneKernels, SiluMul) {
  std::vector<float> gate;
  for (float x = -90; x < 90; x += 0.0137f) gate.push_back(x);
  for (const float x : {0.0f, -0.0f, 1e-40f, -1000.0f, 1000.0f, 2e38f, -2e38f}) gate.push_back(x);
  const std::vector<float> up(gate.size(), 1.5f);
  std::vector<float> expected(gate.size());
  kScalarKernels.silu_mul(gate.data(), up.data(), gate.size(), expected.data());
  for (size_t i = 0; i < gate.size(); ++i) {
    const double silu = gate[i] / (1 + std::exp(-double{gate[i]}));
    // exp within 2 ulp (4 eps), then an addition, a division and a multiplication: 7 eps. Below -88
    // exp is held at e^88: the result is under 1e-31, absolutely.
    const double floor = gate[i] < -87 ? 1.5 * std::fabs(gate[i]) / std::exp(87.9) : 1e-44;
    ASSERT_NEAR(expected[i], silu * 1.5, 8 * kEpsilon * std::fabs(silu * 1.5) + floor) << gate[i];
  }
  for (const Isa isa : SupportedIsas()) {
    for (const size_t count : {gate.size(), size_t{1}, size_t{15}, size_t{17}}) {
      std::vector<float> out(gate.size(), 7.0f);
      KernelsOf(isa).silu_mul(gate.data(), up.data(), count, out.data());
      ASSERT_EQ(std::memcmp(out.data(), expected.data(), count * 4), 0) << IsaName(isa);
      for (size_t i = count; i < out.size(); ++i) ASSERT_EQ(out[i], 7.0f);
    }
    const float nan = std::nanf("");
    float out;
    KernelsOf(isa).silu_mul(&nan, up.data(), 1, &out);
    EXPECT_TRUE(std::isnan(out)) << IsaName(isa);
  }
}

TEST(LaneKernels, RmsNormRopeAndAdd) {
  Random random(14);
  for (uint32_t cols = 1; cols < 140; cols += 3) {
    const std::vector<float> x = RandomFloats(random, 2 * cols, 2.0f);
    const std::vector<float> weight = RandomFloats(random, cols, 1.0f);
    double mean = 0;
    for (uint32_t c = 0; c < cols; ++c) mean += double{x[c]} * x[c] / cols;
    std::vector<float> norm(cols), rope(x), sum(x);
    std::vector<float> cos(cols), sin(cols);
    for (uint32_t i = 0; i < cols; ++i) {
      cos[i] = static_cast<float>(std::cos(0.1 * i));
      sin[i] = static_cast<float>(std::sin(0.1 * i));
    }
    kScalarKernels.rms_norm(x.data(), weight.data(), 1e-6f, cols, norm.data());
    kScalarKernels.rope(rope.data(), cols, cos.data(), sin.data());
    kScalarKernels.add(sum.data(), weight.data(), cols);
    for (uint32_t c = 0; c < cols; ++c) {
      // The sum of squares errs by (cols / 16 + 4) eps, its root by half of it; then four roundings.
      const double expected = x[c] * weight[c] / std::sqrt(mean + 1e-6);
      ASSERT_NEAR(norm[c], expected, (cols / 32.0 + 8) * kEpsilon * std::fabs(expected) + 1e-40);
      const double a = x[c], b = x[cols + c];
      const double bound = 2 * kEpsilon * (std::fabs(a) + std::fabs(b));
      ASSERT_NEAR(rope[c], a * cos[c] - b * sin[c], bound);
      ASSERT_NEAR(rope[cols + c], b * cos[c] + a * sin[c], bound);
      ASSERT_EQ(sum[c], x[c] + weight[c]);
    }
    for (const Isa isa : SupportedIsas()) {
      const KernelTable& kernels = KernelsOf(isa);
      std::vector<float> norm2(cols), rope2(x), sum2(x);
      kernels.rms_norm(x.data(), weight.data(), 1e-6f, cols, norm2.data());
      kernels.rope(rope2.data(), cols, cos.data(), sin.data());
      kernels.add(sum2.data(), weight.data(), cols);
      ASSERT_TRUE(SameBits(norm, norm2) && SameBits(rope, rope2) && SameBits(sum, sum2))
          << IsaName(isa) << " " << cols;
    }
  }
}

TEST(Peak, ReadsEveryByteAndCountsItsOperations) {
  Random random(15);
  for (const size_t size : {size_t{4096}, 4 * kReadStreamBytes, 8 * kReadStreamBytes + 768}) {
    AlignedArray<std::byte> bytes(size);
    std::vector<uint64_t> words(size / 8);
    uint64_t expected = 0;
    for (uint64_t& word : words) expected ^= word = random.Next();
    std::memcpy(bytes.data(), words.data(), size);
    EXPECT_EQ(ReadBytes(bytes.data(), size), expected) << size;
  }
  for (const Isa isa : SupportedIsas()) {
    if (isa == Isa::kScalar) continue;
    for (const PeakWork work : {PeakWork::kInt8Dot, PeakWork::kFloatFma}) {
      const double once = RunPeakLoop(isa, work, 1);
      // A chain step is at least 8 multiplications and 8 additions.
      EXPECT_GE(once, 16) << IsaName(isa);
      EXPECT_EQ(RunPeakLoop(isa, work, 3), 3 * once) << IsaName(isa);
    }
  }
}

}  // namespace
}  // namespace moraine
