// The cache in fp8 on the GPU: what RunHeads writes is byte for byte what the CPU writes of the same numbers, what ExpandKv
// makes of it is exact, and decode attention over it is softmax in double over its values. Pages are scattered; what they
// have past a sequence's end are codes and scales of any kind.
#include <algorithm>
#include <numeric>

#include "compute/cuda/gpu_attention.h"
#include "compute/e4m3.h"
#include "compute/kv_format.h"
#include "gpu_test_support.h"

namespace moraine::gpu {
namespace {

constexpr uint8_t kPoison = 0xFF;

struct Heads {
  uint32_t query, kv, dim;
};

// Pages of several sequences in any order, all poisoned; two more than they need.
struct Pages {
  Pages(Random& random, const std::vector<uint32_t>& lengths) {
    for (const uint32_t length : lengths) {
      count += (length + 63) / 64;
      stride = std::max(stride, (length + 63) / 64 + 1);
    }
    count += 2;
    std::vector<uint32_t> order(count);
    std::iota(order.begin(), order.end(), 0u);
    for (uint32_t i = count; i > 1; --i) std::swap(order[i - 1], order[random.Below(i)]);
    tables.assign(lengths.size() * stride, ~0u);
    for (size_t s = 0; s < lengths.size(); ++s) {
      for (uint32_t p = 0; p < (lengths[s] + 63) / 64; ++p) {
        tables[s * stride + p] = order.back();
        order.pop_back();
      }
    }
  }
  uint32_t page(size_t sequence, uint32_t position) const {
    return tables[sequence * stride + position / 64];
  }
  uint32_t count = 0, stride = 1;
  std::vector<uint32_t> tables;
};

// Where a head's part of a page begins, among bytes.
size_t Piece(const Heads& heads, uint32_t page, uint32_t head) {
  return (size_t{page} * heads.kv + head) * Fp8HeadBytes(heads.dim);
}

struct Fp8Cache {
  Fp8Cache(Random& random, const Heads& h, const std::vector<uint32_t>& lengths)
      : heads(h), pages(random, lengths) {
    keys.assign(pages.count * Fp8PageBytes(h.kv, h.dim), kPoison);
    values = keys;
    std::vector<float> head(h.dim);
    for (size_t s = 0; s < lengths.size(); ++s) {
      for (uint32_t position = 0; position < lengths[s]; ++position) {
        for (uint32_t kv_head = 0; kv_head < h.kv; ++kv_head) {
          // Keys of different sizes, values of very different ones.
          const float sizes[2] = {0.5f + static_cast<float>(random.Uniform()),
                                  std::ldexp(1.0f, static_cast<int>(random.Below(12)) - 6)};
          for (auto* pool : {&keys, &values}) {
            for (float& x : head) x = random.Normal() * sizes[pool == &values];
            Write(*pool, s, position, kv_head, head);
          }
        }
      }
    }
  }
  void Write(std::vector<uint8_t>& pool, size_t sequence, uint32_t position, uint32_t kv_head,
             const std::vector<float>& head) {
    auto* const piece = reinterpret_cast<std::byte*>(
        pool.data() + Piece(heads, pages.page(sequence, position), kv_head));
    EncodeKv(KvFormat::kFp8, head.data(), 0, 1, 1, heads.dim,
             {piece, {KvHeadBytes(KvFormat::kFp8, heads.dim), 0}, position % 64});
  }
  double At(const std::vector<uint8_t>& pool, size_t sequence, uint32_t position, uint32_t kv_head,
            uint32_t d) const {
    const uint8_t* piece = pool.data() + Piece(heads, pages.page(sequence, position), kv_head);
    return E4m3Value(piece[position % 64 * heads.dim + d], piece[64 * heads.dim + position % 64]);
  }
  // Arrays must outlive it.
  struct OnGpu {
    DeviceArray<uint8_t> keys, values;
    DeviceArray<uint32_t> tables;
    PagedKv view;
  };
  OnGpu Upload(bool one_sequence) const {
    OnGpu gpu = {OnDevice(keys), OnDevice(values), OnDevice(pages.tables), {}};
    gpu.view.kv_heads = heads.kv;
    gpu.view.head_dim = heads.dim;
    gpu.view.block_tables = gpu.tables.data();
    gpu.view.table_stride = one_sequence ? 0 : pages.stride;
    gpu.view.keys_fp8 = gpu.keys.data();
    gpu.view.values_fp8 = gpu.values.data();
    return gpu;
  }

