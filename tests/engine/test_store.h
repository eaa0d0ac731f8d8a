// Stores for engine tests, imported on first use into the build directory.
#pragma once

#include <string>

#include "compute/encoding.h"
#include "engine/runner.h"

namespace moraine {

std::string GoldenPath(const std::string& relative);  // tests/golden/...
std::string DemoModelPath();                          // models/demo

// A fresh, finished store of the checkpoint in a directory of its own; CHECKs that the import worked.
// Removed when the object goes.
class TestStore {
 public:
  // experts: nullopt: as the checkpoint has them.
  TestStore(const std::string& checkpoint_directory, std::optional<Encoding> experts,
            std::optional<Encoding> dense = std::nullopt);
  ~TestStore();
  TestStore(const TestStore&) = delete;
  TestStore& operator=(const TestStore&) = delete;
  const std::string& directory() const { return directory_; }
  std::string pack_path() const { return directory_ + "/packs/experts-000.pack"; }

 private:
  std::string directory_;
};

// Options to run it with, e.g. "25%".
RunnerOptions TestRunnerOptions(const TestStore& store, const std::string& ram_budget);

// Writes a random checkpoint of the Qwen3-MoE family into an empty directory.
struct SyntheticShape {
  uint32_t layers = 2, experts = 8, top_k = 2, hidden = 64, intermediate = 64, heads = 2,
           kv_heads = 1, head_dim = 32, vocab = 256, max_position = 2048;
};
void WriteSyntheticCheckpoint(const std::string& directory, const SyntheticShape& shape,
                              uint64_t seed);

// A new empty directory below the build directory.
std::string MakeScratchDirectory(const std::string& name);

}  // namespace moraine
