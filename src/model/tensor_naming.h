// TensorNaming: what one checkpoint calls the tensors that the model knows by role.
//
// Names are tables: the common ones and GGUF's in tensor_naming.cc, those of a family in its file.
// "{}" in a name stands for the number of the expert. Nothing is guessed: what a checkpoint has
// beside what is named here is unknown, and the importer says so.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "model/config.h"

namespace moraine {

// role: of a layer, without its prefix ("attention.q"), or of the whole model ("embedding").
struct TensorName {
  std::string_view role, source;
};

// How gate and up lie in a checkpoint.
enum class GateUpOrder : uint8_t {
  kApart,        // two tensors
  kHalves,       // one, gate's rows first
  kInterleaved,  // one, of gate and up in turns
};

// One way in which published checkpoints keep routed experts.
struct ExpertForm {
  std::string_view gate, up, down;  // up: empty if gate holds both
  bool stacked = false;     // one tensor holds all experts of the layer, in order
  GateUpOrder gate_up = GateUpOrder::kApart;
  bool transposed = false;  // [columns, rows]: y = x W, not W x
  // Of models with biases; those of gate and up lie as their matrices do.
  std::string_view gate_bias = {}, up_bias = {}, down_bias = {};
};

// gate_proj, up_proj, down_proj of each expert (all families in transformers 4); gate_up_proj and
// down_proj of all experts (transformers 5).
extern const std::span<const ExpertForm> kCommonExpertForms;

// Where one matrix of an expert is. Row r of it is row (or column, if transposed) first_row + r x
// row_step of the expert's part of the tensor.
struct ExpertSource {
  std::string tensor;
  std::vector<uint64_t> shape;  // of the whole tensor
  bool stacked = false, transposed = false;
  uint32_t first_row = 0, row_step = 1;
  uint32_t tensor_rows = 0;     // that the expert's part has, of all its matrices
};
struct ExpertSources {
  ExpertSource gate, up, down;
  ExpertSource gate_bias, up_bias, down_bias;  // of one column; no tensor if the model has none
};

class TensorNaming {
 public:
  using HasTensor = std::function<bool(const std::string& name)>;

  // As most published checkpoints of the family are spelled.
  explicit TensorNaming(const ModelConfig& config);
  // The spelling that a checkpoint has: where its language model is, and which form its experts have.
  TensorNaming(const ModelConfig& config, const HasTensor& has_tensor);
  // Of a GGUF; some names differ from architecture to architecture and from converter to converter.
  static TensorNaming Gguf(const ModelConfig& config, const HasTensor& has_tensor);

  // "layers.3.attention.q" -> "model.layers.3.self_attn.q_proj.weight"; "" if it has no name.
  std::string NameOf(std::string_view role) const;
  // What RmsNorms multiply by is this much more than the checkpoint's weights.
  float norm_offset() const { return norm_offset_; }
  // Whether decays are -exp of what the model calls their logarithms.
  bool negates_decays() const { return negates_decays_; }
  // Whether the value heads of Gated DeltaNet lie one of each key head after the other, unless the
  // checkpoint has them by key head anyway.
  bool tiles_value_heads() const { return tiles_value_heads_; }
  ExpertSources SourcesOf(const ModelConfig& config, ExpertKey key) const;
  // Tensors that published checkpoints carry and the forward pass does not need: RoPE tables, layers
  // that predict further tokens, other modalities.
  bool Ignores(std::string_view name) const;

 private:
  struct Root {
    std::string_view model, head;  // prefixes: of the layers and embeddings, of the output matrix
  };

  void ChooseForm(const ModelConfig& config, std::span<const ExpertForm> forms,
                  const HasTensor& has_tensor);
  std::string LayerPrefix(uint32_t layer) const;
  ExpertSource SourceOf(const ModelConfig& config, ExpertKey key, std::string_view name,
                        uint32_t rows, uint32_t cols) const;

  std::span<const TensorName> names_, common_names_;
  std::vector<TensorName> found_names_;  // before the others
  Root root_;
  std::string_view layer_prefix_;  // "{}": the layer's number
  ExpertForm form_;
  uint32_t layer_count_ = 0;
  float norm_offset_ = 0;
  bool negates_decays_ = false;
  bool tiles_value_heads_ = false;
};

}  // namespace moraine
