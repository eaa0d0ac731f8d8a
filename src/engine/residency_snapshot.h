// ResidencySnapshot: where every expert is, how hot it is, and what the counters say, at one moment
// between two steps or two layers. What the web page's live view is made of (server/residency_frame.h).
//
// Six bytes an expert: 140 KB for the largest published model. Copied by nobody; it is built once, by the
// engine thread, and shared by all who watch. It says nothing of the snapshots before it, so that whoever
// misses some can still tell what has happened since the last one that he saw.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/stats.h"
#include "residency/residence.h"

namespace moraine {

// Where one step's time went: a decode step, or a chunk of a prompt. As in PhaseStats.
struct StepTimes {
  bool decode = false;
  uint32_t tokens = 0;
  uint32_t attention_us = 0, expert_us = 0, stall_us = 0, verify_us = 0, residency_us = 0,
           other_us = 0;
};

struct ResidencySnapshot {
  uint64_t sequence = 0;  // 1, 2, ... of one feed
  uint32_t top_k = 0;
  EngineStats stats;
  // All four by layer of stats.layers, then by expert.
  std::vector<Residence> residences;
  // Counters, of which only differences mean something: they wrap.
  std::vector<uint16_t> lookups, misses;
  // How often the expert is taken: of its layer's tokens, the last thousand or so, the share that takes
  // it. 255 times its root, which tells apart the cold ones, too.
  std::vector<uint8_t> heats;
  // The last ones, of step_count since the engine began: not only those since the snapshot before, so that a
  // reader who misses a snapshot still gets them.
  std::vector<StepTimes> steps;
  uint64_t step_count = 0;
};

}  // namespace moraine
