// Engine: requests in, events out.
//
// One thread owns the model, the residency manager and the I/O (engine thread); everybody else talks
// to it through a bounded queue and gets events back. Up to RunnerOptions::max_sequences requests are computed
// together, begun in order of arrival (batch_scheduler.h); each gets what it would get alone, to the bit.
// The queue's limit is the back-pressure (kResourceExhausted, HTTP 429).
//
// Threads: thread-safe. Events arrive on the engine thread: a listener must not block (a server
// posts them to its own executor).
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "engine/residency_feed.h"
#include "engine/runner.h"
#include "engine/stats.h"
#include "engine/text_model.h"
#include "model/sampler.h"

namespace moraine {

class TokenConstraint;  // model/constraint/token_constraint.h

enum class FinishReason : uint8_t { kStop, kLength, kCancelled, kError };

struct GenerationTimings {
  uint32_t prompt_tokens = 0;
  uint32_t cached_tokens = 0;  // of the prompt, taken from a prefix cache
  uint32_t completion_tokens = 0;
  int64_t queue_ns = 0, prefill_ns = 0, decode_ns = 0;
};

struct GenerationEvent {
  enum class Kind : uint8_t {
    kStarted,          // left the queue; headers can be sent
    kPrefillProgress,  // prefilled_tokens of timings.prompt_tokens
    kToken,            // text may be empty while UTF-8 or a stop string is held back
    kFinished,         // last event, always sent exactly once
  };
  Kind kind = Kind::kToken;
  std::string text;                  // kToken: valid UTF-8 to append (kFinished: what was held back)
  int32_t token = -1;                // kToken
  std::optional<Logprobs> logprobs;  // kToken, if asked for
  uint32_t prefilled_tokens = 0;     // kPrefillProgress
  FinishReason finish_reason = FinishReason::kStop;  // kFinished
  std::string stop_string;           // kFinished by a stop string: which
  Status error;                      // kFinished with kError
  GenerationTimings timings;         // kFinished; prompt_tokens also before
};

struct GenerationRequest {
  std::vector<int32_t> prompt;   // token ids, at least one
  SamplingOptions sampling;
  uint32_t max_tokens = 0;       // 0: up to the context's end
  std::vector<std::string> stop; // not part of the text that is emitted
  bool ignore_eos = false;
  // Special tokens are part of the text: for formats that write tool calls with them.
  bool keep_special_tokens = false;
  // What the output must be a text of; null: anything. This request's own, used by the engine thread.
  std::shared_ptr<TokenConstraint> constraint;
  std::optional<uint32_t> top_logprobs;  // 0: only the chosen token's
  std::function<void(const GenerationEvent&)> on_event;
};

// Handle of a submitted request. Dropping it does not cancel.
class Generation {
 public:
  // Takes effect within one layer, in prefill too; kFinished(kCancelled) follows. Idempotent.
  void Cancel() { cancelled_.store(true, std::memory_order_relaxed); }  // pairs with the layer loop

  bool cancelled() const { return cancelled_.load(std::memory_order_relaxed); }
  const std::atomic<bool>* flag() const { return &cancelled_; }

 private:
  std::atomic<bool> cancelled_{false};
};

struct EngineOptions {
  RunnerOptions runner;
  uint32_t queue_limit = 8;  // waiting requests, those that run not counted
  // The profile is saved this often, if anything was computed, also during a generation: what a kill
  // can cost. Read-only stores: never.
  int64_t profile_save_interval_ns = 3'000'000'000;
  // Statistics and snapshots are made this often while something is computed: five times a second.
  int64_t stats_interval_ns = 200'000'000;
};

class Engine {
 public:
  // Opens the store, plans the budget, loads dense weights, starts the engine thread. Every error is
  // ready for the user to read.
  static Result<std::unique_ptr<Engine>> Open(const EngineOptions& options);
  // Cancels what runs or waits (each gets its kFinished), waits for reads in flight, saves heat.
  ~Engine();

  // kInvalidArgument (empty prompt, unknown token id, bad sampling option), kResourceExhausted (queue
  // full), kFailedPrecondition (shutting down). A prompt that does not fit the context is
  // kInvalidArgument with a message that starts with "context length exceeded".
  Result<std::shared_ptr<Generation>> Submit(GenerationRequest request);

  // The DRAM budget from now on, as Runner::SetRamBudget; returns before it has taken effect. A
  // request that runs goes on: slots that it holds follow when it lets go. Stats() shows target and
  // actual (residency.slot_target, slot_count, closing_slots).
  Status SetRamBudget(const RamBudget& budget);
  RamBudgetRange ram_budget_range() const;

  // Runs a function on the engine thread while no request runs, and waits for it (warm, eval). What runs is
  // finished first, what waits comes after.
  void RunOnEngineThread(const std::function<void(Runner&)>& function);

  // A consistent copy, made by the engine thread at the end of a step or when idle.
  EngineStats Stats() const;
  // Snapshots for whoever watches, made where Stats() is: once a stats_interval_ns at most while something
  // runs, and when a request ends; of a long chunk of a prompt at its layers, too. Outlives the engine.
  std::shared_ptr<ResidencyFeed> residency_feed() const;

  const TextModel& text() const;
  const ModelInfo& model_info() const;
  // The sampling options of generation_config.json.
  const SamplingOptions& default_sampling() const;
  uint32_t queue_length() const;

 private:
  Engine();
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace moraine
