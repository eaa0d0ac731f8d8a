#include "engine_session.h"

#include "base/log.h"

namespace moraine {

Result<std::unique_ptr<Engine>> OpenEngine(EngineOptions options) {
  options.runner.store_mode = StoreMode::kReadWrite;
  auto engine = Engine::Open(options);
  if (engine.ok() || engine.status().code() != StatusCode::kFailedPrecondition) return engine;
  // Not a store, or unfinished: that is FailedPrecondition, too, and the second attempt says it again.
  options.runner.store_mode = StoreMode::kReadOnly;
  auto read_only = Engine::Open(options);
  if (read_only.ok()) LOG_WARN("{}; heat will not be saved", engine.status().message());
  return read_only;
}

Status WarmEngine(Engine& engine, const std::string& profile) {
  Status warmed;
  engine.RunOnEngineThread([&](Runner& runner) { warmed = runner.Warm(profile, nullptr); });
  return warmed.code() == StatusCode::kNotFound ? OkStatus() : warmed;
}

void KeepStatistics(Engine& engine) {
  const EngineStats stats = engine.Stats();
  engine.RunOnEngineThread([&](Runner& runner) {
    if (runner.store().mode() != StoreMode::kReadWrite) return;
    const Status saved = runner.store().PutNote("last_run_stats", stats.ToJson());
    if (!saved.ok()) LOG_WARN("statistics were not saved: {}", saved.ToString());
  });
}

}  // namespace moraine
