// Words and rows between the GPU and the host while a step runs (host_exchange.h). What the host
// writes meanwhile is read past the first cache, behind an acquire of the word that says it is
// there. All kernels are links of the chain of a decode step (launch.h): the next one starts, and
// asks for its weights, while these wait.
#include <cuda_runtime.h>

#include <string>

#include "compute/cuda/host_exchange.h"
#include "compute/cuda/launch.h"
#include "compute/cuda/mma.cuh"

namespace moraine::gpu {
namespace {

constexpr uint32_t kExchangeThreads = 512;
// Four values a thread: an add is a read over the link, many at once.
constexpr uint32_t kSumThreads = 128;

// What a layer's Exchange leaves for AddHostSum, and what its first block tells the others: a meeting
// with 8 tokens' sum takes 13 us when one block asks the host, and took 40 when 32 did (H200).
enum SumState : uint32_t { kNoSum, kSumFollows, kSumIsThere, kSumAbandoned };

__device__ uint32_t LoadAcquire(const uint32_t* word) {
  uint32_t value;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
  return value;
}
__device__ void StoreRelease(uint32_t* word, uint32_t value) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" : : "l"(word), "r"(value) : "memory");
}
__device__ uint32_t LoadFromBlock(const uint32_t* word) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
  return value;
}
__device__ void StoreToBlocks(uint32_t* word, uint32_t value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" : : "l"(word), "r"(value) : "memory");
}
__device__ uint64_t GlobalNanoseconds() {
  uint64_t ns;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(ns));
  return ns;
}

// Until `word` is at least `least`; kAbandoned if the host does not say so in time. By one thread.
__device__ uint32_t AwaitHost(HostMailbox* mailbox, const uint32_t* word, uint32_t least,
                              uint32_t turn, uint32_t wait_ms) {
  const uint64_t begin = GlobalNanoseconds();
  while (true) {
    const uint32_t value = LoadAcquire(word);
    if (value >= least) return value;
    if (LoadAcquire(&mailbox->timed_out) != 0) return kAbandoned;
    if (GlobalNanoseconds() - begin > uint64_t{wait_ms} * 1'000'000) {
      StoreRelease(&mailbox->timed_out, turn);
      return kAbandoned;
    }
  }
}

// A thread 16 bytes of a head's row.
__device__ void CopyKvRows(const KvRowsToHost& rows) {
  const PagedKv& kv = rows.kv;
  const bool f32 = kv.keys_f32 != nullptr;
  const uint32_t element_bytes = f32 ? 4 : 2;
  const auto* const keys = reinterpret_cast<const std::byte*>(
      f32 ? static_cast<const void*>(kv.keys_f32) : kv.keys);
  const auto* const values = reinterpret_cast<const std::byte*>(
      f32 ? static_cast<const void*>(kv.values_f32) : kv.values);
  const uint32_t row_words = kv.head_dim * element_bytes / 16;
  const uint64_t page_bytes = KvPageElements(kv.kv_heads, kv.head_dim) * element_bytes;
  const uint32_t pools = values == nullptr ? 1 : 2;
  const uint32_t words_of_token = pools * kv.kv_heads * row_words;
  for (uint32_t i = threadIdx.x; i < rows.token_count * words_of_token; i += blockDim.x) {
    const uint32_t token = i / words_of_token, of_token = i % words_of_token;
    const uint32_t head = of_token / row_words % kv.kv_heads, word = of_token % row_words;
    const bool of_values = of_token / row_words >= kv.kv_heads;
    const uint32_t position = rows.positions[token];
    const uint64_t page =
        kv.block_tables[uint64_t{token} * kv.table_stride + position / kKvPagePositions];
    const uint64_t in_page =
        (uint64_t{head} * kKvPagePositions + position % kKvPagePositions) * row_words * 16 +
        word * 16;
    const std::byte* const from = (of_values ? values : keys) + page * page_bytes + in_page;
    std::byte* const to =
        rows.host_blocks + page * pools * page_bytes + (of_values ? page_bytes : 0) + in_page;
    *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
  }
}

__global__ void __launch_bounds__(kExchangeThreads) CopyLayer(const LayerToHost layer) {
  LetNextStart();
  WaitForPrevious();
  if (layer.kv_rows.host_blocks != nullptr) CopyKvRows(layer.kv_rows);
  for (uint32_t i = threadIdx.x; i < layer.expert_count; i += blockDim.x) {
    layer.host_experts[i] = layer.experts[i];
  }
}

