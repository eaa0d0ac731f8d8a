#include "engine/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/bytes.h"
#include "base/log.h"
#include "engine/profile_saver.h"
#include "engine/text_assembler.h"
#include "model/constraint/token_constraint.h"

namespace moraine {
namespace {

using nlohmann::json;

constexpr size_t kMaxGoneFactor = 8;
// Between two looks at the queue: about 50 ms of a change of budget.
constexpr uint64_t kIdleResizeBytes = 256 * kMiB;

// The sampling defaults a model's authors ship. Fields of the wrong type are left at ours; values out of
// range would fail every request that inherits them, so then all are.
SamplingOptions ReadDefaultSampling(const Manifest& manifest, uint32_t vocab_size) {
  SamplingOptions sampling;
  const auto file = manifest.files.find("generation_config.json");
  if (file == manifest.files.end()) return sampling;
  const json config = json::parse(file->second, nullptr, false);
  if (!config.is_object()) return sampling;
  const auto number = [&](const char* name, float* field) {
    const auto it = config.find(name);
    if (it != config.end() && it->is_number()) *field = it->get<float>();
  };
  const auto sample = config.find("do_sample");
  if (sample != config.end() && *sample == true) {
    sampling.temperature = 1.0f;
    number("temperature", &sampling.temperature);
  }
  const auto top_k = config.find("top_k");
  if (top_k != config.end() && top_k->is_number_unsigned() &&
      top_k->get<uint64_t>() <= vocab_size) {
    sampling.top_k = top_k->get<uint32_t>();
  }
  number("top_p", &sampling.top_p);
  number("min_p", &sampling.min_p);
  number("repetition_penalty", &sampling.repetition_penalty);
  const Status valid = sampling.Validate(vocab_size);
  if (valid.ok()) return sampling;
  LOG_WARN("generation_config.json: {}; its sampling defaults are not used", valid.message());
  return SamplingOptions{};
}

}  // namespace

class Engine::Impl {
 public:
  ~Impl();
  Status Open(const EngineOptions& options);
  Result<std::shared_ptr<Generation>> Submit(GenerationRequest request);
  void RunOnEngineThread(const std::function<void(Runner&)>& function);

  struct Job {
    GenerationRequest request;
    std::shared_ptr<Generation> generation;
    int64_t submitted_ns = 0;
  };

  void ThreadMain();
  void RunJob(Job& job);
  Status Prefill(const Job& job, GenerationEvent* event, std::span<const float>* logits);
  FinishReason Decode(const Job& job, std::span<const float> logits, GenerationEvent* last);
  void Finish(const Job& job, GenerationEvent* event, FinishReason reason);
  void PublishStats();
  void PublishStatsIfDue();
  void SaveProfileIfDue(bool now);

  EngineOptions options_;
  std::unique_ptr<Runner> runner_;
  std::optional<TextModel> text_;
  SamplingOptions default_sampling_;
  std::unique_ptr<ProfileSaver> profile_saver_;  // null: the store is read-only
  int64_t profile_saved_ns_ = 0, stats_published_ns_ = 0;
  uint64_t profile_saved_tokens_ = 0;
  std::vector<float> logits_;  // of the last position, engine thread only

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Job> queue_;                            // guarded by mutex_
  std::deque<std::function<void(Runner&)>> calls_;   // guarded by mutex_
  std::shared_ptr<Generation> running_;              // guarded by mutex_
  bool stopping_ = false;                            // guarded by mutex_
  bool resizing_ = false;                            // guarded by mutex_
  EngineStats stats_;                                // guarded by mutex_
  uint64_t requests_ = 0, failed_ = 0, cancelled_ = 0;  // engine thread only
  std::thread thread_;
};

Status Engine::Impl::Open(const EngineOptions& options) {
  options_ = options;
  ASSIGN_OR_RETURN(runner_, Runner::Open(options.runner));
  const Manifest& manifest = runner_->store().manifest();
  auto text = TextModel::Load(manifest);
  if (!text.ok()) return text.status().WithContext(options.runner.store_directory);
  text_.emplace(std::move(*text));
  default_sampling_ = ReadDefaultSampling(manifest, runner_->config().vocab_size);
  if (runner_->store().mode() == StoreMode::kReadWrite && manifest.expert_count() > 0 &&
      runner_->gpu() == nullptr) {
    profile_saver_ = std::make_unique<ProfileSaver>(runner_->store(), options.runner.profile,
                                                    runner_->profile());
  }
  profile_saved_ns_ = RealClock().NowNs();
  logits_.resize(runner_->config().vocab_size);
  stats_ = runner_->Stats();
  thread_ = std::thread([this] { ThreadMain(); });
  return OkStatus();
}

Engine::Impl::~Impl() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    if (running_) running_->Cancel();
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
}

