// Arguments that are paths of models or names that `moraine models` lists. The validators' names ("stores",
// "checkpoints", "models") tell command_tree.h which of them.
#pragma once

#include <CLI/CLI.hpp>

namespace moraine {

// For CLI11's transform(): a name becomes its store's path (models/model_names.h); a wrong name is a usage error.
CLI::Validator StoreByName();
// For check(): any text. Says to completions that names of checkpoints go here.
CLI::Validator CheckpointNameOrPath();
// The same for what may be a checkpoint, too, with checkpoints first; what names nothing is left as it is.
CLI::Validator ModelByName();

}  // namespace moraine
