// Caches of other programs, laid out in a scratch directory as these programs lay them out.
#include "models/model_caches.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>

#include "base/check.h"
#include "models/model_names.h"

namespace moraine {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

class ModelCachesTest : public testing::Test {
 protected:
  ModelCachesTest() {
    std::string pattern = (fs::temp_directory_path() / "moraine-caches-XXXXXX").string();
    CHECK(mkdtemp(pattern.data()) != nullptr, pattern);
    home_ = pattern;
    variables_["HOME"] = home_.string();
    variables_["MORAINE_STORES"] = (home_ / "stores").string();
    variables_["OLLAMA_MODELS"] = (home_ / "ollama").string();
  }
  ~ModelCachesTest() override { fs::remove_all(home_); }

  void Write(const fs::path& path, const std::string& text = "x") {
    fs::create_directories((home_ / path).parent_path());
    std::ofstream(home_ / path) << text;
  }
  // As the hub's cache has it: a link to a blob, which may not be there.
  void Link(const std::string& repository, const std::string& file, bool has_blob = true) {
    const fs::path link = home_ / kHub / repository / "snapshots/c0ffee" / file;
    fs::create_directories(link.parent_path());
    std::string blob = file;
    std::replace(blob.begin(), blob.end(), '/', '_');
    if (has_blob) Write(kHub / repository / "blobs" / blob);
    fs::create_symlink(home_ / kHub / repository / "blobs" / blob, link);
    Write(kHub / repository / "refs/main", "c0ffee\n");
  }
  void WriteManifest(const std::string& path, const std::string& digest, uint64_t size) {
    Write("ollama/manifests/" + path,
          R"({"schemaVersion":2,"config":{"digest":"sha256:00"},"layers":[{"mediaType":)"
          R"("application/vnd.ollama.image.license","digest":"sha256:11","size":1},{"mediaType":)"
          R"("application/vnd.ollama.image.model","digest":"sha256:)" + digest + R"(","size":)" +
              std::to_string(size) + "}]}");
  }
  std::vector<ModelRoot> Roots() const {
    return FindModelRoots([this](const char* name) -> const char* {
      const auto found = variables_.find(name);
      return found == variables_.end() ? nullptr : found->second.c_str();
    });
  }
  std::vector<FoundModel> Models() const { return FindModels(Roots()); }
  std::vector<std::string> Names() const {
    std::vector<std::string> names;
    for (const FoundModel& model : Models()) names.push_back(model.full_name());
    return names;
  }
  FoundModel Only() const {
    const std::vector<FoundModel> models = Models();
    EXPECT_EQ(models.size(), 1u);
    return models.empty() ? FoundModel() : models.front();
  }
  std::vector<std::string> DirectoriesOf(ModelPlace place) const {
    std::vector<std::string> directories;
    for (const ModelRoot& root : Roots()) {
      if (root.place == place) directories.push_back(root.directory);
    }
    return directories;
  }

