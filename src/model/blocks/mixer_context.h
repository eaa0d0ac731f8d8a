// What a mixer is built with and what it works on; see mixer.h.
#pragma once

#include <cstdint>

#include "compute/cpu_backend.h"
#include "model/blocks/rope_table.h"
#include "model/blocks/scratch.h"
#include "model/sequence_state.h"

namespace moraine {

// Outlives the mixer.
struct MixerContext {
  CpuBackend* backend = nullptr;
  Scratch* scratch = nullptr;      // free when Run is called, all of it the block's
  const RopeTable* rope = nullptr; // of the config's Rope, prepared for the chunk; may be null
  uint32_t hidden = 0, layer = 0;
  float norm_epsilon = 0;
};

// One chunk: tokens at state->length() and after it.
struct MixerInput {
  const float* x = nullptr;  // token_count x hidden, normalised
  uint32_t token_count = 0;
  SequenceState* state = nullptr;
};

}  // namespace moraine
