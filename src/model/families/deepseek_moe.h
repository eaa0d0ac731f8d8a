// The mixture of experts of DeepSeek-V2 and V3, which Kimi-K2 and GLM-4.5 share: routed experts chosen
// by group, shared experts that are not gated, and dense layers first.
#pragma once

#include "model/families/config_reader.h"

namespace moraine {

enum class DeepSeekRouter : uint8_t {
  kV2,  // softmax; a group is as good as its best expert
  kV3,  // sigmoid and a correction bias; a group is as good as its two best experts
};

// Fills layers with `mixer`, the router, the experts and the shared expert.
void ReadDeepSeekMoe(ConfigReader& fields, DeepSeekRouter kind, const MixerConfig& mixer,
                     ModelConfig* config);

}  // namespace moraine