  static inline const fs::path kHub = ".cache/huggingface/hub";
  static inline const std::string kDigest = std::string(64, 'a');
  fs::path home_;
  std::map<std::string, std::string> variables_;
};

TEST_F(ModelCachesTest, RootsFollowTheVariablesOfThosePrograms) {
  const std::string home = home_.string();
  EXPECT_THAT(DirectoriesOf(ModelPlace::kHuggingFace), ElementsAre(home + "/.cache/huggingface/hub"));
  EXPECT_THAT(DirectoriesOf(ModelPlace::kLmStudio),
              ElementsAre(home + "/.lmstudio/models", home + "/.cache/lm-studio/models"));
  variables_["XDG_CACHE_HOME"] = "/c";
  EXPECT_THAT(DirectoriesOf(ModelPlace::kHuggingFace), ElementsAre("/c/huggingface/hub"));
  variables_["HF_HOME"] = "/h";
  EXPECT_THAT(DirectoriesOf(ModelPlace::kHuggingFace), ElementsAre("/h/hub"));
  variables_["HUGGINGFACE_HUB_CACHE"] = "/old";
  EXPECT_THAT(DirectoriesOf(ModelPlace::kHuggingFace), ElementsAre("/old"));
  variables_["HF_HUB_CACHE"] = "/new";
  EXPECT_THAT(DirectoriesOf(ModelPlace::kHuggingFace), ElementsAre("/new"));
  Write(".lmstudio-home-pointer", "/elsewhere\n");
  EXPECT_EQ(DirectoriesOf(ModelPlace::kLmStudio).front(), "/elsewhere/models");
  EXPECT_THAT(DirectoriesOf(ModelPlace::kOllama), ElementsAre(home + "/ollama"));
  variables_.erase("OLLAMA_MODELS");
  EXPECT_THAT(DirectoriesOf(ModelPlace::kOllama),
              ElementsAre(home + "/.ollama/models", "/usr/share/ollama/.ollama/models"));
  variables_["MORAINE_STORES"] = "/a:/b";
  EXPECT_THAT(DirectoriesOf(ModelPlace::kStores), ElementsAre("/a", "/b"));
  variables_.erase("MORAINE_STORES");
  EXPECT_THAT(DirectoriesOf(ModelPlace::kStores),
              ElementsAre(home + "/.local/share/moraine", "/var/lib/moraine"));
  variables_.erase("HOME");
  EXPECT_THAT(DirectoriesOf(ModelPlace::kStores), ElementsAre("/var/lib/moraine"));
}

TEST_F(ModelCachesTest, ASnapshotIsAModel) {
  for (const char* file : {"config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors",
                           "model-00002-of-00002.safetensors", "original/consolidated.safetensors"}) {
    Link("models--Qwen--Qwen3-30B-A3B", file);
  }
  Write(kHub / "datasets--a--b/refs/main", "c0ffee");
  Write(kHub / "version.txt");
  const FoundModel model = Only();
  EXPECT_EQ(model.full_name(), "hf:Qwen/Qwen3-30B-A3B");
  EXPECT_EQ(model.short_name(), "Qwen3-30B-A3B");
  EXPECT_EQ(model.path, (home_ / kHub / "models--Qwen--Qwen3-30B-A3B/snapshots/c0ffee").string());
  EXPECT_EQ(model.problem, "");
  EXPECT_EQ(model.unfinished, 0u);
}

TEST_F(ModelCachesTest, HalfDownloadedSnapshotsAreSaid) {
  Link("models--o--linked", "model-00001-of-00002.safetensors");
  Link("models--o--linked", "model-00002-of-00002.safetensors", /*has_blob=*/false);
  Write(kHub / "models--o--linked/blobs/abc.incomplete");
  Link("models--o--no-weights", "config.json");
  Write(kHub / "models--o--nothing/blobs/abc.incomplete");
  Write(kHub / "models--o--elsewhere/refs/main", "deadbeef");
  const std::vector<FoundModel> models = Models();
  ASSERT_EQ(models.size(), 4u);
  EXPECT_EQ(models[0].problem, "snapshot deadbeef is not there");
  EXPECT_EQ(models[1].problem, "model-00002-of-00002.safetensors is a link to what is not there");
  EXPECT_EQ(models[1].unfinished, 1u);
  EXPECT_EQ(models[2].problem, "there are neither safetensors nor GGUF files");
  EXPECT_EQ(models[3].problem, "it has no snapshot");
  EXPECT_EQ(models[3].path, "");
  EXPECT_EQ(models[3].unfinished, 1u);
}

TEST_F(ModelCachesTest, TheSnapshotOfMainIsTaken) {
  Link("models--o--m", "model.safetensors");
  Write(kHub / "models--o--m/snapshots/newer/model.safetensors");
  EXPECT_THAT(Only().path, HasSubstr("/c0ffee"));
  Write(kHub / "models--o--m/refs/main", "newer");
  EXPECT_THAT(Only().path, HasSubstr("/newer"));
  // Without refs, as a download by commit leaves it: the newest.
  fs::remove_all(home_ / kHub / "models--o--m/refs");
  const auto now = fs::file_time_type::clock::now();
  fs::last_write_time(home_ / kHub / "models--o--m/snapshots/newer", now - std::chrono::hours(1));
  fs::last_write_time(home_ / kHub / "models--o--m/snapshots/c0ffee", now);
  EXPECT_THAT(Only().path, HasSubstr("/c0ffee"));
  // A ref is a commit, never a way out of the cache.
  Write(kHub / "models--o--m/refs/main", "../../..");
  EXPECT_THAT(Only().path, HasSubstr("/c0ffee"));
}

TEST_F(ModelCachesTest, EachGgufFileIsAModelAndItsPartsAreOne) {
  Link("models--o--one-GGUF", "one-Q4_0.gguf");
  Link("models--o--many-GGUF", "many-Q8_0.gguf");
  Link("models--o--many-GGUF", "Q4_0/many-00001-of-00003.gguf");
  Link("models--o--many-GGUF", "Q4_0/many-00002-of-00003.gguf");
  Link("models--o--many-GGUF", "Q4_0/many-00003-of-00003.gguf");
  Link("models--o--many-GGUF", "gone.gguf", /*has_blob=*/false);
  EXPECT_THAT(Names(), ElementsAre("hf:o/many-GGUF/Q4_0/many-00001-of-00003.gguf",
                                   "hf:o/many-GGUF/gone.gguf", "hf:o/many-GGUF/many-Q8_0.gguf",
                                   "hf:o/one-GGUF"));
  const std::vector<FoundModel> models = Models();
  EXPECT_EQ(models[1].problem, "gone.gguf is a link to what is not there");
  EXPECT_THAT(models[3].path, testing::EndsWith("one-Q4_0.gguf"));  // where it is named, not its blob
}

TEST_F(ModelCachesTest, LmStudio) {
  Write(".lmstudio/models/lmstudio-community/Qwen3-GGUF/Qwen3-Q4_K_M.gguf");
  Write(".lmstudio/models/mlx/Qwen3-4bit/model.safetensors");
  Write(".lmstudio/models/half/way/downloading_x.gguf.part");
  Write(".lmstudio/models/no/model/README.md");
  Write(".lmstudio/models/loose.gguf");
  Write(".cache/lm-studio/models/old/model/model.gguf");
  Write(".cache/lm-studio/models/mlx/Qwen3-4bit/model.gguf");  // again, in an older place
  EXPECT_THAT(Names(), ElementsAre("lmstudio:half/way", "lmstudio:lmstudio-community/Qwen3-GGUF",
                                   "lmstudio:mlx/Qwen3-4bit", "lmstudio:old/model"));
  EXPECT_EQ(Models()[0].unfinished, 1u);
  EXPECT_EQ(Models()[2].path, (home_ / ".lmstudio/models/mlx/Qwen3-4bit").string());
}

TEST_F(ModelCachesTest, Ollama) {
  const std::string other(64, 'b'), partial(64, 'c'), absent(64, 'd');
  WriteManifest("registry.ollama.ai/library/qwen3/30b", kDigest, 1);
  WriteManifest("registry.ollama.ai/someone/tuned/latest", other, 7);
  WriteManifest("hf.co/org/repo/Q4_0", partial, 1);
  WriteManifest("registry.ollama.ai/library/gone/latest", absent, 1);
  WriteManifest("registry.ollama.ai/library/evil/latest", "../../../etc/passwd", 1);
  Write("ollama/manifests/registry.ollama.ai/library/new/latest",
        R"({"layers":[{"mediaType":"application/vnd.ollama.image.tensor; name=x","digest":"sha256:1"}]})");
  Write("ollama/manifests/registry.ollama.ai/library/broken/latest", "{\"layers\":[");
  for (const std::string& digest : {kDigest, other}) Write("ollama/blobs/sha256-" + digest);
  Write("ollama/blobs/sha256-" + partial + "-partial");
  std::map<std::string, FoundModel> models;
  for (const FoundModel& model : Models()) models[model.full_name()] = model;
  ASSERT_EQ(models.size(), 7u);
  EXPECT_EQ(models["ollama:qwen3:30b"].path, (home_ / "ollama/blobs/sha256-").string() + kDigest);
  EXPECT_EQ(models["ollama:qwen3:30b"].problem, "");
  EXPECT_THAT(models["ollama:someone/tuned:latest"].problem, HasSubstr("has 1 bytes, the manifest says 7"));
  EXPECT_THAT(models["ollama:hf.co/org/repo:Q4_0"].problem, HasSubstr("is half downloaded"));
  EXPECT_THAT(models["ollama:gone:latest"].problem, HasSubstr("is not there"));
  EXPECT_THAT(models["ollama:evil:latest"].problem, HasSubstr("digest is \"sha256:../"));
  EXPECT_EQ(models["ollama:evil:latest"].path, "");
  EXPECT_THAT(models["ollama:new:latest"].problem, HasSubstr("tensor by tensor"));
  EXPECT_THAT(models["ollama:broken:latest"].problem, HasSubstr("0 layers of type"));
}

TEST_F(ModelCachesTest, Stores) {
  Write("stores/demo/STORE_FORMAT");
  Write("stores/other/README");
  EXPECT_THAT(Names(), ElementsAre("store:demo"));
}

TEST_F(ModelCachesTest, NamesAreFoundByAnyEndThatIsOnlyOnes) {
  Link("models--Qwen--Qwen3-30B-A3B", "model.safetensors");
  Link("models--other--Qwen3-30B-A3B", "model.safetensors");
  Link("models--Qwen--Alone", "model.safetensors");
  WriteManifest("registry.ollama.ai/library/qwen3/latest", kDigest, 1);
  Write("ollama/blobs/sha256-" + kDigest);
  Write("stores/alone/STORE_FORMAT");
  const std::vector<FoundModel> models = Models();
  const auto checkpoint = [&](const std::string& text) {
    const auto found = FindNamedModel(models, ModelKind::kCheckpoint, text);
    return found.ok() ? found->full_name() : found.status().message();
  };
  for (const char* text : {"hf:Qwen/Alone", "Qwen/Alone", "Alone", "alone", "hf:alone", "HF:x"}) {
    EXPECT_EQ(checkpoint(text), std::string(text) == "HF:x"
                                    ? "HF:x: neither a path nor a model that `moraine models` lists"
                                    : "hf:Qwen/Alone") << text;
  }
  for (const char* text : {"ollama:qwen3:latest", "ollama:qwen3", "qwen3", "qwen3:latest"}) {
    EXPECT_EQ(checkpoint(text), "ollama:qwen3:latest") << text;
  }
  EXPECT_EQ(checkpoint("Qwen/Qwen3-30B-A3B"), "hf:Qwen/Qwen3-30B-A3B");
  EXPECT_EQ(checkpoint("Qwen3-30B-A3B"),
            "Qwen3-30B-A3B: could be any of hf:Qwen/Qwen3-30B-A3B hf:other/Qwen3-30B-A3B");
  EXPECT_THAT(checkpoint("lone"), HasSubstr("neither a path"));  // not a part of a name
  EXPECT_THAT(checkpoint("lmstudio:Qwen/Alone"), HasSubstr("neither a path"));
  EXPECT_EQ(FindNamedModel(models, ModelKind::kStore, "alone")->full_name(), "store:alone");
}

TEST_F(ModelCachesTest, NamesToTypeAreTheShortestThatStandForOneModel) {
  Link("models--Qwen--Qwen3-30B-A3B", "model.safetensors");
  Link("models--other--Qwen3-30B-A3B", "model.safetensors");
  Link("models--Qwen--Alone", "model.safetensors");
  WriteManifest("registry.ollama.ai/library/qwen3/latest", kDigest, 1);
  Write("ollama/blobs/sha256-" + kDigest);
  Write("stores/Alone/STORE_FORMAT");
  const std::vector<FoundModel> models = Models();
  const std::vector<ModelKind> checkpoints = {ModelKind::kCheckpoint}, stores = {ModelKind::kStore};
  EXPECT_THAT(NamesBeginningWith(models, checkpoints, ""),
              ElementsAre("Alone", "hf:Qwen/Qwen3-30B-A3B", "hf:other/Qwen3-30B-A3B", "qwen3:latest"));
  EXPECT_THAT(NamesBeginningWith(models, checkpoints, "hf:Qwen/"),
              ElementsAre("hf:Qwen/Alone", "hf:Qwen/Qwen3-30B-A3B"));
  EXPECT_THAT(NamesBeginningWith(models, checkpoints, "hf:o"), ElementsAre("hf:other/Qwen3-30B-A3B"));
  EXPECT_THAT(NamesBeginningWith(models, stores, "A"), ElementsAre("Alone"));
  EXPECT_THAT(NamesBeginningWith(models, stores, "store:"), ElementsAre("store:Alone"));
  EXPECT_TRUE(NamesBeginningWith(models, stores, "hf:").empty());
  // What each stands for is what is found by it.
  for (const std::string& name : NamesBeginningWith(models, checkpoints, "")) {
    EXPECT_TRUE(FindNamedModel(models, ModelKind::kCheckpoint, name).ok()) << name;
  }
}

}  // namespace
}  // namespace moraine
