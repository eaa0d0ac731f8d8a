#include "models/model_facts.h"

#include <fmt/format.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>

#include "engine/import_plan.h"
#include "model/config.h"
#include "store/checkpoint.h"
#include "store/gguf.h"
#include "store/store.h"

namespace moraine {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

uint64_t SizeOf(const fs::path& path) {
  std::error_code error;
  const uintmax_t bytes = fs::file_size(path, error);
  return error ? 0 : bytes;
}

// Of a directory's safetensors, or of a GGUF file and its other parts.
uint64_t BytesOfWeights(const fs::path& path) {
  std::error_code error;
  const bool is_directory = fs::is_directory(path, error);
  std::string stem = is_directory ? "" : path.filename().string();
  const size_t first = stem.rfind("-00001-of-");
  if (!is_directory && first == std::string::npos) return SizeOf(path);
  stem.resize(is_directory ? 0 : first + 1);
  uint64_t bytes = 0;
  for (fs::directory_iterator entry(is_directory ? path : path.parent_path(), error), end;
       !error && entry != end; entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (name.starts_with(stem) && name.ends_with(is_directory ? ".safetensors" : ".gguf")) {
      bytes += SizeOf(entry->path());
    }
  }
  return bytes;
}

std::string StringField(const std::string& json, const char* field) {
  const Json parsed = Json::parse(json, nullptr, /*allow_exceptions=*/false);
  if (!parsed.is_object() || !parsed.contains(field) || !parsed[field].is_string()) return "";
  return parsed[field];
}

// As far as it is known without the checkpoint being whole.
std::string ArchitectureOf(const fs::path& directory) {
  std::ifstream file(directory / "config.json", std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), {}};
  return StringField(text, "model_type");
}

Status CheckImport(const std::string& path, std::string* architecture) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint, OpenCheckpoint(path));
  if (const auto metadata = checkpoint->ReadFile(kGgufMetadataName)) {
    *architecture = StringField(*metadata, "general.architecture");
  }
  return MakeImportPlan(*checkpoint, {}).status();
}

void ExamineStore(const std::string& path, ModelFacts* facts) {
  facts->format = "store";
  const auto store = Store::Open(path, StoreMode::kReadOnly);
  facts->reason = store.status().message();
  if (!store.ok()) return;
  const Manifest& manifest = (*store)->manifest();
  facts->source = manifest.source.description;
  facts->architecture = StringField(manifest.model_config, "model_type");
  facts->bytes = manifest.expert_bytes() + manifest.dense_pack_bytes;
  const Status parsed = ParseModelConfig(manifest.model_config, path + ": config.json").status();
  facts->reason = parsed.message();
  facts->usable = parsed.ok();
}

}  // namespace

ModelFacts Examine(const FoundModel& model) {
  ModelFacts facts;
  if (model.place == ModelPlace::kStores) {
    ExamineStore(model.path, &facts);
    return facts;
  }
  std::error_code error;
  const bool is_directory = fs::is_directory(model.path, error);
  if (!model.path.empty()) {
    facts.format = is_directory ? "safetensors" : "gguf";
    facts.bytes = BytesOfWeights(model.path);
    if (is_directory) facts.architecture = ArchitectureOf(model.path);
  }
  facts.reason = model.problem;
  if (model.problem.empty()) {
    const Status status = CheckImport(model.path, &facts.architecture);
    facts.usable = status.ok();
    facts.reason = status.message();
  }
  if (!facts.usable && model.unfinished > 0) {
    facts.reason = fmt::format("a download has not ended ({} unfinished file{}): {}", model.unfinished,
                               model.unfinished == 1 ? "" : "s", facts.reason);
  }
  return facts;
}

}  // namespace moraine
