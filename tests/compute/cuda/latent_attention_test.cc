// Latent attention against softmax in double: rows on their way into the cache, single tokens, many
// tokens. Pages are scattered, and what they have past a sequence's end is NaN.
#include "compute/cuda/latent_attention.h"

#include <algorithm>
#include <numeric>

#include "compute/cuda/stacked_gemv.h"
#include "gpu_test_support.h"

namespace moraine::gpu {
namespace {

constexpr LatentSizes kSmall = kLatentSizes[1], kDeepSeek = kLatentSizes[0];

// Latents of several sequences, on both sides, in bf16 or float32.
struct TestLatents {
  TestLatents(Random& random, uint32_t latent_rank, uint32_t rope_dim,
              const std::vector<uint32_t>& lengths, bool in_f32)
      : rank(latent_rank), rope(rope_dim), f32(in_f32) {
    uint32_t page_count = 3;
    for (const uint32_t length : lengths) {
      table_stride = std::max(table_stride, CeilPages(length) + 1);
      page_count += CeilPages(length);
    }
    std::vector<uint32_t> free(page_count);
    std::iota(free.begin(), free.end(), 0u);
    for (uint32_t i = page_count; i > 1; --i) std::swap(free[i - 1], free[random.Below(i)]);
    values.assign(page_count * LatentPageElements(rank, rope), std::nanf(""));
    tables.assign(lengths.size() * table_stride, ~0u);
    for (size_t s = 0; s < lengths.size(); ++s) {
      for (uint32_t p = 0; p < CeilPages(lengths[s]); ++p) {
        tables[s * table_stride + p] = free.back();
        free.pop_back();
      }
      for (uint32_t position = 0; position < lengths[s]; ++position) {
        float* const row = values.data() + At(s, position);
        for (uint32_t d = 0; d < width(); ++d) {
          row[d] = f32 ? random.Normal() : RoundBf16(random.Normal());
        }
      }
    }
    Upload();
  }
  static uint32_t CeilPages(uint32_t length) { return (length + 63) / 64; }
  uint32_t width() const { return rank + rope; }
  size_t At(size_t sequence, uint32_t position) const {
    return (size_t{tables[sequence * table_stride + position / 64]} * 64 + position % 64) * width();
  }
  const float* row(size_t sequence, uint32_t position) const {
    return values.data() + At(sequence, position);
  }
  void Upload() {
    std::vector<uint16_t> rounded;
    for (const float value : values) rounded.push_back(FloatToBf16(value));
    device_bf16 = OnDevice(rounded);
    device_f32 = OnDevice(values);
    device_tables = OnDevice(tables);
  }
  LatentCache view(bool one_sequence) const {
    return {f32 ? nullptr : device_bf16.data(), f32 ? device_f32.data() : nullptr, rank, rope,
            device_tables.data(), one_sequence ? 0 : table_stride};
  }
  std::vector<float> Read() const {
    if (f32) return Host(device_f32);
    std::vector<float> read;
    for (const uint16_t bits : Host(device_bf16)) read.push_back(Bf16ToFloat(bits));
    return read;
  }

  uint32_t rank, rope;
  bool f32;
  uint32_t table_stride = 1;
  std::vector<float> values;
  std::vector<uint32_t> tables;
  DeviceArray<uint16_t> device_bf16 = Poisoned<uint16_t>(1);
  DeviceArray<float> device_f32 = Poisoned<float>(1);
  DeviceArray<uint32_t> device_tables = Poisoned<uint32_t>(1);
};

// ---- Rows ----

struct Angles {
  Angles(uint32_t positions, uint32_t rope) {
    for (uint32_t i = 0; i < positions * (rope / 2); ++i) {
      const double angle = i / (rope / 2) * std::pow(0.7, i % (rope / 2));
      cos.push_back(static_cast<float>(std::cos(angle)));
      sin.push_back(static_cast<float>(std::sin(angle)));
    }
    device_cos = OnDevice(cos);
    device_sin = OnDevice(sin);
  }
  // Value d of `rope` values at a position.
  double Turned(const float* x, uint32_t rope, uint32_t d, uint32_t position,
                bool interleaved) const {
    const uint32_t half = rope / 2, i = interleaved ? d / 2 : d % half;
    const bool first = interleaved ? d % 2 == 0 : d < half;
    const uint32_t other = interleaved ? d ^ 1 : (d + half) % rope;
    const double c = cos[position * half + i], s = sin[position * half + i];
    return first ? x[d] * c - x[other] * s : x[d] * c + x[other] * s;
  }

