#include "engine/tuning_record.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "base/bytes.h"
#include "compute/kv_format.h"
#include "engine/runner.h"

namespace moraine {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kVersion = 1;

// The lower end of the quarter octave that it is in.
uint64_t ClassOf(uint64_t value) {
  const double quarters = std::floor(4 * std::log2(static_cast<double>(value)) + 1e-9);
  return static_cast<uint64_t>(std::llround(std::exp2(quarters / 4)));
}
std::string ByteClass(uint64_t bytes) {
  return bytes == 0 ? "auto" : FormatByteSize(ClassOf(bytes));
}

std::string RamClass(const RamBudget& budget) {
  switch (budget.kind) {
    case RamBudget::Kind::kAutomatic: return "auto";
    case RamBudget::Kind::kBytes: return ByteClass(budget.bytes);
    case RamBudget::Kind::kExpertFraction: break;
  }
  return fmt::format("{:g}%", 100 * budget.fraction);
}

template <typename T>
void Put(Json& json, const char* name, const std::optional<T>& value) {
  if (value) json[name] = *value;
}

Json ToJson(const TuningRecord& record) {
  Json key = Json::object(), settings = Json::object();
  for (const auto& [name, value] : record.key.fields) key[name] = value;
  Put(settings, "threads", record.settings.threads);
  Put(settings, "prefill_chunk", record.settings.prefill_chunk);
  Put(settings, "lookahead", record.settings.lookahead);
  Put(settings, "io", record.settings.io);
  Put(settings, "gpu_prefill_tokens", record.settings.gpu_prefill_tokens);
  return {{"key", key},
          {"settings", settings},
          {"prefill_tok_per_s", record.prefill_tok_per_s},
          {"decode_tok_per_s", record.decode_tok_per_s},
          {"saved_unix_s", record.saved_unix_s}};
}

// Reads fields of one object, and remembers the first that is not as expected.
class FieldReader {
 public:
  FieldReader(const Json& json, std::string where) : json_(json), where_(std::move(where)) {}

  template <typename T>
  void Number(const char* name, double least, double most, std::optional<T>* value) {
    const auto found = json_.find(name);
    if (found == json_.end()) return;
    if (!found->is_number()) return Fail(name, "a number", *found);
    const auto number = found->get<double>();
    if (!(number >= least && number <= most)) {
      return Fail(name, fmt::format("{:g} to {:g}", least, most), *found);
    }
    *value = static_cast<T>(number);
  }
  void Bool(const char* name, std::optional<bool>* value) {
    const auto found = json_.find(name);
    if (found == json_.end()) return;
    if (!found->is_boolean()) return Fail(name, "true or false", *found);
    *value = found->get<bool>();
  }
  void Choice(const char* name, std::initializer_list<const char*> choices,
              std::optional<std::string>* value) {
    const auto found = json_.find(name);
    if (found == json_.end()) return;
    const std::string text = found->is_string() ? found->get<std::string>() : "";
    if (std::ranges::find(choices, text) == choices.end()) {
      return Fail(name, fmt::format("one of {}", fmt::join(choices, ", ")), *found);
    }
    *value = text;
  }
  void Fail(const char* name, const std::string& expected, const Json& found) {
    if (!status_.ok()) return;
    status_ = Corruption(fmt::format("{}: {}: expected {}, found {}", where_, name, expected,
                                     found.dump(-1, ' ', false, Json::error_handler_t::replace)));
  }
  const Status& status() const { return status_; }