  Heads heads;
  Pages pages;
  std::vector<uint8_t> keys, values;
};

// ---- Heads ----

struct HeadCase {
  Heads heads;
  uint32_t rotary_dim;
  bool interleaved, norm, bf16;
};

// Values that are zero, not finite, too small and too large, one a token of values' first head.
const std::vector<float> kOddities = {0.0f, std::nanf(""), -INFINITY, 1e-38f, 3.2e38f, -0.0f};

// What the same kernel writes in float32 goes through the CPU's EncodeKv.
void CheckHeads(const HeadCase& c, uint64_t seed) {
  SCOPED_TRACE("head_dim " + std::to_string(c.heads.dim) + ", seed " + std::to_string(seed));
  Random random(seed);
  const uint32_t dim = c.heads.dim, half = c.rotary_dim / 2;
  const auto tokens = static_cast<uint32_t>(kOddities.size() + 3);
  std::vector<uint32_t> lengths, positions;
  for (uint32_t t = 0; t < tokens; ++t) {
    lengths.push_back(130);
    positions.push_back(t == 0 ? 0 : t == 1 ? 129 : static_cast<uint32_t>(random.Below(130)));
  }
  const Pages pages(random, lengths);
  const uint32_t head_count = c.heads.query + 2 * c.heads.kv, stride = head_count * dim + 16;
  auto rows = NormalValues(random, size_t{tokens} * stride);
  for (size_t i = 0; i < kOddities.size(); ++i) {
    float* const value = rows.data() + (i + 2) * stride + (c.heads.query + c.heads.kv) * dim;
    if (i == 0) std::fill(value, value + dim, 0.0f);
    if (i == 3) std::fill(value, value + dim, 1e-37f);
    value[5] = kOddities[i];
  }
  std::vector<uint16_t> rounded;
  for (const float value : rows) rounded.push_back(FloatToBf16(value));
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
  const auto device_positions = OnDevice(positions), device_tables = OnDevice(pages.tables);
  const size_t bytes = pages.count * Fp8PageBytes(c.heads.kv, dim);
  const size_t elements = pages.count * KvPageElements(c.heads.kv, dim);
  auto keys = Poisoned<uint8_t>(bytes), values = Poisoned<uint8_t>(bytes);
  auto keys_f32 = Poisoned<float>(elements), values_f32 = Poisoned<float>(elements);
  std::vector<float> queries[2];
  for (const bool fp8 : {false, true}) {
    auto query_rows = Poisoned<float>(size_t{tokens} * c.heads.query * dim);
    auto query_rows_bf16 = Poisoned<uint16_t>(size_t{tokens} * c.heads.query * dim);
    PagedKv view;
    view.kv_heads = c.heads.kv;
    view.head_dim = dim;
    view.block_tables = device_tables.data();
    view.table_stride = pages.stride;
    view.keys_f32 = fp8 ? nullptr : keys_f32.data();
    view.values_f32 = fp8 ? nullptr : values_f32.data();
    view.keys_fp8 = fp8 ? keys.data() : nullptr;
    view.values_fp8 = fp8 ? values.data() : nullptr;
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
                     .queries_bf16 = c.bf16 ? query_rows_bf16.data() : nullptr,
                     .queries_f32 = c.bf16 ? nullptr : query_rows.data()},
                    nullptr));
    Finish();
    if (!c.bf16) queries[fp8] = Host(query_rows);
  }
  // Kernels of two formats may fuse other multiplications with additions.
  if (!c.bf16) {
    Comparison compared("queries with a cache in fp8 and in float32");
    for (size_t i = 0; i < queries[0].size(); ++i) {
      compared.Check(0, i, queries[1][i], queries[0][i], 4e-6);
    }
  }
  const auto codes_of_keys = Host(keys), codes_of_values = Host(values);
  const auto float_keys = Host(keys_f32), float_values = Host(values_f32);
  std::vector<uint8_t> expected_keys(bytes, kPoison), expected_values(bytes, kPoison);
  for (uint32_t t = 0; t < tokens; ++t) {
    for (uint32_t head = 0; head < c.heads.kv; ++head) {
      const uint32_t page = pages.page(t, positions[t]);
      const size_t at = ((size_t{page} * c.heads.kv + head) * 64 + positions[t] % 64) * dim;
      for (const bool of_values : {false, true}) {
        auto* const piece = reinterpret_cast<std::byte*>(
            (of_values ? expected_values : expected_keys).data() + Piece(c.heads, page, head));
        EncodeKv(KvFormat::kFp8, (of_values ? float_values : float_keys).data() + at, 0, 1, 1, dim,
                 {piece, {KvHeadBytes(KvFormat::kFp8, dim), 0}, positions[t] % 64});
      }
    }
  }
  Comparison compared("bytes of keys, then of values");
  for (size_t i = 0; i < bytes; ++i) {
    compared.Check(0, i, codes_of_keys[i], expected_keys[i], 0);
    compared.Check(1, i, codes_of_values[i], expected_values[i], 0);
  }
}

