// moraine profile: the workload profiles of a store: list, show, export, import, delete.
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>

#include "commands.h"
#include "common_options.h"
#include "engine/workload_profile.h"
#include "model/config.h"

namespace moraine {
namespace {

struct ProfileArguments {
  std::string store, name, file;
  bool json = false;
};

Result<std::unique_ptr<Store>> OpenStore(const ProfileArguments& a, StoreMode mode) {
  return Store::Open(a.store, mode);
}

Result<ModelIdentity> IdentityOf(const Store& store) {
  ASSIGN_OR_RETURN(const ModelConfig config, ParseModelConfig(store.manifest().model_config,
                                                              store.directory() + ": config.json"));
  return IdentityOf(store.manifest(), config.top_k);
}

Result<WorkloadProfile> Load(const Store& store, const std::string& name) {
  ASSIGN_OR_RETURN(const ModelIdentity model, IdentityOf(store));
  return WorkloadProfile::Load(store, name, model);
}

std::string TimeText(int64_t unix_s) {
  const std::time_t time = unix_s;
  char text[32] = "";
  std::strftime(text, sizeof(text), "%Y-%m-%d %H:%M:%S UTC", std::gmtime(&time));
  return text;
}

nlohmann::ordered_json Summary(const std::string& name, const WorkloadProfile& p) {
  nlohmann::ordered_json json = {{"name", name},
                                 {"saved_unix_s", p.saved_unix_s},
                                 {"tokens", p.tokens},
                                 {"weight_tokens", p.weight_tokens},
                                 {"warm_set", p.warm_set.size()},
                                 {"sections", nlohmann::ordered_json::object()}};
  for (const auto& [section, bytes] : p.other_sections) json["sections"][section] = bytes.size();
  return json;
}

Status List(const ProfileArguments& a) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Store> store, OpenStore(a, StoreMode::kReadOnly));
  ASSIGN_OR_RETURN(const std::vector<std::string> names, store->ListProfiles());
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const std::string& name : names) {
    const Result<WorkloadProfile> p = Load(*store, name);
    if (!p.ok()) {  // the others are shown all the same
      if (a.json) {
        list.push_back({{"name", name}, {"error", p.status().message()}});
      } else {
        std::printf("%-20s %s\n", name.c_str(), p.status().message().c_str());
      }
      continue;
    }
    if (a.json) {
      list.push_back(Summary(name, *p));
    } else {
      std::printf("%-20s %12llu tokens  %6zu experts to warm  saved %s\n", name.c_str(),
                  static_cast<unsigned long long>(p->tokens), p->warm_set.size(),
                  TimeText(p->saved_unix_s).c_str());
    }
  }
  if (a.json) std::printf("%s\n", list.dump().c_str());
  return OkStatus();
}

// One line a layer: how skewed its routing is, its hottest experts, and what goes with the hottest.
void PrintLayers(const WorkloadProfile& p) {
  std::printf("layer  experts  warm  top 10 %% take  hottest (share of tokens)          and with the "
              "hottest\n");
  size_t begin = 0;
  for (size_t layer = 0; layer < p.model.experts_per_layer.size(); ++layer) {
    const uint32_t count = p.model.experts_per_layer[layer];
    if (count == 0) continue;
    std::vector<uint32_t> order(count);
    for (uint32_t e = 0; e < count; ++e) order[e] = e;
    const auto heat = [&](uint32_t e) { return static_cast<double>(p.heat[begin + e]); };
    std::stable_sort(order.begin(), order.end(),
                     [&](uint32_t x, uint32_t y) { return heat(x) > heat(y); });
    double sum = 0, top = 0;
    for (uint32_t i = 0; i < count; ++i) {
      sum += heat(order[i]);
      if (i < (count + 9) / 10) top += heat(order[i]);
    }
    size_t warm = 0;
    for (const uint32_t e : p.warm_set) warm += e >= begin && e < begin + count;
    std::printf("%5zu  %7u  %4zu  %11.1f %% ", layer, count, warm, sum > 0 ? 100 * top / sum : 0.0);
    for (uint32_t i = 0; i < std::min(count, 3u); ++i) {
      std::printf("  %u (%.1f %%)", order[i], 100 * heat(order[i]));
    }
    if (!p.co_activation.empty()) {
      std::printf("   ");
      const auto& partners = p.co_activation[begin + order[0]];
      for (size_t i = 0; i < std::min<size_t>(partners.size(), 3); ++i) {
        std::printf(" %zu", partners[i].first - begin);
      }
    }
    std::printf("\n");
    begin += count;
  }
}