 private:
  const Json& json_;
  const std::string where_;
  Status status_;
};

Result<TuningRecord> ParseRecord(const Json& json, const std::string& where) {
  const auto has_object = [&](const char* name) {
    return json.is_object() && json.contains(name) && json[name].is_object();
  };
  if (!has_object("key") || !has_object("settings")) {
    return Corruption(where + ": expected an object with the objects key and settings");
  }
  TuningRecord record;
  for (const auto& [name, value] : json["key"].items()) {
    if (!value.is_string()) return Corruption(where + ": key." + name + ": expected a string");
    record.key.fields.emplace_back(name, value.get<std::string>());
  }
  FieldReader settings(json["settings"], where + ": settings");
  settings.Number("threads", 1, 1024, &record.settings.threads);
  settings.Number("prefill_chunk", 1, 65536, &record.settings.prefill_chunk);
  settings.Bool("lookahead", &record.settings.lookahead);
  settings.Choice("io", {"io_uring", "pread"}, &record.settings.io);
  settings.Number("gpu_prefill_tokens", 1, UINT32_MAX, &record.settings.gpu_prefill_tokens);
  RETURN_IF_ERROR(settings.status());
  FieldReader fields(json, where);
  std::optional<double> prefill, decode;
  std::optional<int64_t> saved;
  fields.Number("prefill_tok_per_s", 0, 1e12, &prefill);
  fields.Number("decode_tok_per_s", 0, 1e12, &decode);
  fields.Number("saved_unix_s", 0, 1e12, &saved);
  RETURN_IF_ERROR(fields.status());
  record.prefill_tok_per_s = prefill.value_or(0);
  record.decode_tok_per_s = decode.value_or(0);
  record.saved_unix_s = saved.value_or(0);
  return record;
}

Result<std::vector<TuningRecord>> LoadNote(const Store& store) {
  const auto note = store.GetNote(kTuningNote);
  if (note.status().code() == StatusCode::kNotFound) return std::vector<TuningRecord>();
  RETURN_IF_ERROR(note.status());
  return DecodeTuning(*note, store.directory() + ": note " + kTuningNote);
}

Result<std::vector<TuningRecord>> LoadFile(const std::string& path) {
  if (path.empty()) return std::vector<TuningRecord>();
  std::ifstream file(path, std::ios::binary);
  if (!file) return std::vector<TuningRecord>();
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  if (text.empty()) return std::vector<TuningRecord>();
  return DecodeTuning(text, path);
}

// Newest first, one of each key, not too many.
void Tidy(std::vector<TuningRecord>* records) {
  std::ranges::stable_sort(*records, std::ranges::greater(), &TuningRecord::saved_unix_s);
  std::vector<TuningRecord> kept;
  for (TuningRecord& record : *records) {
    if (FindTuning(kept, record.key) == nullptr && kept.size() < kMostTuningRecords) {
      kept.push_back(std::move(record));
    }
  }
  *records = std::move(kept);
}

// Whole or not at all.
Status WriteFile(const std::string& path, const std::string& text) {
  std::error_code error;
  std::filesystem::create_directories(std::filesystem::path(path).parent_path(), error);
  const std::string scratch = path + ".new";
  std::ofstream file(scratch, std::ios::binary | std::ios::trunc);
  file << text << std::flush;
  if (!file) return IoErrorFromErrno(scratch, errno);
  file.close();
  std::filesystem::rename(scratch, path, error);
  return error ? IoErrorFromErrno(path, error.value()) : OkStatus();
}

}  // namespace

std::string TunedSettings::ToText() const {
  std::string text;
  const auto add = [&](const std::string& part) { text += (text.empty() ? "" : ", ") + part; };
  if (threads) add(fmt::format("threads {}", *threads));
  if (prefill_chunk) add(fmt::format("prefill chunk {}", *prefill_chunk));
  if (lookahead) add(*lookahead ? "lookahead" : "no lookahead");
  if (io) add("io " + *io);
  if (gpu_prefill_tokens) add(fmt::format("prompts from {} tokens on the GPU", *gpu_prefill_tokens));
  return text.empty() ? "the defaults" : text;
}

std::string TuningKey::DifferenceTo(const TuningKey& here) const {
  for (size_t i = 0; i < fields.size() || i < here.fields.size(); ++i) {
    if (i < fields.size() && i < here.fields.size() && fields[i] == here.fields[i]) continue;
    const auto& [name, value] = i < fields.size() ? fields[i] : here.fields[i];
    const bool both = i < fields.size() && i < here.fields.size() && name == here.fields[i].first;
    return both ? fmt::format("{} is {}, here {}", name, value, here.fields[i].second)
                : fmt::format("{} is of one of both only", name);
  }
  return "";
}

