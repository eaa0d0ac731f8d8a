// BatchScheduler: which sequences a step computes, and which of them has keys and values.
//
// A step is one token of every sequence that answers and a piece of the oldest prompts (continuous batching,
// Yu et al., OSDI '22; pieces of prompts between answers: Agrawal et al., OSDI '24). Answers wait for no
// prompt: while there are any, a piece has a quarter of the tokens that it has alone, and every step is a
// token for each of them. What the step's tokens want of a layer is read once for all: on a model that does
// not fit the memory, that is what batches are for.
//
//   queue -> place -> Admit -> prompt -> answer -> end
//              ^                 |         |
//              +---- preempted --+---------+
//
// There are as many places as sequences. A request in a place is admitted, oldest first, when the KV pool has
// blocks for its prompt and a little of its answer: nobody knows how long that becomes, and blocks for the
// longest that it may would stand empty. Should blocks run out after all, the youngest gives its own
// back and begins again later, from its prompt and what it has said by then; to the bit, and mostly from
// the prefix cache. The oldest always gets what it needs, so there is always one that comes to its end.
//
// Full blocks are published as they are computed: a later prompt that begins alike takes them. What is not in
// memory any more, but on disk (prefix_disk.h), is read while others answer; prompts behind it wait, as
// they do for one that is computed. Who waits for the disk for longer than computing takes, computes.
//
// A request that is cancelled, or fails, leaves the batch within a layer; the others go on (DecoderModel).
//
// Threads: the engine thread's.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "engine/engine.h"
#include "engine/running_request.h"
#include "engine/stats.h"
#include "engine/step_times.h"
#include "model/batch_segment.h"
#include "model/sequence_state.h"

namespace moraine {

class PrefixDisk;

class BatchScheduler {
 public:
  // Both outlive it. before_end: called before each last event.
  BatchScheduler(Runner& runner, const TextModel& text, std::function<void()> before_end);

  bool has_place() const { return taken_ < places_.size(); }
  bool idle() const { return taken_ == 0; }
  // Needs a place.
  void Begin(GenerationRequest request, std::shared_ptr<Generation> generation,
             int64_t submitted_ns);
  // Of one that never had a place.
  void EndUnbegun(GenerationRequest request, std::shared_ptr<Generation> generation,
                  int64_t submitted_ns);
  // Computes a step, unless idle. Sends events.
  void Step();
  // Goes on writing to disk what has been computed, and says whether there will be more to do; Step does
  // this, too. on_saved, on any thread: there is.
  bool SaveToDisk();
  void FlushToDisk(int64_t limit_ns);  // waits
  void SetOnSaved(std::function<void()> on_saved);
  // Those in places.
  void GetGenerations(std::vector<std::shared_ptr<Generation>>* generations) const;
  uint64_t ended() const { return requests_; }
  // Charged with everything between the ends of two steps, also by who calls Step.
  StepTimer& timer() { return timer_; }
  // Adds what it counts.
  void AddTo(EngineStats* stats) const;

 private:
  struct Place {
    SequenceState* sequence = nullptr;
    std::unique_ptr<RunningRequest> request;
    bool admitted = false;  // has blocks for all its tokens
    bool fresh = false;     // admitted, and nothing computed since
    bool restoring = false;  // its prompt's beginning is being read from disk
    bool preempted = false;  // since its last token
    int64_t token_ns = 0;    // when that was delivered

    uint32_t missing() const {
      return static_cast<uint32_t>(request->tokens().size()) - sequence->length();
    }
    bool answers() const { return admitted && request->answering() && missing() == 1; }
  };

  Place* OldestAfter(uint64_t ticket);
  void EndCancelled();
  void Admit();
  bool TakeBlocks(Place* place);
  bool MakeRoom(Place* place);
  void Preempt(Place* place);
  void AddAnswers();
  void AddPrompts();
  bool BeginPrompt(Place* place);
  bool Restore(Place* place);
  void EndRestore(Place* place);
  void Add(Place* place, uint32_t tokens);
  void Compute(bool answers);
  void Deliver(Place* place, const BatchSegment& segment);
  void End(Place* place, FinishReason reason, const Status& error);

  Runner& runner_;
  const RunningRequest::Context context_;
  const std::function<void()> before_end_;
  std::vector<Place> places_;
  size_t taken_ = 0;
  uint64_t next_ticket_ = 1;
  std::vector<BatchSegment> batch_;
  std::vector<Place*> batch_places_;  // parallel to batch_
  uint32_t batch_tokens_ = 0;
  PrefixDisk* const disk_;  // null: there is none
  int64_t restore_began_ns_ = 0;
  StepTimer timer_{RealClock()};
  uint64_t requests_ = 0, failed_ = 0, cancelled_ = 0;
  uint64_t prompt_tokens_ = 0, reused_tokens_ = 0, restored_tokens_ = 0, preempted_ = 0;
};

}  // namespace moraine
