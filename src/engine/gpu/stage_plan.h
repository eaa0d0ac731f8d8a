// Which layers of a model go to which of several GPUs.
//
// Layers are a pipeline: each GPU has a range of them, and the residual stream goes from one to the next. A prompt's
// pieces follow each other through it, so its speed is that of the slowest stage; an answer's token passes
// through one stage after the other, so its speed hardly depends on the division. Hence: the division whose
// slowest stage is the fastest, among those where all experts stay in VRAM if there are such: a layer over the link
// costs an answer more than any division gains. Where some must be streamed, a stage takes as long as its
// arithmetic or its link, so that every GPU's link carries its part.
//
// Cost: layers^2 / 2 plans of VRAM for each GPU between the first and the last.
//
// Pure functions, in every build.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "engine/gpu/vram_needs.h"
#include "engine/gpu/vram_plan.h"
#include "model/config.h"
#include "store/manifest.h"

namespace moraine {

// One entry a stage, in the order of layers. A GPU may be named twice; each entry has its own budget.
struct StageDevice {
  std::string name;           // for messages
  uint64_t budget_bytes = 0;  // of VRAM
  // As measured, of a prompt's products and of copies from page-locked memory.
  double operations_per_s = 1, link_bytes_per_s = 1;
};

struct StageNeeds {
  std::function<VramNeeds(LayerRange layers)> vram;  // the chunk in it is not looked at
  std::vector<double> layer_operations;  // that a prompt's token takes in each layer
  double row_operations = 0;             // that a row of logits takes, of which each piece has one
  uint32_t piece = 0;                    // tokens that a stage computes together; 0: chosen
  uint32_t max_context = 0;
};
StageNeeds CountStageNeeds(const Manifest& manifest, const ModelConfig& config,
                           const VramNeedsOptions& options);

struct StagePlan {
  LayerRange layers;
  VramPlan vram;
};

// One stage for each device, each with a layer at least. kInvalidArgument: more devices than layers.
// kResourceExhausted naming, for each device that has too little, the parts and their bytes.
Result<std::vector<StagePlan>> PlanStages(const StageNeeds& needs,
                                          std::span<const StageDevice> devices);

// Tokens of a prompt that go through the stages as one, in pieces behind each other.
uint32_t PromptTokens(uint32_t stages, uint32_t piece, uint32_t max_context);

// Of all stages together.
VramPlan SumOf(std::span<const StagePlan> stages);

}  // namespace moraine
