#include "models/model_caches.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

namespace moraine {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

// Of a repository: deeper, or more, is no model's.
constexpr int kMaxDepth = 3;
constexpr size_t kMaxEntries = 20'000;
constexpr uintmax_t kMaxSmallFile = 1 << 20;  // a manifest, a ref

constexpr char kOllamaHost[] = "registry.ollama.ai";
constexpr char kOllamaModelType[] = "application/vnd.ollama.image.model";
constexpr char kOllamaTensorType[] = "application/vnd.ollama.image.tensor";

std::string ReadSmallFile(const fs::path& path) {
  std::error_code error;
  const uintmax_t size = fs::file_size(path, error);
  if (error || size > kMaxSmallFile) return "";
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return std::move(text).str();
}

std::string FirstLine(const std::string& text) {
  std::string line = text.substr(0, text.find('\n'));
  while (!line.empty() && static_cast<unsigned char>(line.back()) <= ' ') line.pop_back();
  return line;
}

// In order of their names; an absent or unreadable directory is empty.
std::vector<fs::path> Entries(const fs::path& directory) {
  std::vector<fs::path> entries;
  std::error_code error;
  for (fs::directory_iterator entry(directory, error), end; !error && entry != end;
       entry.increment(error)) {
    entries.push_back(entry->path());
  }
  std::sort(entries.begin(), entries.end());
  return entries;
}

bool IsDirectory(const fs::path& path) {
  std::error_code error;
  return fs::is_directory(path, error);
}
bool Exists(const fs::path& path) {
  std::error_code error;
  return fs::exists(path, error);
}

// Part 2 and up of a GGUF in several files: the first one stands for all.
bool IsLaterPart(const std::string& name) {
  const size_t of = name.rfind("-of-");
  if (of == std::string::npos || of < 6 || name[of - 6] != '-') return false;
  const std::string number = name.substr(of - 5, 5);
  return number.find_first_not_of("0123456789") == std::string::npos && number != "00001";
}

struct Repository {
  bool has_safetensors = false, has_config = false;
  std::vector<std::string> ggufs;  // paths within it
  std::string dangling;            // the first link of safetensors or their index that leads nowhere
  uint32_t unfinished = 0;
};

Repository ListRepository(const fs::path& directory) {
  Repository out;
  std::error_code error;
  size_t entries = 0;
  for (fs::recursive_directory_iterator
           entry(directory, fs::directory_options::skip_permission_denied, error), end;
       !error && entry != end && entries < kMaxEntries; entry.increment(error), ++entries) {
    if (entry.depth() >= kMaxDepth) entry.disable_recursion_pending();
    const fs::path& path = entry->path();
    const std::string name = path.filename().string();
    const std::string extension = path.extension().string();
    if (extension == ".part" || extension == ".incomplete") ++out.unfinished;
    if (extension == ".gguf" && !IsLaterPart(name)) {
      out.ggufs.push_back(path.lexically_relative(directory).string());
    }
    if (entry.depth() > 0) continue;
    out.has_config |= name == "config.json";
    const bool is_weights = extension == ".safetensors" || name == "model.safetensors.index.json";
    if (!is_weights) continue;
    out.has_safetensors = true;
    if (out.dangling.empty() && !Exists(path)) out.dangling = name;
  }
  std::sort(out.ggufs.begin(), out.ggufs.end());
  return out;
}

// The models in a directory of files; `name`: of the repository.
void AppendRepository(ModelPlace place, const std::string& name, const fs::path& directory,
                      uint32_t unfinished, std::vector<FoundModel>* out) {
  const Repository repository = ListRepository(directory);
  unfinished += repository.unfinished;
  const bool has_directory = repository.has_safetensors || repository.has_config;
  if (repository.has_safetensors || repository.ggufs.empty()) {
    FoundModel model{place, name, directory.string(), "", unfinished};
    if (!repository.dangling.empty()) {
      model.problem = fmt::format("{} is a link to what is not there", repository.dangling);
    } else if (!repository.has_safetensors) {
      model.problem = "there are neither safetensors nor GGUF files";
    }
    if (has_directory || unfinished > 0 || place == ModelPlace::kHuggingFace) out->push_back(model);
  }
  const bool only_one = repository.ggufs.size() == 1 && !repository.has_safetensors;
  for (const std::string& gguf : repository.ggufs) {
    const fs::path path = directory / gguf;
    FoundModel model{place, only_one ? name : name + "/" + gguf, path.string(), "", unfinished};
    if (!Exists(path)) model.problem = gguf + " is a link to what is not there";
    out->push_back(model);
  }
}

// The commit that a name stands for: main's, else any ref's, else that of the newest snapshot.
std::string ChooseSnapshot(const fs::path& repository) {
  std::string commit = FirstLine(ReadSmallFile(repository / "refs/main"));
  for (const fs::path& ref : Entries(repository / "refs")) {
    if (commit.empty()) commit = FirstLine(ReadSmallFile(ref));
  }
  if (!commit.empty() && commit.find('/') == std::string::npos) return commit;
  fs::file_time_type newest = fs::file_time_type::min();
  for (const fs::path& snapshot : Entries(repository / "snapshots")) {
    std::error_code error;
    const fs::file_time_type time = fs::last_write_time(snapshot, error);
    if (error || time < newest) continue;
    newest = time;
    commit = snapshot.filename().string();
  }
  return commit;
}

void FindHuggingFace(const fs::path& root, std::vector<FoundModel>* out) {
  for (const fs::path& repository : Entries(root)) {
    std::string name = repository.filename().string();
    if (!name.starts_with("models--") || !IsDirectory(repository)) continue;
    name.erase(0, 8);
    for (size_t at = 0; (at = name.find("--", at)) != std::string::npos;) name.replace(at, 2, "/");
    uint32_t unfinished = 0;
    for (const fs::path& blob : Entries(repository / "blobs")) {
      unfinished += blob.extension() == ".incomplete" || blob.extension() == ".part";
    }
    const std::string commit = ChooseSnapshot(repository);
    const fs::path snapshot = repository / "snapshots" / commit;
    if (commit.empty() || !IsDirectory(snapshot)) {
      FoundModel model{ModelPlace::kHuggingFace, name, "", "", unfinished};
      model.problem = commit.empty() ? "it has no snapshot"
                                     : fmt::format("snapshot {} is not there", commit);
      out->push_back(model);
      continue;
    }
    AppendRepository(ModelPlace::kHuggingFace, name, snapshot, unfinished, out);
  }
}

void FindLmStudio(const fs::path& root, std::vector<FoundModel>* out) {
  for (const fs::path& publisher : Entries(root)) {
    if (!IsDirectory(publisher)) continue;
    for (const fs::path& repository : Entries(publisher)) {
      if (!IsDirectory(repository)) continue;
      const std::string name =
          publisher.filename().string() + "/" + repository.filename().string();
      AppendRepository(ModelPlace::kLmStudio, name, repository, 0, out);
    }
  }
}

bool IsDigest(const std::string& digest) {
  return digest.size() == 71 && digest.starts_with("sha256:") &&
         digest.find_first_not_of("0123456789abcdef", 7) == std::string::npos;
}

// Fills in path or problem of the model that a manifest describes.
void ReadOllamaManifest(const fs::path& root, const std::string& text, FoundModel* model) {
  const Json manifest = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  const Json layers = manifest.is_object() ? manifest.value("layers", Json::array()) : Json();
  std::vector<Json> weights;
  bool has_tensors = false;
  for (const Json& layer : layers) {
    const std::string type = layer.is_object() && layer.contains("mediaType") &&
                                     layer["mediaType"].is_string() ? layer["mediaType"] : "";
    if (type == kOllamaModelType) weights.push_back(layer);
    has_tensors |= type.starts_with(kOllamaTensorType);
  }
  if (weights.size() != 1) {
    model->problem = has_tensors ? "its weights are stored tensor by tensor, which is not read"
                                 : fmt::format("its manifest has {} layers of type {}, expected one",
                                               weights.size(), kOllamaModelType);
    return;
  }
  const Json& layer = weights.front();
  const Json digest = layer.value("digest", Json());
  if (!digest.is_string() || !IsDigest(digest.get<std::string>())) {
    model->problem = "its manifest's digest is " + digest.dump() + ", expected sha256:...";
    return;
  }
  std::string file = digest.get<std::string>();
  file[6] = '-';
  const fs::path blob = root / "blobs" / file;
  std::error_code error;
  const uintmax_t bytes = fs::file_size(blob, error);
  if (error) {
    const bool partial = Exists(blob.string() + "-partial");
    model->problem = fmt::format("blob {} is {}", file, partial ? "half downloaded" : "not there");
    return;
  }
  model->path = blob.string();
  const Json size = layer.value("size", Json());
  if (size.is_number_unsigned() && size.get<uint64_t>() != bytes) {
    model->problem = fmt::format("blob {} has {} bytes, the manifest says {}", file, bytes,
                                 size.get<uint64_t>());
  }
}

void FindOllama(const fs::path& root, std::vector<FoundModel>* out) {
  for (const fs::path& host : Entries(root / "manifests")) {
    for (const fs::path& space : Entries(host)) {
      for (const fs::path& model : Entries(space)) {
        for (const fs::path& tag : Entries(model)) {
          std::string name = model.filename().string() + ":" + tag.filename().string();
          const bool is_default = host.filename() == kOllamaHost;
          if (!is_default || space.filename() != "library") {
            name = space.filename().string() + "/" + name;
          }
          if (!is_default) name = host.filename().string() + "/" + name;
          FoundModel found{ModelPlace::kOllama, name, "", "", 0};
          ReadOllamaManifest(root, ReadSmallFile(tag), &found);
          out->push_back(found);
        }
      }
    }
  }
}

void FindStores(const fs::path& root, std::vector<FoundModel>* out) {
  for (const fs::path& directory : Entries(root)) {
    if (!Exists(directory / "STORE_FORMAT")) continue;
    out->push_back({ModelPlace::kStores, directory.filename().string(), directory.string(), "", 0});
  }
}

}  // namespace

