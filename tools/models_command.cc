// moraine models: what is on this machine already, and what of it can be imported or run.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/bytes.h"
#include "commands.h"
#include "models/model_caches.h"
#include "models/model_facts.h"
#include "models/model_names.h"

namespace moraine {
namespace {

using Json = nlohmann::ordered_json;

struct ModelsArguments {
  std::vector<std::string> directories;
  bool json = false;
  std::string names, beginning;
};

struct ListedModel {
  FoundModel model;
  ModelFacts facts;
};

Json ToJson(const ListedModel& listed) {
  const auto& [model, facts] = listed;
  const auto known = [](const std::string& text) { return text.empty() ? Json() : Json(text); };
  return {{"name", model.full_name()},
          {"place", PrefixOf(model.place)},
          {"path", known(model.path)},
          {"format", known(facts.format)},
          {"architecture", known(facts.architecture)},
          {"bytes", facts.bytes},
          {"usable", facts.usable},
          {"reason", known(facts.reason)},
          {"source", known(facts.source)}};
}

const char* StateOf(const ListedModel& listed) {
  if (!listed.facts.usable) return "no";
  return listed.model.place == ModelPlace::kStores ? "run" : "import";
}

std::string OrNa(const std::string& text) { return text.empty() ? "n/a" : text; }

// The reason in full, whatever its length: a line below the model's.
void PrintTable(const std::vector<ListedModel>& models) {
  size_t width = 4;
  for (const ListedModel& listed : models) width = std::max(width, listed.model.full_name().size());
  fmt::print("{:<{}}  {:<11}  {:<16}  {:>10}  {:<6}  {}\n", "NAME", width, "FORMAT", "ARCHITECTURE",
             "SIZE", "CAN", "WHERE");
  for (const ListedModel& listed : models) {
    const auto& [model, facts] = listed;
    fmt::print("{:<{}}  {:<11}  {:<16}  {:>10}  {:<6}  {}\n", model.full_name(), width,
               OrNa(facts.format), OrNa(facts.architecture),
               facts.bytes == 0 ? "n/a" : FormatByteSize(facts.bytes), StateOf(listed),
               OrNa(model.path));
    if (!facts.usable) fmt::print("    {}\n", facts.reason);
  }
}

// No file is opened: this is asked at each press of a key.
void PrintNames(const std::vector<FoundModel>& models, const ModelsArguments& a) {
  std::vector<ModelKind> kinds;
  if (a.names != "checkpoints") kinds.push_back(ModelKind::kStore);
  if (a.names != "stores") kinds.push_back(ModelKind::kCheckpoint);
  for (const std::string& name : NamesBeginningWith(models, kinds, a.beginning)) {
    fmt::print("{}\n", name);
  }
}

void ListModels(const ModelsArguments& a) {
  std::vector<ModelRoot> roots;
  for (const std::string& directory : a.directories) {
    std::error_code ignored;
    roots.push_back({ModelPlace::kStores, std::filesystem::absolute(directory, ignored).string()});
  }
  for (ModelRoot& root : FindModelRoots([](const char* name) { return std::getenv(name); })) {
    roots.push_back(std::move(root));
  }
  std::vector<FoundModel> found = FindModels(roots);
  if (!a.names.empty()) return PrintNames(found, a);
  std::vector<ListedModel> models;
  for (FoundModel& model : found) {
    ModelFacts facts = Examine(model);
    models.push_back({std::move(model), std::move(facts)});
  }
  if (a.json) {
    Json looked = Json::array(), list = Json::array();
    for (const ModelRoot& root : roots) {
      std::error_code ignored;
      looked.push_back({{"place", PrefixOf(root.place)},
                        {"directory", root.directory},
                        {"exists", std::filesystem::is_directory(root.directory, ignored)}});
    }
    for (const ListedModel& listed : models) list.push_back(ToJson(listed));
    const Json json = {{"looked_in", looked}, {"models", list}};
    std::printf("%s\n", json.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
    return;
  }
  if (!models.empty()) return PrintTable(models);
  std::fprintf(stderr, "moraine: no models in\n");
  for (const ModelRoot& root : roots) {
    std::fprintf(stderr, "  %s (%s)\n", root.directory.c_str(), PrefixOf(root.place));
  }
}

}  // namespace

void RegisterModelsCommand(CLI::App& app, int*) {
  auto a = std::make_shared<ModelsArguments>();
  CLI::App* command = app.add_subcommand(
      "models",
      "List the models that are here: in the caches of Hugging Face, LM Studio and Ollama, and stores.\n"
      "Their names can be given to import, plan, run, serve and others; nothing there is changed.\n"
      "MORAINE_STORES: directories of stores, with colons between (default: ~/.local/share/moraine\n"
      "and /var/lib/moraine)");
  command->add_option("DIRECTORY", a->directories, "more directories of stores to look in");
  command->add_flag("--json", a->json, "one JSON object on stdout");
  command
      ->add_option("--names", a->names, "only what can be typed for each, one a line; for completions")
      ->check(CLI::IsMember({"stores", "checkpoints", "models"}));
  command->add_option("--beginning", a->beginning, "of --names: those that begin with this");
  command->callback([a] { ListModels(*a); });
}

}  // namespace moraine
