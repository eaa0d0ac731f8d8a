#include "engine/expert_executor.h"

#include <fmt/format.h>

#include <algorithm>

namespace moraine {

uint64_t ExpertExecutor::ScratchBytes(const ModelConfig& config, uint32_t max_tokens) {
  return uint64_t{max_tokens} * config.top_k * (config.hidden * sizeof(float) + 2 * sizeof(uint32_t));
}

ExpertExecutor::ExpertExecutor(const ModelConfig& config, std::vector<ExpertLayout> layouts,
                               ResidencyManager& residency, CpuBackend& backend,
                               uint32_t max_tokens, const Clock& clock)
    : hidden_(config.hidden),
      layouts_(std::move(layouts)),
      residency_(residency),
      backend_(backend),
      clock_(clock),
      layer_stall_ns_(config.layers.size()) {
  const size_t rows = size_t{max_tokens} * config.top_k;
  const size_t experts = std::min<size_t>(config.expert_count, rows);
  experts_.reserve(experts);
  expert_weights_.reserve(experts);
  leases_.resize(experts);
  tasks_.reserve(experts);
  task_expert_.reserve(experts);
  lookahead_.reserve(config.top_k);
  for (const uint32_t count : config.experts_per_layer()) expert_total_ += count;
  first_row_.resize(config.expert_count);
  row_count_.resize(config.expert_count);
  token_rows_.resize(rows);
  output_row_.resize(rows);
  outputs_.resize(rows * hidden_);
}

Status ExpertExecutor::RunExperts(LayerId layer, const RoutingDecision& routing, const float* x,
                                  float* out) {
  const int64_t begin = clock_.NowNs();
  const int64_t stall_before = times_.stall_ns;
  GroupByExpert(routing);
  OrderByResidency(layer);
  backend_.SetExpertInput(x, hidden_, routing.token_count, hidden_,
                          layouts_[layer.value()].gate_up);
  const Status status = ComputeAll(layer, routing);
  for (size_t i = 0; i < experts_.size(); ++i) leases_[i].Release();
  if (status.ok()) {
    const int64_t sum_begin = clock_.NowNs();
    SumInRouterOrder(routing, out);
    times_.kernel_ns += clock_.NowNs() - sum_begin;
  }
  layer_stall_ns_[layer.value()] += times_.stall_ns - stall_before;
  times_.total_ns += clock_.NowNs() - begin;
  return status;
}

void ExpertExecutor::GroupByExpert(const RoutingDecision& routing) {
  const size_t rows = size_t{routing.token_count} * routing.top_k;
  experts_.clear();
  expert_weights_.clear();
  std::fill(row_count_.begin(), row_count_.end(), 0);
  for (size_t i = 0; i < rows; ++i) {
    if (row_count_[routing.experts[i]]++ == 0) experts_.emplace_back(routing.experts[i]);
  }
  uint32_t next = 0;
  for (const ExpertId expert : experts_) {
    first_row_[expert.value()] = next;
    next += row_count_[expert.value()];
    row_count_[expert.value()] = 0;  // refilled below
  }
  for (size_t i = 0; i < rows; ++i) {
    const uint32_t expert = routing.experts[i];
    const uint32_t row = first_row_[expert] + row_count_[expert]++;
    token_rows_[row] = static_cast<uint32_t>(i / routing.top_k);
    output_row_[i] = row;
  }
}

// Experts that are in memory come first: leasing them pins them before a miss can evict them.
void ExpertExecutor::OrderByResidency(LayerId layer) {
  const auto resident = [&](ExpertId expert) {
    const ExpertState state = residency_.state({layer, expert});
    return state == ExpertState::kReady || state == ExpertState::kLeased;
  };
  // A stable partition without its scratch buffer: at most a few hundred experts.
  size_t kept = 0;
  for (size_t i = 0; i < experts_.size(); ++i) {
    if (!resident(experts_[i])) continue;
    std::rotate(experts_.begin() + static_cast<ptrdiff_t>(kept),
                experts_.begin() + static_cast<ptrdiff_t>(i),
                experts_.begin() + static_cast<ptrdiff_t>(i) + 1);
    ++kept;
  }
  for (const ExpertId expert : experts_) {
    expert_weights_.push_back(static_cast<float>(row_count_[expert.value()]));
  }
}

void ExpertExecutor::BeginStep(AcquireMode mode) {
  mode_ = mode;
  if (mode != AcquireMode::kCached) {
    // What was read ahead for a decode that has ended would only delay the prompt's reads.
    residency_.CancelPrefetches();
    return;
  }
  watchdog_.OnStep(residency_.stats().prefetch_issued, residency_.stats().prefetch_used);
}

bool ExpertExecutor::WantsLookahead() const {
  return lookahead_allowed_ && !watchdog_.paused() && mode_ == AcquireMode::kCached &&
         residency_.stats().resident < expert_total_;
}

void ExpertExecutor::Speculate(const RoutingDecision& routing) {
  if (routing.lookahead.empty()) return;
  lookahead_.clear();
  for (const uint32_t expert : routing.lookahead) lookahead_.emplace_back(expert);
  residency_.Prefetch(routing.lookahead_layer, lookahead_, PrefetchReason::kLookahead);
}

Status ExpertExecutor::ComputeAll(LayerId layer, const RoutingDecision& routing) {
  bool speculated = false;
  size_t acquired = 0, done = 0;
  while (done < experts_.size()) {
    if (acquired < experts_.size()) {
      const std::span<const ExpertId> rest = std::span(experts_).subspan(acquired);
      acquired += residency_.Acquire(layer, rest, std::span(expert_weights_).subspan(acquired),
                                     mode_, std::span(leases_).subspan(acquired, rest.size()));
    }
    residency_.Poll(0);
    // Only into idle time: issued beside this layer's own reads it cost a drive-bound model 7 %.
    if (!speculated && acquired == experts_.size() && residency_.drive_idle()) {
      Speculate(routing);
      speculated = true;
    }
    const size_t done_before = done;
    RETURN_IF_ERROR(ComputeReady(layer, acquired, &done));
    if (done > done_before || done == experts_.size()) continue;
    const int64_t wait_begin = clock_.NowNs();
    const size_t decided = residency_.Poll(-1);
    times_.stall_ns += clock_.NowNs() - wait_begin;
    if (decided == 0 && done == acquired) {
      return ResourceExhausted(fmt::format(
          "no slot for expert {} of layer {}: all are held by reads that have not returned",
          experts_[acquired].value(), layer.value()));
    }
  }
  return OkStatus();
}

Status ExpertExecutor::ComputeReady(LayerId layer, size_t acquired, size_t* done) {
  tasks_.clear();
  task_expert_.clear();
  for (size_t i = 0; i < acquired; ++i) {
    if (leases_[i].state() == Lease::State::kFailed) return leases_[i].failure();
    if (leases_[i].state() != Lease::State::kReady) continue;
    const uint32_t expert = experts_[i].value();
    tasks_.push_back({ViewExpert(layouts_[layer.value()], leases_[i].data()),
                      &token_rows_[first_row_[expert]], row_count_[expert],
                      &outputs_[size_t{first_row_[expert]} * hidden_]});
    task_expert_.push_back(static_cast<uint32_t>(i));
  }
  if (tasks_.empty()) return OkStatus();
  const int64_t begin = clock_.NowNs();
  backend_.RunExperts(tasks_);
  times_.kernel_ns += clock_.NowNs() - begin;
  for (const uint32_t i : task_expert_) leases_[i].Release();
  *done += tasks_.size();
  return OkStatus();
}

void ExpertExecutor::SumInRouterOrder(const RoutingDecision& routing, float* out) {
  const size_t hidden = hidden_;
  backend_.pool().ParallelFor(routing.token_count, [&](uint32_t t, uint32_t) {
    float* sum = out + t * hidden;
    std::fill(sum, sum + hidden, 0.0f);
    for (uint32_t rank = 0; rank < routing.top_k; ++rank) {
      const size_t i = size_t{t} * routing.top_k + rank;
      const float weight = routing.weights[i];
      const float* y = &outputs_[output_row_[i] * hidden];
      for (size_t c = 0; c < hidden; ++c) sum[c] += weight * y[c];
    }
  });
}

}  // namespace moraine
