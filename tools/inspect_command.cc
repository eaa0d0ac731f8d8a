// moraine inspect: what a store holds.
#include <fmt/format.h>

#include <cstdio>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>

#include "base/bytes.h"
#include "commands.h"
#include "common_options.h"
#include "engine/runner.h"
#include "model/config.h"
#include "model_arguments.h"
#include "store/store.h"

namespace moraine {
namespace {

using Json = nlohmann::ordered_json;

struct InspectArguments {
  std::string store_directory;
  bool json = false;
};

struct EncodingTotal {
  uint64_t tensors = 0, bytes = 0;
};

std::map<std::string, EncodingTotal> DenseTotals(const Manifest& manifest) {
  std::map<std::string, EncodingTotal> totals;
  for (const DenseTensor& tensor : manifest.dense) {
    EncodingTotal& total = totals[tensor.encoding];
    ++total.tensors;
    total.bytes += tensor.bytes;
  }
  return totals;
}

// "q4", or "q4 gate and up, q8 down"; several if layers differ.
std::string ExpertEncodings(const Manifest& manifest) {
  std::set<std::string> encodings;
  for (const LayerManifest& layer : manifest.layers) {
    if (layer.expert_count == 0) continue;
    encodings.insert(layer.gate_up_encoding == layer.down_encoding
                         ? layer.down_encoding
                         : layer.gate_up_encoding + " gate and up, " + layer.down_encoding + " down");
  }
  return fmt::format("{}", fmt::join(encodings, "; "));
}

uint64_t SparseLayers(const Manifest& manifest) {
  uint64_t count = 0;
  for (const LayerManifest& layer : manifest.layers) count += layer.expert_count > 0;
  return count;
}

Json ToJson(const Store& store, const ModelConfig& config, const BudgetAdvice& advice) {
  const Manifest& manifest = store.manifest();
  Json dense = Json::object(), files = Json::object();
  uint64_t dense_bytes = 0;
  for (const auto& [encoding, total] : DenseTotals(manifest)) {
    dense[encoding] = {{"tensors", total.tensors}, {"bytes", total.bytes}};
    dense_bytes += total.bytes;
  }
  for (const auto& [name, contents] : manifest.files) files[name] = contents.size();
  return {{"store", store.directory()},
          {"complete", true},
          {"format_version", manifest.format_version},
          {"store_uuid", manifest.store_uuid},
          {"created_by", manifest.created_by},
          {"source", {{"format", manifest.source.format},
                      {"description", manifest.source.description}}},
          {"model", {{"type", config.model_type},
                     {"layers", manifest.layers.size()},
                     {"sparse_layers", SparseLayers(manifest)},
                     {"hidden", config.hidden},
                     {"experts_per_layer", config.expert_count},
                     {"top_k", config.top_k},
                     {"max_context", config.max_position}}},
          {"experts", {{"count", manifest.expert_count()},
                       {"encoding", ExpertEncodings(manifest)},
                       {"bytes", manifest.expert_bytes()},
                       {"max_record_bytes", manifest.max_record_bytes()},
                       {"packs", store.expert_pack_paths().size()}}},
          {"ram_budget", {{"minimum_bytes", advice.minimum_bytes},
                          {"recommended_bytes", advice.recommended_bytes},
                          {"everything_bytes", advice.everything_bytes}}},
          {"dense_bytes", dense_bytes},
          {"dense", dense},
          {"files", files},
          {"notes", manifest.notes}};
}

void PrintRow(const std::string& name, const std::string& value) {
  fmt::print("{:<9} {}\n", name, value);
}

void PrintTable(const Store& store, const ModelConfig& config, const BudgetAdvice& advice) {
  const Manifest& manifest = store.manifest();
  const size_t packs = store.expert_pack_paths().size();
  PrintRow("store", fmt::format("{}  (complete, format {}, {})", store.directory(),
                                manifest.format_version, manifest.store_uuid));
  PrintRow("source", fmt::format("{} ({}), imported by {}", manifest.source.description,
                                 manifest.source.format, manifest.created_by));
  PrintRow("model", fmt::format("{}, {} layers ({} sparse), hidden {}, top-{} of {} experts, "
                                "context {}",
                                config.model_type, manifest.layers.size(), SparseLayers(manifest),
                                config.hidden, config.top_k, config.expert_count,
                                config.max_position));
  PrintRow("experts", fmt::format("{} x {} = {}, {}, in {}", manifest.expert_count(),
                                  FormatByteSize(manifest.max_record_bytes()),
                                  FormatByteSize(manifest.expert_bytes()),
                                  ExpertEncodings(manifest),
                                  packs == 1 ? "one pack" : fmt::format("{} packs", packs)));
  for (const auto& [encoding, total] : DenseTotals(manifest)) {
    PrintRow("dense", fmt::format("{:<6} {:>4} tensors  {}", encoding, total.tensors,
                                  FormatByteSize(total.bytes)));
  }
  PrintRow("budget", fmt::format("minimum {}, recommended {}, all experts resident {}",
                                 FormatByteSize(advice.minimum_bytes),
                                 FormatByteSize(advice.recommended_bytes),
                                 FormatByteSize(advice.everything_bytes)));
  for (const auto& [name, contents] : manifest.files) {
    PrintRow("file", fmt::format("{}  {}", name, FormatByteSize(contents.size())));
  }
  for (const std::string& note : manifest.notes) PrintRow("note", note);
}

Status Inspect(const InspectArguments& a) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Store> store,
                   Store::Open(a.store_directory, StoreMode::kReadOnly));
  ASSIGN_OR_RETURN(const ModelConfig config,
                   ParseModelConfig(store->manifest().model_config,
                                    a.store_directory + ": config.json"));
  ASSIGN_OR_RETURN(const BudgetAdvice advice, AdviseBudget(store->manifest()));
  if (a.json) {
    const Json json = ToJson(*store, config, advice);
    std::printf("%s\n", json.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
  } else {
    PrintTable(*store, config, advice);
  }
  return OkStatus();
}

}  // namespace

void RegisterInspectCommand(CLI::App& app, int* exit_code) {
  auto a = std::make_shared<InspectArguments>();
  CLI::App* command =
      app.add_subcommand("inspect", "Show a store's model, formats, sizes and memory budgets");
  command->add_option("STORE", a->store_directory, "directory of an imported model, or its name")
      ->transform(StoreByName())
      ->required();
  command->add_flag("--json", a->json, "one JSON object on stdout");
  command->callback([a, exit_code] {
    const Status status = Inspect(*a);
    if (status.ok()) return;
    if (a->json) {
      const Json json = {
          {"store", a->store_directory}, {"complete", false}, {"problem", status.message()}};
      std::printf("%s\n", json.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
    }
    *exit_code = PrintError(status);
  });
}

}  // namespace moraine
