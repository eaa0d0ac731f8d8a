// Heads, the paged cache, and both attentions against softmax in double. Pages are scattered, and
// what they have past a sequence's end is NaN.
#include "compute/cuda/gpu_attention.h"

#include <algorithm>
#include <numeric>

#include "gpu_test_support.h"

namespace moraine::gpu {
namespace {

constexpr uint16_t kPoison = 0xFFFF;  // a NaN

struct Heads {
  uint32_t query, kv, dim;
};

// Keys and values of several sequences, on both sides.
struct TestCache {
  TestCache(Random& random, const Heads& h, const std::vector<uint32_t>& lengths) : heads(h) {
    table_stride = 1;
    for (const uint32_t length : lengths) {
      table_stride = std::max(table_stride, CeilPages(length) + 1);
    }
    uint32_t page_count = 3;
    for (const uint32_t length : lengths) page_count += CeilPages(length);
    std::vector<uint32_t> free(page_count);
    std::iota(free.begin(), free.end(), 0u);
    for (uint32_t i = page_count; i > 1; --i) std::swap(free[i - 1], free[random.Below(i)]);
    keys.assign(page_count * KvPageElements(h.kv, h.dim), kPoison);
    values = keys;
    tables.assign(lengths.size() * table_stride, ~0u);
    for (size_t s = 0; s < lengths.size(); ++s) {
      for (uint32_t p = 0; p < CeilPages(lengths[s]); ++p) {
        tables[s * table_stride + p] = free.back();
        free.pop_back();
      }
      for (uint32_t position = 0; position < lengths[s]; ++position) {
        for (uint32_t head = 0; head < h.kv; ++head) {
          const size_t at = At(s, position, head);
          for (uint32_t d = 0; d < h.dim; ++d) {
            keys[at + d] = FloatToBf16(random.Normal());
            values[at + d] = FloatToBf16(random.Normal());
          }
        }
      }
    }
    Upload();
  }
  static uint32_t CeilPages(uint32_t length) { return (length + 63) / 64; }
  size_t At(size_t sequence, uint32_t position, uint32_t head) const {
    const uint32_t page = tables[sequence * table_stride + position / 64];
    return ((size_t{page} * heads.kv + head) * 64 + position % 64) * heads.dim;
  }
  void Upload() {
    device_keys = OnDevice(keys);
    device_values = OnDevice(values);
    device_tables = OnDevice(tables);
  }
  PagedKv view(bool one_sequence) const {
    return {device_keys.data(), device_values.data(), heads.kv,
            heads.dim,          device_tables.data(), one_sequence ? 0 : table_stride};
  }

