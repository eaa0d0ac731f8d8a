// Import plans: from a checkpoint's config and tensor names to the store's units of work.
#pragma once

#include <memory>
#include <optional>

#include "compute/encoding.h"
#include "store/importer.h"

namespace moraine {

struct ImportPlanOptions {
  // bf16 is exact for bf16 checkpoints and the default; everything below is lossy and opted into.
  Encoding experts = Encoding::kBf16;
  // Default: bf16 with bf16 experts, else q8 (docs/quantisation.md).
  std::optional<Encoding> dense;
};

// Checks that the checkpoint has exactly the tensors that its config calls for, each with the right
// shape. Errors list what is missing, what is unknown and what has another shape, up to ten each.
Result<std::unique_ptr<ImportPlan>> MakeImportPlan(const Checkpoint& checkpoint,
                                                   const ImportPlanOptions& options);

}  // namespace moraine