const char* PrefixOf(ModelPlace place) {
  switch (place) {
    case ModelPlace::kHuggingFace: return "hf";
    case ModelPlace::kLmStudio: return "lmstudio";
    case ModelPlace::kOllama: return "ollama";
    case ModelPlace::kStores: return "store";
  }
  return "";
}

std::vector<ModelRoot> FindModelRoots(const std::function<const char*(const char*)>& variable) {
  const auto value = [&](const char* name) -> std::string {
    const char* text = variable(name);
    return text == nullptr ? "" : text;
  };
  const auto or_else = [](const std::string& text, const std::string& other) {
    return text.empty() ? other : text;
  };
  // Without a home nothing is below it: add() takes absolute paths only.
  const std::string home = or_else(value("HOME"), "~");
  std::vector<ModelRoot> roots;
  const auto add = [&](ModelPlace place, const std::string& directory) {
    const bool known = std::any_of(roots.begin(), roots.end(), [&](const ModelRoot& root) {
      return root.place == place && root.directory == directory;
    });
    if (directory.starts_with('/') && !known) roots.push_back({place, directory});
  };
  const std::string cache = or_else(value("XDG_CACHE_HOME"), home + "/.cache");
  const std::string hugging_face = or_else(value("HF_HOME"), cache + "/huggingface");
  add(ModelPlace::kHuggingFace,
      or_else(value("HF_HUB_CACHE"), or_else(value("HUGGINGFACE_HUB_CACHE"), hugging_face + "/hub")));

  const std::string pointed = FirstLine(ReadSmallFile(home + "/.lmstudio-home-pointer"));
  for (const std::string& lm_studio : {pointed, home + "/.lmstudio", home + "/.cache/lm-studio"}) {
    if (!lm_studio.empty()) add(ModelPlace::kLmStudio, lm_studio + "/models");
  }
  if (const std::string ollama = value("OLLAMA_MODELS"); !ollama.empty()) {
    add(ModelPlace::kOllama, ollama);
  } else {
    add(ModelPlace::kOllama, home + "/.ollama/models");
    add(ModelPlace::kOllama, "/usr/share/ollama/.ollama/models");  // of the service's own user
  }
  const std::string data = or_else(value("XDG_DATA_HOME"), home + "/.local/share");
  std::istringstream stores(or_else(value("MORAINE_STORES"), data + "/moraine:/var/lib/moraine"));
  for (std::string directory; std::getline(stores, directory, ':');) {
    add(ModelPlace::kStores, directory);
  }
  return roots;
}

std::vector<FoundModel> FindModels(const std::vector<ModelRoot>& roots) {
  std::vector<FoundModel> models;
  for (const ModelRoot& root : roots) {
    std::vector<FoundModel> found;
    switch (root.place) {
      case ModelPlace::kHuggingFace: FindHuggingFace(root.directory, &found); break;
      case ModelPlace::kLmStudio: FindLmStudio(root.directory, &found); break;
      case ModelPlace::kOllama: FindOllama(root.directory, &found); break;
      case ModelPlace::kStores: FindStores(root.directory, &found); break;
    }
    std::stable_sort(found.begin(), found.end(),
                     [](const FoundModel& a, const FoundModel& b) { return a.name < b.name; });
    // A name is one model's: of two roots that have it, the first.
    for (FoundModel& model : found) {
      const bool known = std::any_of(models.begin(), models.end(), [&](const FoundModel& other) {
        return other.full_name() == model.full_name();
      });
      if (!known) models.push_back(std::move(model));
    }
  }
  return models;
}

}  // namespace moraine
