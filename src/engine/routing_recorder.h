// RoutingRecorder: writes down which experts the tokens of a run took, as a RoutingTrace.
//
// A chunk counts when its last MoE layer has been seen: what was recorded of one that failed or was
// cancelled is dropped when the next begins. Costs 10 bytes for each routed expert of a token, and makes
// the model ask the routers of the next two layers for every token.
//
// Threads: the engine thread's.
#pragma once

#include <cstdint>

#include "base/ids.h"
#include "base/status.h"
#include "model/config.h"
#include "model/decoder_model.h"
#include "residency/routing_trace.h"

namespace moraine {

class RoutingRecorder {
 public:
  // kInvalidArgument for a model without routed experts.
  static Result<RoutingRecorder> Create(const ModelConfig& config);

  void Record(LayerId layer, const RoutingDecision& routing);
  uint32_t tokens() const { return complete_; }
  // The complete tokens, which are gone from the recorder then; the first `prefill_tokens` of them are
  // marked as a prompt.
  RoutingTrace Take(uint32_t prefill_tokens, std::string note);

 private:
  explicit RoutingRecorder(const ModelConfig& config);

  LayerId first_moe_, last_moe_;
  uint32_t complete_ = 0;  // tokens
  RoutingTrace trace_;
};

}  // namespace moraine
