// Importance: how much each column of a model's experts matters, measured over a calibration text.
//
// A matrix w meets activations x; rounding w by d changes an output by sum_c d[c] x[c], whose mean
// square over a text is, as far as the columns are uncorrelated, sum_c d[c]^2 mean(x[c]^2). So the
// squared error that an import minimises is weighted by mean(x[c]^2) (EncodeRows). The idea is of
// llama.cpp's imatrix; `moraine calibrate` measures (engine/calibration.h), `moraine import
// --importance` uses, docs/quantisation.md says what it buys.
//
// The file is safetensors with float32 tensors of mean squares, so that other tools can read it:
//
//   layers.N.experts.gate_up  [experts, hidden]        over the tokens of each expert
//   layers.N.experts.down     [experts, intermediate]
//
// Dense matrices are not weighted. __metadata__: format, version, what was measured, and "checksum",
// XXH3 over the whole file with sixteen zeros in the checksum's place.
//
// Threads: thread-compatible.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/status.h"
#include "model/config.h"

namespace moraine {

inline constexpr uint32_t kImportanceVersion = 1;

class Importance {
 public:
  struct Tensor {
    std::vector<uint64_t> shape;
    std::vector<float> values;
  };
  Importance() = default;

  // kCorruption or kInvalidArgument naming file, field, found and expected.
  static Result<Importance> Read(const std::string& path);
  Status Write(const std::string& path);  // sets checksum()
  // kInvalidArgument naming the tensor that is missing, unknown or of another shape.
  Status CheckFits(const ModelConfig& config) const;

  // One value a column of gate and up, or of down.
  std::span<const float> OfExpert(ExpertKey key, bool down) const;

  std::map<std::string, Tensor>& tensors() { return tensors_; }
  const std::map<std::string, Tensor>& tensors() const { return tensors_; }

  std::string model, text;  // what was measured, for people
  uint64_t tokens = 0;
  const std::string& path() const { return path_; }
  uint64_t checksum() const { return checksum_; }  // of the file that was read or written

 private:
  Status Parse(std::string bytes);

  std::map<std::string, Tensor> tensors_;
  std::string path_;
  uint64_t checksum_ = 0;
};

// What a file for this model holds: the tensors' names and shapes.
using ImportanceShapes = std::map<std::string, std::vector<uint64_t>>;
ImportanceShapes ShapesOfImportance(const ModelConfig& config);
std::string ImportanceName(LayerId layer, bool down);

}  // namespace moraine
