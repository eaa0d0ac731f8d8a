// Profiles: what they learn, what they survive, what they refuse.
#include "engine/workload_profile.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <numbers>

#include "engine/profile_saver.h"
#include "engine/runner.h"
#include "test_store.h"

namespace moraine {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

ModelIdentity SmallModel() {
  return {.name = "small", .experts_per_layer = {4, 0, 2}, .top_k = 2, .routers = 0x123};
}

ProfileSnapshot Snapshot(std::vector<float> heat, std::vector<uint8_t> resident) {
  ProfileSnapshot snapshot;
  snapshot.heat = std::move(heat);
  snapshot.resident = std::move(resident);
  return snapshot;
}

TEST(WorkloadProfile, HeatIsTheShareOfTokensWhateverThePolicysUnit) {
  WorkloadProfile a = WorkloadProfile::Empty(SmallModel()), b = a;
  a.Learn(Snapshot({4, 4, 0, 0, 1, 1}, {1, 0, 1, 0, 0, 1}), 100, 7);
  b.Learn(Snapshot({400, 400, 0, 0, 10, 10}, {1, 0, 1, 0, 0, 1}), 100, 7);
  EXPECT_EQ(a.heat, b.heat);
  EXPECT_THAT(a.heat, ElementsAre(1, 1, 0, 0, 1, 1)) << "two of them a token";
  EXPECT_THAT(a.warm_set, ElementsAre(0, 5, 2)) << "hottest first";
  EXPECT_EQ(a.tokens, 100u);
  EXPECT_EQ(a.saved_unix_s, 7);
}

TEST(WorkloadProfile, AYoungProfileAveragesAndAnOldOneForgetsByHalfLife) {
  WorkloadProfile p = WorkloadProfile::Empty(SmallModel());
  p.Learn(Snapshot({1, 1, 0, 0, 1, 1}, {}), 100, 0);
  p.Learn(Snapshot({0, 0, 1, 1, 1, 1}, {}), 100, 0);
  EXPECT_NEAR(p.heat[0], 0.5, 0.01);
  p.Learn(Snapshot({1, 1, 0, 0, 1, 1}, {}), 10'000'000, 0);
  // In pieces, as a saver learns: in 65536 tokens half of an old profile's share is gone.
  for (int i = 0; i < 640; ++i) p.Learn(Snapshot({0, 0, 1, 1, 1, 1}, {}), 1024, 0);
  EXPECT_NEAR(p.heat[0], 0.001, 0.0002) << "ten half-lives";
  EXPECT_NEAR(p.weight_tokens, 65536 / std::numbers::ln2, 1);
  for (int i = 0; i < 64; ++i) p.Learn(Snapshot({1, 1, 0, 0, 1, 1}, {}), 1024, 0);
  EXPECT_NEAR(p.heat[0], 0.5, 0.02);
}

TEST(WorkloadProfile, JsonThereAndBackIsTheSame) {
  WorkloadProfile p = WorkloadProfile::Empty(SmallModel());
  p.Learn(Snapshot({3, 1, 2, 0, 5, 1}, {1, 1, 0, 0, 1, 0}), 12345, 1700000000);
  p.co_activation = {{{1, 9}}, {}, {{0, 2}, {3, 1}}, {}, {{5, 4}}, {}};
  p.other_sections["token_experts"] = std::string("\x00\xff\x7f", 3);
  const auto back = WorkloadProfile::FromJson(p.ToJson(), SmallModel());
  ASSERT_TRUE(back.ok()) << back.status().message();
  EXPECT_EQ(back->heat, p.heat);
  EXPECT_EQ(back->warm_set, p.warm_set);
  EXPECT_EQ(back->co_activation, p.co_activation);
  EXPECT_EQ(back->other_sections, p.other_sections);
  EXPECT_EQ(back->tokens, p.tokens);
  EXPECT_EQ(back->weight_tokens, p.weight_tokens);
}

TEST(WorkloadProfile, BadFilesNameTheFieldAndAnotherModelIsRefused) {
  const std::string good = WorkloadProfile::Empty(SmallModel()).ToJson();
  const auto message = [&](auto change) {
    auto json = nlohmann::ordered_json::parse(good);
    change(json);
    const auto result = WorkloadProfile::FromJson(json.dump(), SmallModel());
    return result.ok() ? std::string("accepted") : result.status().message();
  };
  EXPECT_EQ(message([](auto&) {}), "accepted");
  EXPECT_THAT(message([](auto& j) { j["version"] = 2; }), HasSubstr("'version': expected 1, found 2"));
  EXPECT_THAT(message([](auto& j) { j.erase("heat"); }), HasSubstr("'heat'"));
  EXPECT_THAT(message([](auto& j) { j["heat"][0] = "x"; }), HasSubstr("'heat'"));
  EXPECT_THAT(message([](auto& j) { j["heat"].push_back(1); }), HasSubstr("7 values, expected 6"));
  EXPECT_THAT(message([](auto& j) { j["heat"][0] = -1; }), HasSubstr("'heat': -1"));
  EXPECT_THAT(message([](auto& j) { j["warm_set"] = {1, 1}; }), HasSubstr("'warm_set': 1"));
  EXPECT_THAT(message([](auto& j) { j["warm_set"] = {6}; }), HasSubstr("below 6"));
  EXPECT_THAT(message([](auto& j) { j["co_activation"] = {1}; }), HasSubstr("'co_activation'"));
  EXPECT_THAT(message([](auto& j) { j["sections"]["a"] = "zz"; }), HasSubstr("'sections.a'"));
  EXPECT_THAT(message([](auto& j) { j["model"]["routers"] = "0000000000000124"; }),
              HasSubstr("another model's"));
  EXPECT_THAT(message([](auto& j) { j["model"]["experts_per_layer"][2] = 3; }),
              HasSubstr("'model.experts_per_layer[2]' is 3"));
  EXPECT_THAT(message([](auto& j) { j["model"]["top_k"] = 1; }), HasSubstr("'model.top_k' is 1"));
  for (size_t bytes = 0; bytes < good.size(); ++bytes) {
    EXPECT_FALSE(WorkloadProfile::FromJson(good.substr(0, bytes), SmallModel()).ok());
  }
}

TEST(CoActivation, KeepsFrequentPartnersAndBoundsTheRest) {
  CoActivation co({64, 64});
  for (uint32_t step = 0; step < 8000; ++step) {
    co.BeginStep();
    const uint32_t taken[] = {3, 9, 10 + step / 8 % 50};
    co.Record(LayerId(1), taken);
  }
  const CoActivation::Pairs pairs = co.Export();
  EXPECT_EQ(pairs[64 + 3][0], std::pair(64u + 9, 1000u)) << "one step in eight";
  EXPECT_LE(pairs[64 + 3].size(), CoActivation::kPartners);
  EXPECT_TRUE(pairs[3].empty());
  CoActivation copy({64, 64});
  copy.Import(pairs);
  EXPECT_EQ(copy.Export(), pairs);
}

class ProfileStoreTest : public testing::Test {
 protected:
  ProfileStoreTest() : store_(DemoModelPath(), Encoding::kQ8) {}
  RunnerOptions Options() {
    RunnerOptions options = TestRunnerOptions(store_, "25%");
    options.store_mode = StoreMode::kReadWrite;
    return options;
  }
  std::unique_ptr<Runner> Open(const RunnerOptions& options) {
    auto runner = Runner::Open(options);
    CHECK(runner.ok(), runner.status().message());
    return std::move(*runner);
  }
  const TestStore store_;
};

TEST_F(ProfileStoreTest, ARestartHasInMemoryWhatWasThere) {
  const std::vector<int32_t> prompt = {685, 531, 258, 519, 600, 601, 602};
  std::vector<uint8_t> before;
  {
    const auto runner = Open(Options());
    ASSERT_TRUE(runner->Forward(prompt, {}).ok());
    for (int32_t token = 300; token < 360; ++token) {
      ASSERT_TRUE(runner->Forward(std::span(&token, 1), {}).ok());
    }
    before = runner->Snapshot().resident;
    ASSERT_TRUE(runner->SaveProfile().ok());
  }
  const auto runner = Open(Options());
  ASSERT_TRUE(runner->Warm(WarmOrder::kProfile, nullptr).ok());
  const std::vector<uint8_t> after = runner->Snapshot().resident;
  for (size_t i = 0; i < before.size(); ++i) {
    EXPECT_TRUE(after[i] || !before[i]) << i;
  }
}

TEST_F(ProfileStoreTest, ADamagedProfileIsSetAsideAndAnotherIsLearnt) {
  {
    const auto runner = Open(Options());
    ASSERT_TRUE(runner->store().SaveProfile(kDefaultProfile, {{"meta", "{}"}, {"heat", "x"}}).ok());
  }
  {
    RunnerOptions read_only = Options();
    read_only.store_mode = StoreMode::kReadOnly;
    EXPECT_THAT(*Open(read_only)->store().ListProfiles(), ElementsAre("default")) << "as it was";
  }
  const auto runner = Open(Options());
  EXPECT_THAT(*runner->store().ListProfiles(), ElementsAre("default.damaged"));
  EXPECT_EQ(*runner->store().LoadProfileSection("default.damaged", "heat"), "x") << "nothing is lost";
  EXPECT_EQ(runner->Warm(WarmOrder::kProfile, nullptr).code(), StatusCode::kNotFound);
  EXPECT_TRUE(runner->Warm(WarmOrder::kStatic, nullptr).ok());
  EXPECT_GT(runner->Stats().residency.resident, 0u);
  const std::vector<int32_t> prompt = {685, 531};
  ASSERT_TRUE(runner->Forward(prompt, {}).ok());
  ASSERT_TRUE(runner->SaveProfile().ok());
  EXPECT_TRUE(WorkloadProfile::Load(runner->store(), kDefaultProfile, runner->profile().model).ok());
}

TEST_F(ProfileStoreTest, EveryKindOfDamageIsAnErrorThatNamesProfileAndSection) {
  const auto runner = Open(Options());
  const std::vector<int32_t> prompt = {685, 531};
  ASSERT_TRUE(runner->Forward(prompt, {}).ok());
  const ModelIdentity model = runner->profile().model;
  Store& store = runner->store();
  for (const std::string section : {"meta", "heat", "warm_set", "co_activation"}) {
    ASSERT_TRUE(runner->SaveProfile().ok());
    const std::string whole = *store.LoadProfileSection(kDefaultProfile, section);
    for (const std::string& damaged :
         {whole.substr(0, whole.size() / 2 + 1), whole.substr(1), whole + "abcd"}) {
      ASSERT_TRUE(store.SaveProfile(kDefaultProfile, {{section, damaged}}).ok());
      const auto loaded = WorkloadProfile::Load(store, kDefaultProfile, model);
      ASSERT_FALSE(loaded.ok()) << section << ", " << damaged.size() << " of " << whole.size();
      EXPECT_EQ(loaded.status().code(), StatusCode::kCorruption);
      EXPECT_THAT(loaded.status().message(), HasSubstr("profile 'default'"));
      EXPECT_THAT(loaded.status().message(), HasSubstr("'" + section + "'"));
    }
  }
}

TEST_F(ProfileStoreTest, SectionsOfOthersAreSavedWhenTheyChangeAndStay) {
  const auto runner = Open(Options());
  Store& store = runner->store();
  {
    ProfileSaver saver(store, "work", runner->profile());
    ProfileSnapshot snapshot = runner->Snapshot();
    snapshot.sections["extra"] = "first";
    saver.Submit(std::move(snapshot));
    saver.Submit(runner->Snapshot());  // whether or not the one before was written by now
  }
  const ModelIdentity model = runner->profile().model;
  auto saved = WorkloadProfile::Load(store, "work", model);
  ASSERT_TRUE(saved.ok()) << saved.status().message();
  ASSERT_NE(saved->FindSection("extra"), nullptr);
  EXPECT_EQ(*saved->FindSection("extra"), "first");
  EXPECT_EQ(saved->FindSection("other"), nullptr);
  saved->SetSection("other", "second");
  ASSERT_TRUE(saved->Save(store, "work").ok());
  ASSERT_TRUE(WorkloadProfile::Empty(model).Replace(store, "copy").ok());
  ASSERT_TRUE(saved->Replace(store, "copy").ok());
  saved = WorkloadProfile::Load(store, "copy", model);
  ASSERT_TRUE(saved.ok());
  EXPECT_NE(saved->FindSection("extra"), nullptr);
  EXPECT_NE(saved->FindSection("other"), nullptr);
  ASSERT_TRUE(WorkloadProfile::Empty(model).Replace(store, "copy").ok());
  EXPECT_TRUE(WorkloadProfile::Load(store, "copy", model)->other_sections.empty());
}

TEST_F(ProfileStoreTest, TheTokenTableIsThereAfterARestart) {
  std::string learnt;
  {
    const auto runner = Open(Options());
    const std::vector<int32_t> prompt = {685, 531, 258};
    ASSERT_TRUE(runner->Forward(prompt, {}).ok());
    learnt = runner->Snapshot().sections["token_experts"];
    ASSERT_TRUE(runner->SaveProfile().ok());
  }
  EXPECT_FALSE(learnt.empty());
  const auto runner = Open(Options());
  EXPECT_EQ(runner->Snapshot().sections["token_experts"], learnt);
}

TEST_F(ProfileStoreTest, ABadTokenTableCostsNothingElse) {
  {
    const auto runner = Open(Options());
    const std::vector<int32_t> prompt = {685, 531, 258};
    ASSERT_TRUE(runner->Forward(prompt, {}).ok());
    ASSERT_TRUE(runner->SaveProfile().ok());
    ASSERT_TRUE(runner->store().SaveProfile(kDefaultProfile, {{"token_experts", "x"}}).ok());
  }
  const auto runner = Open(Options());
  EXPECT_TRUE(runner->Snapshot().sections["token_experts"].empty());
  EXPECT_TRUE(runner->Warm(WarmOrder::kProfile, nullptr).ok());
}

TEST_F(ProfileStoreTest, TheSaverWritesTheLastSnapshotBeforeItGoes) {
  const auto runner = Open(Options());
  const size_t experts = runner->profile().heat.size();
  {
    ProfileSaver saver(runner->store(), "work", runner->profile());
    for (uint64_t i = 1; i <= 20; ++i) {
      ProfileSnapshot snapshot = runner->Snapshot();
      snapshot.tokens = i * 100;
      snapshot.heat.assign(experts, 1.0f);
      saver.Submit(std::move(snapshot));
    }
  }
  const auto saved = WorkloadProfile::Load(runner->store(), "work", runner->profile().model);
  ASSERT_TRUE(saved.ok()) << saved.status().message();
  EXPECT_EQ(saved->tokens, 2000u) << "snapshots that were passed over are not lost";
}

}  // namespace
}  // namespace moraine