Result<std::shared_ptr<Generation>> Engine::Impl::Submit(GenerationRequest request) {
  const uint32_t vocab = runner_->config().vocab_size;
  CHECK(request.on_event != nullptr, "a request without a listener");
  if (request.prompt.empty()) return InvalidArgument("the prompt has no tokens");
  for (const int32_t token : request.prompt) {
    if (token < 0 || static_cast<uint32_t>(token) >= vocab) {
      return InvalidArgument(
          fmt::format("prompt token {} is not below the vocabulary's {}", token, vocab));
    }
  }
  RETURN_IF_ERROR(request.sampling.Validate(vocab));
  const uint32_t limit = runner_->max_context();
  if (request.prompt.size() >= limit) {
    return InvalidArgument(fmt::format("context length exceeded: the prompt has {} tokens, the limit "
                                       "is {} with at least one for the answer",
                                       request.prompt.size(), limit));
  }
  auto generation = std::make_shared<Generation>();
  std::lock_guard lock(mutex_);
  if (stopping_) return FailedPrecondition("the engine is shutting down");
  // Requests whose client has gone keep no place, up to a bound on what may pile up behind a long one.
  const size_t waiting = static_cast<size_t>(
      std::count_if(queue_.begin(), queue_.end(), [](const Job& job) {
        return !job.generation->cancelled_.load(std::memory_order_relaxed);
      }));
  if (waiting >= options_.queue_limit || queue_.size() >= kMaxGoneFactor * options_.queue_limit) {
    return ResourceExhausted(
        fmt::format("{} requests are waiting, the limit is {}", waiting, options_.queue_limit));
  }
  queue_.push_back({std::move(request), generation, RealClock().NowNs()});
  wake_.notify_one();
  return generation;
}

void Engine::Impl::RunOnEngineThread(const std::function<void(Runner&)>& function) {
  std::mutex done_mutex;
  std::condition_variable done_wake;
  bool done = false;
  {
    std::lock_guard lock(mutex_);
    CHECK(!stopping_, "the engine is being destroyed");
    calls_.push_back([&](Runner& runner) {
      function(runner);
      PublishStats();
      std::lock_guard done_lock(done_mutex);
      done = true;
      done_wake.notify_one();
    });
  }
  wake_.notify_one();
  std::unique_lock lock(done_mutex);
  done_wake.wait(lock, [&] { return done; });
}

void Engine::Impl::ThreadMain() {
  std::unique_lock lock(mutex_);
  while (true) {
    const auto ready = [&] {
      return stopping_ || resizing_ || !queue_.empty() || !calls_.empty();
    };
    if (profile_saver_) {
      wake_.wait_for(lock, std::chrono::nanoseconds(options_.profile_save_interval_ns), ready);
    } else {
      wake_.wait(lock, ready);
    }
    if (!calls_.empty()) {
      const auto call = std::move(calls_.front());
      calls_.pop_front();
      lock.unlock();
      call(*runner_);
      lock.lock();
      continue;
    }
    if (queue_.empty()) {
      if (stopping_) break;
      if (std::exchange(resizing_, false)) {
        lock.unlock();
        const bool more = runner_->AdvanceResize(kIdleResizeBytes);
        PublishStats();
        lock.lock();
        resizing_ |= more;
        continue;
      }
      lock.unlock();
      SaveProfileIfDue(false);
      lock.lock();
      continue;
    }
    Job job = std::move(queue_.front());
    queue_.pop_front();
    running_ = job.generation;
    if (stopping_) job.generation->Cancel();
    lock.unlock();
    RunJob(job);
    PublishStats();
    SaveProfileIfDue(false);
    lock.lock();
    running_.reset();
  }
  lock.unlock();
  SaveProfileIfDue(true);
  profile_saver_.reset();  // writes it, before the store goes
  // Here, because reads ahead may still be in flight and the ring belongs to the thread that submits.
  runner_.reset();
}

