// DecoderModel: the forward pass of the Qwen3-MoE family over a chunk of tokens.
//
// A layer is norm -> attention -> residual -> norm -> (router -> routed experts | dense SwiGLU) ->
// residual. The routed experts' weights are not here: the model decides which experts a token needs
// and hands that to a MoeExecutor, which knows where they are. Source of the formulas: transformers'
// modeling_qwen3_moe.py (Apache-2.0), float32.
//
// A chunk of n tokens and n chunks of one token give the same bits (cpu_backend.h), which is what
// lets prefill, decode, and any batching agree.
//
// Threads: owned by one thread. No allocation in Forward.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/clock.h"
#include "compute/cpu_backend.h"
#include "model/config.h"
#include "model/kv_cache.h"
#include "model/weights.h"

namespace moraine {

inline constexpr uint32_t kMaxLookahead = 2;

struct RouterLookahead {
  LayerId layer;
  const uint32_t* experts = nullptr;  // token_count x top_k, best first
};

// What the router of one layer decided for a chunk.
struct RoutingDecision {
  uint32_t token_count = 0, top_k = 0;
  const uint32_t* experts = nullptr;  // token_count x top_k, best first, distinct per token
  const float* weights = nullptr;     // token_count x top_k
  // What the routers of the next MoE layers make of this layer's hidden state, nearest first: guesses at
  // what those layers will need, right 70 to 90 times in 100 one layer ahead. As many as the executor
  // wants and the model has.
  std::span<const RouterLookahead> lookaheads;
};

// Computes the routed experts of one layer. Implemented by the engine.
class MoeExecutor {
 public:
  virtual ~MoeExecutor() = default;
  // out[t] = sum over rank j, in order, of weights[t][j] * expert(experts[t][j])(x[t]); token_count x
  // hidden floats each, row-major, overwritten.
  virtual Status RunExperts(LayerId layer, const RoutingDecision& routing, const float* x,
                            float* out) = 0;
  // How many layers ahead the routers shall be asked now, at most kMaxLookahead. Each costs the model a
  // router's matrix a layer.
  virtual uint32_t LookaheadDepth() const { return 0; }
  // Lossy routing of decode: marks the experts that are in memory (one flag an expert) and returns how far
  // the choice shall lean to them, see RoutePreferring; 0: not at all, and `resident` is not read.
  virtual float ResidentPreference(LayerId, std::span<uint8_t> /*resident*/) const { return 0; }
};

class DecoderModel {
 public:
  // max_tokens: the largest chunk. The backend and the weights must outlive the model.
  DecoderModel(const ModelConfig& config, const DenseSource& weights, CpuBackend& backend,
               uint32_t max_tokens);

  static uint64_t ScratchBytes(const ModelConfig& config, uint32_t max_tokens);

  enum class LogitsMode : uint8_t { kNone, kLast, kAll };
  using LogitsSink = std::function<void(uint32_t position, std::span<const float> logits)>;
  struct ForwardOptions {
    LogitsMode logits = LogitsMode::kLast;
    const LogitsSink* sink = nullptr;
    const std::atomic<bool>* cancelled = nullptr;  // looked at once a layer
  };
  // Appends tokens (at most max_tokens, all below vocab_size) to the cache. On error the cache's length
  // is unchanged.
  Status Forward(std::span<const int32_t> tokens, KvCache& cache, MoeExecutor& executor,
                 const ForwardOptions& options);

 private:
  struct Attention {
    std::span<const float> norm, q_norm, k_norm, q_bias, k_bias, v_bias, o_bias;
    MatrixView q, k, v, o;
  };
  struct Layer {
    Attention attention;
    std::span<const float> mlp_norm;
    MatrixView router;           // MoE layers
    MatrixView gate, up, down;   // dense layers
  };

  void Embed(std::span<const int32_t> tokens);
  void PrepareRope(uint32_t first_position, uint32_t token_count);
  void RunAttention(const Layer& layer, uint32_t index, uint32_t token_count, KvCache& cache);
  Status RunFeedForward(const Layer& layer, uint32_t index, uint32_t token_count,
                        MoeExecutor& executor);
  void Route(uint32_t index, uint32_t token_count, const MoeExecutor& executor);
  void LookAhead(uint32_t index, uint32_t depth, RoutingDecision* routing);
  void LookAheadTo(uint32_t layer, uint32_t token_count, uint32_t* experts);
  void EmitLogits(uint32_t first_position, uint32_t token_count, const ForwardOptions& options);

  const ModelConfig config_;
  CpuBackend& backend_;
  MatrixView embedding_, output_;
  std::span<const float> final_norm_;
  std::vector<Layer> layers_;
  std::vector<float> inverse_frequencies_;
  // Scratch, max_tokens rows each.
  std::vector<float> hidden_, normed_, q_, keys_, values_, attention_out_, block_out_, gate_, up_;
  std::vector<float> cos_, sin_, router_logits_, routing_weights_, logits_;
  std::vector<uint32_t> routing_experts_;
  std::vector<uint8_t> resident_;
  std::vector<float> lookahead_normed_, lookahead_logits_, lookahead_weights_;  // kLookaheadRows
  std::vector<uint32_t> lookahead_experts_;  // kMaxLookahead x max_tokens
  RouterLookahead lookaheads_[kMaxLookahead];
};

// Softmax over all experts, then the top k, best first (lower index first on a tie), renormalised to
// sum to one if asked for. logits: expert_count values, overwritten.
void RouteToken(float* logits, uint32_t expert_count, uint32_t top_k, bool normalize,
                uint32_t* experts, float* weights);

// The same with a preference: the best expert stays; the others are chosen by logit, plus `strength` times
// the span of the logits where `resident`. Weights are the softmax of the logits as they were, best first.
void RoutePreferring(float* logits, uint32_t expert_count, uint32_t top_k, bool normalize,
                     const uint8_t* resident, float strength, uint32_t* experts, float* weights);

}  // namespace moraine