  Heads heads;
  uint32_t table_stride;
  std::vector<uint16_t> keys, values;
  std::vector<uint32_t> tables;
  DeviceArray<uint16_t> device_keys = Poisoned<uint16_t>(1);
  DeviceArray<uint16_t> device_values = Poisoned<uint16_t>(1);
  DeviceArray<uint32_t> device_tables = Poisoned<uint32_t>(1);
};

struct Attended {
  std::vector<double> out, magnitude;  // of each dimension: the sum, and that of magnitudes
};
Attended Attend(const TestCache& cache, size_t sequence, uint32_t position, uint32_t kv_head,
                const float* query, double scale) {
  const uint32_t dim = cache.heads.dim;
  std::vector<double> scores;
  for (uint32_t p = 0; p <= position; ++p) {
    const uint16_t* key = cache.keys.data() + cache.At(sequence, p, kv_head);
    double score = 0;
    for (uint32_t d = 0; d < dim; ++d) score += double{query[d]} * Bf16ToFloat(key[d]);
    scores.push_back(score * scale);
  }
  const double maximum = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (double& score : scores) sum += score = std::exp(score - maximum);
  Attended result = {std::vector<double>(dim), std::vector<double>(dim)};
  for (uint32_t p = 0; p <= position; ++p) {
    const uint16_t* value = cache.values.data() + cache.At(sequence, p, kv_head);
    for (uint32_t d = 0; d < dim; ++d) {
      const double part = scores[p] / sum * Bf16ToFloat(value[d]);
      result.out[d] += part;
      result.magnitude[d] += std::fabs(part);
    }
  }
  return result;
}

// ---- Many tokens ----

class PrefillAttentionTest : public testing::TestWithParam<std::pair<GemmPath, uint32_t>> {
 protected:
  // Scores as wide as head_dim makes them with scale 1 / sqrt(head_dim), times `sharpness`.
  void CheckShape(uint32_t query_heads, uint32_t kv_heads, uint32_t first, uint32_t tokens,
                  uint64_t seed) {
    const GemmPath path = GetParam().first;
    const uint32_t dim = GetParam().second;
    const auto gemm = GroupedGemm::Create(path);
    if (!gemm.ok()) GTEST_SKIP() << gemm.status().ToString();
    SCOPED_TRACE(std::to_string(query_heads) + " heads over " + std::to_string(kv_heads) + ", " +
                 std::to_string(tokens) + " tokens from " + std::to_string(first) + ", seed " +
                 std::to_string(seed));
    Random random(seed);
    TestCache cache(random, {query_heads, kv_heads, dim}, {first + tokens});
    const uint32_t width = query_heads * dim, stride = OperandStride(width);
    std::vector<uint16_t> queries;
    for (size_t i = 0; i < size_t{tokens} * width; ++i) {
      queries.push_back(FloatToBf16(random.Normal()));
    }
    const auto device_queries = OnDevice(queries);
    const float scale = 1.7f / std::sqrt(static_cast<float>(dim));
    const auto run = [&] {
      auto operand = Poisoned<uint16_t>(size_t{tokens} * stride);
      NeedOk(RunPrefillAttention({.queries = device_queries.data(),
                                  .token_count = tokens,
                                  .query_heads = query_heads,
                                  .first_position = first,
                                  .kv = cache.view(true),
                                  .scale = scale,
                                  .operand = operand.data(),
                                  .path = path},
                                 nullptr));
      Finish();
      return Host(operand);
    };
    const auto found = run();
    EXPECT_EQ(found, run()) << "two runs differ";
    Comparison compare("attention");
    double difference = 0, norm = 0;
    for (uint32_t t = 0; t < tokens; ++t) {
      if (tokens > 40 && t % 7 != seed % 7 && t + 20 < tokens) continue;
      for (uint32_t c = width; c < stride; ++c) {
        compare.Check(t, c, Bf16ToFloat(found[size_t{t} * stride + OperandPosition(c)]), 0, 0);
      }
      for (uint32_t head = 0; head < query_heads; ++head) {
        std::vector<float> query(dim);
        for (uint32_t d = 0; d < dim; ++d) {
          query[d] = Bf16ToFloat(queries[size_t{t} * width + head * dim + d]);
        }
        const Attended expected =
            Attend(cache, 0, first + t, head / (query_heads / kv_heads), query.data(), scale);
        for (uint32_t d = 0; d < dim; ++d) {
          const double value =
              Bf16ToFloat(found[size_t{t} * stride + OperandPosition(head * dim + d)]);
          // Weights and the result are rounded to bf16.
          compare.Check(
              t, head * dim + d, value, expected.out[d],
              expected.magnitude[d] * (kHalfUlp + 2e-5) + std::fabs(expected.out[d]) * kHalfUlp);
          difference += (value - expected.out[d]) * (value - expected.out[d]);
          norm += expected.out[d] * expected.out[d];
        }
      }
    }
    EXPECT_LT(std::sqrt(difference / norm), 4e-3);
  }
};

TEST_P(PrefillAttentionTest, OnePage) { CheckShape(4, 2, 0, 64, 1); }
TEST_P(PrefillAttentionTest, OneToken) { CheckShape(2, 1, 0, 1, 2); }
TEST_P(PrefillAttentionTest, OddTails) { CheckShape(8, 2, 0, 333, 3); }
TEST_P(PrefillAttentionTest, LaterChunk) { CheckShape(4, 1, 192, 200, 4); }
TEST_P(PrefillAttentionTest, FromTheMiddleOfAPage) { CheckShape(2, 2, 397, 143, 5); }
TEST_P(PrefillAttentionTest, OneTokenLate) { CheckShape(3, 3, 700, 1, 6); }
INSTANTIATE_TEST_SUITE_P(
    All, PrefillAttentionTest,
    testing::Values(std::pair{GemmPath::kMmaSync, 16u}, std::pair{GemmPath::kMmaSync, 32u},
                    std::pair{GemmPath::kMmaSync, 64u}, std::pair{GemmPath::kMmaSync, 96u},
                    std::pair{GemmPath::kMmaSync, 128u}, std::pair{GemmPath::kMmaSync, 256u},
                    std::pair{GemmPath::kWgmma, 64u}, std::pair{GemmPath::kWgmma, 128u}),
    [](const auto& tested) {
      return std::string(tested.param.first == GemmPath::kWgmma ? "wgmma_" : "mmasync_") +
             std::to_string(tested.param.second);
    });

// ---- One token ----

class DecodeAttentionTest : public testing::TestWithParam<uint32_t> {
 protected:
  // f32: the same cache in float32.
  void CheckShape(uint32_t query_heads, uint32_t kv_heads, const std::vector<uint32_t>& lengths,
                  uint64_t seed, bool f32 = false) {
    SKIP_WITHOUT_GPU();
    const uint32_t dim = GetParam();
    SCOPED_TRACE(std::to_string(query_heads) + " heads over " + std::to_string(kv_heads) +
                 ", seed " + std::to_string(seed));
    Random random(seed);
    const TestCache cache(random, {query_heads, kv_heads, dim}, lengths);
    const auto tokens = static_cast<uint32_t>(lengths.size());
    const uint32_t width = query_heads * dim;
    const auto queries = NormalValues(random, size_t{tokens} * width);
    std::vector<uint32_t> positions;
    for (const uint32_t length : lengths) positions.push_back(length - 1);
    const auto device_queries = OnDevice(queries);
    const auto device_positions = OnDevice(positions);
    const float scale = 1.7f / std::sqrt(static_cast<float>(dim));
    const auto widened = [](const std::vector<uint16_t>& values) {
      std::vector<float> floats;
      for (const uint16_t value : values) floats.push_back(Bf16ToFloat(value));
      return OnDevice(floats);
    };
    auto keys_f32 = widened(cache.keys), values_f32 = widened(cache.values);
    PagedKv view = cache.view(false);
    if (f32) {
      view.keys = view.values = nullptr;
      view.keys_f32 = keys_f32.data();
      view.values_f32 = values_f32.data();
    }
    // Used again and again, as a decode loop does: what a call leaves must do for the next.
    auto scratch = Need(
        DeviceArray<std::byte>::Allocate(DecodeAttentionScratchBytes(tokens, query_heads, dim)));
    NeedOk(scratch.Fill(0));
    const auto run = [&](uint32_t count) {
      auto out = Poisoned<float>(size_t{count} * width);
      NeedOk(RunDecodeAttention({.queries = device_queries.data(),
                                 .token_count = count,
                                 .query_heads = query_heads,
                                 .positions = device_positions.data(),
                                 .kv = view,
                                 .scale = scale,
                                 .scratch = scratch.data(),
                                 .out = out.data()},
                                nullptr));
      Finish();
      return Host(out);
    };
    const auto found = run(tokens);
    auto first = run(1);
    EXPECT_EQ(found, run(tokens)) << "two runs differ";
    EXPECT_TRUE(std::equal(first.begin(), first.end(), found.begin())) << "a token alone differs";
    Comparison compare("attention");
    for (uint32_t t = 0; t < tokens; ++t) {
      for (uint32_t head = 0; head < query_heads; ++head) {
        const size_t at = size_t{t} * width + size_t{head} * dim;
        const Attended expected = Attend(cache, t, positions[t], head / (query_heads / kv_heads),
                                         queries.data() + at, scale);
        for (uint32_t d = 0; d < dim; ++d) {
          compare.Check(t, head * dim + d, found[at + d], expected.out[d],
                        expected.magnitude[d] * (f32 ? 1e-5 : 1e-4));
        }
      }
    }
  }
};

TEST_P(DecodeAttentionTest, OnePosition) { CheckShape(4, 2, {1}, 1); }
TEST_P(DecodeAttentionTest, ShortPasts) { CheckShape(8, 2, {1, 15, 16, 17, 63, 64, 65, 130}, 2); }
TEST_P(DecodeAttentionTest, ManyRuns) { CheckShape(4, 1, {2048, 2111, 5000}, 3); }
TEST_P(DecodeAttentionTest, MoreHeadsThanABlock) { CheckShape(24, 2, {333, 7}, 4); }
TEST_P(DecodeAttentionTest, NoGroups) { CheckShape(3, 3, {200}, 5); }
TEST_P(DecodeAttentionTest, Float32Cache) { CheckShape(6, 2, {1, 5, 64, 700}, 6, true); }
INSTANTIATE_TEST_SUITE_P(All, DecodeAttentionTest, testing::Values(16u, 32u, 64u, 96u, 128u, 256u),
                         [](const auto& tested) { return "dim" + std::to_string(tested.param); });

// ---- Heads ----

struct HeadCase {
  Heads heads;
  uint32_t rotary_dim;
  bool interleaved, norm, bf16;
  bool cache_f32 = false;
};

void CheckHeads(const HeadCase& c, uint64_t seed) {
  SCOPED_TRACE("head_dim " + std::to_string(c.heads.dim) + ", rotary " +
               std::to_string(c.rotary_dim) + ", seed " + std::to_string(seed));
  Random random(seed);
  const uint32_t dim = c.heads.dim, tokens = 3, half = c.rotary_dim / 2;
  const std::vector<uint32_t> positions = {70, 0, 129};
  TestCache cache(random, c.heads, {130, 130, 130});
  std::fill(cache.keys.begin(), cache.keys.end(), kPoison);
  std::fill(cache.values.begin(), cache.values.end(), kPoison);
  cache.Upload();
  const uint32_t head_count = c.heads.query + 2 * c.heads.kv, stride = head_count * dim + 16;
  auto rows = NormalValues(random, size_t{tokens} * stride);
  std::vector<uint16_t> rounded;
  for (float& value : rows) {
    rounded.push_back(FloatToBf16(value));
    if (c.bf16) value = Bf16ToFloat(rounded.back());
  }
  const auto q_norm = NormalValues(random, dim), k_norm = NormalValues(random, dim);
  std::vector<float> cos, sin;
  for (uint32_t i = 0; i < 130 * half; ++i) {
    const double angle = random.Uniform() * 6.3;
    cos.push_back(static_cast<float>(std::cos(angle)));
    sin.push_back(static_cast<float>(std::sin(angle)));
  }
  const auto device_rows = OnDevice(rows), device_q_norm = OnDevice(q_norm);
  const auto device_k_norm = OnDevice(k_norm), device_cos = OnDevice(cos);
  const auto device_sin = OnDevice(sin);
  const auto device_rounded = OnDevice(rounded);
  const auto device_positions = OnDevice(positions);
  auto bf16 = Poisoned<uint16_t>(size_t{tokens} * c.heads.query * dim);
  auto f32 = Poisoned<float>(size_t{tokens} * c.heads.query * dim);
  auto keys_f32 = Poisoned<float>(cache.keys.size()),
       values_f32 = Poisoned<float>(cache.keys.size());
  PagedKv view = cache.view(false);
  if (c.cache_f32) {
    view.keys = view.values = nullptr;
    view.keys_f32 = keys_f32.data();
    view.values_f32 = values_f32.data();
  }
  NeedOk(RunHeads({.bf16 = c.bf16 ? device_rounded.data() : nullptr,
                   .f32 = c.bf16 ? nullptr : device_rows.data(),
                   .stride = stride,
                   .token_count = tokens,
                   .query_heads = c.heads.query,
                   .q_norm = c.norm ? device_q_norm.data() : nullptr,
                   .k_norm = c.norm ? device_k_norm.data() : nullptr,
                   .epsilon = 1e-6f,
                   .cos = device_cos.data(),
                   .sin = device_sin.data(),
                   .rotary_dim = c.rotary_dim,
                   .interleaved = c.interleaved,
                   .positions = device_positions.data(),
                   .kv = view,
                   .queries_bf16 = c.bf16 ? bf16.data() : nullptr,
                   .queries_f32 = c.bf16 ? nullptr : f32.data()},
                  nullptr));
  Finish();
  const auto found_bf16 = Host(bf16);
  const auto found_f32 = Host(f32);
  auto keys = Host(cache.device_keys), values = Host(cache.device_values);
  const auto float_keys = Host(keys_f32), float_values = Host(values_f32);
  Comparison queries("queries"), cached("cache");
  for (uint32_t t = 0; t < tokens; ++t) {
    for (uint32_t head = 0; head < head_count; ++head) {
      const float* row = rows.data() + size_t{t} * stride + size_t{head} * dim;
      const bool query = head < c.heads.query, value = head >= c.heads.query + c.heads.kv;
      std::vector<double> x(row, row + dim);
      if (!value) {
        if (c.norm) x = Normed(row, query ? q_norm : k_norm, 1e-6, dim);
        const auto before = x;
        for (uint32_t i = 0; i < half; ++i) {
          const uint32_t a = c.interleaved ? 2 * i : i, b = c.interleaved ? 2 * i + 1 : i + half;
          const double turn_cos = cos[positions[t] * half + i],
                       turn_sin = sin[positions[t] * half + i];
          x[a] = before[a] * turn_cos - before[b] * turn_sin;
          x[b] = before[b] * turn_cos + before[a] * turn_sin;
        }
      }
      const size_t at = query ? (size_t{t} * c.heads.query + head) * dim
                              : cache.At(t, positions[t], (head - c.heads.query) % c.heads.kv);
      for (uint32_t d = 0; d < dim; ++d) {
        const double half_ulp = std::fabs(x[d]) * kHalfUlp + 4e-6;
        if (query && !c.bf16) {
          queries.Check(t, head * dim + d, found_f32[at + d], x[d], 4e-6);
        } else if (query) {
          queries.Check(t, head * dim + d, Bf16ToFloat(found_bf16[at + d]), x[d], half_ulp);
        } else if (c.cache_f32) {
          cached.Check(t, head * dim + d, (value ? float_values : float_keys)[at + d], x[d], 4e-6);
        } else {
          std::vector<uint16_t>& pool = value ? values : keys;
          cached.Check(t, head * dim + d, Bf16ToFloat(pool[at + d]), x[d], half_ulp);
          pool[at + d] = kPoison;
        }
      }
    }
  }
  const auto untouched = [](uint16_t word) { return word == kPoison; };
  EXPECT_TRUE(std::all_of(keys.begin(), keys.end(), untouched)) << "keys elsewhere";
  EXPECT_TRUE(std::all_of(values.begin(), values.end(), untouched)) << "values elsewhere";
}

TEST(HeadsTest, EveryKind) {
  SKIP_WITHOUT_GPU();
  CheckHeads({{8, 2, 128}, 128, false, true, true}, 1);
  CheckHeads({{8, 2, 128}, 128, false, true, false}, 2);
  CheckHeads({{4, 2, 32}, 32, false, true, true}, 3);
  CheckHeads({{4, 4, 64}, 32, false, false, false}, 4);
  CheckHeads({{6, 1, 96}, 64, true, true, true}, 5);
  CheckHeads({{2, 1, 256}, 64, false, true, false}, 6);
  CheckHeads({{3, 3, 16}, 16, true, false, true}, 7);
  CheckHeads({{4, 2, 64}, 64, false, true, false, true}, 8);
}

}  // namespace
}  // namespace moraine::gpu
