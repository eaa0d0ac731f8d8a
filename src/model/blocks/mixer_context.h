// What a mixer is built with and what it works on; see mixer.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "compute/cpu_backend.h"
#include "model/blocks/rope_table.h"
#include "model/blocks/scratch.h"
#include "model/sequence_state.h"

namespace moraine {

// Outlives the mixer.
struct MixerContext {
  CpuBackend* backend = nullptr;
  Scratch* scratch = nullptr;      // free when Run is called, all of it the block's
  const RopeTable* rope = nullptr; // of the config's Rope, prepared for the batch; may be null
  uint32_t hidden = 0, layer = 0;
  float norm_epsilon = 0;
};

// Rows of a batch that are tokens of one sequence, at state->length() and after it.
struct MixerSegment {
  uint32_t first = 0, count = 0;  // rows
  SequenceState* state = nullptr;
};

struct MixerInput {
  const float* x = nullptr;  // token_count x hidden, normalised
  uint32_t token_count = 0;
  std::span<const MixerSegment> segments;  // one behind the other, together all rows
};

// Calls function(segment, row, count) for what each segment has of the rows [first, first + rows).
template <typename Function>
void ForSegments(const MixerInput& input, uint32_t first, uint32_t rows, Function&& function) {
  for (const MixerSegment& segment : input.segments) {
    const uint32_t begin = std::max(first, segment.first);
    const uint32_t end = std::min(first + rows, segment.first + segment.count);
    if (begin < end) function(segment, begin, end - begin);
  }
}

}  // namespace moraine
