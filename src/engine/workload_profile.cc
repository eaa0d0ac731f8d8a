#include "engine/workload_profile.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <numbers>
#include <numeric>

#include "store/profile_section.h"

namespace moraine {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kVersion = 1;
constexpr char kFormat[] = "moraine profile";
constexpr double kHalfLifeTokens = 65536;
// What ImportHeat's unit makes of an expert that every token takes: 1 / (1 - 0.999).
constexpr float kPolicyHeatOfAlways = 1000;

size_t ExpertCount(const ModelIdentity& model) {
  return std::accumulate(model.experts_per_layer.begin(), model.experts_per_layer.end(), size_t{0});
}

Status Expected(const std::string& field, const std::string& expected, const Json& found) {
  return InvalidArgument(fmt::format("profile: field '{}': expected {}, found {}", field, expected,
                                     found.is_null() ? "nothing" : found.dump().substr(0, 40)));
}

Status CheckIdentity(const ModelIdentity& found, const ModelIdentity& model) {
  const auto differs = [&](const std::string& field, const auto& ours, const auto& theirs) {
    return FailedPrecondition(fmt::format(
        "the profile is another model's ('{}'): field 'model.{}' is {}, this model ('{}') has {}",
        found.name, field, theirs, model.name, ours));
  };
  if (found.experts_per_layer.size() != model.experts_per_layer.size()) {
    return differs("experts_per_layer (layers)", model.experts_per_layer.size(),
                   found.experts_per_layer.size());
  }
  for (size_t i = 0; i < model.experts_per_layer.size(); ++i) {
    if (found.experts_per_layer[i] == model.experts_per_layer[i]) continue;
    return differs(fmt::format("experts_per_layer[{}]", i), model.experts_per_layer[i],
                   found.experts_per_layer[i]);
  }
  if (found.top_k != model.top_k) return differs("top_k", model.top_k, found.top_k);
  if (found.routers != model.routers) {
    return differs("routers", fmt::format("{:016x}", model.routers),
                   fmt::format("{:016x}", found.routers));
  }
  return OkStatus();
}

Json MetaJson(const WorkloadProfile& p) {
  return {{"format", kFormat},
          {"version", kVersion},
          {"model",
           {{"name", p.model.name},
            {"experts_per_layer", p.model.experts_per_layer},
            {"top_k", p.model.top_k},
            {"routers", fmt::format("{:016x}", p.model.routers)}}},
          {"saved_unix_s", p.saved_unix_s},
          {"tokens", p.tokens},
          {"weight_tokens", p.weight_tokens}};
}

Status ReadMeta(const Json& json, WorkloadProfile* p) {
  const auto get = [&](const Json& object, const char* name) {
    const auto it = object.find(name);
    return it == object.end() ? Json() : *it;
  };
  if (get(json, "format") != kFormat) {
    return Expected("format", fmt::format("\"{}\"", kFormat), get(json, "format"));
  }
  if (get(json, "version") != kVersion) {
    return Expected("version", std::to_string(kVersion), get(json, "version"));
  }
  const Json model = get(json, "model");
  if (!model.is_object()) return Expected("model", "an object", model);
  if (const Json name = get(model, "name"); name.is_string()) p->model.name = name;
  const Json layers = get(model, "experts_per_layer");
  if (!layers.is_array()) return Expected("model.experts_per_layer", "an array", layers);
  for (const Json& count : layers) {
    if (!count.is_number_unsigned() || count.get<uint64_t>() > (1u << 20)) {
      return Expected("model.experts_per_layer", "whole numbers up to 1048576", count);
    }
    p->model.experts_per_layer.push_back(count.get<uint32_t>());
  }
  const Json top_k = get(model, "top_k");
  if (!top_k.is_number_unsigned()) return Expected("model.top_k", "a whole number", top_k);
  p->model.top_k = top_k.get<uint32_t>();
  const Json routers = get(model, "routers");
  const std::string hex = routers.is_string() ? routers.get<std::string>() : "";
  if (hex.size() != 16 || hex.find_first_not_of("0123456789abcdef") != std::string::npos) {
    return Expected("model.routers", "16 hexadecimal digits", routers);
  }
  p->model.routers = std::stoull(hex, nullptr, 16);
  const Json saved = get(json, "saved_unix_s"), tokens = get(json, "tokens"),
             weight = get(json, "weight_tokens");
  if (!saved.is_number_integer()) return Expected("saved_unix_s", "a whole number", saved);
  if (!tokens.is_number_unsigned()) return Expected("tokens", "a whole number", tokens);
  if (!weight.is_number() || !(weight.get<double>() >= 0)) {
    return Expected("weight_tokens", "a number from 0", weight);
  }
  p->saved_unix_s = saved.get<int64_t>();
  p->tokens = tokens.get<uint64_t>();
  p->weight_tokens = weight.get<double>();
  return OkStatus();
}

template <typename T>
std::string Bytes(std::span<const T> values) {
  return std::string(reinterpret_cast<const char*>(values.data()), values.size_bytes());
}

template <typename T>
Result<std::vector<T>> Values(const std::string& section, const std::string& bytes) {
  if (bytes.size() % sizeof(T) != 0) {
    return Corruption(fmt::format("section '{}' has {} bytes, expected a multiple of {}", section,
                                  bytes.size(), sizeof(T)));
  }
  std::vector<T> values(bytes.size() / sizeof(T));
  if (!values.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

bool IsOwnSection(const std::string& name) {
  return name == "meta" || name == "heat" || name == "warm_set" || name == "co_activation";
}

// What must hold of a profile wherever it comes from.
Status CheckContents(const WorkloadProfile& p) {
  const size_t experts = ExpertCount(p.model);
  if (p.heat.size() != experts) {
    return InvalidArgument(fmt::format("profile: field 'heat': {} values, expected {}", p.heat.size(),
                                       experts));
  }
  for (const float value : p.heat) {
    if (std::isfinite(value) && value >= 0) continue;
    return InvalidArgument(fmt::format("profile: field 'heat': {}, expected numbers from 0", value));
  }
  std::vector<uint8_t> seen(experts, 0);
  for (const uint32_t expert : p.warm_set) {
    if (expert < experts && !seen[expert]++) continue;
    return InvalidArgument(fmt::format(
        "profile: field 'warm_set': {}, expected distinct experts below {}", expert, experts));
  }
  if (!p.co_activation.empty() && p.co_activation.size() != experts) {
    return InvalidArgument(fmt::format("profile: field 'co_activation': {} experts, expected {}",
                                       p.co_activation.size(), experts));
  }
  for (const auto& partners : p.co_activation) {
    for (const auto& [partner, count] : partners) {
      if (partner < experts) continue;
      return InvalidArgument(fmt::format(
          "profile: field 'co_activation': {}, expected experts below {}", partner, experts));
    }
  }
  return OkStatus();
}

Result<CoActivation::Pairs> ReadPairs(const std::vector<uint32_t>& words, size_t experts) {
  CoActivation::Pairs all;
  for (size_t at = 0; at < words.size();) {
    const uint64_t count = words[at++];
    if (count > (words.size() - at) / 2 || all.size() == experts) {
      return Corruption(fmt::format("section 'co_activation': {} pairs at word {}, which has {} words",
                                    count, at - 1, words.size()));
    }
    auto& partners = all.emplace_back();
    for (uint64_t i = 0; i < count; ++i, at += 2) partners.push_back({words[at], words[at + 1]});
  }
  return all;
}

}  // namespace

ModelIdentity IdentityOf(const Manifest& manifest, uint32_t top_k) {
  ModelIdentity model;
  model.name = manifest.source.description;
  model.top_k = top_k;
  for (const LayerManifest& layer : manifest.layers) {
    model.experts_per_layer.push_back(layer.expert_count);
  }
  std::map<std::string, uint64_t> checksums;  // by name: the order of an import must not matter
  for (const DenseTensor& tensor : manifest.dense) {
    if (tensor.name.ends_with("router")) checksums[tensor.name] = tensor.checksum;
  }
  std::vector<uint64_t> ordered;
  for (const auto& [name, checksum] : checksums) ordered.push_back(checksum);
  model.routers = XXH3_64bits(ordered.data(), ordered.size() * sizeof(uint64_t));
  return model;
}

WorkloadProfile WorkloadProfile::Empty(const ModelIdentity& model) {
  WorkloadProfile p;
  p.model = model;
  p.heat.assign(ExpertCount(model), 0.0f);
  return p;
}

void WorkloadProfile::Learn(const ProfileSnapshot& snapshot, uint64_t new_tokens, int64_t unix_s) {
  CHECK(snapshot.heat.size() == heat.size(), "a snapshot of another model");
  saved_unix_s = unix_s;
  tokens += new_tokens;
  // The new tokens have decayed among themselves, so that the size of the steps does not matter.
  const double kept = std::exp2(-static_cast<double>(new_tokens) / kHalfLifeTokens);
  const double gained = kHalfLifeTokens / std::numbers::ln2 * (1 - kept);
  weight_tokens = weight_tokens * kept + gained;
  const double share = weight_tokens > 0 ? gained / weight_tokens : 0;
  size_t begin = 0;
  for (const uint32_t experts : model.experts_per_layer) {
    // Whatever the policy's unit: a token routes to top_k experts of a layer.
    double sum = 0;
    for (size_t i = begin; i < begin + experts; ++i) sum += static_cast<double>(snapshot.heat[i]);
    for (size_t i = begin; sum > 0 && i < begin + experts; ++i) {
      const double now = std::min(1.0, static_cast<double>(snapshot.heat[i]) * model.top_k / sum);
      heat[i] = static_cast<float>((1 - share) * static_cast<double>(heat[i]) + share * now);
    }
    begin += experts;
  }
  warm_set.clear();
  for (uint32_t i = 0; i < snapshot.resident.size(); ++i) {
    if (snapshot.resident[i]) warm_set.push_back(i);
  }
  // By what is hot now: that is the order in which the session would miss them.
  std::stable_sort(warm_set.begin(), warm_set.end(),
                   [&](uint32_t a, uint32_t b) { return snapshot.heat[a] > snapshot.heat[b]; });
  co_activation = snapshot.co_activation.Export();
  for (const auto& [section, payload] : snapshot.sections) SetSection(section, payload);
}

const std::string* WorkloadProfile::FindSection(const std::string& section) const {
  const auto it = other_sections.find(section);
  return it == other_sections.end() ? nullptr : &it->second;
}

void WorkloadProfile::SetSection(const std::string& section, std::string payload) {
  CHECK(!IsOwnSection(section), "section '" + section + "' is the profile's own");
  other_sections[section] = std::move(payload);
  changed_sections.insert(section);
}

std::vector<float> WorkloadProfile::PolicyHeat() const {
  std::vector<float> scaled = heat;
  for (float& value : scaled) value *= kPolicyHeatOfAlways;
  return scaled;
}

Result<WorkloadProfile> WorkloadProfile::Load(const Store& store, const std::string& name,
                                              const ModelIdentity& model) {
  const auto in_profile = [&](const Status& status) {
    return Status(status.code() == StatusCode::kInvalidArgument ? StatusCode::kCorruption
                                                                : status.code(),
                  fmt::format("{}: profile '{}': {}", store.directory(), name, status.message()));
  };
  ASSIGN_OR_RETURN(const std::string meta, store.LoadProfileSection(name, "meta"));
  const Json json = Json::parse(meta, nullptr, false);
  WorkloadProfile p;
  if (!json.is_object()) return in_profile(Corruption("section 'meta' is no JSON object"));
  if (Status status = ReadMeta(json, &p); !status.ok()) return in_profile(status);
  if (Status status = CheckIdentity(p.model, model); !status.ok()) return in_profile(status);
  p.model = model;
  ASSIGN_OR_RETURN(const std::vector<std::string> sections, store.ListProfileSections(name));
  for (const std::string& section : sections) {
    if (section == "meta") continue;
    ASSIGN_OR_RETURN(std::string bytes, store.LoadProfileSection(name, section));
    if (section == "heat") {
      auto values = Values<float>(section, bytes);
      if (!values.ok()) return in_profile(values.status());
      p.heat = std::move(*values);
    } else if (section == "warm_set" || section == "co_activation") {
      auto words = Values<uint32_t>(section, bytes);
      if (!words.ok()) return in_profile(words.status());
      if (section == "warm_set") {
        p.warm_set = std::move(*words);
      } else {
        auto pairs = ReadPairs(*words, ExpertCount(model));
        if (!pairs.ok()) return in_profile(pairs.status());
        p.co_activation = std::move(*pairs);
      }
    } else {
      p.other_sections[section] = std::move(bytes);
    }
  }
  if (Status status = CheckContents(p); !status.ok()) return in_profile(status);
  return p;
}

std::map<std::string, std::string> WorkloadProfile::OwnSections() const {
  std::vector<uint32_t> words;
  for (const auto& partners : co_activation) {
    words.push_back(static_cast<uint32_t>(partners.size()));
    for (const auto& [partner, count] : partners) words.insert(words.end(), {partner, count});
  }
  return {{"meta", MetaJson(*this).dump()},
          {"heat", Bytes<float>(heat)},
          {"warm_set", Bytes<uint32_t>(warm_set)},
          {"co_activation", Bytes<uint32_t>(words)}};
}

Status WorkloadProfile::Save(Store& store, const std::string& name) {
  std::map<std::string, std::string> sections = OwnSections();
  for (const std::string& section : changed_sections) sections[section] = other_sections[section];
  RETURN_IF_ERROR(store.SaveProfile(name, sections));
  changed_sections.clear();
  return OkStatus();
}

Status WorkloadProfile::Replace(Store& store, const std::string& name) const {
  std::map<std::string, std::string> sections = OwnSections();
  sections.insert(other_sections.begin(), other_sections.end());
  return store.ReplaceProfile(name, sections);
}

std::string WorkloadProfile::ToJson() const {
  Json json = MetaJson(*this);
  json["heat"] = heat;
  json["warm_set"] = warm_set;
  json["co_activation"] = co_activation;
  for (const auto& [section, bytes] : other_sections) {
    std::string hex;
    for (const unsigned char byte : bytes) hex += fmt::format("{:02x}", byte);
    json["sections"][section] = hex;
  }
  return json.dump();
}

Result<WorkloadProfile> WorkloadProfile::FromJson(const std::string& text,
                                                  const ModelIdentity& model) {
  const Json json = Json::parse(text, nullptr, false);
  if (!json.is_object()) return InvalidArgument("profile: expected one JSON object");
  WorkloadProfile p;
  RETURN_IF_ERROR(ReadMeta(json, &p));
  RETURN_IF_ERROR(CheckIdentity(p.model, model));
  const auto read = [&](const char* field, auto* out) -> Status {
    const auto it = json.find(field);
    try {  // nlohmann's conversions throw; no exception leaves this function
      if (it != json.end()) {
        it->get_to(*out);
        return OkStatus();
      }
    } catch (const nlohmann::json::exception&) {
    }
    return Expected(field, "an array of numbers", it == json.end() ? Json() : *it);
  };
  RETURN_IF_ERROR(read("heat", &p.heat));
  RETURN_IF_ERROR(read("warm_set", &p.warm_set));
  RETURN_IF_ERROR(read("co_activation", &p.co_activation));
  if (const auto sections = json.find("sections"); sections != json.end()) {
    for (const auto& [section, value] : sections->items()) {
      const std::string hex = value.is_string() ? value.get<std::string>() : "x";
      if (hex.size() % 2 != 0 || hex.find_first_not_of("0123456789abcdef") != std::string::npos) {
        return Expected("sections." + section, "hexadecimal digits", value);
      }
      if (Status ok = CheckProfileName("profile section", section); !ok.ok()) return ok;
      if (IsOwnSection(section)) return Expected("sections", "no '" + section + "'", section);
      std::string& bytes = p.other_sections[section];
      for (size_t i = 0; i < hex.size(); i += 2) {
        bytes.push_back(static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16)));
      }
    }
  }
  RETURN_IF_ERROR(CheckContents(p));
  return p;
}

}  // namespace moraine
