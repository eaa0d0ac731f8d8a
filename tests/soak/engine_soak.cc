// engine_soak: the real engine for an hour, and nothing lost.
//
//   build/release/engine_soak --seconds 3600 --seed 7
//
// Engine, io_uring, threads and a store of models/demo as they are; between them and the drive a reader
// that fails, shortens, corrupts, delays and hangs reads in changing weather (faulty_reader.h). Meanwhile the
// RAM budget, lookahead and policy change, requests are queued up and cancelled while they wait, prefill and
// decode, and engines are closed over running requests. What it checks:
//
//   - every token and its log probabilities are those of an undisturbed run, also of requests that are
//     cancelled or fail half way; now and then every logit of a prompt computed in random pieces
//   - a request fails only by naming an expert, and only one to which the drive did what the error says
//   - every request ends, once
//   - at intervals, with the engine at rest: no lease, no read in flight, no slot lost (Runner::Settle), all
//     invariants of residency, no expert in quarantine but rotten ones
//   - between engines: file descriptors, heap and resident set of the process are what they were
//
// Real threads and a real drive: a seed gives the same choices, not the same run. A line every 10 s, one
// JSON line at the end; any violation aborts with what and where.
#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <optional>
#include <regex>

#include "base/bytes.h"
#include "base/log.h"
#include "engine/slot_memory.h"
#include "faulty_reader.h"
#include "memory/topology.h"
#include "soak_cases.h"
#include "soak_report.h"
#include "test_store.h"

namespace moraine {
namespace {

constexpr int64_t kSecondNs = 1'000'000'000;
constexpr int64_t kReportNs = 10 * kSecondNs;
// The longest that nothing may happen: the engine's read deadline of 30 s, four times.
constexpr int64_t kStuckNs = 120 * kSecondNs;
constexpr int64_t kHangNs = 32 * kSecondNs;      // beyond that deadline
constexpr int64_t kRoundWithHangNs = 100 * kSecondNs;  // a round that a hang does not fill
constexpr uint32_t kMaxContext = 1024;
constexpr uint32_t kReadAttempts = ReadSchedulerOptions{}.max_attempts;

struct SoakOptions {
  uint32_t seconds = 20;
  uint64_t seed = 1;
  std::string store, golden;
};

// One request: when it shall be cancelled, and what has come of it so far.
struct Job {
  enum class CancelAt : uint8_t { kNever, kSubmit, kPrefillChunk, kRead, kToken };

  const SoakCase* expected = nullptr;
  CancelAt cancel_at = CancelAt::kNever;
  uint64_t countdown = 0;  // engine thread: reads or tokens until then
  Answer answer;           // engine thread
  bool started = false;    // engine thread
  uint32_t prefilled = 0;  // engine thread

  std::mutex mutex;
  std::shared_ptr<Generation> generation;  // guarded by mutex; null until Submit has returned
  bool cancelled = false;                  // guarded by mutex
  bool done = false;                       // guarded by Soak::mutex_

  // Any thread.
  void Cancel() {
    std::lock_guard lock(mutex);
    cancelled = true;
    if (generation) generation->Cancel();
  }
};

class Soak {
 public:
  Soak(const SoakOptions& options, const std::string& store);
  SoakReport Run();

 private:
  void Round(int64_t round_ns);
  void OpenEngine();
  void CloseEngine();
  void Act();
  void ChangeWeather();
  void ChangeBudget();
  void Submit(Job::CancelAt cancel_at);
  void SubmitRandom();
  void CheckLogits();
  void Warm();
  void Checkpoint();
  void WaitForEvent();
  void WaitForAll();
  void Report();

  // Engine thread.
  void OnEvent(Job& job, const GenerationEvent& event);
  void OnFinished(Job& job, const GenerationEvent& event);
  void OnSubmit();
  void CheckFailure(const Status& status);
  void CheckAnswer(const Job& job) const;

