#include "model/weights.h"

#include <fmt/format.h>

#include "base/check.h"
#include "model/blocks/dense_feed_forward.h"
#include "model/blocks/mixer.h"
#include "model/blocks/router.h"
#include "model/blocks/shared_expert.h"

namespace moraine {

void RoleList::Add(const char* role, DenseRole::Kind kind, uint32_t rows, uint32_t cols) {
  std::string name = prefix_ + role;
  std::string source = naming_.NameOf(name);
  CHECK(!source.empty(), "no table of names has the role " + name);
  roles_.push_back({std::move(name), std::move(source), kind, rows, cols});
}

std::vector<DenseRole> DenseRoles(const ModelConfig& config, const TensorNaming& naming) {
  RoleList roles(naming);
  roles.Matrix("embedding", config.vocab_size, config.hidden);
  for (size_t i = 0; i < config.layers.size(); ++i) {
    const LayerConfig& layer = config.layers[i];
    const std::string prefix = fmt::format("layers.{}.", i);
    roles.set_prefix(prefix + "attention.");
    roles.Vector("norm", config.hidden);
    AppendMixerRoles(layer.mixer, config.hidden, &roles);
    roles.set_prefix(prefix + "mlp.");
    roles.Vector("norm", config.hidden);
    if (layer.feed_forward == FeedForwardKind::kDense) {
      DenseFeedForward::AppendRoles(layer.intermediate, config.hidden, &roles);
      continue;
    }
    Router::AppendRoles(config, &roles);
    roles.set_prefix(prefix + "mlp.shared.");
    SharedExpert::AppendRoles(config, &roles);
  }
  roles.set_prefix("");
  roles.Vector("norm", config.hidden);
  if (!config.tied_embeddings) roles.Matrix("output", config.vocab_size, config.hidden);
  return roles.Take();
}

std::vector<DenseRole> DenseRoles(const ModelConfig& config) {
  return DenseRoles(config, TensorNaming(config));
}

}  // namespace moraine