void Engine::Impl::RunJob(Job& job) {
  GenerationEvent event;
  event.timings.prompt_tokens = static_cast<uint32_t>(job.request.prompt.size());
  event.timings.queue_ns = RealClock().NowNs() - job.submitted_ns;
  ++requests_;
  if (job.generation->cancelled_.load(std::memory_order_relaxed)) {
    Finish(job, &event, FinishReason::kCancelled);
    return;
  }
  event.kind = GenerationEvent::Kind::kStarted;
  job.request.on_event(event);

  int64_t begin = RealClock().NowNs();
  runner_->ResetSequence();
  std::span<const float> logits;
  const Status prefilled = Prefill(job, &event, &logits);
  event.timings.prefill_ns = RealClock().NowNs() - begin;
  if (!prefilled.ok()) {
    event.error = prefilled;
    Finish(job, &event, prefilled.code() == StatusCode::kCancelled ? FinishReason::kCancelled
                                                                   : FinishReason::kError);
    return;
  }
  PublishStats();
  begin = RealClock().NowNs();
  const FinishReason reason = Decode(job, logits, &event);
  event.timings.decode_ns = RealClock().NowNs() - begin;
  Finish(job, &event, reason);
}

Status Engine::Impl::Prefill(const Job& job, GenerationEvent* event,
                             std::span<const float>* logits) {
  const Runner::LogitsSink keep = [&](uint32_t, std::span<const float> values) {
    std::copy(values.begin(), values.end(), logits_.begin());
  };
  const std::function<void(uint32_t)> progress = [&](uint32_t done) {
    event->kind = GenerationEvent::Kind::kPrefillProgress;
    event->prefilled_tokens = done;
    job.request.on_event(*event);
    PublishStatsIfDue();
    SaveProfileIfDue(false);
  };
  RETURN_IF_ERROR(runner_->Forward(job.request.prompt,
                                   {.sink = &keep,
                                    .cancelled = &job.generation->cancelled_,
                                    .on_chunk = &progress}));
  *logits = logits_;
  return OkStatus();
}

FinishReason Engine::Impl::Decode(const Job& job, std::span<const float> logits,
                                  GenerationEvent* event) {
  const GenerationRequest& request = job.request;
  const std::vector<int32_t>& eos = runner_->info().eos_tokens;
  TokenConstraint* constraint = request.constraint.get();
  const uint32_t room = runner_->max_context() - runner_->position();
  const uint32_t budget = request.max_tokens > 0 ? std::min(request.max_tokens, room) : room;
  Sampler sampler(request.sampling, runner_->config().vocab_size);
  sampler.AcceptPrompt(request.prompt);
  TextAssembler text(&text_->tokenizer(), request.stop, request.keep_special_tokens);
  const Runner::LogitsSink keep = [&](uint32_t, std::span<const float> values) {
    std::copy(values.begin(), values.end(), logits_.begin());
  };
  FinishReason reason = FinishReason::kLength;
  for (uint32_t i = 0; i < budget; ++i) {
    if (job.generation->cancelled_.load(std::memory_order_relaxed)) {
      return FinishReason::kCancelled;
    }
    if (constraint != nullptr && constraint->must_end()) {
      reason = FinishReason::kStop;
      break;
    }
    const int32_t token = constraint == nullptr
                              ? sampler.Sample(logits)
                              : sampler.Sample(logits, constraint->AllowedTokens());
    if (!std::isfinite(logits[static_cast<size_t>(token)])) {
      event->error = Internal("the model computed logits that are not finite");
      return FinishReason::kError;
    }
    ++event->timings.completion_tokens;
    const bool may_end = !request.ignore_eos || constraint != nullptr;
    if (may_end && std::find(eos.begin(), eos.end(), token) != eos.end()) {
      reason = FinishReason::kStop;
      break;
    }
    if (constraint != nullptr && !constraint->Accept(token)) {
      event->error = constraint->too_complex()
                         ? ResourceExhausted("the schema leaves too many ways open to follow them all")
                         : Internal("no token of the vocabulary continues the constrained output");
      return FinishReason::kError;
    }
    event->kind = GenerationEvent::Kind::kToken;
    event->token = token;
    event->text = text.Push(token);
    if (request.top_logprobs) {
      event->logprobs = ComputeLogprobs(logits, token, *request.top_logprobs);
    }
    request.on_event(*event);
    event->text.clear();
    if (!text.stopped_by().empty()) {
      event->stop_string = text.stopped_by();
      return FinishReason::kStop;
    }
    if (i + 1 == budget) break;
    const Status status = runner_->Forward(
        std::span(&token, 1), {.sink = &keep, .cancelled = &job.generation->cancelled_});
    if (!status.ok()) {
      event->error = status;
      return status.code() == StatusCode::kCancelled ? FinishReason::kCancelled
                                                     : FinishReason::kError;
    }
    PublishStatsIfDue();
    SaveProfileIfDue(false);
  }
  event->text = text.Flush();
  if (!text.stopped_by().empty()) {
    event->stop_string = text.stopped_by();
    reason = FinishReason::kStop;
  }
  return reason;
}

