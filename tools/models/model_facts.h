// What a model that was found is, and whether it can be imported: headers and config are read, no weights.
//
// Cost: a GGUF file's header, or those of all safetensors files; some milliseconds a model, up to a second for
// a hundred files on a cold disk.
#pragma once

#include <cstdint>
#include <string>

#include "models/model_caches.h"

namespace moraine {

struct ModelFacts {
  std::string format;        // "safetensors", "gguf", "store"
  std::string architecture;  // model_type of config.json, general.architecture of a GGUF; empty: not known
  uint64_t bytes = 0;        // of the files
  bool usable = false;       // a checkpoint can be imported, a store run
  std::string reason;        // why not; may have several lines
  std::string source;        // of a store: what it was imported from
};
ModelFacts Examine(const FoundModel& model);

}  // namespace moraine