TEST(Fp8HeadsTest, BytesAreTheCpus) {
  SKIP_WITHOUT_GPU();
  CheckHeads({{8, 2, 128}, 128, false, true, true}, 1);
  CheckHeads({{8, 2, 128}, 128, false, true, false}, 2);
  CheckHeads({{4, 2, 32}, 32, false, true, true}, 3);
  CheckHeads({{4, 4, 64}, 32, false, false, false}, 4);
  CheckHeads({{6, 1, 96}, 64, true, true, true}, 5);
  CheckHeads({{2, 1, 256}, 64, false, true, false}, 6);
  CheckHeads({{3, 3, 16}, 16, true, false, true}, 7);
}

// ---- Expansion ----

class Fp8Test : public testing::TestWithParam<uint32_t> {};

TEST_P(Fp8Test, ExpansionIsExactForEveryCode) {
  SKIP_WITHOUT_GPU();
  const uint32_t dim = GetParam(), length = 300;
  Random random(11);
  const Heads heads = {2, 2, dim};
  Fp8Cache cache(random, heads, {length});
  for (auto* pool : {&cache.keys, &cache.values}) {
    for (uint8_t& byte : *pool) byte = static_cast<uint8_t>(random.Below(256));
    for (size_t piece = 0; piece < pool->size(); piece += Fp8HeadBytes(dim)) {
      for (uint32_t i = 0; i < 64; ++i) {
        (*pool)[piece + 64 * dim + i] = static_cast<uint8_t>(
            kE4m3LeastScale + random.Below(kE4m3NanScale - kE4m3LeastScale + 1));
      }
    }
  }
  const auto gpu = cache.Upload(true);
  const size_t elements = 5 * KvPageElements(heads.kv, dim);
  auto keys = Poisoned<uint16_t>(elements + 8), values = Poisoned<uint16_t>(elements + 8);
  auto table = Poisoned<uint32_t>(6);
  NeedOk(ExpandKv({.from = gpu.view,
                   .positions = length,
                   .keys = keys.data(),
                   .values = values.data(),
                   .block_table = table.data()},
                  nullptr));
  Finish();
  EXPECT_EQ(Host(table), (std::vector<uint32_t>{0, 1, 2, 3, 4, ~0u}));
  Comparison compared("bits");
  for (const bool of_values : {false, true}) {
    const auto found = Host(of_values ? values : keys);
    for (size_t i = elements; i < found.size(); ++i) EXPECT_EQ(found[i], 0xFFFF) << "written past";
    for (uint32_t position = 0; position < 320; ++position) {
      for (uint32_t head = 0; head < heads.kv; ++head) {
        for (uint32_t d = 0; d < dim; ++d) {
          const size_t at =
              ((size_t{position / 64} * heads.kv + head) * 64 + position % 64) * dim + d;
          const double expected =
              cache.At(of_values ? cache.values : cache.keys, 0, position, head, d);
          const double value = Bf16ToFloat(found[at]);
          if (std::isnan(expected) || std::isinf(expected)) {
            compared.Check(position, d, std::isfinite(value), 0, 0);
            if (std::isnan(expected)) compared.Check(position, d, std::isnan(value), 1, 0);
          } else {
            compared.Check(position, d, value, expected, 0);
          }
        }
      }
    }
  }
}