void Engine::Impl::Finish(const Job& job, GenerationEvent* event, FinishReason reason) {
  if (reason == FinishReason::kError) ++failed_;
  if (reason == FinishReason::kCancelled) ++cancelled_;
  event->kind = GenerationEvent::Kind::kFinished;
  event->finish_reason = reason;
  event->logprobs.reset();
  event->token = -1;
  if (reason == FinishReason::kCancelled && event->error.ok()) {
    event->error = Cancelled("request cancelled");
  }
  // Before the event, so that whoever waits for it sees this request in the statistics.
  PublishStats();
  job.request.on_event(*event);
}

// A snapshot walks all experts and reads /proc, which does not belong in every token.
void Engine::Impl::PublishStatsIfDue() {
  constexpr int64_t kIntervalNs = 200'000'000;
  if (RealClock().NowNs() - stats_published_ns_ >= kIntervalNs) PublishStats();
}

void Engine::Impl::PublishStats() {
  stats_published_ns_ = RealClock().NowNs();
  EngineStats fresh = runner_->Stats();
  fresh.requests = requests_;
  fresh.requests_failed = failed_;
  fresh.requests_cancelled = cancelled_;
  std::lock_guard lock(mutex_);
  stats_ = std::move(fresh);
}

void Engine::Impl::SaveProfileIfDue(bool now) {
  if (!profile_saver_) return;
  const int64_t time = RealClock().NowNs();
  if (!now && time - profile_saved_ns_ < options_.profile_save_interval_ns) return;
  profile_saved_ns_ = time;
  if (runner_->tokens() == profile_saved_tokens_) return;  // nothing was learnt
  ProfileSnapshot snapshot = runner_->Snapshot();
  profile_saved_tokens_ = snapshot.tokens;
  profile_saver_->Submit(std::move(snapshot));
}

Engine::Engine() : impl_(std::make_unique<Impl>()) {}
Engine::~Engine() = default;

Result<std::unique_ptr<Engine>> Engine::Open(const EngineOptions& options) {
  std::unique_ptr<Engine> engine(new Engine());
  RETURN_IF_ERROR(engine->impl_->Open(options));
  return engine;
}

Result<std::shared_ptr<Generation>> Engine::Submit(GenerationRequest request) {
  return impl_->Submit(std::move(request));
}
Status Engine::SetRamBudget(const RamBudget& budget) {
  RETURN_IF_ERROR(impl_->runner_->SetRamBudget(budget));
  std::lock_guard lock(impl_->mutex_);
  impl_->resizing_ = true;
  impl_->wake_.notify_one();
  return OkStatus();
}
RamBudgetRange Engine::ram_budget_range() const { return impl_->runner_->ram_budget_range(); }
void Engine::RunOnEngineThread(const std::function<void(Runner&)>& function) {
  impl_->RunOnEngineThread(function);
}
EngineStats Engine::Stats() const {
  std::lock_guard lock(impl_->mutex_);
  EngineStats stats = impl_->stats_;
  stats.queue_length = static_cast<uint32_t>(impl_->queue_.size());
  return stats;
}
const TextModel& Engine::text() const { return *impl_->text_; }
const ModelInfo& Engine::model_info() const { return impl_->runner_->info(); }
const SamplingOptions& Engine::default_sampling() const { return impl_->default_sampling_; }
uint32_t Engine::queue_length() const {
  std::lock_guard lock(impl_->mutex_);
  return static_cast<uint32_t>(impl_->queue_.size());
}

}  // namespace moraine
