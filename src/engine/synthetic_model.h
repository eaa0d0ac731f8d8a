// SyntheticModel: a checkpoint that exists only as a formula, and the plan that imports it at the speed
// of the drive, so that streaming can be measured at the sizes of real models without their weights.
//
// The importer does the rest: layout, checksums, crash safety and resuming are those of any import.
// Expert records and dense matrices are random tiles (compute/random_tiles.h); routers, norms and biases
// are computed.
//
// What random weights would get wrong, and how it is put right:
//  * Popularity. Random router rows make all experts equally likely. Here the residual stream carries a
//    constant direction u (through the attention's output bias), and expert e's row has a component
//    along u that raises its logit by the normal quantile of p(e), its wanted share of the tokens:
//    Zipf with exponent skew x l / (l + 2) in layer l. Layer 0 is uniform, as in trained models.
//  * Locality. Consecutive tokens share experts in trained models. Equal biases of queries and keys make
//    attention prefer the near past (RoPE turns them into a weight of about 1 / distance), so that the
//    stream holds a share that changes slowly.
//  * Lookahead. Random blocks would turn the stream around in every layer; each block's output is scaled
//    so that a layer adds kLayerGrowth of the stream's own energy. The next layer's router on this
//    layer's stream is then right about as often as in trained models.
//  * Repetition. Embeddings and output matrix are independent, or greedy decoding would repeat a token.
// Measured against the recorded traces: docs/synthetic.md.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "compute/encoding.h"
#include "engine/published_shapes.h"
#include "store/checkpoint.h"
#include "store/importer.h"

namespace moraine {

struct SyntheticModelOptions {
  PublishedShape shape{};
  // Not empty: the model of this config.json (published_models.h) instead of the shape, whatever its
  // blocks. Routing is then as random weights have it: all experts alike, and `skew` is not used.
  std::string config;
  std::string name;               // of such a model
  Encoding experts = Encoding::kQ4;
  std::optional<Encoding> dense;  // default: as for an import
  double skew = 1.2;              // of the deepest layers; 0: all experts alike
  uint64_t seed = 1;
};

struct SyntheticModel {
  std::unique_ptr<Checkpoint> checkpoint;  // must outlive the import
  std::unique_ptr<ImportPlan> plan;
};

// kInvalidArgument if the shape cannot be one of the family, or has matrices that are no whole number
// of tiles. Two calls with the same options give the same bytes.
Result<SyntheticModel> MakeSyntheticModel(const SyntheticModelOptions& options);

// tokenizer.json of a vocabulary in which ids 0 to 255 are the bytes and the others are words that text
// never encodes to; the last is the end-of-text token.
std::string SyntheticTokenizerJson(uint32_t vocab);

}  // namespace moraine
