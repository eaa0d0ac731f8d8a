// The measured speed of a store's drive, kept in the store, so that later reports can say how much
// of it was used.
#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"

namespace moraine {

struct DriveNote {
  double gb_per_s = 0;  // the best that was measured
  uint64_t request_bytes = 0;
  uint32_t depth = 0;
};

// Opens the store for writing for a moment: fails if another process has it open so.
Status SaveDriveNote(const std::string& store_directory, const DriveNote& note);
// `note_text`: what the store keeps under kDriveNoteKey. kCorruption names what is missing.
Result<DriveNote> ParseDriveNote(const std::string& note_text);

inline constexpr const char* kDriveNoteKey = "drive_measurement";

}  // namespace moraine
