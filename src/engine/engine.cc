#include "engine/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "base/bytes.h"
#include "engine/batch_scheduler.h"
#include "engine/gpu_answers.h"
#include "engine/generation_config.h"
#include "engine/profile_saver.h"
#include "engine/residency_observer.h"

namespace moraine {
namespace {

constexpr size_t kMaxGoneFactor = 8;
// Between two looks at the queue: about 50 ms of a change of budget.
constexpr uint64_t kIdleResizeBytes = 256 * kMiB;
// What an end that was asked for waits for prompts to be on disk.
constexpr int64_t kFlushNs = 3'000'000'000;

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
  void TakeJobs(std::unique_lock<std::mutex>* lock);
  void PublishStats();
  void PublishStatsIfDue();
  void PublishSnapshotIfDue();
  EngineStats FreshStats();
  void SaveProfileIfDue(bool now);

  EngineOptions options_;
  std::unique_ptr<Runner> runner_;
  std::optional<TextModel> text_;
  SamplingOptions default_sampling_;
  std::unique_ptr<ProfileSaver> profile_saver_;  // null: the store is read-only
  int64_t profile_saved_ns_ = 0, stats_published_ns_ = 0, snapshot_published_ns_ = 0;
  uint64_t profile_saved_tokens_ = 0;
  std::unique_ptr<BatchScheduler> scheduler_;  // engine thread only

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Job> queue_;                            // guarded by mutex_
  std::deque<std::function<void(Runner&)>> calls_;   // guarded by mutex_
  std::vector<std::shared_ptr<Generation>> running_;  // guarded by mutex_; some may have ended
  bool stopping_ = false;                            // guarded by mutex_
  bool resizing_ = false;                            // guarded by mutex_
  bool publish_wanted_ = false;                      // guarded by mutex_; by a watcher, for an idle engine
  bool saved_ = false;                               // guarded by mutex_; the prefix cache's disk has room again
  EngineStats stats_;                                // guarded by mutex_
  const std::shared_ptr<ResidencyFeed> feed_ = std::make_shared<ResidencyFeed>();
  std::optional<ResidencyObserver> observer_;        // engine thread only, once open
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
  scheduler_ = std::make_unique<BatchScheduler>(*runner_, *text_, [this] { PublishStats(); });
  stats_ = runner_->Stats();
  observer_.emplace(runner_->residency(), runner_->config().experts_per_layer(),
                    runner_->config().top_k);
  if (runner_->gpu_answers() != nullptr) observer_->set_vram(&runner_->gpu_answers()->tier());
  feed_->SetWanted([this] {
    std::lock_guard lock(mutex_);
    publish_wanted_ = true;
    wake_.notify_one();
  });
  scheduler_->SetOnSaved([this] {
    std::lock_guard lock(mutex_);
    saved_ = true;
    wake_.notify_one();
  });
  runner_->SetLayerListener([this] { PublishSnapshotIfDue(); });
  thread_ = std::thread([this] { ThreadMain(); });
  return OkStatus();
}

Engine::Impl::~Impl() {
  feed_->SetWanted(nullptr);
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    for (const auto& generation : running_) generation->Cancel();
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
        return !job.generation->cancelled();
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
      return stopping_ || resizing_ || publish_wanted_ || saved_ || !queue_.empty() ||
             !calls_.empty();
    };
    if (scheduler_->idle()) {
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
        runner_->ResetSequence();  // gives its blocks back
        lock.lock();
        continue;
      }
    }
    StepTimer& timer = scheduler_->timer();
    if (scheduler_->idle()) timer.Begin();
    TakeJobs(&lock);
    if (scheduler_->idle()) {
      if (stopping_ && queue_.empty()) break;
      const bool resizing = std::exchange(resizing_, false);
      const bool publish = std::exchange(publish_wanted_, false);
      const bool saved = std::exchange(saved_, false);
      lock.unlock();
      if (saved) scheduler_->SaveToDisk();
      const bool more = resizing && runner_->AdvanceResize(kIdleResizeBytes);
      if (resizing || publish) PublishStats();
      SaveProfileIfDue(false);
      lock.lock();
      resizing_ |= more;
      continue;
    }
    lock.unlock();
    const uint64_t ended = scheduler_->ended();
    scheduler_->Step();
    PublishStatsIfDue();
    timer.Charge(StepPart::kPublish);
    SaveProfileIfDue(false);
    timer.Charge(StepPart::kProfile);
    timer.End();
    lock.lock();
    if (scheduler_->ended() != ended) scheduler_->GetGenerations(&running_);
  }
  lock.unlock();
  scheduler_->FlushToDisk(kFlushNs);
  SaveProfileIfDue(true);
  profile_saver_.reset();  // writes it, before the store goes
  // Here, because reads ahead may still be in flight and the ring belongs to the thread that submits.
  scheduler_.reset();
  runner_.reset();
}

// From the queue into places, while there are any and no call waits for those to be empty. Those that have
// been cancelled end wherever in the queue they are.
void Engine::Impl::TakeJobs(std::unique_lock<std::mutex>* lock) {
  for (auto job = queue_.begin(); job != queue_.end();) {
    if (stopping_) job->generation->Cancel();
    const bool cancelled = job->generation->cancelled();
    if (!cancelled && (!scheduler_->has_place() || !calls_.empty())) {
      ++job;
      continue;
    }
    Job taken = std::move(*job);
    queue_.erase(job);
    if (!cancelled) running_.push_back(taken.generation);
    lock->unlock();
    if (cancelled) {
      scheduler_->EndUnbegun(std::move(taken.request), taken.generation, taken.submitted_ns);
    } else {
      scheduler_->Begin(std::move(taken.request), taken.generation, taken.submitted_ns);
    }
    lock->lock();
    job = queue_.begin();  // others may have come or gone
  }
}

// A snapshot walks all experts and reads /proc, which does not belong in every token.
void Engine::Impl::PublishStatsIfDue() {
  observer_->NoteStep(runner_->prefill_stats(), runner_->decode_stats());
  if (RealClock().NowNs() - stats_published_ns_ >= options_.stats_interval_ns) PublishStats();
}

EngineStats Engine::Impl::FreshStats() {
  snapshot_published_ns_ = RealClock().NowNs();
  EngineStats fresh = runner_->Stats();
  scheduler_->AddTo(&fresh);
  return fresh;
}

// In the middle of a step, which may be a prompt's chunk of seconds: where experts are and what was looked up is of
// this moment, what a step is charged with comes at its end. Not for Stats(), whose counters belong together.
void Engine::Impl::PublishSnapshotIfDue() {
  if (RealClock().NowNs() - snapshot_published_ns_ < options_.stats_interval_ns) return;
  if (feed_->watched()) feed_->Publish(observer_->Observe(FreshStats()));
}

void Engine::Impl::PublishStats() {
  // Also of the step in which a request ends, which publishes before the step is over.
  observer_->NoteStep(runner_->prefill_stats(), runner_->decode_stats());
  EngineStats fresh = FreshStats();
  stats_published_ns_ = snapshot_published_ns_;
  if (feed_->watched()) feed_->Publish(observer_->Observe(fresh));
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
std::shared_ptr<ResidencyFeed> Engine::residency_feed() const { return impl_->feed_; }
uint32_t Engine::queue_length() const {
  std::lock_guard lock(impl_->mutex_);
  return static_cast<uint32_t>(impl_->queue_.size());
}

}  // namespace moraine
