// ExpertDeferral: cold experts of little weight join one layer later. Opt-in and lossy.
//
// After KTransformers ("Expert Deferral", Chen et al., SOSP '25): a residual stream changes little from layer
// to layer, so that adding an expert's output to the next layer's sum instead of its own changes little in
// what follows, and its read has a layer's compute to hide behind. Here only experts that are absent at
// lookup are deferred, those of the lowest router weight first, never a token's best one, never in the
// last MoE layer, and only in decode. What is deferred depends on what is in memory, so results are no
// longer the same at every budget: that is why nobody gets this without asking.
//
// Threads: the engine thread's. No allocation once constructed.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "compute/expert_kernels.h"
#include "model/decoder_model.h"
#include "residency/residency_manager.h"

namespace moraine {

class ExpertDeferral {
 public:
  ExpertDeferral(const ModelConfig& config, ResidencyManager& residency);

  // Experts of a layer that may be deferred, at most top_k - 1; 0, as it begins: none.
  void set_limit(uint32_t limit);
  bool on() const { return limit_ > 0; }
  uint64_t deferred() const { return total_; }

  // A new step: what an aborted one has left behind is dropped.
  void Reset();
  // Takes the experts of `layer` that will be late out of `experts` and remembers input and weights. Their
  // ranks weigh 0 in weights() from now on.
  void Choose(LayerId layer, const RoutingDecision& routing, const float* x,
              std::vector<ExpertId>* experts);
  const float* weights() const { return weights_.data(); }
  // Asks for what was chosen, as far as there are slots. To be called again while it returns false.
  bool Start();
  // Adds to out (hidden floats) what the layer before has deferred, waiting for it with `wait`, and makes
  // what this layer has deferred the next to be added.
  Status Finish(const std::vector<ExpertLayout>& layouts, ExpertKernels& kernels,
                const std::function<size_t()>& wait, float* out);

 private:
  struct Batch {
    LayerId layer;
    std::vector<ExpertId> experts;
    std::vector<float> weights;
    std::vector<Lease> leases;  // the first `leased` of them
    size_t leased = 0;
    std::vector<float> input;
  };

  const uint32_t hidden_, most_;  // most_: that limit_ can be
  const ExpertActivation activation_;
  uint32_t limit_ = 0, last_layer_ = 0;
  ResidencyManager& residency_;
  uint64_t total_ = 0;
  Batch chosen_, late_;  // of this layer, of the layer before
  std::vector<float> weights_, outputs_;
  std::vector<ExpertTask> tasks_;
};

}  // namespace moraine
