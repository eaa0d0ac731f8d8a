// Family: what is particular to the models of one architecture: how its config.json reads as blocks,
// and how its checkpoints spell the names of tensors. One short file a family; docs/families.md.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "model/config.h"
#include "model/families/config_reader.h"
#include "model/tensor_naming.h"

namespace moraine {

struct Family {
  std::span<const std::string_view> model_types;  // of config.json
  // Fills what ParseModelConfig has not: layers, experts, router. Errors go to `fields`.
  void (*describe)(ConfigReader& fields, ModelConfig* config);
  // Names beside the common ones (tensor_naming.cc), and instead of them.
  std::span<const TensorName> names;
  // How the experts can come; the first form whose tensors a checkpoint has is taken.
  std::span<const ExpertForm> expert_forms;
  // Zero-centred RmsNorms (1 + weight): 1.
  float norm_offset = 0;
};

// nullptr if there is none.
const Family* FindFamily(std::string_view model_type);
// "'olmoe', 'qwen3_moe'", for messages.
std::string SupportedModelTypes();

extern const Family kDeepseek, kGlm4Moe, kGptOss, kMiniMaxM2, kOlmoe, kQwen3Moe, kQwen3Next;

}  // namespace moraine
