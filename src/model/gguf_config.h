// The metadata of a GGUF as the config.json that the model was published with, so that a store
// knows one dialect, wherever it came from. One function an architecture; what llama.cpp computes
// whatever the file says is written out, what a key asks for beyond it is refused by name.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "base/status.h"

namespace moraine {

// metadata_json: an object of GGUF keys (store/gguf.h). has_tensor: whether the file has a tensor
// of that name, for what metadata does not say (an output matrix of its own, biases). Keys that say
// nothing about the computation are left alone; one that asks for something else than the
// architecture's family computes is kUnsupported. kInvalidArgument naming file, key, found and
// expected.
Result<std::string> ConfigFromGguf(std::string_view metadata_json,
                                   const std::function<bool(const std::string&)>& has_tensor,
                                   const std::string& file_name);

}  // namespace moraine