  std::vector<float> cos, sin;
  DeviceArray<float> device_cos = Poisoned<float>(1), device_sin = Poisoned<float>(1);
};

// Few: float32, tokens of sequences of their own. Many: bf16 queries in place, one sequence.
void CheckRows(const LatentSizes& sizes, uint32_t heads, bool many, bool f32, bool interleaved,
               uint64_t seed) {
  SCOPED_TRACE("rank " + std::to_string(sizes.rank) + ", " + std::to_string(heads) +
               " heads, seed " + std::to_string(seed));
  Random random(seed);
  const uint32_t tokens = many ? 133 : 5, first = 71, head_dim = sizes.nope + sizes.rope;
  std::vector<uint32_t> positions, lengths;
  for (uint32_t t = 0; t < tokens; ++t) positions.push_back(many ? first + t : random.Below(300));
  if (many) lengths = {first + tokens};
  else for (const uint32_t position : positions) lengths.push_back(position + 1);
  TestLatents cache(random, sizes.rank, sizes.rope, lengths, f32);
  const std::vector<float> before = cache.Read();
  const Angles angles(400, sizes.rope);
  const uint32_t width = cache.width(), stride = width + 16, query_stride = heads * head_dim + 8;
  const auto rows = NormalValues(random, size_t{tokens} * stride, 3);
  const auto norm = NormalValues(random, sizes.rank);
  auto queries = NormalValues(random, size_t{tokens} * query_stride);
  std::vector<uint16_t> bits;
  if (many) {
    for (float& value : queries) bits.push_back(FloatToBf16(value)), value = RoundBf16(value);
  }
  const auto device_rows = OnDevice(rows), device_norm = OnDevice(norm);
  const auto device_f32 = OnDevice(queries);
  const auto device_bits = many ? OnDevice(bits) : Poisoned<uint16_t>(1);
  const auto device_positions = OnDevice(positions);
  auto absorbed = Poisoned<float>(size_t{tokens} * heads * width);
  NeedOk(RunLatentRows({.latents = device_rows.data(),
                        .latent_stride = stride,
                        .token_count = tokens,
                        .heads = heads,
                        .nope = sizes.nope,
                        .norm = device_norm.data(),
                        .epsilon = 1e-6f,
                        .cos = angles.device_cos.data(),
                        .sin = angles.device_sin.data(),
                        .interleaved = interleaved,
                        .positions = many ? nullptr : device_positions.data(),
                        .first_position = first,
                        .cache = cache.view(many),
                        .queries_bf16 = many ? device_bits.data() : nullptr,
                        .queries_f32 = many ? nullptr : device_f32.data(),
                        .query_stride = query_stride,
                        .absorbed = many ? nullptr : absorbed.data()},
                       nullptr));
  Finish();
  const double unit = f32 ? 1e-6 : kHalfUlp;
  auto expected = before;
  const auto found = cache.Read();
  {
    Comparison compare("latents");
    for (uint32_t t = 0; t < tokens; ++t) {
      const float* const row = rows.data() + size_t{t} * stride;
      const auto normed = Normed(row, norm, 1e-6, sizes.rank);
      const size_t at = cache.At(many ? 0 : t, positions[t]);
      for (uint32_t d = 0; d < width; ++d) {
        const double value =
            d < sizes.rank ? normed[d]
                           : angles.Turned(row + sizes.rank, sizes.rope, d - sizes.rank,
                                           positions[t], interleaved);
        compare.Check(t, d, found[at + d], value, std::fabs(value) * unit + 1e-5);
        expected[at + d] = found[at + d];
      }
    }
  }
  // Nothing else was written; NaN bits do not compare equal as floats.
  size_t changed = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    changed += !(found[i] == expected[i] || (std::isnan(found[i]) && std::isnan(expected[i])));
  }
  EXPECT_EQ(changed, 0u) << "positions that are not the tokens'";
  Comparison compare("queries");
  const auto found_bits = many ? Host(device_bits) : std::vector<uint16_t>();
  const auto found_f32 = Host(absorbed);
  for (uint32_t t = 0; t < tokens; ++t) {
    for (uint32_t h = 0; h < heads; ++h) {
      const float* const query = queries.data() + size_t{t} * query_stride + h * head_dim;
      for (uint32_t d = 0; d < sizes.rope; ++d) {
        const double value =
            angles.Turned(query + sizes.nope, sizes.rope, d, positions[t], interleaved);
        const double got =
            many ? Bf16ToFloat(found_bits[size_t{t} * query_stride + h * head_dim + sizes.nope + d])
                 : found_f32[(size_t{t} * heads + h) * width + sizes.rank + d];
        compare.Check(t, h * sizes.rope + d, got, value,
                      std::fabs(value) * (many ? kHalfUlp : 1e-6) + 1e-5);
      }
      for (uint32_t d = 0; many && d < sizes.nope; ++d) {
        compare.Check(t, d, Bf16ToFloat(found_bits[size_t{t} * query_stride + h * head_dim + d]),
                      query[d], 0);
      }
    }
  }
}

TEST(LatentRows, FewAndMany) {
  SKIP_WITHOUT_GPU();
  CheckRows(kSmall, 4, false, false, true, 1);
  CheckRows(kSmall, 3, false, true, false, 2);
  CheckRows(kSmall, 4, true, false, false, 3);
  CheckRows(kDeepSeek, 16, false, true, true, 4);
  CheckRows(kDeepSeek, 128, false, false, true, 5);
  CheckRows(kDeepSeek, 16, true, false, true, 6);
}

TEST(LatentRows, Gathered) {
  SKIP_WITHOUT_GPU();
  for (const LatentSizes& sizes : {kSmall, kDeepSeek, LatentSizes{80, 16, 32, 32}}) {
    Random random(7);
    const uint32_t positions = 201, stride = OperandStride(sizes.rank);
    const TestLatents cache(random, sizes.rank, sizes.rope, {positions}, false);
    auto operand = Poisoned<uint16_t>(size_t{positions} * stride);
    NeedOk(GatherLatents(cache.view(true), positions, operand.data(), nullptr));
    Finish();
    const auto found = Host(operand);
    Comparison compare("gathered latents of " + std::to_string(sizes.rank));
    for (uint32_t p = 0; p < positions; ++p) {
      for (uint32_t c = 0; c < stride; ++c) {
        compare.Check(p, c, Bf16ToFloat(found[size_t{p} * stride + OperandPosition(c)]),
                      c < sizes.rank ? cache.row(0, p)[c] : 0, 0);
      }
    }
  }
}

// ---- Products of a matrix a head ----

void CheckStack(Encoding encoding, uint32_t heads, uint32_t rows, uint32_t cols, uint32_t tokens,
                uint64_t seed) {
  SCOPED_TRACE(std::string(EncodingName(encoding)) + " " + std::to_string(heads) + " x " +
               std::to_string(rows) + " x " + std::to_string(cols) + ", " + std::to_string(tokens) +
               " tokens, seed " + std::to_string(seed));
  Random random(seed);
  const uint32_t padded = PanelCount(rows) * kTileRows;
  const TestMatrix matrix(random, encoding, heads * padded, cols);
  const uint32_t x_head = cols + 8, x_stride = heads * x_head + 4, y_head = rows + 3;
  const uint32_t y_stride = heads * y_head + 5;
  const auto x = NormalValues(random, size_t{tokens} * x_stride);
  const auto device_x = OnDevice(x);
  const auto run = [&] {
    auto y = Poisoned<float>(size_t{tokens} * y_stride);
    NeedOk(RunStackedGemv({.matrix = matrix.device,
                           .count = heads,
                           .rows = rows,
                           .x = device_x.data(),
                           .x_stride = x_stride,
                           .x_head_stride = x_head,
                           .token_count = tokens,
                           .y = y.data(),
                           .y_stride = y_stride,
                           .y_head_stride = y_head},
                          nullptr));
    Finish();
    return Host(y);
  };
  const auto found = run(), again = run();
  EXPECT_EQ(std::memcmp(found.data(), again.data(), found.size() * sizeof(float)), 0);
  Comparison compare("products");
  for (uint32_t t = 0; t < tokens; ++t) {
    for (uint32_t h = 0; h < heads; ++h) {
      for (uint32_t r = 0; r < rows; ++r) {
        const Sum sum = Dot(matrix.row(h * padded + r),
                            x.data() + size_t{t} * x_stride + h * x_head, cols);
        compare.Check(t, h * rows + r, found[size_t{t} * y_stride + h * y_head + r], sum.value,
                      sum.magnitude * kSplit + sum.tolerance(cols));
      }
      for (uint32_t r = rows; r < y_head; ++r) {
        EXPECT_TRUE(std::isnan(found[size_t{t} * y_stride + h * y_head + r]))
            << "past a head's rows";
      }
    }
  }
}

TEST(StackedGemv, MatchesTheMatrices) {
  SKIP_WITHOUT_GPU();
  for (const Encoding encoding : {Encoding::kBf16, Encoding::kQ8, Encoding::kQ4}) {
    CheckStack(encoding, 16, 512, 128, 1, 1);
    CheckStack(encoding, 16, 128, 512, 8, 2);
    CheckStack(encoding, 4, 64, 32, 3, 3);
    CheckStack(encoding, 3, 21, 100, 5, 4);
    CheckStack(encoding, 2, 40, 640, 11, 5);
  }
}

// ---- Single tokens ----

struct Expected {
  std::vector<double> out, magnitude;
};
// Scores are key . query * scale; values of position p: value(p).
template <typename Score, typename Value>
Expected Attend(uint32_t positions, uint32_t width, const Score& score, const Value& value) {
  std::vector<double> scores;
  for (uint32_t p = 0; p < positions; ++p) scores.push_back(score(p));
  const double maximum = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (double& s : scores) sum += s = std::exp(s - maximum);
  Expected result = {std::vector<double>(width), std::vector<double>(width)};
  for (uint32_t p = 0; p < positions; ++p) {
    for (uint32_t d = 0; d < width; ++d) {
      const double part = scores[p] / sum * value(p, d);
      result.out[d] += part;
      result.magnitude[d] += std::fabs(part);
    }
  }
  return result;
}

void CheckDecode(const LatentSizes& sizes, uint32_t heads, const std::vector<uint32_t>& lengths,
                 bool f32, uint64_t seed) {
  SCOPED_TRACE("rank " + std::to_string(sizes.rank) + ", " + std::to_string(heads) +
               (f32 ? " heads, f32, seed " : " heads, seed ") + std::to_string(seed));
  Random random(seed);
  const TestLatents cache(random, sizes.rank, sizes.rope, lengths, f32);
  const auto tokens = static_cast<uint32_t>(lengths.size());
  const uint32_t width = cache.width();
  const auto queries = NormalValues(random, size_t{tokens} * heads * width);
  std::vector<uint32_t> positions;
  for (const uint32_t length : lengths) positions.push_back(length - 1);
  const auto device_queries = OnDevice(queries);
  const auto device_positions = OnDevice(positions);
  const float scale = 1.5f / std::sqrt(static_cast<float>(width));
  const auto run = [&] {
    auto scratch = Poisoned<unsigned char>(LatentDecodeScratchBytes(tokens, heads, sizes.rank));
    auto out = Poisoned<float>(size_t{tokens} * heads * sizes.rank);
    NeedOk(RunLatentDecodeAttention({.queries = device_queries.data(),
                                     .token_count = tokens,
                                     .heads = heads,
                                     .positions = device_positions.data(),
                                     .cache = cache.view(false),
                                     .scale = scale,
                                     .scratch = scratch.data(),
                                     .out = out.data()},
                                    nullptr));
    Finish();
    return Host(out);
  };
  const auto found = run(), again = run();
  EXPECT_EQ(std::memcmp(found.data(), again.data(), found.size() * sizeof(float)), 0)
      << "two runs differ";
  Comparison compare("attention over latents");
  for (uint32_t t = 0; t < tokens; ++t) {
    for (uint32_t h = 0; h < heads; h += heads > 32 ? 13 : 1) {
      const float* const query = queries.data() + (size_t{t} * heads + h) * width;
      const auto expected = Attend(
          lengths[t], sizes.rank,
          [&](uint32_t p) { return Dot(query, cache.row(t, p), width).value * scale; },
          [&](uint32_t p, uint32_t d) { return double{cache.row(t, p)[d]}; });
      for (uint32_t d = 0; d < sizes.rank; ++d) {
        // 16 bits of queries (scores of about 1.5 sigma, 576 terms) and of weights.
        compare.Check(t, h * sizes.rank + d, found[(size_t{t} * heads + h) * sizes.rank + d],
                      expected.out[d], expected.magnitude[d] * (f32 ? 2e-5 : 2e-4) + 1e-6);
      }
    }
  }
}

TEST(LatentDecodeAttention, MatchesSoftmaxInDouble) {
  SKIP_WITHOUT_GPU();
  for (const bool f32 : {false, true}) {
    CheckDecode(kSmall, 4, {1}, f32, 1);
    CheckDecode(kSmall, 4, {64, 65, 33, 700}, f32, 2);
    CheckDecode(kSmall, 20, {129, 31, 32, 2100}, f32, 3);
    CheckDecode(kDeepSeek, 16, {1, 97, 1025, 64}, f32, 4);
    CheckDecode(kDeepSeek, 16, {5000}, f32, 5);
    CheckDecode(kDeepSeek, 128, {777, 40}, f32, 6);
    CheckDecode(kDeepSeek, 7, {300}, f32, 7);
  }
}

TEST(LatentDecodeAttention, ATokenDoesNotDependOnTheOthers) {
  SKIP_WITHOUT_GPU();
  Random random(8);
  const std::vector<uint32_t> lengths = {900, 17, 333};
  const uint32_t heads = 16;
  const TestLatents cache(random, 512, 64, lengths, false);
  const auto queries = NormalValues(random, size_t{3} * heads * 576);
  const auto device_queries = OnDevice(queries);
  const auto positions = OnDevice(std::vector<uint32_t>{899, 16, 332});
  const auto run = [&](uint32_t first, uint32_t count) {
    auto scratch = Poisoned<unsigned char>(LatentDecodeScratchBytes(count, heads, 512));
    auto out = Poisoned<float>(size_t{count} * heads * 512);
    LatentCache view = cache.view(false);
    view.block_tables += first * view.table_stride;
    NeedOk(RunLatentDecodeAttention({.queries = device_queries.data() + size_t{first} * heads * 576,
                                     .token_count = count,
                                     .heads = heads,
                                     .positions = positions.data() + first,
                                     .cache = view,
                                     .scale = 0.05f,
                                     .scratch = scratch.data(),
                                     .out = out.data()},
                                    nullptr));
    Finish();
    return Host(out);
  };
  const auto together = run(0, 3);
  for (uint32_t t = 0; t < 3; ++t) {
    const auto alone = run(t, 1);
    const float* const same = together.data() + size_t{t} * heads * 512;
    EXPECT_EQ(std::memcmp(alone.data(), same, alone.size() * sizeof(float)), 0) << "token " << t;
  }
}

// ---- Many tokens ----

class LatentPrefillTest : public testing::TestWithParam<std::pair<GemmPath, LatentSizes>> {
 protected:
  // `heads` heads of `all_heads` that queries and operand have, from the third on.
  void CheckShape(uint32_t heads, uint32_t first, uint32_t tokens, uint64_t seed) {
    const GemmPath path = GetParam().first;
    const LatentSizes sizes = GetParam().second;  // no binding: clang 14 captures none
    const auto gemm = GroupedGemm::Create(path);
    if (!gemm.ok()) GTEST_SKIP() << gemm.status().ToString();
    SCOPED_TRACE(std::to_string(heads) + " heads, " + std::to_string(tokens) + " tokens from " +
                 std::to_string(first) + ", seed " + std::to_string(seed));
    Random random(seed);
    const uint32_t positions = first + tokens, head_dim = sizes.nope + sizes.rope;
    const uint32_t all_heads = heads + 3, before = 2, value_stride = heads * sizes.value;
    const TestLatents cache(random, sizes.rank, sizes.rope, {positions}, false);
    const auto rounded = [&](size_t count) {
      std::vector<uint16_t> bits;
      for (size_t i = 0; i < count; ++i) bits.push_back(FloatToBf16(random.Normal()));
      return bits;
    };
    const auto queries = rounded(size_t{tokens} * all_heads * head_dim);
    const auto keys = rounded(size_t{positions} * heads * sizes.nope);
    const auto values = rounded(size_t{positions} * value_stride);
    const auto device_queries = OnDevice(queries), device_keys = OnDevice(keys);
    const auto device_values = OnDevice(values);
    const float scale = 1.6f / std::sqrt(static_cast<float>(head_dim));
    const uint32_t stride = OperandStride(all_heads * sizes.value);
    const auto run = [&] {
      auto operand = Poisoned<uint16_t>(size_t{tokens} * stride);
      NeedOk(RunLatentPrefillAttention(
          {.queries = device_queries.data() + before * head_dim,
           .query_stride = all_heads * head_dim,
           .token_count = tokens,
           .heads = heads,
           .first_position = first,
           .keys = device_keys.data(),
           .values = device_values.data(),
           .sizes = sizes,
           .cache = cache.view(true),
           .scale = scale,
           .operand = operand.data() + before * sizes.value,
           .operand_stride = stride,
           .path = path},
          nullptr));
      Finish();
      return Host(operand);
    };
    const auto found = run();
    EXPECT_EQ(found, run()) << "two runs differ";
    Comparison compare("latent attention of many tokens");
    double difference = 0, norm = 0;
    for (uint32_t t = 0; t < tokens; ++t) {
      for (uint32_t c = 0; c < stride; ++c) {
        const bool written = c >= before * sizes.value && c < before * sizes.value + value_stride;
        if (!written && found[size_t{t} * stride + c] != 0xFFFF) {
          ADD_FAILURE() << "column " << c << " of token " << t << " is not of these heads";
          return;
        }
      }
      if (tokens > 40 && t % 7 != seed % 7 && t + 20 < tokens) continue;
      for (uint32_t h = 0; h < heads; ++h) {
        const uint16_t* const query =
            queries.data() + (size_t{t} * all_heads + before + h) * head_dim;
        const auto expected = Attend(
            first + t + 1, sizes.value,
            [&](uint32_t p) {
              double score = 0;
              for (uint32_t d = 0; d < head_dim; ++d) {
                const double key =
                    d < sizes.nope
                        ? Bf16ToFloat(keys[(size_t{p} * heads + h) * sizes.nope + d])
                        : cache.row(0, p)[sizes.rank + d - sizes.nope];
                score += Bf16ToFloat(query[d]) * key;
              }
              return score * scale;
            },
            [&](uint32_t p, uint32_t d) {
              return double{Bf16ToFloat(values[size_t{p} * value_stride + h * sizes.value + d])};
            });
        for (uint32_t d = 0; d < sizes.value; ++d) {
          const uint32_t column = (before + h) * sizes.value + d;
          const double value = Bf16ToFloat(found[size_t{t} * stride + OperandPosition(column)]);
          // Weights and the result are rounded to bf16.
          compare.Check(
              t, h * sizes.value + d, value, expected.out[d],
              expected.magnitude[d] * (kHalfUlp + 2e-5) + std::fabs(expected.out[d]) * kHalfUlp);
          difference += (value - expected.out[d]) * (value - expected.out[d]);
          norm += expected.out[d] * expected.out[d];
        }
      }
    }
    EXPECT_LT(std::sqrt(difference / norm), 4e-3);
  }
};

TEST_P(LatentPrefillTest, OnePage) { CheckShape(4, 0, 64, 1); }
TEST_P(LatentPrefillTest, OneToken) { CheckShape(2, 0, 1, 2); }
TEST_P(LatentPrefillTest, OddTails) { CheckShape(3, 0, 333, 3); }
TEST_P(LatentPrefillTest, LaterChunk) { CheckShape(4, 192, 200, 4); }
TEST_P(LatentPrefillTest, FromTheMiddleOfAPage) { CheckShape(2, 397, 143, 5); }
TEST_P(LatentPrefillTest, OneTokenLate) { CheckShape(1, 700, 1, 6); }
INSTANTIATE_TEST_SUITE_P(All, LatentPrefillTest,
                         testing::Values(std::pair{GemmPath::kMmaSync, kSmall},
                                         std::pair{GemmPath::kMmaSync, kDeepSeek},
                                         std::pair{GemmPath::kWgmma, kDeepSeek}),
                         [](const auto& tested) {
                           const bool wgmma = tested.param.first == GemmPath::kWgmma;
                           return std::string(wgmma ? "wgmma_" : "mmasync_") +
                                  std::to_string(tested.param.second.nope);
                         });

}  // namespace
}  // namespace moraine::gpu
