// DecoderModel: the forward pass over a batch of tokens, of whatever blocks the config asks for.
//
// A batch is some tokens of one sequence or of several (batch_segment.h). Norms, projections, routers and
// experts work on all rows of a batch at once, attention and recurrent state on each sequence by itself.
//
// A layer is norm -> mixer (attention) -> residual -> norm -> feed forward -> residual; the feed
// forward is a dense SwiGLU, or a router, routed experts and perhaps a shared one. The routed experts'
// weights are not here: the model decides which experts a token needs and hands that to a
// MoeExecutor, which knows where they are.
//
// A row's bits do not depend on the rows beside it (cpu_backend.h): a chunk of n tokens and n chunks of one
// token, a sequence alone and among others give the same, which is what lets prefill, decode, and any
// batching agree. And a sequence whose request is cancelled, or whose expert cannot be read, can be taken
// out of the batch between two layers while the others go on.
//
// Threads: owned by one thread. No allocation in Forward.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/clock.h"
#include "compute/cpu_backend.h"
#include "model/batch_segment.h"
#include "model/blocks/dense_feed_forward.h"
#include "model/blocks/mixer.h"
#include "model/blocks/rope_table.h"
#include "model/blocks/router.h"
#include "model/blocks/scratch.h"
#include "model/blocks/shared_expert.h"
#include "model/config.h"
#include "model/sequence_state.h"
#include "model/weights.h"

namespace moraine {

inline constexpr uint32_t kMaxLookahead = 2;

struct RouterLookahead {
  LayerId layer;
  const uint32_t* experts = nullptr;  // token_count x top_k, best first
};

// What the router of one layer decided for a batch.
struct RoutingDecision {
  uint32_t token_count = 0, top_k = 0;
  const int32_t* tokens = nullptr;    // token_count ids; null: unknown
  const uint32_t* experts = nullptr;  // token_count x top_k, best first, distinct per token
  const float* weights = nullptr;     // token_count x top_k
  // token_count x hidden: the residual stream before the norm; null: unknown.
  const float* hidden = nullptr;
  // One flag for each of the layer's experts: not 0 if somebody else computes it, and the sum is that of the
  // others. Null: there is nobody else.
  const uint8_t* elsewhere = nullptr;
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
  // The expert for which the last RunExperts failed, if it was one: tokens that do not route to it can do
  // without. It may be called for them again.
  virtual std::optional<ExpertId> failed_expert() const { return std::nullopt; }
  // How many layers ahead the routers shall be asked now, at most kMaxLookahead. Each costs the model a
  // router's matrix a layer.
  virtual uint32_t LookaheadDepth() const { return 0; }
  // Lossy routing of decode: marks the experts that are in memory (one flag an expert) and returns how far
  // the choice shall lean to them, see ExpertChooser::ChoosePreferring; 0: not at all, and `resident` is not read.
  virtual float ResidentPreference(LayerId, std::span<uint8_t> /*resident*/) const { return 0; }
};

class DecoderModel {
 public:
  // max_tokens: the largest batch. The backend and the weights must outlive the model.
  DecoderModel(const ModelConfig& config, const DenseSource& weights, CpuBackend& backend,
               uint32_t max_tokens);

  static uint64_t ScratchBytes(const ModelConfig& config, uint32_t max_tokens);
  // The widest input of any matrix product: CpuBackend's max_cols.
  static uint32_t WidestInput(const ModelConfig& config);

  // Appends the tokens of each segment (together at most max_tokens, all below vocab_size) to its sequence.
  // Each has its status; of one that is not ok the sequence is as before. kResourceExhausted: no blocks are
  // left for it.
  void Forward(std::span<BatchSegment> batch, MoeExecutor& executor);

  // The experts of one layer for tokens whose router has spoken on another device: the norm, what the next routers
  // make of it, and executor.RunExperts, to the bit as Forward has it. At most max_tokens tokens,
  // `routing` with hidden.
  Status RunExperts(LayerId layer, RoutingDecision routing, MoeExecutor& executor, float* out);

  // Of one sequence.
  using LogitsMode = moraine::LogitsMode;
  using LogitsSink = moraine::LogitsSink;
  struct ForwardOptions {
    LogitsMode logits = LogitsMode::kLast;
    const LogitsSink* sink = nullptr;
    const std::atomic<bool>* cancelled = nullptr;
  };
  Status Forward(std::span<const int32_t> tokens, SequenceState& state, MoeExecutor& executor,
                 const ForwardOptions& options);

 private:
  struct Layer {
    std::span<const float> mixer_norm, feed_forward_norm;
    Mixer mixer;
    std::optional<DenseFeedForward> dense;  // or a router, and perhaps a shared expert
    std::optional<Router> router;
    std::optional<SharedExpert> shared;
  };

  // A row of which logits are wanted.
  struct LogitsRow {
    const LogitsSink* sink = nullptr;
    uint32_t position = 0;
  };

  Layer MakeLayer(uint32_t index, const DenseSource& weights);
  const RopeTable* TableFor(const RopeConfig* config, uint32_t max_tokens);
  void Normalize(const float* x, std::span<const float> weight, uint32_t rows, float* out);
  void Begin(std::span<BatchSegment> batch);
  void PrepareRope();
  template <typename Predicate>
  void TakeOut(const Status& status, Predicate&& predicate);
  void TakeOutCancelled();
  void TakeOutFailed(const Status& status, std::optional<ExpertId> expert);
  void RunMixer(Layer& layer);
  Status RunFeedForward(uint32_t index, MoeExecutor& executor);
  void Route(uint32_t index, const MoeExecutor& executor);
  void LookAhead(uint32_t index, uint32_t depth, RoutingDecision* routing);
  void LookAheadTo(Layer& layer, const float* stream, uint32_t token_count, uint32_t* experts);
  void EmitLogits();
  void EmitRows();

  const ModelConfig config_;
  CpuBackend& backend_;
  Scratch scratch_;  // of the block at work
  std::vector<std::unique_ptr<RopeTable>> rope_tables_;
  MatrixView embedding_, output_;
  std::span<const float> final_norm_;
  std::vector<Layer> layers_;
  // The batch at work: the segments that are still in it, and the same as the mixers see them.
  std::vector<BatchSegment*> batch_;
  std::vector<MixerSegment> segments_;
  uint32_t rows_ = 0;
  std::vector<int32_t> tokens_;  // of the rows
  std::vector<LogitsRow> logits_rows_;
  // max_tokens rows each.
  std::vector<float> hidden_, normed_, block_out_, router_logits_, routing_weights_, logits_;
  std::vector<uint32_t> routing_experts_;
  std::vector<uint8_t> resident_;
  std::vector<float> lookahead_normed_, lookahead_logits_, lookahead_weights_;  // kLookaheadRows
  std::vector<uint32_t> lookahead_experts_;  // kMaxLookahead x max_tokens
  RouterLookahead lookaheads_[kMaxLookahead];
};

}  // namespace moraine
