#include "engine/generation_config.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/log.h"

namespace moraine {

void AddEosTokens(const Manifest& manifest, uint32_t vocab_size, std::vector<int32_t>* eos_tokens) {
  const auto file = manifest.files.find("generation_config.json");
  if (file == manifest.files.end()) return;
  const auto json = nlohmann::json::parse(file->second, nullptr, false);
  if (!json.is_object() || !json.contains("eos_token_id")) return;
  const auto& eos = json["eos_token_id"];
  for (const auto& id : eos.is_array() ? eos : nlohmann::json::array({eos})) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() >= vocab_size) continue;
    const int32_t token = id.get<int32_t>();
    if (std::find(eos_tokens->begin(), eos_tokens->end(), token) == eos_tokens->end()) {
      eos_tokens->push_back(token);
    }
  }
}

SamplingOptions ReadDefaultSampling(const Manifest& manifest, uint32_t vocab_size) {
  SamplingOptions sampling;
  const auto file = manifest.files.find("generation_config.json");
  if (file == manifest.files.end()) return sampling;
  const nlohmann::json config = nlohmann::json::parse(file->second, nullptr, false);
  if (!config.is_object()) return sampling;
  const auto number = [&](const char* name, float* field) {
    const auto it = config.find(name);
    if (it != config.end() && it->is_number()) *field = it->get<float>();
  };
  const auto sample = config.find("do_sample");
  if (sample != config.end() && *sample == true) {
    sampling.temperature = 1.0f;
    number("temperature", &sampling.temperature);
  }
  const auto top_k = config.find("top_k");
  if (top_k != config.end() && top_k->is_number_unsigned() &&
      top_k->get<uint64_t>() <= vocab_size) {
    sampling.top_k = top_k->get<uint32_t>();
  }
  number("top_p", &sampling.top_p);
  number("min_p", &sampling.min_p);
  number("repetition_penalty", &sampling.repetition_penalty);
  const Status valid = sampling.Validate(vocab_size);
  if (valid.ok()) return sampling;
  LOG_WARN("generation_config.json: {}; its sampling defaults are not used", valid.message());
  return SamplingOptions{};
}

}  // namespace moraine
