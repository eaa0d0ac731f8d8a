#include <cstdlib>

#include "base/log.h"
#include "io/block_reader.h"
#include "io/io_uring_reader.h"
#include "io/pread_reader.h"
#include "io/simulated_reader.h"

namespace moraine {

Result<std::unique_ptr<BlockReader>> CreateBlockReader(const BlockReaderOptions& options) {
  return CreateBlockReaderWithSetup(options, KernelRingSetup());
}

Result<std::unique_ptr<BlockReader>> CreateBlockReaderWithSetup(const BlockReaderOptions& options,
                                                                const RingSetup& setup) {
  std::string kind = options.kind;
  if (kind == "auto") {
    const char* const forced = std::getenv("MORAINE_IO");
    if (forced != nullptr && *forced != '\0') kind = forced;
  }
  if (kind == "auto") {
    auto reader = CreateIoUringReader(options, setup);
    if (reader.ok() || reader.status().code() != StatusCode::kUnsupported) return reader;
    LOG_WARN("{}; reading with {} pread threads instead", reader.status().message(),
             options.pread_threads);
    return CreatePreadReader(options);
  }
  if (kind == "io_uring") return CreateIoUringReader(options, setup);
  if (kind == "pread") return CreatePreadReader(options);
  if (kind == "simulated") {
    SimulatedReaderOptions simulated;
    simulated.seed = options.simulation_seed;
    simulated.capacity = options.capacity;
    return CreateSimulatedReader(std::move(simulated));
  }
  return InvalidArgument("I/O kind \"" + kind +
                         "\" is unknown; expected auto, io_uring, pread or simulated");
}

}  // namespace moraine
