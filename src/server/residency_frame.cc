#include "server/residency_frame.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <span>

#include "base/check.h"

namespace moraine {
namespace {

using Json = nlohmann::ordered_json;

constexpr char kFull = 1, kDelta = 2;
constexpr int kVersion = 1;
// Unchanged cells that cost less inside a run (two bytes each) than a new run does.
constexpr size_t kMergedGap = 1;

void AppendVarint(std::string* out, uint64_t value) {
  for (; value >= 128; value >>= 7) out->push_back(static_cast<char>(value | 128));
  out->push_back(static_cast<char>(value));
}

void AppendDifference(std::string* out, int64_t value) {
  AppendVarint(out, (static_cast<uint64_t>(value) << 1) ^ static_cast<uint64_t>(value >> 63));
}

uint64_t Hits(const LookupCounters& lookups) { return lookups.hit + lookups.prefetch_hit; }
uint64_t Misses(const LookupCounters& lookups) {
  return lookups.cold_miss + lookups.in_flight_miss;
}

// Calls visit(name, value) for everything that a frame says of the engine as a whole.
template <typename Visitor>
void VisitNumbers(const EngineStats& s, Visitor&& visit) {
  visit("uptime_us", s.uptime_ns / 1000);
  visit("requests", s.requests);
  visit("queue_length", s.queue_length);
  visit("prefill_tokens", s.prefill.tokens);
  visit("prefill_us", s.prefill.wall_ns / 1000);
  visit("prefill_hits", Hits(s.residency.prefill));
  visit("prefill_misses", Misses(s.residency.prefill));
  visit("decode_tokens", s.decode.tokens);
  visit("decode_us", s.decode.wall_ns / 1000);
  visit("decode_bytes", s.decode.bytes_read);
  visit("decode_hits", Hits(s.residency.decode));
  visit("decode_misses", Misses(s.residency.decode));
  visit("stall_us", s.decode.stall_ns / 1000);
  visit("evictions", s.residency.evictions);
  visit("prefetch_issued", s.residency.prefetch_issued);
  visit("prefetch_used", s.residency.prefetch_used);
  visit("prefetch_late", s.residency.prefetch_late);
  visit("prefetch_wasted", s.residency.prefetch_wasted);
  visit("bytes_read", s.reads.demand_bytes + s.reads.speculative_bytes);
  visit("read_busy_us", s.reads.busy_ns / 1000);
  visit("slot_count", s.residency.slot_count);
  visit("slot_target", s.residency.slot_target);
  visit("ring_slots", s.residency.ring_slots);
  visit("resident", s.residency.resident);
  visit("resident_set_bytes", s.memory.resident_set_bytes);
}

template <typename Visitor>
void VisitLayer(const LayerStats& layer, Visitor&& visit) {
  visit("resident", layer.resident);
  visit("hits", Hits(layer.lookups));
  visit("misses", Misses(layer.lookups));
  visit("stall_us", layer.stall_ns / 1000);
}

template <typename Visitor>
void VisitStep(const StepTimes& step, Visitor&& visit) {
  visit("decode", step.decode ? 1 : 0);
  visit("tokens", step.tokens);
  visit("attention_us", step.attention_us);
  visit("expert_us", step.expert_us);
  visit("stall_us", step.stall_us);
  visit("verify_us", step.verify_us);
  visit("residency_us", step.residency_us);
  visit("other_us", step.other_us);
}

struct NameList {
  Json* names;
  void operator()(const char* name, uint64_t) const { names->push_back(name); }
};

std::string HeaderJson(const ResidencySnapshot& snapshot) {
  const EngineStats& stats = snapshot.stats;
  Json header = {{"version", kVersion},       {"model", stats.model},
                 {"policy", stats.policy},    {"isa", stats.isa},
                 {"io", stats.io},            {"lossy", stats.lossy},
                 {"threads", stats.threads},  {"top_k", snapshot.top_k},
                 {"record_bytes", stats.residency.slot_bytes}};
  for (const char* list : {"residences", "layers", "numbers", "layer_numbers", "step_numbers"}) {
    header[list] = Json::array();
  }
  for (int i = 0; i < kResidenceCount; ++i) {
    header["residences"].push_back(ResidenceName(static_cast<Residence>(i)));
  }
  for (const LayerStats& layer : stats.layers) {
    header["layers"].push_back({{"layer", layer.layer}, {"experts", layer.experts}});
  }
  VisitNumbers(stats, NameList{&header["numbers"]});
  VisitLayer(LayerStats(), NameList{&header["layer_numbers"]});
  VisitStep(StepTimes(), NameList{&header["step_numbers"]});
  return header.dump(-1, ' ', false, Json::error_handler_t::replace);
}

void AppendSteps(std::string* out, std::span<const StepTimes> steps) {
  AppendVarint(out, steps.size());
  for (const StepTimes& step : steps) {
    VisitStep(step, [out](const char*, uint64_t value) { AppendVarint(out, value); });
  }
}

// Runs of cells that differ; makes `cells` and `heats` the new ones.
void AppendCells(std::string* out, const std::vector<uint8_t>& new_cells,
                 const std::vector<uint8_t>& new_heats, std::vector<uint8_t>* cells,
                 std::vector<uint8_t>* heats) {
  const size_t count = new_cells.size();
  const auto same = [&](size_t i) {
    return new_cells[i] == (*cells)[i] && new_heats[i] == (*heats)[i];
  };
  std::string runs;
  uint64_t run_count = 0;
  size_t done = 0;
  for (size_t begin = 0; begin < count;) {
    if (same(begin)) {
      ++begin;
      continue;
    }
    size_t end = begin + 1;  // one past the last cell that differs
    for (size_t i = end; i < count && i - end <= kMergedGap; ++i) {
      if (!same(i)) end = i + 1;
    }
    ++run_count;
    AppendVarint(&runs, begin - done);
    AppendVarint(&runs, end - begin);
    runs.append(new_cells.begin() + begin, new_cells.begin() + end);
    runs.append(new_heats.begin() + begin, new_heats.begin() + end);
    begin = done = end;
  }
  AppendVarint(out, run_count);
  *out += runs;
  *cells = new_cells;
  *heats = new_heats;
}

}  // namespace

void ResidencyFrameEncoder::MarkCells(const ResidencySnapshot& snapshot,
                                      std::vector<uint8_t>* cells) const {
  for (size_t i = 0; i < cells->size(); ++i) {
    uint8_t& cell = (*cells)[i];
    const bool missed = snapshot.misses[i] != misses_[i];
    const bool was_in_memory = IsInMemory(static_cast<Residence>(cells_[i] & kCellResidenceMask));
    if (snapshot.lookups[i] != lookups_[i]) cell |= kCellUsed;
    if (missed) cell |= kCellMissed;
    // What was read and is gone again was in memory, too.
    if ((was_in_memory || missed) && snapshot.residences[i] == Residence::kDrive) {
      cell |= kCellEvicted;
    }
  }
}

std::string ResidencyFrameEncoder::Encode(const ResidencySnapshot& snapshot) {
  std::vector<int64_t> numbers;
  const auto collect = [&](const char*, uint64_t value) {
    numbers.push_back(static_cast<int64_t>(value));
  };
  VisitNumbers(snapshot.stats, collect);
  for (const LayerStats& layer : snapshot.stats.layers) VisitLayer(layer, collect);

  std::vector<uint8_t> cells;
  cells.reserve(snapshot.residences.size());
  for (const Residence residence : snapshot.residences) {
    cells.push_back(static_cast<uint8_t>(residence));
  }
  std::string bytes(4, '\0');
  bytes.push_back(started_ ? kDelta : kFull);
  AppendVarint(&bytes, snapshot.sequence);
  if (!started_) {
    const std::string header = HeaderJson(snapshot);
    AppendVarint(&bytes, header.size());
    bytes += header;
    numbers_.assign(numbers.size(), 0);
    cells_.assign(cells.size(), 0);
    heats_.assign(cells.size(), 0);
    started_ = true;
  }
  // An engine has one model for as long as it lives.
  CHECK(numbers.size() == numbers_.size() && cells.size() == cells_.size(), "another shape");
  if (!lookups_.empty()) MarkCells(snapshot, &cells);
  lookups_ = snapshot.lookups;
  misses_ = snapshot.misses;
  for (size_t i = 0; i < numbers.size(); ++i) AppendDifference(&bytes, numbers[i] - numbers_[i]);
  numbers_ = std::move(numbers);
  AppendCells(&bytes, cells, snapshot.heats, &cells_, &heats_);
  const uint64_t unsent = snapshot.step_count - steps_sent_;
  const size_t count = static_cast<size_t>(std::min<uint64_t>(unsent, snapshot.steps.size()));
  AppendSteps(&bytes, std::span(snapshot.steps).last(count));
  steps_sent_ = snapshot.step_count;
  const uint32_t length = static_cast<uint32_t>(bytes.size() - 4);
  for (int i = 0; i < 4; ++i) bytes[i] = static_cast<char>(length >> (8 * i));
  return bytes;
}

}  // namespace moraine
