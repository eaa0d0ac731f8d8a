#include "model_arguments.h"

#include "models/model_names.h"

namespace moraine {

CLI::Validator StoreByName() {
  const auto replace = [](std::string& text) -> std::string {
    auto path = FindStore(text);
    if (!path.ok()) return path.status().message();
    text = std::move(*path);
    return "";
  };
  return CLI::Validator(replace, "", "stores");
}

CLI::Validator CheckpointNameOrPath() {
  return CLI::Validator([](std::string&) { return std::string(); }, "", "checkpoints");
}

CLI::Validator ModelByName() {
  const auto replace = [](std::string& text) -> std::string {
    auto checkpoint = FindCheckpoint(text);
    if (checkpoint.ok()) {
      text = checkpoint->path;
      return "";
    }
    if (checkpoint.status().code() != StatusCode::kNotFound) return checkpoint.status().message();
    auto path = FindStore(text);
    if (path.ok()) text = std::move(*path);
    return "";
  };
  return CLI::Validator(replace, "", "models");
}

}  // namespace moraine