Status Show(const ProfileArguments& a) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Store> store, OpenStore(a, StoreMode::kReadOnly));
  ASSIGN_OR_RETURN(const WorkloadProfile p, Load(*store, a.name));
  if (a.json) {
    std::printf("%s\n", Summary(a.name, p).dump().c_str());
    return OkStatus();
  }
  std::printf("profile %s of %s, saved %s, from %llu tokens (%.0f of them still count)\n",
              a.name.c_str(), p.model.name.c_str(), TimeText(p.saved_unix_s).c_str(),
              static_cast<unsigned long long>(p.tokens), p.weight_tokens);
  for (const auto& [section, bytes] : p.other_sections) {
    std::printf("section %s: %zu bytes\n", section.c_str(), bytes.size());
  }
  PrintLayers(p);
  return OkStatus();
}

Status Export(const ProfileArguments& a) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Store> store, OpenStore(a, StoreMode::kReadOnly));
  ASSIGN_OR_RETURN(const WorkloadProfile p, Load(*store, a.name));
  std::ofstream file(a.file, std::ios::binary | std::ios::trunc);
  file << p.ToJson() << "\n" << std::flush;
  return file ? OkStatus() : IoErrorFromErrno(a.file, errno);
}

Status Import(const ProfileArguments& a) {
  std::ifstream file(a.file, std::ios::binary);
  if (!file) return IoErrorFromErrno(a.file, errno);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  ASSIGN_OR_RETURN(const std::unique_ptr<Store> store, OpenStore(a, StoreMode::kReadWrite));
  ASSIGN_OR_RETURN(const ModelIdentity model, IdentityOf(*store));
  const Result<WorkloadProfile> p = WorkloadProfile::FromJson(text, model);
  if (!p.ok()) return p.status().WithContext(a.file);
  return p->Replace(*store, a.name);
}

Status Delete(const ProfileArguments& a) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Store> store, OpenStore(a, StoreMode::kReadWrite));
  return store->DeleteProfile(a.name);
}

}  // namespace

void RegisterProfileCommand(CLI::App& app, int* exit_code) {
  CLI::App* profile = app.add_subcommand("profile", "List and move what workloads have taught");
  profile->require_subcommand(1);
  auto a = std::make_shared<ProfileArguments>();
  const auto add = [&](const char* name, const char* help, Status (*run)(const ProfileArguments&)) {
    CLI::App* command = profile->add_subcommand(name, help);
    command->add_option("STORE", a->store, "directory of an imported model")->required();
    command->callback([a, exit_code, run] {
      const Status status = run(*a);
      if (!status.ok()) *exit_code = PrintError(status);
    });
    return command;
  };
  const char* const kName = "name of the profile; run and serve use default";
  CLI::App* list = add("list", "Show the profiles of a store", List);
  list->add_flag("--json", a->json, "one JSON array on stdout");
  CLI::App* show = add("show", "Show what a profile knows, layer by layer", Show);
  show->add_option("NAME", a->name, kName)->required();
  show->add_flag("--json", a->json, "one JSON object on stdout");
  CLI::App* to = add("export", "Write a profile to a JSON file", Export);
  to->add_option("NAME", a->name, kName)->required();
  to->add_option("FILE", a->file, "file to write")->required();
  CLI::App* from = add("import", "Read a profile from a file; one of that name is replaced", Import);
  from->add_option("FILE", a->file, "file that export wrote")->required();
  from->add_option("NAME", a->name, kName)->required();
  add("delete", "Delete a profile", Delete)->add_option("NAME", a->name, kName)->required();
}

}  // namespace moraine
