// What a runner keeps in memory besides expert slots: dense weights, keys and values, recurrent state, the
// buffers of a step, and the process itself.
#pragma once

#include <cstdint>

#include "compute/kv_format.h"
#include "engine/budget.h"
#include "model/config.h"
#include "store/manifest.h"

namespace moraine {

// RunnerOptions::max_context unless it is given.
inline constexpr uint32_t kDefaultContext = 4096;

struct FixedMemoryOptions {
  uint32_t context = 0;    // positions of keys and values, of all sequences together
  uint32_t sequences = 1;  // that are computed together
  uint32_t step_tokens = 0;  // the most that are computed in a step, of all sequences
  KvFormat kv_format = KvFormat::kF32;
};

FixedMemory CountFixedMemory(const Manifest& manifest, const ModelConfig& config,
                             const FixedMemoryOptions& options);

}  // namespace moraine
