// Whether a store's manifest is of the model that its config.json describes. The manifest is a file: what does
// not fit config.json or this version is its fault, not a bug.
//
// Threads: pure functions.
#pragma once

#include <vector>

#include "base/status.h"
#include "compute/encoding.h"
#include "model/config.h"
#include "store/manifest.h"

namespace moraine {

// One a layer; of dense layers empty. kCorruption naming field, found and expected; kUnsupported for
// an encoding that this version does not know.
Result<std::vector<ExpertLayout>> ReadLayouts(const Manifest& manifest, const ModelConfig& config);

// Every dense role is there with the shape that the model will read. Errors as above.
Status CheckDense(const Manifest& manifest, const ModelConfig& config);

}  // namespace moraine
