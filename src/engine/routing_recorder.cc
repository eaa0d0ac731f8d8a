#include "engine/routing_recorder.h"

#include <algorithm>
#include <utility>

namespace moraine {

Result<RoutingRecorder> RoutingRecorder::Create(const ModelConfig& config) {
  const bool any = std::any_of(config.layers.begin(), config.layers.end(), [](const auto& layer) {
    return layer.feed_forward == FeedForwardKind::kMoe;
  });
  if (!any) return InvalidArgument("this model has no routed experts: there is no routing to record");
  return RoutingRecorder(config);
}

RoutingRecorder::RoutingRecorder(const ModelConfig& config) {
  trace_.layers = static_cast<uint32_t>(config.layers.size());
  trace_.experts = config.expert_count;
  trace_.top_k = config.top_k;
  const auto is_moe = [](const auto& layer) { return layer.feed_forward == FeedForwardKind::kMoe; };
  const auto& layers = config.layers;
  first_moe_ = LayerId(static_cast<uint32_t>(
      std::find_if(layers.begin(), layers.end(), is_moe) - layers.begin()));
  last_moe_ = LayerId(static_cast<uint32_t>(
      layers.rend() - std::find_if(layers.rbegin(), layers.rend(), is_moe) - 1));
}

void RoutingRecorder::Record(LayerId layer, const RoutingDecision& routing) {
  const size_t row = trace_.row_size(), top_k = trace_.top_k;
  if (layer == first_moe_) {
    const size_t size = (size_t{complete_} + routing.token_count) * row;
    for (auto* column : {&trace_.picks, &trace_.next, &trace_.after_next}) {
      column->resize(size_t{complete_} * row);
      column->resize(size, kNoTracedExpert);
    }
    trace_.gate_weights.resize(size);
  }
  const auto put = [&](const uint32_t* experts, std::vector<uint16_t>* column) {
    for (uint32_t t = 0; t < routing.token_count; ++t) {
      uint16_t* const out = &(*column)[(complete_ + t) * row + layer.value() * top_k];
      for (size_t k = 0; k < top_k; ++k) out[k] = static_cast<uint16_t>(experts[t * top_k + k]);
    }
  };
  put(routing.experts, &trace_.picks);
  for (uint32_t t = 0; t < routing.token_count; ++t) {
    std::copy_n(routing.weights + t * top_k, top_k,
                &trace_.gate_weights[(complete_ + t) * row + layer.value() * top_k]);
  }
  for (const RouterLookahead& ahead : routing.lookaheads) {
    // The format's columns are of the next two layers; a dense one between has no router.
    const uint32_t distance = ahead.layer.value() - layer.value();
    if (distance <= 2) put(ahead.experts, distance == 1 ? &trace_.next : &trace_.after_next);
  }
  if (layer == last_moe_) complete_ += routing.token_count;
}

RoutingTrace RoutingRecorder::Take(uint32_t prefill_tokens, std::string note) {
  for (auto* column : {&trace_.picks, &trace_.next, &trace_.after_next}) {
    column->resize(size_t{complete_} * trace_.row_size());
  }
  trace_.gate_weights.resize(size_t{complete_} * trace_.row_size());
  RoutingTrace taken = trace_;
  taken.prefill_tokens = std::min(prefill_tokens, complete_);
  taken.note = std::move(note);
  complete_ = 0;
  return taken;
}

}  // namespace moraine
