#include "engine_session.h"

#include <unistd.h>

#include <cstdio>

#include "base/clock.h"
#include "base/log.h"
#include "progress_display.h"

namespace moraine {

Result<std::unique_ptr<Engine>> OpenEngine(EngineOptions options) {
  options.runner.store_mode = StoreMode::kReadWrite;
  ProgressDisplay display("loading", isatty(fileno(stderr)) == 0 || !options.runner.gpu);
  const int64_t begin_ns = RealClock().NowNs();
  options.runner.gpu_progress = [&](uint64_t done, uint64_t total) {
    display.Update(done, total, 0, static_cast<double>(RealClock().NowNs() - begin_ns) * 1e-9);
  };
  auto engine = Engine::Open(options);
  if (engine.ok() || engine.status().code() != StatusCode::kFailedPrecondition) return engine;
  // Not a store, or unfinished: that is FailedPrecondition, too, and the second attempt says it again.
  options.runner.store_mode = StoreMode::kReadOnly;
  auto read_only = Engine::Open(options);
  if (read_only.ok()) LOG_WARN("{}; what is learnt will not be saved", engine.status().message());
  return read_only;
}

Status WarmEngine(Engine& engine) {
  Status warmed;
  ProgressDisplay display("warming", isatty(fileno(stderr)) == 0);
  const int64_t begin_ns = RealClock().NowNs();
  engine.RunOnEngineThread([&](Runner& runner) {
    warmed = runner.Warm(WarmOrder::kProfile, [&](uint64_t done, uint64_t total) {
      display.Update(done, total, 0, static_cast<double>(RealClock().NowNs() - begin_ns) * 1e-9);
    });
  });
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
