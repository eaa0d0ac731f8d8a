// What run and serve do around an engine: open it, warm it, keep its last statistics.
#pragma once

#include <memory>

#include "engine/engine.h"

namespace moraine {

// Opens the store for writing, so that heat and statistics are kept; if another process has it open for
// writing, this one goes without.
Result<std::unique_ptr<Engine>> OpenEngine(EngineOptions options);
// Reads the hottest experts of the profile into the cache. A store that was never run has no heat yet,
// which is no error.
Status WarmEngine(Engine& engine, const std::string& profile);
// For `moraine stats --store`.
void KeepStatistics(Engine& engine);

}  // namespace moraine
