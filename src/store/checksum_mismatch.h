// The one wording for "these bytes are not what was imported", wherever it is found.
#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"

namespace moraine {

// kCorruption: "PACK at offset N: WHAT: checksum is 0x.., expected 0x..".
Status ChecksumMismatch(const std::string& pack, uint64_t offset, const std::string& what,
                        uint64_t expected, uint64_t found);

}  // namespace moraine
