#include "test_store.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/random.h"
#include "compute/encode.h"
#include "engine/import_plan.h"
#include "model/config.h"
#include "model/weights.h"

namespace moraine {

std::string GoldenPath(const std::string& relative) {
  return std::string(MORAINE_SOURCE_DIR) + "/tests/golden/" + relative;
}
std::string DemoModelPath() { return std::string(MORAINE_SOURCE_DIR) + "/models/demo"; }

std::string MakeScratchDirectory(const std::string& name) {
  static int counter = 0;
  const std::string path =
      fmt::format("{}/test-scratch/{}-{}-{}", MORAINE_BINARY_DIR, name, getpid(), counter++);
  std::filesystem::remove_all(path);
  std::filesystem::create_directories(path);
  return path;
}

TestStore::TestStore(const std::string& checkpoint_directory, std::optional<Encoding> experts,
                     std::optional<Encoding> dense) {
  directory_ = MakeScratchDirectory("store") + "/s";
  const auto checkpoint = OpenCheckpoint(checkpoint_directory);
  CHECK(checkpoint.ok(), checkpoint.status().message());
  const auto plan = MakeImportPlan(**checkpoint, {experts, dense});
  CHECK(plan.ok(), plan.status().message());
  ImportOptions options;
  options.store_directory = directory_;
  const Status status = Import(**checkpoint, **plan, options);
  CHECK(status.ok(), status.message());
}

TestStore::~TestStore() {
  std::filesystem::remove_all(std::filesystem::path(directory_).parent_path());
}

RunnerOptions TestRunnerOptions(const TestStore& store, const std::string& ram_budget) {
  RunnerOptions options;
  options.store_directory = store.directory();
  options.ram_budget = *ParseRamBudget(ram_budget);
  options.max_context = 1024;
  options.threads = 2;
  return options;
}

void WriteSyntheticCheckpoint(const std::string& directory, const SyntheticShape& s,
                              uint64_t seed) {
  const nlohmann::json config = {
      {"model_type", "qwen3_moe"},        {"hidden_size", s.hidden},
      {"vocab_size", s.vocab},            {"num_attention_heads", s.heads},
      {"num_key_value_heads", s.kv_heads}, {"head_dim", s.head_dim},
      {"num_hidden_layers", s.layers},    {"num_experts", s.experts},
      {"num_experts_per_tok", s.top_k},   {"intermediate_size", s.intermediate},
      {"moe_intermediate_size", s.intermediate}, {"norm_topk_prob", true},
      {"rope_theta", 10000.0},            {"rms_norm_eps", 1e-6},
      {"max_position_embeddings", s.max_position},  {"tie_word_embeddings", true},
      {"eos_token_id", 0}};
  std::ofstream(directory + "/config.json") << config.dump(1);

  const ModelConfig parsed = *ParseModelConfig(config.dump(), "config.json");
  nlohmann::ordered_json header;
  uint64_t offset = 0;
  const auto add = [&](const std::string& name, std::vector<uint64_t> shape) {
    uint64_t bytes = 2;
    for (const uint64_t extent : shape) bytes *= extent;
    header[name] = {{"dtype", "BF16"}, {"shape", shape}, {"data_offsets", {offset, offset + bytes}}};
    offset += bytes;
  };
  for (const DenseRole& role : DenseRoles(parsed)) {
    add(role.source, role.source_shape);
  }
  for (uint32_t layer = 0; layer < s.layers; ++layer) {
    for (uint32_t e = 0; e < s.experts; ++e) {
      const ExpertSources sources =
          TensorNaming(parsed).SourcesOf(parsed, {LayerId(layer), ExpertId(e)});
      add(sources.gate.tensor, sources.gate.shape);
      add(sources.up.tensor, sources.up.shape);
      add(sources.down.tensor, sources.down.shape);
    }
  }
  const std::string text = header.dump();
  std::ofstream file(directory + "/model.safetensors", std::ios::binary);
  const uint64_t length = text.size();
  file.write(reinterpret_cast<const char*>(&length), sizeof(length));
  file << text;
  // 0.05: activations of a random network of these widths stay near one.
  Random random(seed);
  std::vector<uint16_t> block(1 << 16);
  for (uint64_t left = offset / 2; left > 0;) {
    const size_t count = static_cast<size_t>(std::min<uint64_t>(left, block.size()));
    for (size_t i = 0; i < count; ++i) {
      block[i] = FloatToBf16(static_cast<float>(random.Uniform() - 0.5) * 0.2f);
    }
    file.write(reinterpret_cast<const char*>(block.data()), static_cast<std::streamsize>(count * 2));
    left -= count;
  }
  CHECK(file.good(), "cannot write the synthetic checkpoint");
}

}  // namespace moraine
