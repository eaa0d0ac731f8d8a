#include "engine/fixed_memory.h"

#include <algorithm>

#include "base/bytes.h"
#include "engine/dense_weights.h"
#include "engine/expert_executor.h"
#include "engine/runner.h"
#include "engine/token_expert_table.h"
#include "model/decoder_model.h"
#include "model/kv_pool.h"
#include "model/sequence_state.h"

namespace moraine {
namespace {

// Code, RocksDB, allocator, thread stacks and I/O rings: the demo model keeps about 18 MiB resident
// beyond what CountFixedMemory counts (`moraine run --json`: memory.resident_set_bytes less the rest).
constexpr uint64_t kProcessBytes = 32 * kMiB;
// The tokenizer: 120 bytes for a token's bytes and index, as much again for its merge and the word cache.
constexpr uint64_t kTokenizerBytesPerToken = 256;

// CpuBackend keeps the activations of a chunk three times (dense input, expert input, expert
// intermediate), each as floats, int8 codes, and scale and sum for every 32 columns.
uint64_t BackendScratchBytes(uint64_t tokens, uint64_t cols) {
  return 3 * tokens * (AlignUp(cols, kTileCols) * 5 + cols / kGroupCols * 8);
}

}  // namespace

FixedMemory CountFixedMemory(const Manifest& manifest, const ModelConfig& config,
                             const FixedMemoryOptions& o) {
  const std::vector<LayerStateShape> shapes = StateShapesOf(config, o.kv_format);
  FixedMemory fixed;
  fixed.dense_bytes = DenseWeights::BytesFor(manifest);
  fixed.kv_bytes = KvPool::BytesFor(shapes, KvPool::BlocksFor(o.context)) +
                   o.sequences * SequenceState::RecurrentBytes(shapes);
  // Of each sequence the last logits, and what its sampler works on: those, counts, candidates.
  fixed.scratch_bytes = DecoderModel::ScratchBytes(config, o.step_tokens) +
                        ExpertExecutor::ScratchBytes(config, o.step_tokens) +
                        BackendScratchBytes(o.step_tokens, DecoderModel::WidestInput(config)) +
                        TokenExpertTable::BytesFor(config.vocab_size, config.top_k) +
                        4 * sizeof(float) * uint64_t{o.sequences} * config.vocab_size;
  fixed.process_bytes = kProcessBytes + kTokenizerBytesPerToken * config.vocab_size;
  return fixed;
}

Result<BudgetAdvice> AdviseBudget(const Manifest& manifest) {
  ASSIGN_OR_RETURN(const ModelConfig config,
                   ParseModelConfig(manifest.model_config, "config.json"));
  const RunnerOptions defaults;
  return AdviseBudget(manifest, config.top_k,
                      CountFixedMemory(manifest, config,
                                       {.context = std::min(config.max_position, kDefaultContext),
                                        .sequences = defaults.max_sequences,
                                        .step_tokens = defaults.prefill_chunk,
                                        .kv_format = defaults.kv_format}));
}

}  // namespace moraine
