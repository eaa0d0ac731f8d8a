#include "drive_note.h"

#include <nlohmann/json.hpp>

#include "store/store.h"

namespace moraine {

Status SaveDriveNote(const std::string& store_directory, const DriveNote& note) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Store> store,
                   Store::Open(store_directory, StoreMode::kReadWrite));
  const nlohmann::ordered_json json = {{"gb_per_s", note.gb_per_s},
                                       {"request_bytes", note.request_bytes},
                                       {"depth", note.depth}};
  return store->PutNote(kDriveNoteKey, json.dump());
}

Result<DriveNote> ParseDriveNote(const std::string& note_text) {
  const auto json = nlohmann::json::parse(note_text, nullptr, false);
  const auto has = [&](const char* key) { return json.contains(key) && json[key].is_number(); };
  if (!json.is_object() || !has("gb_per_s") || !has("request_bytes") || !has("depth")) {
    return Corruption(std::string("the store's note ") + kDriveNoteKey +
                      " has not the fields gb_per_s, request_bytes and depth: " + note_text);
  }
  return DriveNote{json["gb_per_s"], json["request_bytes"], json["depth"]};
}

}  // namespace moraine
