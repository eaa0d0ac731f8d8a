// From what is typed to a model that was found: "hf:Qwen/Qwen3-30B-A3B", or any end of it that only one model has
// ("Qwen3-30B-A3B"), in any case of letters; ollama's ":latest" may be left out. What is a path stays one.
#pragma once

#include <string>
#include <vector>

#include "base/status.h"
#include "models/model_caches.h"

namespace moraine {

// One model that `text` names, of checkpoints or of stores. kNotFound if there is none; kInvalidArgument naming
// all that it could be.
enum class ModelKind : uint8_t { kCheckpoint, kStore };
Result<FoundModel> FindNamedModel(const std::vector<FoundModel>& models, ModelKind kind,
                                  const std::string& text);

// What may be typed for each model, for completions: the shortest names, the last part alone where no other model of
// a kind has it, that begin with `text`; what has no path is left out. Sorted.
std::vector<std::string> NamesBeginningWith(const std::vector<FoundModel>& models,
                                            const std::vector<ModelKind>& kinds,
                                            const std::string& text);

struct NamedCheckpoint {
  std::string path;
  std::string name;  // what people call it; empty: a path was given, and has its own
};
// For commands that read a checkpoint. kFailedPrecondition if it is not whole.
Result<NamedCheckpoint> FindCheckpoint(const std::string& text);

// For commands that read a store: its path. The name of a checkpoint stands for the store that was imported from
// it, if there is one among the stores that are found; kFailedPrecondition telling how to import it if not.
// What names nothing is returned as it is.
Result<std::string> FindStore(const std::string& text);

}  // namespace moraine
