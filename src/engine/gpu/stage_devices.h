// The GPUs that a model is opened on: their names, budgets and speeds, as stage_plan.h divides layers by.
//
// Threads: any; changes the calling thread's current GPU.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "engine/gpu/stage_plan.h"

namespace moraine {

struct StageDevices {
  std::vector<StageDevice> devices;  // as asked for
  std::string name;  // of all: "NVIDIA H200", "2 x NVIDIA H200", "NVIDIA L40S + NVIDIA L4"
};
// budget_bytes: of each entry; 0: what is free there but for a reserve, in equal parts where a GPU is named more
// than once. One GPU is not measured; of GPUs of one name each counts as their mean, so that equal cards get
// equal layers. kResourceExhausted: a budget beyond what is free, naming the GPU.
Result<StageDevices> FindStageDevices(std::span<const uint32_t> gpus, uint64_t budget_bytes);

}  // namespace moraine
