// ProfileSection: the envelope of one section of a workload profile in the catalogue.
//
//   "MPS1"  u32 0  u64 payload bytes  u64 XXH3-64 of the payload  payload
//
// What a payload means, and its version, is the section's own business; the envelope tells a section
// that is whole from one that is not.
#pragma once

#include <string>
#include <string_view>

#include "base/status.h"

namespace moraine {

std::string WrapProfileSection(std::string_view payload);
// kCorruption saying what was found and expected.
Result<std::string> UnwrapProfileSection(std::string_view value);

// 1 to 64 of A-Z a-z 0-9 . _ -; kInvalidArgument naming `what`.
Status CheckProfileName(std::string_view what, std::string_view name);

}  // namespace moraine
