// The dimensions of published mixture-of-experts models, for synthetic stores.
//
// For routing that is skewed as a trained model's, which the generator makes for the Qwen3-MoE architecture only
// (synthetic_model.h); published_models.h has the models' own architectures, with routing that is not. So
// every other model is taken as its expert geometry under that architecture: the routed experts (their number,
// their size, how many a token uses, in which layers) are the model's own, because they decide what streams;
// attention is grouped-query attention with the model's head counts or, where the model has another kind (MLA,
// linear attention), with head counts that give about the same bytes; shared experts are left out.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace moraine {

struct PublishedShape {
  const char* name;
  uint32_t layers, dense_layers;  // the first dense_layers have no experts
  uint32_t experts, top_k;
  uint32_t hidden, expert_intermediate, dense_intermediate;
  uint32_t query_heads, kv_heads, head_dim;
  uint32_t vocab;
  bool whole_model;  // nothing but the weights' values is made up
};

std::span<const PublishedShape> PublishedShapes();
// nullptr if there is none of that name.
const PublishedShape* FindPublishedShape(std::string_view name);

}  // namespace moraine
