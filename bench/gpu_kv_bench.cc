// Attention over the KV cache on a GPU by its format, on the heads of Qwen3-30B-A3B: what a token and what a prompt take,
// and what share of the bound of the bytes that is.
//
//   gpu_kv_bench [--past N]... [--chunk N]
//
// Decode: attention of one token and of 8 (each with a past of its own) over bf16 and fp8, in a CUDA graph over as many
// caches in turn as the L2 cache does not hold. Prefill: a chunk behind a past, the expansion of fp8 beside the
// attention that it is for. Medians of 20 after 3; the bytes of keys and values once, against a device copy of the same
// run, of which what it reads and writes counts. One JSON line a measurement.
#include <cuda_runtime_api.h>

#include <numeric>
#include <string>

#include "compute/kv_format.h"
#include "gpu_timing.h"

namespace moraine::gpu {
namespace {

constexpr uint32_t kQueryHeads = 32, kKvHeads = 4, kHeadDim = 128;
constexpr uint32_t kQueryWidth = kQueryHeads * kHeadDim;

uint32_t PagesOf(uint32_t positions) { return (positions + 63) / 64; }

DeviceArray<uint8_t> Bytes(size_t count, uint64_t seed) {
  Random random(seed);
  std::vector<uint8_t> values(std::min<size_t>(count, 1 << 16));
  // Codes of middling size: as scales they are from 2^-63 to 1.
  for (uint8_t& value : values) value = static_cast<uint8_t>(0x40 + random.Below(0x40));
  auto array = Require(DeviceArray<uint8_t>::Allocate(count));
  for (size_t at = 0; at < count; at += values.size()) {
    Require(array.Write(at, std::span(values).first(std::min(values.size(), count - at))));
  }
  return array;
}

double CacheBytes(KvFormat format, uint32_t positions) {
  return 2.0 * positions * kKvHeads * static_cast<double>(KvHeadBytes(format, kHeadDim));
}

// Of `sequences` sequences of as many positions, in both formats, `count` times.
struct Caches {
  Caches(uint32_t sequences, uint32_t positions, uint32_t cache_count) : count(cache_count) {
    const uint32_t pages = PagesOf(positions) * sequences;
    bf16_elements = pages * KvPageElements(kKvHeads, kHeadDim);
    fp8_bytes = pages * Fp8PageBytes(kKvHeads, kHeadDim);
    bf16 = Bf16(2 * count * bf16_elements, 1);
    fp8 = Bytes(2 * count * fp8_bytes, 2);
    std::vector<uint32_t> numbers(pages);
    std::iota(numbers.begin(), numbers.end(), 0u);
    table = Require(DeviceArray<uint32_t>::Copy(numbers));
    stride = sequences > 1 ? PagesOf(positions) : 0;
  }
  PagedKv view(KvFormat format, uint32_t i) {
    PagedKv kv;
    kv.kv_heads = kKvHeads;
    kv.head_dim = kHeadDim;
    kv.block_tables = table.data();
    kv.table_stride = stride;
    if (format == KvFormat::kFp8) {
      kv.keys_fp8 = fp8.data() + 2 * i * fp8_bytes, kv.values_fp8 = kv.keys_fp8 + fp8_bytes;
    } else {
      kv.keys = bf16.data() + 2 * i * bf16_elements, kv.values = kv.keys + bf16_elements;
    }
    return kv;
  }

