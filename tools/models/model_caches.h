// Where other programs keep models, and where our stores are: what is there, by name. Nothing is written, and no
// weights are opened: names and links only, a few milliseconds for hundreds of models.
//
//   Hugging Face  models--ORG--NAME/refs/main names a commit; snapshots/COMMIT/FILE links to blobs/HASH; a
//                 download that goes on, or was given up, is blobs/HASH.incomplete
//   LM Studio     PUBLISHER/REPOSITORY/FILE
//   Ollama        manifests/HOST/NAMESPACE/MODEL/TAG is JSON whose layer of type application/vnd.ollama.image.model
//                 is blobs/sha256-HASH, a GGUF file; one being downloaded is sha256-HASH-partial...
//   stores        a directory whose directories have STORE_FORMAT
//
// Names begin with where the model is: "hf:Qwen/Qwen3-30B-A3B", "lmstudio:publisher/repository",
// "ollama:qwen3:30b", "store:qwen3". Of several GGUF files in a repository each is a model, and its path there
// belongs to the name.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace moraine {

enum class ModelPlace : uint8_t { kHuggingFace, kLmStudio, kOllama, kStores };
// "hf", "lmstudio", "ollama", "store".
const char* PrefixOf(ModelPlace place);

struct ModelRoot {
  ModelPlace place = ModelPlace::kStores;
  std::string directory;
};

// The places that there are on this machine, by the variables that these programs read themselves: HF_HUB_CACHE,
// HUGGINGFACE_HUB_CACHE, HF_HOME, XDG_CACHE_HOME; OLLAMA_MODELS; ~/.lmstudio-home-pointer; for stores
// MORAINE_STORES (directories with colons between), else XDG_DATA_HOME/moraine and /var/lib/moraine. Directories
// that are absent are among them. `variable`: getenv.
std::vector<ModelRoot> FindModelRoots(const std::function<const char*(const char*)>& variable);

struct FoundModel {
  ModelPlace place = ModelPlace::kStores;
  std::string name;     // without the prefix
  std::string path;     // a directory or a GGUF file; empty: there is none
  std::string problem;  // why it is not whole, as far as names and links tell; empty: nothing is known
  uint32_t unfinished = 0;  // downloads that have not ended, in the same repository

  std::string full_name() const { return std::string(PrefixOf(place)) + ":" + name; }
  // What people would call it: the last part of the name.
  std::string short_name() const { return name.substr(name.rfind('/') + 1); }
};

// By root, then by name.
std::vector<FoundModel> FindModels(const std::vector<ModelRoot>& roots);

}  // namespace moraine
