// ConfigReader: fields of one JSON object, remembering the first thing that was wrong. What several
// families have in common is read by the functions below, in both dialects: transformers 4
// (rope_theta, rope_scaling, num_experts) and transformers 5 (rope_parameters, num_local_experts).
#pragma once

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "model/config.h"

namespace moraine {

// Absurd sizes are refused when they are read, before anything is multiplied or allocated.
inline constexpr uint32_t kMaxDimension = 1u << 20;
inline constexpr uint32_t kMaxVocabulary = 1u << 24;
inline constexpr uint32_t kMaxHeads = 65536, kMaxLayers = 65536, kMaxExperts = 65536;
inline constexpr uint32_t kMaxHeadDim = 4096;
inline constexpr uint32_t kMaxPosition = 0x7fffffff;

// A value as error messages show it: short, valid UTF-8, however deep or long it is.
std::string ShowJson(const nlohmann::json& value);

class ConfigReader {
 public:
  using Names = std::initializer_list<const char*>;

  // outer: the object around a language model's, which may have what belongs to the whole model.
  ConfigReader(const nlohmann::json& object, std::string file, const nlohmann::json& outer)
      : object_(object), outer_(outer), file_(std::move(file)) {}
  ConfigReader(const nlohmann::json& object, std::string file)
      : ConfigReader(object, std::move(file), object) {}

  // The first of `names` that is present and not null.
  const nlohmann::json* Find(Names names) const;
  uint32_t Count(Names names, uint32_t minimum, uint32_t maximum,
                 std::optional<uint32_t> fallback = std::nullopt);
  // Positive, and fits float32.
  float Real(Names names, float fallback);
  bool Flag(const char* name, bool fallback);
  std::string Text(const char* name, const char* fallback);
  std::vector<int32_t> TokenList(const char* name);
  // Fields whose other values would change the computation: absent, null or this.
  void RequireText(const char* name, const char* supported);
  void RequireFlag(const char* name, bool supported);
  void RequireAbsent(const char* name);

  void Fail(const std::string& what);
  void RefuseUnsupported(const std::string& what);
  const Status& status() const { return status_; }

 private:
  const nlohmann::json& object_;
  const nlohmann::json& outer_;
  std::string file_;
  Status status_;
};

// What holds where a config says nothing.
struct RopeDefaults {
  float partial_rotary_factor = 1;
};
// rope_parameters or rope_scaling, rope_theta and partial_rotary_factor, for heads of rotated_dim.
RopeConfig ReadRope(ConfigReader& fields, uint32_t rotated_dim, uint32_t max_position,
                    const RopeDefaults& defaults = {});

// num_attention_heads, num_key_value_heads, head_dim and RoPE.
GqaConfig ReadGqa(ConfigReader& fields, const ModelConfig& config,
                  const RopeDefaults& defaults = {});

// The counts of experts and how many a token uses.
void ReadExpertCounts(ConfigReader& fields, ConfigReader::Names count_names, ModelConfig* config);

// Of families that have no other feed forward.
void RequireExperts(ConfigReader& fields, const char* count_name, const ModelConfig& config);

// Layers with `mixer`, of which the first `dense_count` are dense.
void AddLayers(uint32_t layer_count, uint32_t dense_count, uint32_t dense_intermediate,
               uint32_t expert_intermediate, const MixerConfig& mixer, ModelConfig* config);

uint32_t ReadLayerCount(ConfigReader& fields);

// Whether each layer has no experts: those that mlp_only_layers lists and, unless decoder_sparse_step
// is 1, all whose number counted from 1 is no multiple of it (transformers, Qwen3MoeDecoderLayer).
std::vector<bool> ReadDenseLayers(ConfigReader& fields, uint32_t layer_count,
                                  uint32_t expert_count);

}  // namespace moraine