// Prefill over the copy gives the bits that it gives over pages in bf16 with the same values.
TEST_P(Fp8Test, PrefillOverTheCopyIsPrefillOverItsValues) {
  SKIP_WITHOUT_GPU();
  const Heads heads = {4, 2, GetParam()};
  const uint32_t dim = heads.dim, first = 77, tokens = 190, length = first + tokens;
  Random random(12);
  const Fp8Cache cache(random, heads, {length});
  const auto gpu = cache.Upload(true);
  const uint32_t pages = (length + 63) / 64, width = heads.query * dim;
  std::vector<uint16_t> keys(cache.pages.count * KvPageElements(heads.kv, dim), 0xFFFF),
      values = keys;
  for (uint32_t position = 0; position < length; ++position) {
    for (uint32_t head = 0; head < heads.kv; ++head) {
      for (uint32_t d = 0; d < dim; ++d) {
        const size_t at =
            ((size_t{cache.pages.page(0, position)} * heads.kv + head) * 64 + position % 64) * dim +
            d;
        keys[at] = FloatToBf16(static_cast<float>(cache.At(cache.keys, 0, position, head, d)));
        values[at] = FloatToBf16(static_cast<float>(cache.At(cache.values, 0, position, head, d)));
      }
    }
  }
  auto device_keys = OnDevice(keys), device_values = OnDevice(values);
  const size_t elements = pages * KvPageElements(heads.kv, dim);
  auto copy_of_keys = Poisoned<uint16_t>(elements), copy_of_values = Poisoned<uint16_t>(elements);
  auto table = Poisoned<uint32_t>(pages);
  NeedOk(ExpandKv({.from = gpu.view,
                   .positions = length,
                   .keys = copy_of_keys.data(),
                   .values = copy_of_values.data(),
                   .block_table = table.data()},
                  nullptr));
  std::vector<uint16_t> queries;
  for (size_t i = 0; i < size_t{tokens} * width; ++i) queries.push_back(FloatToBf16(random.Normal()));
  const auto device_queries = OnDevice(queries);
  const auto attend = [&](const PagedKv& kv) {
    auto operand = Poisoned<uint16_t>(size_t{tokens} * OperandStride(width));
    NeedOk(RunPrefillAttention({.queries = device_queries.data(),
                                .token_count = tokens,
                                .query_heads = heads.query,
                                .first_position = first,
                                .kv = kv,
                                .scale = 0.1f,
                                .operand = operand.data()},
                               nullptr));
    Finish();
    return Host(operand);
  };
  const auto found = attend(
      {copy_of_keys.data(), copy_of_values.data(), heads.kv, dim, table.data(), 0});
  const auto expected =
      attend({device_keys.data(), device_values.data(), heads.kv, dim, gpu.tables.data(), 0});
  EXPECT_EQ(found, expected);
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_TRUE(std::isfinite(Bf16ToFloat(expected[i]))) << i;
  }
}

// ---- Decode ----

