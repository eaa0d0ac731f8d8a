// How fast a GPU is, measured at the start: what layers are divided by where there are several (stage_plan.h).
//
// Threads: any; on the calling thread's current GPU, which should have nothing else to do.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "engine/gpu/gpu_model.h"

namespace moraine {

// Operations a second of a dense product of 4096 tokens with 4096 x 4096 weights in bf16: what a prompt mostly
// is. Takes 110 MB of VRAM and some milliseconds.
Result<double> MeasureProducts();
// Bytes a second of copies from page-locked memory. Takes 128 MiB of both for some 50 ms.
Result<double> MeasureLinkRate();
// Of copies from one GPU to another, as allowed by now (AllowPeerAccess).
Result<PeerSpeed> MeasurePeerCopies(uint32_t from, uint32_t to);

}  // namespace moraine
