// PackedCheckpoint: a checkpoint whose quantised weights lie in several tensors each, seen as if it
// had every weight whole: one tensor of the plain name (of MXFP4, that of the codes: X_blocks), of its
// true shape and a SourceType.
//
// What is packed is told by names and types (packed_weight.h lists them); config.json's
// quantization_config says what names cannot: sizes of FP8 blocks, whether int32 codes are GPTQ's
// or AWQ's, group sizes, symmetry. So importing knows nothing of packing, and a model with dense
// weights in bf16 and experts packed needs no rule of its own.
//
// Reads are of whole rows. Thread-safe after opening, like what is below.
#pragma once

#include <memory>

#include "base/status.h"
#include "store/checkpoint.h"

namespace moraine {

// `raw` itself if nothing in it is packed. kCorruption listing parts that are missing, of another
// shape or type than the others call for, or that belong to no weight; kUnsupported for packings
// that are not read (2 and 3 bits, AWQ's gemv layout).
Result<std::unique_ptr<Checkpoint>> UnpackCheckpoint(std::unique_ptr<Checkpoint> raw);

}  // namespace moraine
