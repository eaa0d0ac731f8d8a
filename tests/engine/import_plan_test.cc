#include "engine/import_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "test_store.h"

namespace moraine {
namespace {

using testing::HasSubstr;

// A copy of a synthetic checkpoint whose config can be edited.
class ImportPlanTest : public testing::Test {
 protected:
  ImportPlanTest() : directory_(MakeScratchDirectory("checkpoint")) {
    WriteSyntheticCheckpoint(directory_, {}, 1);
  }
  ~ImportPlanTest() override { std::filesystem::remove_all(directory_); }

  template <typename Edit>
  void EditConfig(Edit&& edit) {
    std::ifstream in(directory_ + "/config.json");
    nlohmann::json config = nlohmann::json::parse(in);
    edit(config);
    in.close();
    std::ofstream(directory_ + "/config.json") << config.dump();
  }

  Status Plan() {
    const auto checkpoint = OpenSafetensors(directory_);
    CHECK(checkpoint.ok(), checkpoint.status().message());
    return MakeImportPlan(**checkpoint, {}).status();
  }

  const std::string directory_;
};

TEST_F(ImportPlanTest, AcceptsBothConfigDialects) {
  EXPECT_TRUE(Plan().ok());
  EditConfig([](auto& config) {
    config["num_local_experts"] = config["num_experts"];
    config.erase("num_experts");
    config["rope_parameters"] = {{"rope_theta", 10000.0}, {"rope_type", "default"}};
    config.erase("rope_theta");
  });
  EXPECT_TRUE(Plan().ok());
}

TEST_F(ImportPlanTest, TiktokenIsKeptWhereTokenizerJsonIsMissing) {
  const auto kept = [&](const char* name) {
    const auto checkpoint = OpenSafetensors(directory_);
    CHECK(checkpoint.ok(), checkpoint.status().message());
    const auto plan = MakeImportPlan(**checkpoint, {});
    CHECK(plan.ok(), plan.status().message());
    const auto& files = (*plan)->manifest().files;
    return files.contains(name) ? files.at(name) : std::string("none");
  };
  std::ofstream(directory_ + "/tiktoken.model") << "QQ== 0\n";
  std::filesystem::remove(directory_ + "/tokenizer.json");
  EXPECT_EQ(kept("tiktoken.model"), "QQ== 0\n");
  std::ofstream(directory_ + "/tokenizer.json") << "{}";
  EXPECT_EQ(kept("tiktoken.model"), "none");
}

TEST_F(ImportPlanTest, ListsMissingUnknownAndMisshapenTensors) {
  EditConfig([](auto& config) {
    config["num_hidden_layers"] = 3;
    config["num_experts"] = 7;
    config["moe_intermediate_size"] = 48;
  });
  const Status status = Plan();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("missing tensors"));
  EXPECT_THAT(status.message(), HasSubstr("model.layers.2.self_attn.q_proj.weight"));
  EXPECT_THAT(status.message(), HasSubstr("unknown tensors"));
  EXPECT_THAT(status.message(), HasSubstr("model.layers.0.mlp.experts.7.down_proj.weight"));
  EXPECT_THAT(status.message(), HasSubstr("has shape [64, 64], expected [48, 64]"));
}

TEST_F(ImportPlanTest, ConfigErrorsNameFileFieldFoundAndExpected) {
  const auto expect = [&](const char* field, nlohmann::json value, const char* message) {
    EditConfig([&](auto& config) { config[field] = std::move(value); });
    EXPECT_THAT(Plan().message(), testing::AllOf(HasSubstr("config.json"), HasSubstr(message)));
    EditConfig([&](auto& config) { config.erase(field); });
  };
  expect("rope_scaling", {{"rope_type", "llama3"}, {"factor", 4}},
         "field 'rope_scaling.rope_type' is \"llama3\", supported: \"default\" and \"yarn\"");
  expect("hidden_act", "gelu", "field 'hidden_act' is 'gelu', supported: 'silu'");
  expect("mlp_only_layers", "all", "field 'mlp_only_layers' is \"all\", expected a list");
  EditConfig([](auto& config) { config["num_attention_heads"] = -1; });
  EXPECT_THAT(Plan().message(), HasSubstr("field 'num_attention_heads' is -1, expected an integer"));
  EditConfig([](auto& config) { config["model_type"] = "llama"; });
  EXPECT_THAT(Plan().message(), HasSubstr("field 'model_type' is 'llama'"));
}

TEST_F(ImportPlanTest, ANanInQuantisedWeightsIsRefusedByName) {
  const std::string path = directory_ + "/model.safetensors";
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(-2, std::ios::end);  // the last element of the last expert's down_proj
  file.write("\xC0\x7F", 2);
  file.close();
  const auto checkpoint = OpenSafetensors(directory_);
  const auto plan = MakeImportPlan(**checkpoint, {Encoding::kQ4, std::nullopt});
  ASSERT_TRUE(plan.ok());
  ImportOptions options;
  options.store_directory = directory_ + "/store";
  const Status status = Import(**checkpoint, **plan, options);
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(status.message(), HasSubstr("model.layers.1.mlp.experts.7.down_proj.weight"));
}

}  // namespace
}  // namespace moraine
