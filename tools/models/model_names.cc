#include "models/model_names.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <filesystem>
#include <memory>

#include "store/checkpoint.h"
#include "store/store.h"

namespace moraine {
namespace {

bool IsPath(const std::string& text) {
  std::error_code error;
  return text.starts_with('/') || text.starts_with('.') || std::filesystem::exists(text, error);
}

std::string ToLower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

bool HasPrefix(const std::string& text) {
  return std::ranges::any_of(
      std::initializer_list<ModelPlace>{ModelPlace::kHuggingFace, ModelPlace::kLmStudio,
                                        ModelPlace::kOllama, ModelPlace::kStores},
      [&](ModelPlace place) { return text.starts_with(std::string(PrefixOf(place)) + ":"); });
}

// Both in small letters: the whole name, or what follows a '/' of it.
bool IsEndOf(const std::string& text, const std::string& name) {
  if (!name.ends_with(text)) return false;
  return name.size() == text.size() || name[name.size() - text.size() - 1] == '/';
}

bool Matches(const FoundModel& model, std::string text) {
  if (HasPrefix(text)) {
    const std::string prefix = std::string(PrefixOf(model.place)) + ":";
    if (!text.starts_with(prefix)) return false;
    text.erase(0, prefix.size());
  }
  const std::string name = ToLower(model.name);
  text = ToLower(text);
  if (IsEndOf(text, name)) return true;
  return model.place == ModelPlace::kOllama && IsEndOf(text + ":latest", name);
}

std::vector<FoundModel> ModelsHere() {
  return FindModels(FindModelRoots([](const char* name) { return std::getenv(name); }));
}

// Among the stores, the one that was made from these very files.
Result<std::string> StoreMadeFrom(const FoundModel& checkpoint,
                                  const std::vector<FoundModel>& models) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> opened, OpenCheckpoint(checkpoint.path));
  std::string found;
  for (const FoundModel& model : models) {
    if (model.place != ModelPlace::kStores) continue;
    const auto store = Store::Open(model.path, StoreMode::kReadOnly);
    if (!store.ok()) continue;
    if ((*store)->manifest().source.fingerprint != opened->identity().fingerprint) continue;
    if (!found.empty()) {
      return InvalidArgument(fmt::format("{}: {} and {} were both made from it; give one of them",
                                         checkpoint.full_name(), found, model.path));
    }
    found = model.path;
  }
  return found;
}

}  // namespace

Result<FoundModel> FindNamedModel(const std::vector<FoundModel>& models, ModelKind kind,
                                  const std::string& text) {
  std::vector<const FoundModel*> matches;
  for (const FoundModel& model : models) {
    const bool is_store = model.place == ModelPlace::kStores;
    if (is_store != (kind == ModelKind::kStore) || !Matches(model, text)) continue;
    if (model.full_name() == text || model.name == text) return model;
    matches.push_back(&model);
  }
  if (matches.empty()) {
    return NotFound(fmt::format("{}: neither a path nor a model that `moraine models` lists", text));
  }
  if (matches.size() == 1) return *matches.front();
  std::string names;
  for (const FoundModel* model : matches) names += " " + model->full_name();
  return InvalidArgument(fmt::format("{}: could be any of{}", text, names));
}

std::vector<std::string> NamesBeginningWith(const std::vector<FoundModel>& models,
                                            const std::vector<ModelKind>& kinds,
                                            const std::string& text) {
  std::vector<std::string> names;
  for (const FoundModel& model : models) {
    const bool is_store = model.place == ModelPlace::kStores;
    const ModelKind kind = is_store ? ModelKind::kStore : ModelKind::kCheckpoint;
    if (std::ranges::find(kinds, kind) == kinds.end() || model.path.empty()) continue;
    // A name that stands for several, or for something else in the current directory, is no help.
    for (const std::string& name : {model.short_name(), model.full_name()}) {
      if (!name.starts_with(text) || IsPath(name)) continue;
      const auto found = FindNamedModel(models, kind, name);
      if (!found.ok() || found->full_name() != model.full_name()) continue;
      names.push_back(name);
      break;
    }
  }
  std::ranges::sort(names);
  return names;
}

Result<NamedCheckpoint> FindCheckpoint(const std::string& text) {
  if (IsPath(text)) return NamedCheckpoint{text, ""};
  ASSIGN_OR_RETURN(const FoundModel model,
                   FindNamedModel(ModelsHere(), ModelKind::kCheckpoint, text));
  if (model.path.empty()) {
    return FailedPrecondition(fmt::format("{}: {}", model.full_name(), model.problem));
  }
  return NamedCheckpoint{model.path, model.short_name()};
}

Result<std::string> FindStore(const std::string& text) {
  if (IsPath(text)) return text;
  const std::vector<FoundModel> models = ModelsHere();
  const auto store = FindNamedModel(models, ModelKind::kStore, text);
  if (store.ok()) return store->path;
  if (store.status().code() != StatusCode::kNotFound) return store.status();
  const auto checkpoint = FindNamedModel(models, ModelKind::kCheckpoint, text);
  if (!checkpoint.ok()) {
    const bool absent = checkpoint.status().code() == StatusCode::kNotFound;
    if (absent && !HasPrefix(text)) return text;
    return checkpoint.status();
  }
  if (checkpoint->path.empty()) {
    return FailedPrecondition(fmt::format("{}: {}", checkpoint->full_name(), checkpoint->problem));
  }
  ASSIGN_OR_RETURN(std::string made, StoreMadeFrom(*checkpoint, models));
  if (!made.empty()) return made;
  return FailedPrecondition(
      fmt::format("{} is a checkpoint, and no store in a directory of MORAINE_STORES was made from it: "
                  "`moraine import {} STORE_DIR` makes one", checkpoint->full_name(),
                  checkpoint->full_name()));
}

}  // namespace moraine