TuningKey KeyOf(std::vector<std::pair<std::string, std::string>> machine,
                const RunnerOptions& options) {
  TuningKey key{std::move(machine)};
  const bool on_gpu = options.gpu || options.gpu_prefill;
  key.fields.emplace_back("mode", options.gpu           ? "GPU"
                                  : options.gpu_hybrid  ? "GPU and CPU together"
                                  : options.gpu_prefill ? "prompts on a GPU"
                                                        : "CPU");
  if (!options.gpu) key.fields.emplace_back("RAM budget", RamClass(options.ram_budget));
  if (on_gpu) key.fields.emplace_back("VRAM budget", ByteClass(options.vram_budget_bytes));
  if (!options.gpus.empty()) {
    key.fields.emplace_back("GPUs", fmt::format("{}", fmt::join(options.gpus, ",")));
  }
  key.fields.emplace_back("context", options.max_context == 0
                                         ? "default"
                                         : std::to_string(ClassOf(options.max_context)));
  key.fields.emplace_back("KV cache", KvFormatName(options.kv_format));
  return key;
}

std::string EncodeTuning(std::span<const TuningRecord> records) {
  Json list = Json::array();
  for (const TuningRecord& record : records) list.push_back(ToJson(record));
  return Json{{"version", kVersion}, {"records", list}}.dump(
      -1, ' ', false, Json::error_handler_t::replace);
}

Result<std::vector<TuningRecord>> DecodeTuning(const std::string& text, const std::string& where) {
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("version") || !json["version"].is_number_integer()) {
    return Corruption(where + ": expected a JSON object with a version");
  }
  if (json["version"] != kVersion) {
    return Unsupported(fmt::format("{}: version: expected {}, found {}", where, kVersion,
                                   json["version"].dump()));
  }
  if (!json.contains("records") || !json["records"].is_array()) {
    return Corruption(where + ": records: expected an array");
  }
  std::vector<TuningRecord> records;
  for (const Json& entry : json["records"]) {
    ASSIGN_OR_RETURN(TuningRecord record,
                     ParseRecord(entry, fmt::format("{}: record {}", where, records.size())));
    records.push_back(std::move(record));
  }
  return records;
}

const TuningRecord* FindTuning(std::span<const TuningRecord> records, const TuningKey& key) {
  for (const TuningRecord& record : records) {
    if (record.key == key) return &record;
  }
  return nullptr;
}

std::string TuningFile(const std::string& directory, const Store& store) {
  const std::string& name = store.manifest().store_uuid;
  const bool plain = std::ranges::all_of(name, [](unsigned char c) {
    return std::isalnum(c) != 0 || c == '-';
  });
  if (directory.empty() || name.empty() || !plain) return "";
  return directory + "/" + name + ".json";
}

Result<std::vector<TuningRecord>> LoadTuning(const Store& store, const std::string& directory) {
  ASSIGN_OR_RETURN(std::vector<TuningRecord> records, LoadNote(store));
  ASSIGN_OR_RETURN(const std::vector<TuningRecord> others, LoadFile(TuningFile(directory, store)));
  records.insert(records.end(), others.begin(), others.end());
  Tidy(&records);
  return records;
}

Status SaveTuning(Store& store, const std::string& directory, const TuningRecord& record) {
  const bool in_store = store.mode() == StoreMode::kReadWrite;
  const std::string path = TuningFile(directory, store);
  if (!in_store && path.empty()) {
    return FailedPrecondition(store.directory() + " is open for reading only, and there is no "
                              "directory of a user's cache to remember the settings in");
  }
  auto there = in_store ? LoadNote(store) : LoadFile(path);
  std::vector<TuningRecord> records = {record};
  if (there.ok()) records.insert(records.end(), there->begin(), there->end());
  Tidy(&records);
  return in_store ? store.PutNote(kTuningNote, EncodeTuning(records))
                  : WriteFile(path, EncodeTuning(records));
}

Result<size_t> ForgetTuning(Store& store, const std::string& directory) {
  const std::string path = TuningFile(directory, store);
  const auto in_note = LoadNote(store), in_file = LoadFile(path);
  const auto count = [](const Result<std::vector<TuningRecord>>& records) {
    return records.ok() ? records->size() : size_t{1};
  };
  if (count(in_note) > 0) RETURN_IF_ERROR(store.PutNote(kTuningNote, EncodeTuning({})));
  std::error_code error;
  if (!path.empty()) std::filesystem::remove(path, error);
  if (error) return IoErrorFromErrno(path, error.value());
  return count(in_note) + count(in_file);
}

}  // namespace moraine
