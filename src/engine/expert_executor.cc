#include "engine/expert_executor.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "engine/vram_tier.h"

namespace moraine {
namespace {

// A drive of 2 to 7 GB/s reads 2 to 7 MB in that time, about what is in flight; a hand-over costs 1 us.
constexpr size_t kRegionNs = 1'000'000;

}  // namespace

uint64_t ExpertExecutor::ScratchBytes(const ModelConfig& config, uint32_t max_tokens) {
  return uint64_t{max_tokens} * config.top_k * (config.hidden * sizeof(float) + 2 * sizeof(uint32_t)) +
         config.hidden * sizeof(float);
}

ExpertExecutor::ExpertExecutor(const ModelConfig& config, std::vector<ExpertLayout> layouts,
                               ResidencyManager& residency, ExpertKernels& kernels,
                               uint32_t max_tokens, const Clock& clock)
    : hidden_(config.hidden),
      layouts_(std::move(layouts)),
      residency_(residency),
      kernels_(kernels),
      clock_(clock),
      config_(config),
      deferral_(config, residency),
      co_activation_(config.experts_per_layer()),
      layer_stall_ns_(config.layers.size()) {
  const size_t rows = size_t{max_tokens} * config.top_k;
  const size_t experts = std::min<size_t>(config.expert_count, rows);
  experts_.reserve(experts);
  expert_weights_.reserve(experts);
  leases_.resize(experts);
  tasks_.reserve(experts);
  task_expert_.reserve(experts);
  lookahead_.reserve(rows);
  stream_.reserve(config.expert_count);
  named_.resize(config.expert_count);
  for (const uint32_t count : config.experts_per_layer()) expert_total_ += count;
  uint32_t first = 0;
  while (first + 1 < config.layers.size() &&
         config.layers[first].feed_forward != FeedForwardKind::kMoe) {
    ++first;
  }
  first_moe_layer_ = LayerId(first);
  first_row_.resize(config.expert_count);
  row_count_.resize(config.expert_count);
  token_rows_.resize(rows);
  output_row_.resize(rows);
  outputs_.resize((rows + 1) * hidden_);
}

Status ExpertExecutor::RunExperts(LayerId layer, const RoutingDecision& routing, const float* x,
                                  float* out) {
  const int64_t begin = clock_.NowNs();
  const int64_t stall_before = times_.stall_ns;
  if (layer_listener_) layer_listener_();
  if (recorder_ != nullptr) recorder_->Record(layer, routing);
  GroupByExpert(routing);
  CollectArrivals();
  const bool defers = Defers(routing);
  if (defers) deferral_.Choose(layer, routing, x, &experts_);
  LearnTokens(layer, routing);
  OrderByResidency(layer);
  for (uint32_t t = 0; mode_ == AcquireMode::kCached && t < routing.token_count; ++t) {
    co_activation_.Record(layer, {routing.experts + size_t{t} * routing.top_k, routing.top_k});
  }
  if (!experts_.empty()) {
    kernels_.SetExpertInput(x, hidden_, routing.token_count, hidden_,
                            layouts_[layer.value()].gate_up);
  }
  Status status = ComputeAll(layer, routing);
  for (size_t i = 0; i < experts_.size(); ++i) leases_[i].Release();
  if (status.ok() && experts_.empty()) {
    if (out != nullptr) std::fill_n(out, size_t{routing.token_count} * hidden_, 0.0f);
  } else if (status.ok()) {
    const int64_t sum_begin = clock_.NowNs();
    if (defers) SkipDeferredRows(routing);
    kernels_.CombineExperts({outputs_.data(), output_row_.data(),
                             defers ? deferral_.weights() : routing.weights, routing.token_count,
                             routing.top_k, hidden_, out});
    times_.kernel_ns += clock_.NowNs() - sum_begin;
    if (defers) status = deferral_.Finish(layouts_, kernels_, [this] { return Poll(-1); }, out);
  }
  layer_stall_ns_[layer.value()] += times_.stall_ns - stall_before;
  const int64_t end = clock_.NowNs();
  times_.total_ns += end - begin;
  if (mode_ == AcquireMode::kCached) step_end_ns_ = end;
  return status;
}

bool ExpertExecutor::Defers(const RoutingDecision& routing) const {
  // This layer's experts, those deferred by the layer before and those deferred now hold slots together.
  return deferral_.on() && mode_ == AcquireMode::kCached && routing.token_count == 1 &&
         routing.elsewhere == nullptr &&
         residency_.stats().slot_count >= 3 * config_.top_k;
}

// A deferred rank weighs nothing; its row, which nobody has computed, must not be read either.
void ExpertExecutor::SkipDeferredRows(const RoutingDecision& routing) {
  for (uint32_t rank = 1; rank < routing.top_k; ++rank) {
    if (deferral_.weights()[rank] == 0) output_row_[rank] = output_row_[0];
  }
}

float ExpertExecutor::ResidentPreference(LayerId layer, std::span<uint8_t> resident) const {
  if (resident_preference_ == 0 || mode_ != AcquireMode::kCached) return 0;
  for (uint32_t e = 0; e < resident.size(); ++e) {
    const ExpertState state = residency_.state({layer, ExpertId(e)});
    resident[e] = state == ExpertState::kReady || state == ExpertState::kLeased;
  }
  return resident_preference_;
}

void ExpertExecutor::LearnTokens(LayerId layer, const RoutingDecision& routing) {
  if (token_table_ == nullptr || routing.tokens == nullptr || layer != first_moe_layer_) return;
  for (uint32_t t = 0; t < routing.token_count; ++t) {
    token_table_->Learn(routing.tokens[t], &routing.experts[size_t{t} * routing.top_k]);
  }
}

void ExpertExecutor::GroupByExpert(const RoutingDecision& routing) {
  const size_t rows = size_t{routing.token_count} * routing.top_k;
  experts_.clear();
  expert_weights_.clear();
  std::fill(row_count_.begin(), row_count_.end(), 0);
  const auto elsewhere = [&](uint32_t expert) {
    return routing.elsewhere != nullptr && routing.elsewhere[expert] != 0;
  };
  for (size_t i = 0; i < rows; ++i) {
    if (elsewhere(routing.experts[i])) continue;
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
    if (elsewhere(expert)) {
      output_row_[i] = static_cast<uint32_t>(outputs_.size() / hidden_) - 1;
      continue;
    }
    const uint32_t row = first_row_[expert] + row_count_[expert]++;
    token_rows_[row] = static_cast<uint32_t>(i / routing.top_k);
    output_row_[i] = row;
  }
}

// Experts that are in memory come first: leasing them pins them before a miss can evict them. Then those
// that are on their way. The misses of a prompt in file order.
void ExpertExecutor::OrderByResidency(LayerId layer) {
  const auto rank = [&](ExpertId expert) {
    const ExpertState state = residency_.state({layer, expert});
    if (state == ExpertState::kReady || state == ExpertState::kLeased) return 0;
    return state == ExpertState::kReading ? 1 : 2;
  };
  // A stable partition without its scratch buffer: at most a few hundred experts.
  size_t kept = 0;
  for (int wanted = 0; wanted < 2; ++wanted) {
    for (size_t i = kept; i < experts_.size(); ++i) {
      if (rank(experts_[i]) != wanted) continue;
      std::rotate(experts_.begin() + static_cast<ptrdiff_t>(kept),
                  experts_.begin() + static_cast<ptrdiff_t>(i),
                  experts_.begin() + static_cast<ptrdiff_t>(i) + 1);
      ++kept;
    }
  }
  if (mode_ == AcquireMode::kTransient) {
    std::sort(experts_.begin() + static_cast<ptrdiff_t>(kept), experts_.end());
  }
  for (const ExpertId expert : experts_) {
    expert_weights_.push_back(static_cast<float>(row_count_[expert.value()]));
  }
}

// Adds the time of its life to a sum, that of checksums to theirs.
class ExpertExecutor::PollTimer {
 public:
  PollTimer(ExpertExecutor& executor, int64_t* sum_ns)
      : executor_(executor),
        sum_ns_(sum_ns),
        begin_ns_(executor.clock_.NowNs()),
        verify_before_ns_(executor.residency_.stats().verify_ns) {}
  ~PollTimer() {
    const int64_t verify_ns = executor_.residency_.stats().verify_ns - verify_before_ns_;
    executor_.times_.verify_ns += verify_ns;
    *sum_ns_ += executor_.clock_.NowNs() - begin_ns_ - verify_ns;
  }

