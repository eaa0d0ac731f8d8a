// The metadata of a GGUF as the config.json that the model was published with, so that a store
// knows one dialect, wherever it came from.
#pragma once

#include <string>
#include <string_view>

#include "base/status.h"

namespace moraine {

// metadata_json: an object of GGUF keys (store/gguf.h). has_output_matrix: whether the file has one
// apart from the embeddings. Keys that say nothing about the computation are left alone; one that
// asks for something else than ParseModelConfig knows is kUnsupported. kInvalidArgument naming
// file, key, found and expected.
Result<std::string> ConfigFromGguf(std::string_view metadata_json, bool has_output_matrix,
                                   const std::string& file_name);

}  // namespace moraine
