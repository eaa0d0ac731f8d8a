// What run and serve do around an engine: open it, warm it, keep its last statistics.
#pragma once

#include <memory>

#include "engine/engine.h"

namespace moraine {

// Opens the store for writing, so that heat and statistics are kept; if another process has it open for
// writing, this one goes without.
Result<std::unique_ptr<Engine>> OpenEngine(EngineOptions options);
// Reads what the engine's profile names into the cache, with progress on stderr where that is a
// terminal. A store that was never run has no profile yet, which is no error.
Status WarmEngine(Engine& engine);
// For `moraine stats --store`.
void KeepStatistics(Engine& engine);

}  // namespace moraine
