// Calibration: measures the importance of the experts' columns (engine/importance.h) by running a store's
// model over a text.
//
// Not a Runner with listeners: decode would carry hooks that one offline command needs, and an expert's
// intermediate, which is wanted here, never is in memory as floats there (cpu/expert_runner.h). So this
// is the same forward pass with an executor of its own, which reads each expert that a window of tokens
// takes once, through the page cache, and multiplies with plain MatMuls; biases and activation are those
// of the model. Nothing is read ahead: it computes or reads, and with a model larger than memory it
// mostly reads.
//
// An expert's sums are over the tokens routed to it. One that the text never reached gets the mean
// over its layer's tokens. Dense matrices are not measured.
//
// Memory: dense weights, the scratch of a window, and a double for each column of each expert (48 layers of
// 128 experts of 2048 + 768: 138 MB).
//
// Threads: owned by one thread; kernels use a pool.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "compute/aligned_array.h"
#include "compute/cpu_backend.h"
#include "engine/dense_weights.h"
#include "engine/importance.h"
#include "model/config.h"
#include "model/decoder_model.h"
#include "model/sequence_state.h"
#include "store/posix_file.h"
#include "store/store.h"

namespace moraine {

class Calibration final : public MoeExecutor {
 public:
  // Tokens that see each other, as `moraine eval` reads a text.
  static constexpr uint32_t kWindowTokens = 512;

  // threads: 0: one per CPU.
  static Result<std::unique_ptr<Calibration>> Open(const std::string& store_directory, int threads);

  const Store& store() const { return *store_; }
  // Adds a window of up to kWindowTokens tokens, which know nothing of those before. Errors of reads
  // name file and expert.
  Status Read(std::span<const int32_t> tokens);
  // What was measured so far. The names of model and text are the caller's to fill in.
  Importance Take() const;
  uint64_t unreached_experts() const;

  Status RunExperts(LayerId layer, const RoutingDecision& routing, const float* x,
                    float* out) override;

 private:
  // Sums of squares over the tokens of each expert.
  struct LayerSums {
    std::vector<double> input, intermediate;  // experts x hidden, experts x intermediate
    std::vector<uint64_t> tokens;             // by expert
  };

  Calibration() = default;
  void AllocateScratch();
  Result<ExpertView> ReadExpert(ExpertKey key);
  // Inputs of `count` tokens are in input_; the outputs go to `out`.
  void RunExpert(ExpertKey key, const ExpertView& weights, uint32_t count, float* out);
  // gate_ becomes the intermediate, of `count` floats.
  void Activate(size_t count);

  std::unique_ptr<Store> store_;
  ModelConfig config_;
  std::vector<ExpertLayout> layouts_;
  std::vector<PosixFile> packs_;
  std::unique_ptr<DenseWeights> dense_;
  std::unique_ptr<ThreadPool> pool_;
  std::unique_ptr<CpuBackend> backend_;
  std::unique_ptr<SequenceState> sequence_;
  std::unique_ptr<DecoderModel> model_;
  std::vector<LayerSums> sums_;  // by layer; empty for dense ones
  uint64_t tokens_ = 0;

  AlignedArray<std::byte> record_;
  std::vector<float> input_, gate_, up_;  // tokens of one expert
  std::vector<float> outputs_;            // window tokens x top_k rows
  std::vector<uint32_t> output_row_;      // by token x rank
};

}  // namespace moraine
