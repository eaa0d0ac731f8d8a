#include "residency/trace_replay.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <set>
#include <utility>

#include "base/check.h"
#include "residency/eviction_policy.h"

namespace moraine {
namespace {

Status CheckShapes(std::span<const RoutingTrace> traces, uint32_t slots) {
  if (traces.empty()) return InvalidArgument("no trace to replay");
  const RoutingTrace& first = traces.front();
  for (const RoutingTrace& trace : traces) {
    if (trace.layers == first.layers && trace.experts == first.experts &&
        trace.top_k == first.top_k) {
      continue;
    }
    return InvalidArgument(fmt::format(
        "traces of different models: {} layers x {} experts top-{}, expected {} x {} top-{}",
        trace.layers, trace.experts, trace.top_k, first.layers, first.experts, first.top_k));
  }
  if (slots < first.top_k) {
    return InvalidArgument(
        fmt::format("{} slots: expected at least top_k, {}", slots, first.top_k));
  }
  return OkStatus();
}

// Not the call's own, as ResidencyManager has it.
class NotOfCall final : public EvictionPolicy::Evictable {
 public:
  NotOfCall(LayerId layer, std::span<const uint16_t> call) : layer_(layer), call_(call) {}
  bool operator()(ExpertKey key) const override {
    return key.layer != layer_ ||
           std::find(call_.begin(), call_.end(), key.expert.value()) == call_.end();
  }

 private:
  const LayerId layer_;
  const std::span<const uint16_t> call_;
};

class Replayer {
 public:
  Replayer(const RoutingTrace& shape, const ReplayOptions& options, EvictionPolicy& policy)
      : experts_(shape.experts),
        options_(options),
        policy_(policy),
        resident_(size_t{shape.layers} * shape.experts, 0) {}

  ReplayCount Run(const RoutingTrace& trace) {
    ReplayCount count;
    for (uint32_t token = 0; token < trace.tokens(); ++token) {
      policy_.OnStep(1);
      const bool counted = token >= trace.prefill_tokens;
      count.tokens += counted;
      for (uint32_t layer = 0; layer < trace.layers; ++layer) {
        const std::span<const uint16_t> call = trace.At(token, layer);
        const size_t hits = Visit(layer, call);
        if (counted) {
          count.lookups += call.size();
          count.hits += hits;
        }
        if (options_.lookahead) Predict(trace, token, layer);
      }
    }
    return count;
  }

 private:
  ExpertKey Key(uint32_t layer, uint16_t expert) const {
    return {LayerId(layer), ExpertId(expert)};
  }
  uint8_t& Resident(ExpertKey key) {
    return resident_[size_t{key.layer.value()} * experts_ + key.expert.value()];
  }

  size_t Visit(uint32_t layer, std::span<const uint16_t> call) {
    missing_.clear();
    for (const uint16_t expert : call) {
      const ExpertKey key = Key(layer, expert);
      policy_.OnAccess(key, 1.0f);
      if (!Resident(key)) missing_.push_back(key);
    }
    const NotOfCall evictable(LayerId(layer), call);
    for (const ExpertKey key : missing_) {
      if (used_ == options_.slots) {
        const std::optional<ExpertKey> victim = policy_.ChooseVictim(key.layer, evictable);
        CHECK(victim.has_value(), "at least top_k slots, and nothing to evict");
        policy_.OnEvict(*victim);
        Resident(*victim) = 0;
        --used_;
      }
      ++used_;
    }
    for (const ExpertKey key : missing_) {
      policy_.OnInsert(key);
      Resident(key) = 1;
    }
    return call.size() - missing_.size();
  }

  // What the routers of the next two layers said, as probable as they have been right so far.
  void Predict(const RoutingTrace& trace, uint32_t token, uint32_t layer) {
    for (uint32_t distance = 1; distance <= 2; ++distance) {
      const uint32_t ahead = layer + distance;
      if (ahead >= trace.layers) break;
      const std::span<const uint16_t> said = trace.Lookahead(token, layer, distance);
      const std::span<const uint16_t> actual = trace.At(token, ahead);
      Recall& recall = recall_[distance - 1];
      predicted_.clear();
      for (const uint16_t expert : said) predicted_.emplace_back(expert);
      policy_.OnPredicted(LayerId(ahead), predicted_,
                          static_cast<float>(recall.right / recall.said));
      for (const uint16_t expert : said) {
        recall.said += 1;
        recall.right += std::find(actual.begin(), actual.end(), expert) != actual.end();
      }
    }
  }

