#include "model/families/deepseek_moe.h"

#include <fmt/format.h>

namespace moraine {
namespace {

void ReadGroups(ConfigReader& fields, RouterConfig* router) {
  router->group_count = fields.Count({"n_group"}, 1, kMaxExperts, 1);
  router->chosen_groups = fields.Count({"topk_group"}, 1, kMaxExperts, 1);
}

void ReadRouterV2(ConfigReader& fields, RouterConfig* router) {
  fields.RequireText("scoring_func", "softmax");
  // Published code normalises and then does not scale, transformers never normalises; no published
  // model asks for it.
  fields.RequireFlag("norm_topk_prob", false);
  const std::string method = fields.Text("topk_method", "greedy");
  if (method == "group_limited_greedy") {
    ReadGroups(fields, router);
    router->group_score = GroupScore::kBest;
  } else if (method != "greedy") {
    fields.RefuseUnsupported(fmt::format(
        "field 'topk_method' is '{}', supported: 'greedy' and 'group_limited_greedy'", method));
  }
}

void ReadRouterV3(ConfigReader& fields, RouterConfig* router) {
  fields.RequireText("scoring_func", "sigmoid");
  fields.RequireText("topk_method", "noaux_tc");
  router->scoring = Scoring::kSigmoid;
  router->correction_bias = true;
  ReadGroups(fields, router);
  router->group_score = GroupScore::kTwoBest;
  router->normalize = fields.Flag("norm_topk_prob", true);
  router->normalize_epsilon = 1e-20f;  // as both codes have it
}

}  // namespace

void ReadDeepSeekMoe(ConfigReader& fields, DeepSeekRouter kind, const MixerConfig& mixer,
                     ModelConfig* config) {
  ReadExpertCounts(fields, {"n_routed_experts"}, config);
  kind == DeepSeekRouter::kV2 ? ReadRouterV2(fields, &config->router)
                              : ReadRouterV3(fields, &config->router);
  config->router.scale = fields.Real({"routed_scaling_factor"}, 1);
  const uint32_t layer_count = ReadLayerCount(fields);
  const uint32_t expert = fields.Count({"moe_intermediate_size"}, 1, kMaxDimension);
  const uint32_t dense = fields.Count({"intermediate_size"}, 1, kMaxDimension);
  const uint32_t dense_count = fields.Count({"first_k_dense_replace"}, 0, kMaxLayers, 0);
  fields.Count({"moe_layer_freq"}, 1, 1, 1);
  fields.RequireFlag("mlp_bias", false);
  const uint32_t shared = fields.Count({"n_shared_experts"}, 0, kMaxDimension, 0);
  if (shared > kMaxDimension / expert) {
    fields.Fail(fmt::format("field 'n_shared_experts' is {}, expected at most {}", shared,
                            kMaxDimension / expert));
  }
  if (!fields.status().ok()) return;
  config->shared_expert.intermediate = shared * expert;
  AddLayers(layer_count, dense_count, dense, expert, mixer, config);
}

}  // namespace moraine
