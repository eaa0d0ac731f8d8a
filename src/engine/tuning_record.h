// TuningRecord: what `moraine tune` has found, as it is remembered, and for what.
//
// A record fits where all of its key fits: the machine (CPU, memory, drive, GPU) and the options that move the
// optimum (mode, budgets, formats). Budgets that were given in bytes fit within a quarter of an octave (19 %): a
// server's budget is not always typed the same. What does not fit is kept for the machine that it fits: a
// store on a drive that is carried around has records of several.
//
// One JSON object, in the store's catalogue as the note "tuning", or, of a store that cannot be written, in a file
// named by the store's UUID. Version 1; another version is no record of ours, and is ignored.
//
// Threads: pure functions but for those that take a Store or a path.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "engine/tuned_settings.h"
#include "store/store.h"

namespace moraine {

struct RunnerOptions;

struct TuningKey {
  // Names and values, in order: {"CPU", "..."}, {"RAM budget", "8 GiB"}.
  std::vector<std::pair<std::string, std::string>> fields;
  bool operator==(const TuningKey&) const = default;
  // Names the first field that differs: "RAM budget is 8 GiB, here 16 GiB"; empty: none does.
  std::string DifferenceTo(const TuningKey& here) const;
};

// What the options add to the machine's fields.
TuningKey KeyOf(std::vector<std::pair<std::string, std::string>> machine,
                const RunnerOptions& options);

struct TuningRecord {
  TuningKey key;
  TunedSettings settings;  // empty: the defaults are best
  double prefill_tok_per_s = 0, decode_tok_per_s = 0;  // with them; 0: not measured
  int64_t saved_unix_s = 0;
};

inline constexpr char kTuningNote[] = "tuning";
// Of the newest; more machines than this rarely have one store.
inline constexpr size_t kMostTuningRecords = 16;

std::string EncodeTuning(std::span<const TuningRecord> records);
// kUnsupported: another version. kCorruption naming the field and what was expected. `where`: for messages.
Result<std::vector<TuningRecord>> DecodeTuning(const std::string& text, const std::string& where);

// Null: none fits.
const TuningRecord* FindTuning(std::span<const TuningRecord> records, const TuningKey& key);

// Where a store's records are: its note, and TuningFile(directory, store) beside it, which is written where the store
// cannot be. `directory`: the user's cache; "": none.
std::string TuningFile(const std::string& directory, const Store& store);
// Of both places, the newest of a key only, newest first. Empty if there are none. Errors as DecodeTuning, for the
// first place that has one.
Result<std::vector<TuningRecord>> LoadTuning(const Store& store, const std::string& directory);
// In place of the one of the same key. What is there and cannot be read is replaced.
Status SaveTuning(Store& store, const std::string& directory, const TuningRecord& record);
// Removes all of them from both places. Returns how many there were; those that could not be read are one.
Result<size_t> ForgetTuning(Store& store, const std::string& directory);

}  // namespace moraine