// One block: what it writes must be there before the word, and what it reads is a few kilobytes.
__global__ void __launch_bounds__(kExchangeThreads) Exchange(const HostExchange exchange) {
  __shared__ uint32_t placed;
  LetNextStart();
  WaitForPrevious();
  const uint32_t ranked = exchange.token_count * exchange.top_k;
  const uint32_t fours = exchange.token_count * (exchange.hidden / 4);
  for (uint32_t i = threadIdx.x; i < ranked; i += blockDim.x) {
    exchange.host_experts[i] = exchange.experts[i];
    exchange.host_weights[i] = exchange.weights[i];
  }
  for (uint32_t i = threadIdx.x; i < fours; i += blockDim.x) {
    reinterpret_cast<float4*>(exchange.host_x)[i] =
        reinterpret_cast<const float4*>(exchange.x)[i];
  }
  __threadfence_system();
  __syncthreads();
  if (threadIdx.x == 0) StoreRelease(&exchange.host_mailbox->routed, exchange.turn);
  // The host has something to do: these are not waited for before the step's end.
  if (exchange.kv_rows.host_blocks != nullptr) CopyKvRows(exchange.kv_rows);
  if (threadIdx.x == 0) {
    placed = AwaitHost(exchange.host_mailbox, &exchange.host_mailbox->placed,
                       PlacedWord(exchange.turn, false), exchange.turn, exchange.wait_ms);
    *exchange.sum_state = placed != kAbandoned && placed % 2 == 1 ? kSumFollows : kNoSum;
  }
  __syncthreads();
  for (uint32_t i = threadIdx.x; i < ranked; i += blockDim.x) {
    const uint32_t expert = exchange.experts[i];
    // An expert that several tokens took is written several times, the same.
    exchange.records[expert] =
        placed == kAbandoned
            ? nullptr
            : reinterpret_cast<const std::byte*>(__ldcg(
                  reinterpret_cast<const unsigned long long*>(exchange.host_records) + expert));
  }
}

// Blocks of a row, and tokens.
__global__ void __launch_bounds__(kSumThreads) AddHostSum(const HostSum sum) {
  __shared__ uint32_t state;
  LetNextStart();
  WaitForPrevious();
  if (threadIdx.x == 0) {
    state = LoadFromBlock(sum.sum_state);
    if (state == kSumFollows && blockIdx.x == 0 && blockIdx.y == 0) {
      const uint32_t said = AwaitHost(sum.host_mailbox, &sum.host_mailbox->computed, sum.turn,
                                      sum.turn, sum.wait_ms);
      state = said == kAbandoned ? kSumAbandoned : kSumIsThere;
      StoreToBlocks(sum.sum_state, state);
    }
    while (state == kSumFollows) state = LoadFromBlock(sum.sum_state);
  }
  __syncthreads();
  if (state != kSumIsThere) return;
  const uint32_t column = blockIdx.x * kSumThreads + threadIdx.x;
  if (column >= sum.hidden / 4) return;
  const uint64_t at = uint64_t{blockIdx.y} * (sum.hidden / 4) + column;
  const float4 add = __ldcg(reinterpret_cast<const float4*>(sum.host_sum) + at);
  float4& x = reinterpret_cast<float4*>(sum.x)[at];
  x = make_float4(x.x + add.x, x.y + add.y, x.z + add.z, x.w + add.w);
}

Status CheckKvRows(const KvRowsToHost& rows) {
  const uint32_t bytes = rows.kv.head_dim * (rows.kv.keys_f32 != nullptr ? 4 : 2);
  if (rows.host_blocks == nullptr || bytes % 16 == 0) return OkStatus();
  return Unsupported("rows of keys and values to the host: heads of " + std::to_string(bytes) +
                     " bytes, expected a multiple of 16");
}

Status CheckHidden(uint32_t hidden) {
  if (hidden % 4 == 0) return OkStatus();
  return Unsupported("layers on GPU and CPU together: rows of " + std::to_string(hidden) +
                     " values, expected a multiple of 4");
}

}  // namespace

Status RunLayerToHost(const LayerToHost& layer, Stream stream) {
  RETURN_IF_ERROR(CheckKvRows(layer.kv_rows));
  return Checked(LaunchChained(CopyLayer, dim3(1), kExchangeThreads, 0, stream, layer),
                 "keys and values to the host");
}

Status RunHostExchange(const HostExchange& exchange, Stream stream) {
  RETURN_IF_ERROR(CheckHidden(exchange.hidden));
  RETURN_IF_ERROR(CheckKvRows(exchange.kv_rows));
  return Checked(LaunchChained(Exchange, dim3(1), kExchangeThreads, 0, stream, exchange),
                 "choice of experts to the host");
}

Status RunAddHostSum(const HostSum& sum, Stream stream) {
  RETURN_IF_ERROR(CheckHidden(sum.hidden));
  if (sum.token_count == 0) return OkStatus();
  const dim3 grid(CeilDivide(sum.hidden / 4, kSumThreads), sum.token_count);
  return Checked(LaunchChained(AddHostSum, grid, kSumThreads, 0, stream, sum),
                 "the host's experts");
}

}  // namespace moraine::gpu