// Of each dimension the sum, and that of magnitudes.
struct Attended {
  std::vector<double> out, magnitude;
};
Attended Attend(const Fp8Cache& cache, size_t sequence, uint32_t position, uint32_t kv_head,
                const float* query, double scale) {
  const uint32_t dim = cache.heads.dim;
  std::vector<double> scores;
  for (uint32_t p = 0; p <= position; ++p) {
    double score = 0;
    for (uint32_t d = 0; d < dim; ++d) {
      score += query[d] * cache.At(cache.keys, sequence, p, kv_head, d);
    }
    scores.push_back(score * scale);
  }
  const double maximum = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (double& score : scores) sum += score = std::exp(score - maximum);
  Attended result = {std::vector<double>(dim), std::vector<double>(dim)};
  for (uint32_t p = 0; p <= position; ++p) {
    for (uint32_t d = 0; d < dim; ++d) {
      const double part = scores[p] / sum * cache.At(cache.values, sequence, p, kv_head, d);
      result.out[d] += part;
      result.magnitude[d] += std::fabs(part);
    }
  }
  return result;
}

// Each token the last of its sequence.
struct DecodeRig {
  DecodeRig(const Fp8Cache& cache, const std::vector<uint32_t>& lengths, uint64_t seed)
      : heads(cache.heads), gpu(cache.Upload(false)) {
    Random random(seed);
    const auto tokens = static_cast<uint32_t>(lengths.size());
    queries = NormalValues(random, size_t{tokens} * heads.query * heads.dim);
    device_queries = OnDevice(queries);
    std::vector<uint32_t> positions;
    for (const uint32_t length : lengths) positions.push_back(length - 1);
    device_positions = OnDevice(positions);
    scratch = Need(DeviceArray<std::byte>::Allocate(
        DecodeAttentionScratchBytes(tokens, heads.query, heads.dim)));
    NeedOk(scratch.Fill(0));
  }
  std::vector<float> Run(uint32_t count) {
    auto out = Poisoned<float>(size_t{count} * heads.query * heads.dim);
    NeedOk(RunDecodeAttention({.queries = device_queries.data(),
                               .token_count = count,
                               .query_heads = heads.query,
                               .positions = device_positions.data(),
                               .kv = gpu.view,
                               .scale = scale(),
                               .scratch = scratch.data(),
                               .out = out.data()},
                              nullptr));
    Finish();
    return Host(out);
  }
  float scale() const { return 1.7f / std::sqrt(static_cast<float>(heads.dim)); }

  Heads heads;
  Fp8Cache::OnGpu gpu;
  std::vector<float> queries;
  DeviceArray<float> device_queries = Poisoned<float>(1);
  DeviceArray<uint32_t> device_positions = Poisoned<uint32_t>(1);
  DeviceArray<std::byte> scratch = Poisoned<std::byte>(1);
};

class Fp8DecodeTest : public testing::TestWithParam<uint32_t> {
 protected:
  void CheckShape(uint32_t query_heads, uint32_t kv_heads, const std::vector<uint32_t>& lengths,
                  uint64_t seed) {
    SKIP_WITHOUT_GPU();
    const uint32_t dim = GetParam();
    SCOPED_TRACE(std::to_string(query_heads) + " heads over " + std::to_string(kv_heads) +
                 ", seed " + std::to_string(seed));
    Random random(seed);
    const Fp8Cache cache(random, {query_heads, kv_heads, dim}, lengths);
    DecodeRig rig(cache, lengths, seed + 100);
    const auto tokens = static_cast<uint32_t>(lengths.size());
    // Again and again over the same scratch, as a decode loop does.
    const auto found = rig.Run(tokens), first = rig.Run(1);
    EXPECT_EQ(found, rig.Run(tokens)) << "two runs differ";
    EXPECT_TRUE(std::equal(first.begin(), first.end(), found.begin())) << "a token alone differs";
    Comparison compare("attention");
    for (uint32_t t = 0; t < tokens; ++t) {
      for (uint32_t head = 0; head < query_heads; ++head) {
        const size_t at = (size_t{t} * query_heads + head) * dim;
        const Attended expected = Attend(cache, t, lengths[t] - 1, head / (query_heads / kv_heads),
                                         rig.queries.data() + at, rig.scale());
        for (uint32_t d = 0; d < dim; ++d) {
          // As over bf16: 16 bits of queries and of weights.
          compare.Check(t, head * dim + d, found[at + d], expected.out[d],
                        expected.magnitude[d] * 1e-4);
        }
      }
    }
  }
};

