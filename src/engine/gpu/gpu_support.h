// Whether the GPU can compute a model: what is missing is named before anything is loaded.
//
// By feature, not by family, so that a family whose blocks are all there runs without being listed.
// Pure functions, in every build.
#pragma once

#include <span>

#include "base/status.h"
#include "compute/encoding.h"
#include "compute/kv_format.h"
#include "model/config.h"
#include "store/manifest.h"

namespace moraine {

// A mixer keeps recurrent state.
bool HasRecurrentState(const ModelConfig& config);

// kUnsupported naming the model type and the feature, or the tensor and its encoding.
Status CheckGpuSupport(const ModelConfig& config, std::span<const ExpertLayout> layouts,
                       const Manifest& manifest, KvFormat kv_format);

}  // namespace moraine
