// Import plans: from a checkpoint's config and tensor names to the store's units of work.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "compute/encoding.h"
#include "engine/importance.h"
#include "store/importer.h"

namespace moraine {

struct ImportPlanOptions {
  // Default: as the checkpoint has them. Q4_0 and Q8_0 are carried bit for bit as q4 and q8; floats
  // become bf16, which is exact for bf16 checkpoints. Everything below is lossy and opted into.
  std::optional<Encoding> experts;
  // Default: as the checkpoint has them if they are quantised there; else q8 if `experts` asks for
  // a quantised encoding, else bf16 (docs/quantisation.md).
  std::optional<Encoding> dense;
  // Weights the squared error by which the experts' scales are chosen, where they are not carried over;
  // null: not. Must fit the config, and something must be weighted by it (kInvalidArgument). Must
  // outlive the plan.
  const Importance* importance = nullptr;
  // What people call the model; empty: as its directory or file is called, which in other programs' caches
  // is a checksum.
  std::string name = {};
};

// Checks that the checkpoint has exactly the tensors that its config calls for, each with the right
// shape. Errors list what is missing, what is unknown and what has another shape, up to ten each.
Result<std::unique_ptr<ImportPlan>> MakeImportPlan(const Checkpoint& checkpoint,
                                                   const ImportPlanOptions& options);

}  // namespace moraine