TEST_P(Fp8DecodeTest, OnePosition) { CheckShape(4, 2, {1}, 1); }
TEST_P(Fp8DecodeTest, ShortPasts) { CheckShape(8, 2, {1, 15, 16, 17, 63, 64, 65, 130}, 2); }
TEST_P(Fp8DecodeTest, ManyRuns) { CheckShape(4, 1, {2048, 2111, 5000}, 3); }
TEST_P(Fp8DecodeTest, MoreHeadsThanABlock) { CheckShape(24, 2, {333, 7}, 4); }
TEST_P(Fp8DecodeTest, NoGroups) { CheckShape(3, 3, {200}, 5); }

// A head that is not finite makes those that see it NaN, and nobody else; a head of zeros is one.
TEST_P(Fp8DecodeTest, WhatIsNotFiniteStaysVisible) {
  SKIP_WITHOUT_GPU();
  const Heads heads = {4, 2, GetParam()};
  const std::vector<uint32_t> lengths = {70, 70, 70, 70};
  for (const float bad : {std::nanf(""), INFINITY, -INFINITY}) {
    Random random(21);
    Fp8Cache cache(random, heads, lengths);
    std::vector<float> head(heads.dim, 0.5f);
    const auto clean = DecodeRig(cache, lengths, 22).Run(4);
    cache.Write(cache.keys, 3, 11, 1, std::vector<float>(heads.dim, 0.0f));
    cache.Write(cache.values, 3, 65, 1, std::vector<float>(heads.dim, 0.0f));
    head[heads.dim - 3] = bad;
    cache.Write(cache.keys, 1, 40, 0, head);
    cache.Write(cache.values, 2, 69, 1, head);
    const auto found = DecodeRig(cache, lengths, 22).Run(4);
    for (uint32_t i = 0; i < found.size(); ++i) {
      const uint32_t token = i / (4 * heads.dim), kv_head = i / heads.dim % 4 / 2;
      if ((token == 1 && kv_head == 0) || (token == 2 && kv_head == 1)) {
        ASSERT_TRUE(std::isnan(found[i])) << "token " << token << " element " << i << " is "
                                          << found[i];
      } else if (token < 3 || kv_head == 0) {
        ASSERT_EQ(found[i], clean[i]) << "token " << token << " element " << i;
      } else {
        ASSERT_TRUE(std::isfinite(found[i])) << "token " << token << " element " << i;
      }
    }
  }
}

const auto kName = [](const auto& tested) { return "dim" + std::to_string(tested.param); };
INSTANTIATE_TEST_SUITE_P(All, Fp8Test, testing::Values(16u, 32u, 64u, 96u, 128u, 256u), kName);
INSTANTIATE_TEST_SUITE_P(All, Fp8DecodeTest, testing::Values(16u, 32u, 64u, 96u, 128u, 256u),
                         kName);

TEST(Fp8CacheTest, PrefillOverItIsRefused) {
  PagedKv kv;
  kv.kv_heads = 1;
  kv.head_dim = 64;
  uint8_t nothing = 0;
  kv.keys_fp8 = kv.values_fp8 = &nothing;
  const Status status =
      RunPrefillAttention({.token_count = 9, .query_heads = 1, .kv = kv}, nullptr);
  EXPECT_EQ(status.code(), StatusCode::kUnsupported) << status.ToString();
}

}  // namespace
}  // namespace moraine::gpu
