// Mixer: the block of a layer that lets a token see those before it, of whichever kind.
//
// What a kind consists of, so that the functions below find it:
//   static void AppendRoles(const Config&, uint32_t hidden, RoleList*)   its dense tensors
//   static LayerStateShape StateShape(const Config&, KvFormat)           what a sequence keeps
//   static size_t ScratchFloats(const Config&, uint32_t hidden, uint32_t max_tokens)
//   static const RopeConfig* Rope(const Config&)                         nullptr if it has none
//   Kind(const Config&, const MixerContext&, const DenseSource&, const std::string& role_prefix)
//   void Run(const MixerInput&, float* out)                              max_tokens x hidden at most
// Run must be batch-invariant (compute/cpu_backend.h), must leave what the sequence has committed as
// it is (model/sequence_state.h), and allocates nothing.
#pragma once

#include <string>
#include <variant>

#include "model/blocks/gated_delta_net.h"
#include "model/blocks/gqa_attention.h"
#include "model/blocks/mla_attention.h"
#include "model/blocks/mixer_context.h"
#include "model/config.h"
#include "model/sequence_state.h"
#include "model/weights.h"

namespace moraine {

// In the order of MixerConfig.
using Mixer = std::variant<GqaAttention, MlaAttention, GatedDeltaNet>;

void AppendMixerRoles(const MixerConfig& config, uint32_t hidden, RoleList* roles);
LayerStateShape StateShapeOf(const MixerConfig& config, KvFormat format);
size_t MixerScratchFloats(const MixerConfig& config, uint32_t hidden, uint32_t max_tokens);
const RopeConfig* RopeOf(const MixerConfig& config);
Mixer MakeMixer(const MixerConfig& config, const MixerContext& context, const DenseSource& weights,
                const std::string& role_prefix);

}  // namespace moraine