  uint32_t count, stride = 0;
  uint64_t bf16_elements = 0, fp8_bytes = 0;
  DeviceArray<uint16_t> bf16 = Require(DeviceArray<uint16_t>::Allocate(1));
  DeviceArray<uint8_t> fp8 = Require(DeviceArray<uint8_t>::Allocate(1));
  DeviceArray<uint32_t> table = Require(DeviceArray<uint32_t>::Allocate(1));
};

void MeasureDecode(Stream stream, uint32_t tokens, uint32_t past) {
  constexpr double kMoreThanL2 = 128 << 20;
  const auto fitting = kMoreThanL2 / (CacheBytes(KvFormat::kFp8, past) * tokens);
  Caches caches(tokens, past, std::max(2u, static_cast<uint32_t>(fitting)));
  auto queries = Floats(size_t{tokens} * kQueryWidth, 31);
  auto out = Floats(size_t{tokens} * kQueryWidth, 32);
  auto positions =
      Require(DeviceArray<uint32_t>::Copy(std::vector<uint32_t>(tokens, past - 1)));
  auto scratch = Require(DeviceArray<std::byte>::Allocate(
      DecodeAttentionScratchBytes(tokens, kQueryHeads, kHeadDim)));
  Require(scratch.Fill(0));
  for (const KvFormat format : {KvFormat::kBf16, KvFormat::kFp8}) {
    const uint32_t runs = std::max(caches.count, 32u);
    const double ms = TimeGraph(stream, [&] {
      for (uint32_t i = 0; i < runs; ++i) {
        Require(RunDecodeAttention({.queries = queries.data(),
                                    .token_count = tokens,
                                    .query_heads = kQueryHeads,
                                    .positions = positions.data(),
                                    .kv = caches.view(format, i % caches.count),
                                    .scale = 0.088f,
                                    .scratch = scratch.data(),
                                    .out = out.data()},
                                   stream));
      }
    });
    const std::string note = std::string(KvFormatName(format)) + ", " + std::to_string(tokens) +
                             " tokens, past " + std::to_string(past);
    Report("attention of single tokens", ms * 1e3 / runs,
           CacheBytes(format, past) * tokens, 0, note.c_str());
  }
}

void MeasureHeads(Stream stream, uint32_t tokens) {
  Caches caches(1, tokens, 1);
  const uint32_t projected = kQueryWidth + 2 * kKvHeads * kHeadDim;
  auto rows = Bf16(size_t{tokens} * projected, 41);
  auto queries = Bf16(size_t{tokens} * kQueryWidth, 42);
  auto norm = Floats(kHeadDim, 43), cos = Floats(size_t{tokens} * kHeadDim / 2, 44);
  for (const KvFormat format : {KvFormat::kBf16, KvFormat::kFp8}) {
    const double ms = Time(stream, [&] {
      Require(RunHeads({.bf16 = rows.data(),
                        .stride = projected,
                        .token_count = tokens,
                        .query_heads = kQueryHeads,
                        .q_norm = norm.data(),
                        .k_norm = norm.data(),
                        .epsilon = 1e-6f,
                        .cos = cos.data(),
                        .sin = cos.data(),
                        .rotary_dim = kHeadDim,
                        .kv = caches.view(format, 0),
                        .queries_bf16 = queries.data()},
                       stream));
    });
    const double bytes =
        2.0 * tokens * (projected + kQueryWidth) + CacheBytes(format, tokens);
    Report("heads", ms * 1e3, bytes, 0,
           (std::string(KvFormatName(format)) + ", " + std::to_string(tokens) + " tokens").c_str());
  }
}

// The last `chunk` of so many positions.
void MeasurePrefill(Stream stream, uint32_t positions, uint32_t chunk) {
  Caches caches(1, positions, 1);
  const uint32_t first = positions - chunk;
  auto queries = Bf16(size_t{chunk} * kQueryWidth, 51), operand = Bf16(size_t{chunk} * kQueryWidth, 52);
  const size_t elements = PagesOf(positions) * KvPageElements(kKvHeads, kHeadDim);
  auto keys = Bf16(elements, 53), values = Bf16(elements, 54);
  auto table = Require(DeviceArray<uint32_t>::Allocate(PagesOf(positions)));
  const std::string note =
      std::to_string(chunk) + " tokens behind " + std::to_string(first);
  const double expansion = Time(stream, [&] {
    Require(ExpandKv({.from = caches.view(KvFormat::kFp8, 0),
                      .positions = positions,
                      .keys = keys.data(),
                      .values = values.data(),
                      .block_table = table.data()},
                     stream));
  });
  Report("fp8 to bf16", expansion * 1e3,
         CacheBytes(KvFormat::kFp8, positions) + CacheBytes(KvFormat::kBf16, positions), 0,
         note.c_str());
  const double attention = Time(stream, [&] {
    Require(RunPrefillAttention({.queries = queries.data(),
                                 .token_count = chunk,
                                 .query_heads = kQueryHeads,
                                 .first_position = first,
                                 .kv = caches.view(KvFormat::kBf16, 0),
                                 .scale = 0.088f,
                                 .operand = operand.data()},
                                stream));
  });
  const double pairs = (first + chunk / 2.0) * chunk;
  Report("attention of many tokens", attention * 1e3, 0, 4.0 * pairs * kQueryWidth, note.c_str());
}

int Main(int count, char** arguments) {
  std::vector<uint32_t> pasts;
  uint32_t chunk = 8192;
  for (int i = 1; i + 1 < count; i += 2) {
    const std::string name = arguments[i];
    const auto value = static_cast<uint32_t>(std::stoul(arguments[i + 1]));
    if (name == "--past") pasts.push_back(value);
    if (name == "--chunk") chunk = value;
  }
  if (pasts.empty()) pasts = {1024, 8192, 32768};
  if (const auto gemm = GroupedGemm::Create(); !gemm.ok()) {
    std::fprintf(stderr, "%s\n", gemm.status().ToString().c_str());
    return 1;
  }
  Stream stream = nullptr;
  Require(cudaStreamCreate(&stream));
  MeasureCopy(stream);
  for (const uint32_t tokens : {1u, 8u}) {
    for (const uint32_t past : pasts) MeasureDecode(stream, tokens, past);
  }
  MeasureHeads(stream, chunk);
  for (const uint32_t past : pasts) MeasurePrefill(stream, past + chunk, chunk);
  return 0;
}

}  // namespace
}  // namespace moraine::gpu

int main(int count, char** arguments) { return moraine::gpu::Main(count, arguments); }