  struct Recall {
    double said = 2, right = 1;
  };
  const uint32_t experts_;
  const ReplayOptions& options_;
  EvictionPolicy& policy_;
  std::vector<uint8_t> resident_;
  uint32_t used_ = 0;
  std::vector<ExpertKey> missing_;
  std::vector<ExpertId> predicted_;
  Recall recall_[2];
};

constexpr uint64_t kNever = std::numeric_limits<uint64_t>::max();

// For each pick of all traces, in order, the visit in which its expert comes next.
std::vector<uint64_t> NextVisits(std::span<const RoutingTrace> traces) {
  const size_t experts = traces.front().experts, layers = traces.front().layers;
  std::vector<uint64_t> next_of(experts * layers, kNever);
  size_t picks = 0, visit = 0;
  for (const RoutingTrace& trace : traces) {
    picks += trace.picks.size();
    visit += size_t{trace.tokens()} * layers;
  }
  std::vector<uint64_t> next(picks, kNever);
  for (size_t t = traces.size(); t-- > 0;) {
    const RoutingTrace& trace = traces[t];
    picks -= trace.picks.size();
    for (size_t i = trace.picks.size(); i-- > 0;) {
      if ((i + 1) % trace.top_k == 0) --visit;
      if (trace.picks[i] == kNoTracedExpert) continue;
      uint64_t& upcoming = next_of[visit % layers * experts + trace.picks[i]];
      next[picks + i] = std::exchange(upcoming, visit);
    }
  }
  return next;
}

}  // namespace

ReplayCount& ReplayCount::operator+=(const ReplayCount& other) {
  tokens += other.tokens;
  lookups += other.lookups;
  hits += other.hits;
  return *this;
}

Result<std::vector<ReplayCount>> ReplayTraces(std::span<const RoutingTrace> traces,
                                              const ReplayOptions& options) {
  RETURN_IF_ERROR(CheckShapes(traces, options.slots));
  const RoutingTrace& first = traces.front();
  for (const RoutingTrace& trace : traces) {
    if (options.lookahead && trace.next.empty()) {
      return InvalidArgument("a trace has no lookahead columns");
    }
  }
  const PolicyShape shape{std::vector<uint32_t>(first.layers, first.experts), first.top_k,
                          options.slots};
  ASSIGN_OR_RETURN(const std::unique_ptr<EvictionPolicy> policy,
                   CreateEvictionPolicy(options.policy, shape));
  Replayer replayer(first, options, *policy);
  std::vector<ReplayCount> counts;
  for (const RoutingTrace& trace : traces) counts.push_back(replayer.Run(trace));
  return counts;
}

Result<std::vector<ReplayCount>> ReplayOptimal(std::span<const RoutingTrace> traces, uint32_t slots,
                                               bool bypass) {
  RETURN_IF_ERROR(CheckShapes(traces, slots));
  const std::vector<uint64_t> next = NextVisits(traces);
  const uint32_t layers = traces.front().layers, experts = traces.front().experts;
  std::vector<uint64_t> next_of(size_t{layers} * experts, 0);  // of residents
  std::vector<uint8_t> resident(next_of.size(), 0);
  std::set<std::pair<uint64_t, uint32_t>> by_next;  // residents
  std::vector<ReplayCount> counts;
  size_t begin = 0;
  for (const RoutingTrace& trace : traces) {
    ReplayCount count;
    for (uint32_t token = 0; token < trace.tokens(); ++token) {
      const bool counted = token >= trace.prefill_tokens;
      count.tokens += counted;
      for (uint32_t layer = 0; layer < layers; ++layer) {
        const std::span<const uint16_t> call = trace.At(token, layer);
        for (size_t i = 0; i < call.size(); ++i) {
          const uint32_t expert = layer * experts + call[i];
          count.lookups += counted;
          if (resident[expert]) {
            count.hits += counted;
            by_next.erase({next_of[expert], expert});
          }
          resident[expert] = 1;
          next_of[expert] = next[begin + i];
          by_next.insert({next_of[expert], expert});
          if (by_next.size() <= slots) continue;
          auto victim = std::prev(by_next.end());
          const auto of_call = [&](uint32_t candidate) {
            return candidate / experts == layer &&
                   std::find(call.begin(), call.end(), candidate % experts) != call.end();
          };
          while (!bypass && of_call(victim->second)) --victim;
          resident[victim->second] = 0;
          by_next.erase(victim);
        }
        begin += trace.top_k;
      }
    }
    counts.push_back(count);
  }
  return counts;
}

ProjectedSpeed ProjectSpeed(const ReplayCount& count, const DeviceModel& device) {
  const double io = device.bytes_per_second > 0
                        ? count.misses_per_token() * device.record_bytes / device.bytes_per_second
                        : 0;
  const double compute = device.compute_seconds;
  return {std::max(io, compute) > 0 ? 1 / std::max(io, compute) : 0,
          io + compute > 0 ? 1 / (io + compute) : 0};
}

}  // namespace moraine