 private:
  ExpertExecutor& executor_;
  int64_t* const sum_ns_;
  const int64_t begin_ns_, verify_before_ns_;
};

void ExpertExecutor::BeginStep(AcquireMode mode, std::span<const int32_t> tokens,
                               const VramTier* vram) {
  vram_ = vram;
  // What was read ahead for a decode that has ended would only delay the prompt's reads, and what was
  // streamed for a prompt that was given up holds ring slots.
  if (mode != mode_ || mode == AcquireMode::kTransient) residency_.CancelPrefetches();
  if (deferral_.on()) deferral_.Reset();
  mode_ = mode;
  if (mode != AcquireMode::kCached) {
    step_begin_ns_ = step_end_ns_ = 0;
    return;
  }
  co_activation_.BeginStep();
  watchdog_.OnStep(residency_.stats().prefetch_issued, residency_.stats().prefetch_used,
                   step_end_ns_ - step_begin_ns_);
  step_begin_ns_ = step_end_ns_ = clock_.NowNs();
  if (token_table_ == nullptr || ReadAheadDepth() == 0) return;
  lookahead_.clear();
  for (const int32_t token : tokens) token_table_->Append(token, &lookahead_);
  KeepDistinct(first_moe_layer_, &lookahead_);
  if (!lookahead_.empty()) {
    residency_.Prefetch(first_moe_layer_, lookahead_, PrefetchReason::kLookahead);
  }
}

uint32_t ExpertExecutor::LookaheadDepth() const {
  if (recorder_ != nullptr) return kMaxLookahead;
  return ReadAheadDepth();
}

uint32_t ExpertExecutor::ReadAheadDepth() const {
  if (!lookahead_allowed_ || residency_.stats().resident == expert_total_) return 0;
  if (mode_ == AcquireMode::kTransient) return 1;
  return watchdog_.paused() ? 0 : 1;
}

// One layer ahead only: two layers ahead the reads came too early for what they were worth, and lost 1 to
// 5 % in simulation at every cache size (docs/overlap.md).
void ExpertExecutor::Speculate(const RoutingDecision& routing) {
  if (routing.lookaheads.empty() || ReadAheadDepth() == 0) return;
  const RouterLookahead& ahead = routing.lookaheads.front();
  lookahead_.clear();
  for (uint32_t rank = 0; rank < routing.top_k; ++rank) {
    for (uint32_t t = 0; t < routing.token_count; ++t) {
      lookahead_.emplace_back(ahead.experts[size_t{t} * routing.top_k + rank]);
    }
  }
  KeepDistinct(ahead.layer, &lookahead_);
  residency_.Prefetch(ahead.layer, lookahead_, PrefetchReason::kLookahead);
}

// The first of each that is computed here.
void ExpertExecutor::KeepDistinct(LayerId layer, std::vector<ExpertId>* experts) {
  std::fill(named_.begin(), named_.end(), false);
  std::erase_if(*experts, [&](ExpertId e) {
    return std::exchange(named_[e.value()], true) ||
           (vram_ != nullptr && vram_->Find({layer, e}) != nullptr);
  });
}

// A chunk of many tokens wants most of a layer; what its lookahead names is nearly all of that.
void ExpertExecutor::PlanStream(const RoutingDecision& routing) {
  stream_.clear();
  stream_next_ = 0;
  if (routing.lookaheads.empty() || ReadAheadDepth() == 0) return;
  const RouterLookahead& ahead = routing.lookaheads[0];
  stream_layer_ = ahead.layer;
  std::fill(named_.begin(), named_.end(), false);
  for (size_t i = 0; i < size_t{routing.token_count} * routing.top_k; ++i) {
    named_[ahead.experts[i]] = true;
  }
  for (uint32_t e = 0; e < named_.size(); ++e) {
    if (named_[e]) stream_.emplace_back(e);
  }
}

// As far as there are slots. Called again as they come free.
void ExpertExecutor::Stream() {
  if (stream_next_ == stream_.size()) return;
  stream_next_ += residency_.Stream(stream_layer_, std::span(stream_).subspan(stream_next_));
}

// What was read ahead and has arrived counts as present at the lookups that follow.
void ExpertExecutor::CollectArrivals() {
  const PollTimer timer(*this, &times_.residency_ns);
  residency_.Collect();
}

size_t ExpertExecutor::Poll(int64_t wait_ns) {
  const PollTimer timer(*this, wait_ns == 0 ? &times_.residency_ns : &times_.stall_ns);
  return residency_.Poll(wait_ns);
}

Status ExpertExecutor::ComputeAll(LayerId layer, const RoutingDecision& routing) {
  bool speculated = false;
  failed_expert_.reset();
  size_t acquired = 0, done = 0;
  if (mode_ == AcquireMode::kTransient) PlanStream(routing);
  if (experts_.empty() && mode_ == AcquireMode::kCached) Speculate(routing);
  while (done < experts_.size()) {
    if (acquired < experts_.size()) {
      const PollTimer timer(*this, &times_.residency_ns);
      const std::span<const ExpertId> rest = std::span(experts_).subspan(acquired);
      acquired += residency_.Acquire(layer, rest, std::span(expert_weights_).subspan(acquired),
                                     mode_, std::span(leases_).subspan(acquired, rest.size()));
    }
    size_t decided = Poll(0);
    if (acquired == experts_.size()) {
      const PollTimer timer(*this, &times_.residency_ns);
      if (mode_ == AcquireMode::kTransient) {
        Stream();
      } else if (!std::exchange(speculated, true)) {
        Speculate(routing);
      }
      if (deferral_.on()) deferral_.Start();
    }
    const size_t done_before = done;
    RETURN_IF_ERROR(ComputeReady(layer, acquired, &done));
    if (done > done_before || done == experts_.size()) continue;
    if (decided == 0 || acquired == experts_.size()) decided += Poll(-1);
    if (decided == 0 && done == acquired) {
      return ResourceExhausted(fmt::format(
          "no slot for expert {} of layer {}: all are held by reads that have not returned",
          experts_[acquired].value(), layer.value()));
    }
  }
  if (mode_ == AcquireMode::kTransient) Stream();  // the last ones' slots are free now
  return OkStatus();
}

// So many at a time that the drive is looked at every kRegionNs: a region of all that is in memory is many
// milliseconds of a prompt or a batch, in which nothing new would be read. The last acquired first: those
// have been read for this layer, and their slots are wanted for the next ones.
Status ExpertExecutor::ComputeReady(LayerId layer, size_t acquired, size_t* done) {
  tasks_.clear();
  task_expert_.clear();
  for (size_t i = acquired; i-- > 0 && tasks_.size() < region_experts_;) {
    if (leases_[i].state() == Lease::State::kFailed) {
      failed_expert_ = experts_[i];
      return leases_[i].failure();
    }
    if (leases_[i].state() != Lease::State::kReady) continue;
    const uint32_t expert = experts_[i].value();
    tasks_.push_back({ViewExpert(layouts_[layer.value()], leases_[i].data()),
                      &token_rows_[first_row_[expert]], row_count_[expert],
                      &outputs_[size_t{first_row_[expert]} * hidden_], config_.activation});
    task_expert_.push_back(static_cast<uint32_t>(i));
  }
  if (tasks_.empty()) return OkStatus();
  const int64_t begin = clock_.NowNs();
  kernels_.RunExperts(tasks_);
  const int64_t region_ns = clock_.NowNs() - begin;
  times_.kernel_ns += region_ns;
  region_experts_ = std::clamp<size_t>(
      tasks_.size() * kRegionNs / static_cast<size_t>(std::max<int64_t>(region_ns, 1)), 1, leases_.size());
  for (const uint32_t i : task_expert_) leases_[i].Release();
  *done += tasks_.size();
  return OkStatus();
}

}  // namespace moraine
