// Where the GPU and the host meet inside a step that both compute: the GPU hands a layer's choice
// over, waits for word where its experts are, and at the layer's end for the sum of those that the
// host has computed.
//
//   GPU   .. router, RunHostExchange ----- routed ----> host: where are they?
//                    |  waits for   <----- placed -----  addresses
//         gate and up, down                             host computes the others
//         RunAddHostSum, waits for  <----- computed ---  their sum
//         next layer ..
//
// Kernels that wait for words in page-locked memory, instead of events and launches between them:
// the whole step is one recorded graph, and the host makes no call to CUDA while it runs. Cost: two
// kernels and three crossings of the link, four with a sum (docs/gpu.md has microseconds). The price
// is that the host must answer, come what may: until then the GPU is busy waiting. So
//
//   - whoever gives a step up answers kAbandoned to everything: what waits goes on, without
//     experts;
//   - a kernel that has waited for wait_ms says so (timed_out) and goes on as if abandoned: whoever
//     makes launches wait for kernels (debuggers, CUDA_LAUNCH_BLOCKING) gets an error, not a
//     process that hangs;
//   - while a step waits, nothing may be asked of CUDA that waits for the device: freeing memory,
//     or the first launch of a kernel, whose code is loaded then. Copies on other streams may.
//
// Rows of keys and values go to the host in the same kernel, straight into its pool: 2 KB a token
// and layer of Qwen3-30B-A3B, for which no copy is launched.
//
// Units, pointers, threads, capture: as in gemv.h. Pointers named host_ are page-locked memory's
// addresses on the device. A mailbox is one step's: set to zeros before each.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/status.h"
#include "compute/cuda/gpu_attention.h"

namespace moraine::gpu {

// Longer than any drive makes a layer wait.
inline constexpr uint32_t kHostWaitMs = 30'000;
inline constexpr uint32_t kAbandoned = UINT32_MAX;

// Layers that meet are numbered from 1 on: turns. Each side's words have a line of their own.
struct HostMailbox {
  alignas(64) uint32_t routed = 0;     // the GPU: this turn's choice is there
  uint32_t timed_out = 0;              // the GPU: the turn in which it gave up
  alignas(64) uint32_t placed = 0;     // the host: PlacedWord, or kAbandoned
  alignas(64) uint32_t computed = 0;   // the host: this turn's sum is there; or kAbandoned
};
// sum_follows: some experts of the choice have no address, and `computed` will be said.
constexpr uint32_t PlacedWord(uint32_t turn, bool sum_follows) {
  return turn * 2 + (sum_follows ? 1 : 0);
}

// Of each token of a step its row of keys and values in one layer: page p of the GPU's is block p
// of the host's pool, which has the keys of a page and then its values, in the same order. Latents
// are keys of one head, without values. bf16 or float32.
struct KvRowsToHost {
  PagedKv kv;
  const uint32_t* positions = nullptr;
  uint32_t token_count = 0;
  std::byte* host_blocks = nullptr;  // null: rows are not handed over
};
// For layers that do not meet: rows, and what their router chose. kUnsupported for rows of a head
// that are not whole 16 bytes.
struct LayerToHost {
  KvRowsToHost kv_rows;
  const uint32_t* experts = nullptr;
  uint32_t expert_count = 0;  // tokens x top_k; 0: a layer without
  uint32_t* host_experts = nullptr;
};
Status RunLayerToHost(const LayerToHost& layer, Stream stream);

struct HostExchange {
  KvRowsToHost kv_rows;
  HostMailbox* host_mailbox = nullptr;
  uint32_t turn = 0;
  uint32_t token_count = 0, top_k = 0, hidden = 0;  // hidden: a multiple of 4
  const uint32_t* experts = nullptr;                // token_count x top_k
  const float* weights = nullptr;                   // token_count x top_k
  const float* x = nullptr;                         // token_count x hidden
  uint32_t* host_experts = nullptr;                 // the same, for the host
  float* host_weights = nullptr;
  float* host_x = nullptr;
  // By expert: what the host answers, read for the experts of the choice only, and where it is put
  // for ExpertGemv.
  const std::byte* const* host_records = nullptr;
  const std::byte** records = nullptr;
  uint32_t* sum_state = nullptr;  // on the device, for RunAddHostSum
  uint32_t wait_ms = kHostWaitMs;
};
Status RunHostExchange(const HostExchange& exchange, Stream stream);

// x[t] += sum[t], if a sum follows.
struct HostSum {
  HostMailbox* host_mailbox = nullptr;
  uint32_t turn = 0;
  uint32_t* sum_state = nullptr;
  const float* host_sum = nullptr;  // token_count x hidden
  uint32_t token_count = 0, hidden = 0;
  float* x = nullptr;  // token_count x hidden
  uint32_t wait_ms = kHostWaitMs;
};
Status RunAddHostSum(const HostSum& sum, Stream stream);

}  // namespace moraine::gpu
