// generation_config.json: what a model's authors say about generating with it.
#pragma once

#include <cstdint>
#include <vector>

#include "model/sampler.h"
#include "store/manifest.h"

namespace moraine {

// Adds the tokens that it names as ends, unless they are there.
void AddEosTokens(const Manifest& manifest, uint32_t vocab_size, std::vector<int32_t>* eos_tokens);

// The sampling defaults a model's authors ship. Fields of the wrong type are left at ours; values out of
// range would fail every request that inherits them, so then all are.
SamplingOptions ReadDefaultSampling(const Manifest& manifest, uint32_t vocab_size);

}  // namespace moraine
