#include "model/blocks/mixer.h"

namespace moraine {
namespace {

template <typename Config>
struct KindOf;
template <>
struct KindOf<GqaConfig> {
  using Type = GqaAttention;
};
template <>
struct KindOf<MlaConfig> {
  using Type = MlaAttention;
};
template <>
struct KindOf<GatedDeltaConfig> {
  using Type = GatedDeltaNet;
};
template <typename Config>
using Kind = typename KindOf<Config>::Type;

}  // namespace

void AppendMixerRoles(const MixerConfig& config, uint32_t hidden, RoleList* roles) {
  std::visit([&]<typename C>(const C& c) { Kind<C>::AppendRoles(c, hidden, roles); }, config);
}

LayerStateShape StateShapeOf(const MixerConfig& config, KvFormat format) {
  return std::visit([&]<typename C>(const C& c) { return Kind<C>::StateShape(c, format); }, config);
}

size_t MixerScratchFloats(const MixerConfig& config, uint32_t hidden, uint32_t max_tokens) {
  return std::visit(
      [&]<typename C>(const C& c) { return Kind<C>::ScratchFloats(c, hidden, max_tokens); },
      config);
}

const RopeConfig* RopeOf(const MixerConfig& config) {
  return std::visit([]<typename C>(const C& c) { return Kind<C>::Rope(c); }, config);
}

Mixer MakeMixer(const MixerConfig& config, const MixerContext& context, const DenseSource& weights,
                const std::string& role_prefix) {
  return std::visit(
      [&]<typename C>(const C& c) -> Mixer { return Kind<C>(c, context, weights, role_prefix); },
      config);
}

}  // namespace moraine
