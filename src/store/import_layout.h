// ImportLayout: where every byte of a store-to-be goes, computed from the plan before the first byte
// is read. The layout depends on nothing but the plan, the pack limit and the stripes' weights, so a
// resumed import comes to the same places, and units may be finished in any order.
#pragma once

#include <cstdint>
#include <vector>

#include "store/importer.h"
#include "store/manifest.h"
#include "store/store.h"

namespace moraine {

// What one worker encodes and writes in one go: an expert's record or a strip of a dense tensor.
struct ImportUnit {
  bool is_expert = false;
  uint32_t first = 0;   // layer, or index of the dense tensor
  uint32_t second = 0;  // expert, or strip
  uint32_t file = 0;    // 0: the dense pack; 1 + n: expert pack n
  uint64_t offset = 0, bytes = 0;

  ExpertKey key() const { return {LayerId(first), ExpertId(second)}; }
};

struct ImportLayout {
  Manifest manifest;              // the plan's, with store_uuid, offsets and dense_pack_bytes
  std::vector<ImportUnit> units;  // in the order of the files: dense strips, then experts
  uint32_t expert_pack_count = 0;
  std::vector<uint64_t> file_bytes;  // by ImportUnit::file
  uint64_t total_bytes = 0;          // of all units
  uint64_t max_unit_bytes = 0;
};

ImportLayout MakeImportLayout(const ImportPlan& plan, uint64_t pack_limit_bytes,
                              const DriveSet& drives);

// What differs between the plan that an import began with and a new one ("experts of layer 3: q4,
// now q8"); empty if a resume would produce the same bytes.
std::string DescribePlanDifference(const Manifest& begun, const Manifest& now);

}  // namespace moraine