  const SoakOptions options_;
  const std::string store_;
  Random random_;
  std::vector<SoakCase> cases_;
  std::vector<FaultyDrive::Record> records_;
  std::vector<uint32_t> layer_begin_;  // record of each layer's expert 0
  std::optional<FaultyDrive> drive_;
  std::unique_ptr<Engine> engine_;
  std::string engine_description_;
  std::vector<std::shared_ptr<Job>> jobs_;  // not known to be done
  Job* running_ = nullptr;                  // engine thread
  std::set<uint32_t> rotten_;
  bool hangs_ = false;  // this round may have one
  int64_t begin_ns_ = 0, reported_ns_ = 0;
  std::vector<ProcessSample> samples_;  // between engines

  std::mutex mutex_;
  std::condition_variable wake_;
  uint64_t events_ = 0;  // guarded by mutex_
  Tally tally_;          // guarded by mutex_
};

RamBudget Bytes(uint64_t bytes) { return {.kind = RamBudget::Kind::kBytes, .bytes = bytes}; }

Soak::Soak(const SoakOptions& options, const std::string& store)
    : options_(options), store_(store), random_(options.seed) {
  EngineOptions undisturbed;
  undisturbed.runner.store_directory = store;
  undisturbed.runner.ram_budget = *ParseRamBudget("100%");
  undisturbed.runner.policy = "lru";
  undisturbed.runner.lookahead = false;
  undisturbed.runner.max_context = kMaxContext;
  auto engine = Engine::Open(undisturbed);
  CHECK(engine.ok(), engine.status().message());
  const uint32_t count = std::clamp(options.seconds, 15u, 90u);
  cases_ = MakeSoakCases(**engine, options.golden, count, options.seed);
  (*engine)->RunOnEngineThread([&](Runner& runner) {
    const std::vector<uint32_t> experts = runner.config().experts_per_layer();
    for (uint32_t layer = 0; layer < experts.size(); ++layer) {
      layer_begin_.push_back(static_cast<uint32_t>(records_.size()));
      for (uint32_t e = 0; e < experts[layer]; ++e) {
        const RecordLocation& place = runner.store().Locate({LayerId(layer), ExpertId(e)});
        records_.push_back(
            {runner.store().expert_pack_paths()[place.pack], place.offset, place.bytes});
      }
    }
  });
  drive_.emplace(records_, random_.Next());
}

SoakReport Soak::Run() {
  begin_ns_ = reported_ns_ = RealClock().NowNs();
  const int64_t total_ns = options_.seconds * kSecondNs;
  int64_t left_ns = total_ns;
  while (left_ns > 0) {
    const auto longest = static_cast<uint64_t>(total_ns / 12);
    const int64_t round_ns = static_cast<int64_t>(longest / 5 + random_.Below(longest * 4 / 5));
    Round(std::min(round_ns, left_ns));
    samples_.push_back(SampleProcess());
    left_ns = total_ns - (RealClock().NowNs() - begin_ns_);
  }
  Report();
  SoakReport report;
  report.seed = options_.seed;
  report.seconds = static_cast<double>(RealClock().NowNs() - begin_ns_) * 1e-9;
  report.tally = tally_;
  report.faults = drive_->counts();
  report.samples = samples_;
  return report;
}

void Soak::Round(int64_t round_ns) {
  const int64_t end_ns = RealClock().NowNs() + round_ns;
  drive_->Set({});
  drive_->Forget();
  rotten_.clear();
  hangs_ = round_ns >= kRoundWithHangNs;
  {
    std::lock_guard lock(mutex_);
    ++tally_.rounds;
  }
  OpenEngine();
  int64_t checkpoint_ns = RealClock().NowNs() + round_ns / 3;
  while (RealClock().NowNs() < end_ns) {
    WaitForEvent();
    Act();
    // Rot comes late, for it stays: quarantine ends with the engine.
    if (rotten_.empty() && RealClock().NowNs() > end_ns - round_ns / 6) {
      rotten_.insert(static_cast<uint32_t>(random_.Below(records_.size())));
      ChangeWeather();
    }
    if (RealClock().NowNs() >= checkpoint_ns) {
      Checkpoint();
      checkpoint_ns = RealClock().NowNs() + std::clamp(round_ns / 3, kSecondNs, kReportNs);
    }
    if (RealClock().NowNs() - reported_ns_ >= kReportNs) Report();
  }
  Checkpoint();
  if (random_.Chance(0.5)) {
    for (int i = 0; i < 3; ++i) Submit(Job::CancelAt::kNever);
    ChangeWeather();
    WaitForEvent();
  }
  CloseEngine();
}

void Soak::OpenEngine() {
  EngineOptions options;
  options.queue_limit = 4;
  options.profile_save_interval_ns = kSecondNs;
  RunnerOptions& runner = options.runner;
  runner.store_directory = store_;
  runner.store_mode = random_.Chance(0.8) ? StoreMode::kReadWrite : StoreMode::kReadOnly;
  // At most less than all experts: more than all of them is no budget to refuse.
  const uint64_t most = 50 + random_.Below(50);
  runner.ram_budget = *ParseRamBudget(std::to_string(3 + random_.Below(most - 2)) + "%");
  runner.ram_budget_max = *ParseRamBudget(std::to_string(most) + "%");
  const auto policies = EvictionPolicyNames();
  runner.policy = random_.Chance(0.5) ? policies[0] : policies[random_.Below(policies.size())];
  runner.lookahead = random_.Chance(0.7);
  runner.threads = 1 + static_cast<int>(random_.Below(3));
  runner.max_context = kMaxContext;
  runner.max_sequences = 1 + static_cast<uint32_t>(random_.Below(5));
  constexpr uint32_t kChunks[] = {1, 16, 64, 512};
  runner.prefill_chunk = kChunks[random_.Below(std::size(kChunks))];
  runner.io.kind = random_.Chance(0.75) ? "auto" : "pread";
  runner.reader_factory = [this, io = runner.io]() -> Result<std::unique_ptr<BlockReader>> {
    ASSIGN_OR_RETURN(std::unique_ptr<BlockReader> real, CreateBlockReader(io));
    return CreateFaultyReader(std::move(real), &*drive_, [this] { OnSubmit(); });
  };
  auto engine = Engine::Open(options);
  CHECK(engine.ok(), engine.status().message());
  engine_ = std::move(*engine);
  engine_description_ = fmt::format("{} {}{} chunk {} x{} of {}", engine_->Stats().io, runner.policy,
                                    runner.lookahead ? "" : " blind", runner.prefill_chunk,
                                    runner.threads, runner.max_sequences);
}

void Soak::CloseEngine() {
  bool running = false;
  for (const auto& job : jobs_) {
    std::lock_guard lock(mutex_);
    running |= !job->done;
  }
  const ResidencyStats residency = engine_->Stats().residency;
  const ReadSchedulerStats reads = engine_->Stats().reads;
  for (const auto& job : jobs_) job->Cancel();  // as the destructor does; so that it counts as wanted
  engine_.reset();
  std::lock_guard lock(mutex_);
  for (const auto& job : jobs_) CHECK(job->done, "an engine closed without ending a request");
  jobs_.clear();
  tally_.closed_while_running += running;
  tally_.healed += residency.healed;
  tally_.quarantined += residency.quarantined;
  tally_.evictions += residency.evictions;
  tally_.moved += residency.moved;
  tally_.prefetched += residency.prefetch_used;
  tally_.retries += reads.retries;
}

// About one action an event; the chances make requests the most frequent, so that much of everything
// happens within one.
void Soak::Act() {
  {
    std::lock_guard lock(mutex_);
    std::erase_if(jobs_, [](const auto& job) { return job->done; });
  }
  if (jobs_.empty() || random_.Chance(0.15)) SubmitRandom();
  if (random_.Chance(0.1)) ChangeBudget();
  if (random_.Chance(0.03)) ChangeWeather();
  if (random_.Chance(0.01) && !jobs_.empty()) jobs_[random_.Below(jobs_.size())]->Cancel();
  if (random_.Chance(0.01)) CheckLogits();
  if (random_.Chance(0.005)) Warm();
}

void Soak::ChangeWeather() {
  DriveFaults faults;
  const double kind = random_.Uniform();
  if (kind < 0.35) {  // a disturbance now and then
    faults = {.error = 0.02, .short_read = 0.05, .flip = 0.02, .slow = 0.05, .slow_ns = 2'000'000};
  } else if (kind < 0.55) {
    faults = {.error = 0.1, .short_read = 0.3, .flip = 0.2, .slow = 0.2, .slow_ns = 10'000'000};
  } else if (kind < 0.65) {  // experts that cannot be read for the time being
    for (int i = 0; i < 3; ++i) {
      faults.broken.insert(static_cast<uint32_t>(random_.Below(records_.size())));
    }
  } else if (kind < 0.7 && hangs_) {
    hangs_ = false;
    faults.hangs = 1;
    faults.hang_ns = kHangNs;
  }
  faults.rotten = rotten_;
  drive_->Set(faults);
}

void Soak::ChangeBudget() {
  const RamBudgetRange range = engine_->ram_budget_range();
  const double share = random_.Uniform() * random_.Uniform();  // small ones more often
  const uint64_t span = range.maximum_bytes - range.minimum_bytes;
  RamBudget budget =
      Bytes(range.minimum_bytes + static_cast<uint64_t>(share * static_cast<double>(span)));
  const bool refused = random_.Chance(0.05);
  if (refused) {
    budget = Bytes(random_.Chance(0.5) ? range.minimum_bytes - 1
                                       : range.maximum_bytes + SlotMemory(records_[0].bytes));
  }
  const Status status = engine_->SetRamBudget(budget);
  CHECK(status.ok() == !refused, fmt::format("budget of {} in [{}, {}]: {}", budget.bytes,
                                             range.minimum_bytes, range.maximum_bytes,
                                             status.message()));
  std::lock_guard lock(mutex_);
  ++(refused ? tally_.budgets_refused : tally_.budgets);
}

void Soak::SubmitRandom() {
  const double kind = random_.Uniform();
  Submit(kind < 0.6    ? Job::CancelAt::kNever
         : kind < 0.65 ? Job::CancelAt::kSubmit
         : kind < 0.75 ? Job::CancelAt::kPrefillChunk
         : kind < 0.9  ? Job::CancelAt::kRead
                       : Job::CancelAt::kToken);
}

void Soak::Submit(Job::CancelAt cancel_at) {
  auto job = std::make_shared<Job>();
  job->expected = &cases_[random_.Below(cases_.size())];
  job->cancel_at = cancel_at;
  job->countdown = 1 + random_.Below(cancel_at == Job::CancelAt::kToken ? 20 : 60);
  GenerationRequest request = job->expected->Request();
  request.on_event = [this, job](const GenerationEvent& event) { OnEvent(*job, event); };
  const auto generation = engine_->Submit(std::move(request));
  if (!generation.ok()) {
    CHECK(generation.status().code() == StatusCode::kResourceExhausted,
          generation.status().message());
    std::lock_guard lock(mutex_);
    ++tally_.queue_full;
    return;
  }
  {
    std::lock_guard lock(job->mutex);
    job->generation = *generation;
    if (job->cancelled) job->generation->Cancel();
  }
  if (cancel_at == Job::CancelAt::kSubmit) job->Cancel();
  jobs_.push_back(std::move(job));
  std::lock_guard lock(mutex_);
  ++tally_.requests;
}

void Soak::CheckLogits() {
  const SoakCase& expected = cases_[random_.Below(cases_.size())];
  const bool lookahead = random_.Chance(0.7);
  engine_->RunOnEngineThread([&](Runner& runner) {
    runner.SetLookahead(lookahead);
    const auto digest = PromptLogitsDigest(runner, expected.prompt, &random_);
    if (!digest.ok()) return CheckFailure(digest.status());
    CHECK(*digest == expected.logits_digest, "logits differ from the undisturbed run's");
    std::lock_guard lock(mutex_);
    ++tally_.logits_checks;
  });
}

void Soak::Warm() {
  const WarmOrder order = random_.Chance(0.5) ? WarmOrder::kProfile : WarmOrder::kStatic;
  engine_->RunOnEngineThread([&](Runner& runner) {
    const Status status = runner.Warm(order, nullptr);
    CHECK(status.ok() || status.code() == StatusCode::kNotFound, status.message());
  });
  std::lock_guard lock(mutex_);
  ++tally_.warmings;
}

void Soak::Checkpoint() {
  WaitForAll();
  DriveFaults calm;
  calm.rotten = rotten_;
  drive_->Set(calm);
  engine_->RunOnEngineThread([&](Runner& runner) {
    const Status settled = runner.Settle(kStuckNs);
    CHECK(settled.ok(), settled.message());
    runner.CheckInvariants();
    const EngineStats stats = runner.Stats();
    const ResidencyStats& residency = stats.residency;
    CHECK(residency.quarantined <= rotten_.size(), "a good expert is in quarantine");
    const ProfileSnapshot snapshot = runner.Snapshot();
    CHECK(std::count(snapshot.resident.begin(), snapshot.resident.end(), 1) == residency.resident,
          "experts said to be resident are not");
    CHECK(residency.resident <= residency.slot_count, "more experts than slots");
    CHECK(stats.reads.busy_ns > 0 || residency.bytes_read == 0, "reads took no time");
  });
  // The engine at rest answers still.
  for (int i = 0; i < 2; ++i) Submit(Job::CancelAt::kNever);
  WaitForAll();
  std::lock_guard lock(mutex_);
  ++tally_.checkpoints;
}

// Until the engine has told something, or 10 ms have passed.
void Soak::WaitForEvent() {
  std::unique_lock lock(mutex_);
  wake_.wait_for(lock, std::chrono::milliseconds(10),
                 [&, before = events_] { return events_ != before; });
}

void Soak::WaitForAll() {
  std::unique_lock lock(mutex_);
  while (true) {
    std::erase_if(jobs_, [](const auto& job) { return job->done; });
    if (jobs_.empty()) return;
    const uint64_t before = events_;
    wake_.wait_for(lock, std::chrono::nanoseconds(kStuckNs), [&] { return events_ != before; });
    CHECK(events_ != before, fmt::format("{} requests are stuck", jobs_.size()));
  }
}

void Soak::Report() {
  reported_ns_ = RealClock().NowNs();
  const ProcessMemory memory = ReadProcessMemory();
  const FaultCounts faults = drive_->counts();
  std::lock_guard lock(mutex_);
  std::printf(
      "%5.0f s  round %llu (%s): %llu exact, %llu cancelled, %llu failed, %llu budgets, %llu of %llu reads "
      "faulty, resident %s\n",
      static_cast<double>(reported_ns_ - begin_ns_) * 1e-9,
      static_cast<unsigned long long>(tally_.rounds), engine_description_.c_str(),
      static_cast<unsigned long long>(tally_.finished),
      static_cast<unsigned long long>(tally_.cancelled_waiting + tally_.cancelled_in_prefill +
                                      tally_.cancelled_in_decode),
      static_cast<unsigned long long>(tally_.failed_io + tally_.failed_corrupt +
                                      tally_.failed_deadline),
      static_cast<unsigned long long>(tally_.budgets),
      static_cast<unsigned long long>(faults.errors + faults.short_reads + faults.flips +
                                      faults.slow + faults.hangs),
      static_cast<unsigned long long>(faults.reads), FormatByteSize(memory.resident_bytes).c_str());
  std::fflush(stdout);
}

// --- On the engine thread -----------------------------------------------------------------------

void Soak::OnEvent(Job& job, const GenerationEvent& event) {
  switch (event.kind) {
    case GenerationEvent::Kind::kStarted:
      job.started = true;
      running_ = &job;
      break;
    case GenerationEvent::Kind::kPrefillProgress:
      job.prefilled = event.prefilled_tokens;
      if (job.cancel_at == Job::CancelAt::kPrefillChunk) job.Cancel();
      break;
    case GenerationEvent::Kind::kToken:
      job.answer.Add(event);
      if (job.cancel_at == Job::CancelAt::kToken && --job.countdown == 0) job.Cancel();
      break;
    case GenerationEvent::Kind::kFinished:
      running_ = nullptr;
      OnFinished(job, event);
      break;
  }
  std::lock_guard lock(mutex_);
  ++events_;
  wake_.notify_one();
}

// In the middle of a layer.
void Soak::OnSubmit() {
  if (running_ == nullptr || running_->cancel_at != Job::CancelAt::kRead) return;
  if (running_->countdown > 0 && --running_->countdown == 0) running_->Cancel();
}

void Soak::OnFinished(Job& job, const GenerationEvent& event) {
  CheckAnswer(job);
  bool cancelled = false;
  {
    std::lock_guard lock(job.mutex);
    cancelled = job.cancelled;
  }
  if (event.finish_reason == FinishReason::kError) CheckFailure(event.error);
  std::lock_guard lock(mutex_);
  CHECK(!job.done, "a request has finished twice");
  job.done = true;
  tally_.tokens += job.answer.tokens.size();
  switch (event.finish_reason) {
    case FinishReason::kStop:
    case FinishReason::kLength:
      CHECK(event.finish_reason == job.expected->finish_reason &&
                job.answer.tokens.size() == job.expected->tokens.size(),
            "a request has finished early");
      ++tally_.finished;
      break;
    case FinishReason::kCancelled:
      CHECK(cancelled, "a request was cancelled that nobody cancelled");
      ++(!job.started                                     ? tally_.cancelled_waiting
         : job.prefilled < job.expected->prompt.size() ? tally_.cancelled_in_prefill
                                                          : tally_.cancelled_in_decode);
      break;
    case FinishReason::kError:
      ++(event.error.code() == StatusCode::kIoError      ? tally_.failed_io
         : event.error.code() == StatusCode::kCorruption ? tally_.failed_corrupt
                                                         : tally_.failed_deadline);
      break;
  }
}

void Soak::CheckAnswer(const Job& job) const {
  const std::vector<int32_t>& tokens = job.answer.tokens;
  const SoakCase& expected = *job.expected;
  CHECK(tokens.size() <= expected.tokens.size() &&
            std::equal(tokens.begin(), tokens.end(), expected.tokens.begin()),
        "tokens differ from the undisturbed run's");
  CHECK(tokens.empty() || job.answer.digests.back() == expected.digests[tokens.size() - 1],
        "log probabilities differ from the undisturbed run's");
}

// The error names pack and expert, and the drive did to that expert what the error says.
void Soak::CheckFailure(const Status& status) {
  static const std::regex kNames("layer (\\d+) expert (\\d+)");
  std::smatch match;
  const std::string& message = status.message();
  CHECK(std::regex_search(message, match, kNames), "an error names no expert: " + status.ToString());
  const uint32_t record = layer_begin_.at(std::stoul(match[1])) +
                          static_cast<uint32_t>(std::stoul(match[2]));
  CHECK(message.find(records_.at(record).path) != std::string::npos,
        "an error does not name its pack: " + message);
  const FaultyDrive::Suffered suffered = drive_->suffered(record);
  switch (status.code()) {
    case StatusCode::kIoError:
      CHECK(suffered.errors >= kReadAttempts, "an error without a cause: " + message);
      break;
    case StatusCode::kCorruption:
      CHECK(suffered.rotten > 0, "corruption without a cause: " + message);
      break;
    case StatusCode::kDeadlineExceeded:
      CHECK(suffered.hangs > 0, "a deadline missed without a cause: " + message);
      break;
    default:
      CHECK(false, "not an error of a drive: " + status.ToString());
  }
}

}  // namespace
}  // namespace moraine

int main(int argc, char** argv) {
  using namespace moraine;
  SoakOptions options;
  CLI::App app("The real engine under changing budgets, faults and cancelled requests.");
  app.add_option("--seconds", options.seconds)->check(CLI::Range(1, 1'000'000))->capture_default_str();
  app.add_option("--seed", options.seed)->capture_default_str();
  app.add_option("--store", options.store, "a store (default: models/demo is imported)");
  options.golden = GoldenPath("demo");
  app.add_option("--golden", options.golden, "where the prompts are")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  InitLogging("error");
  std::printf("engine_soak --seconds %u --seed %llu\n", options.seconds,
              static_cast<unsigned long long>(options.seed));
  std::fflush(stdout);
  std::optional<TestStore> imported;
  if (options.store.empty()) imported.emplace(DemoModelPath(), Encoding::kQ8);
  Soak soak(options, imported ? imported->directory() : options.store);
  bool passed = false;
  std::printf("%s\n", soak.Run().ToJson(&passed).c_str());
  return passed ? 0 : 1;
}
