#include "engine/batch_scheduler.h"

#include <algorithm>

#include "base/check.h"
#include "model/kv_pool.h"

namespace moraine {
namespace {

// Of a step that others answer in, prompts have this share of the tokens that they have alone: a prompt of
// n chunks holds answers up for 4 n steps of about a quarter of the time, and reads experts up to 4 times as
// often.
constexpr uint32_t kMixedShare = 4;
// But not so few that most of a layer's experts are read for a token or two each.
constexpr uint32_t kLeastMixedTokens = 64;
// What an answer has blocks for when its prompt is admitted.
constexpr uint32_t kAnswerReserve = 256;

}  // namespace

BatchScheduler::BatchScheduler(Runner& runner, const TextModel& text,
                               std::function<void()> before_end)
    : runner_(runner),
      context_{.text = &text, .model = &runner.info()},
      before_end_(std::move(before_end)),
      places_(runner.sequence_count()) {
  for (uint32_t i = 0; i < places_.size(); ++i) places_[i].sequence = &runner.sequence(i);
  batch_.reserve(places_.size());
  batch_places_.reserve(places_.size());
}

void BatchScheduler::Begin(GenerationRequest request, std::shared_ptr<Generation> generation,
                           int64_t submitted_ns) {
  const auto place = std::ranges::find_if(places_, [](const Place& p) { return !p.request; });
  CHECK(place != places_.end(), "no place for the request");
  place->request = std::make_unique<RunningRequest>(std::move(request), std::move(generation),
                                                    submitted_ns, next_ticket_++, context_);
  place->admitted = place->fresh = false;
  ++taken_;
}

void BatchScheduler::EndUnbegun(GenerationRequest request, std::shared_ptr<Generation> generation,
                                int64_t submitted_ns) {
  RunningRequest unbegun(std::move(request), std::move(generation), submitted_ns, 0, context_);
  ++requests_;
  ++cancelled_;
  before_end_();
  unbegun.Finish(FinishReason::kCancelled, OkStatus());
}

void BatchScheduler::Step() {
  EndCancelled();
  if (idle()) return;
  Admit();
  batch_.clear();
  batch_places_.clear();
  batch_tokens_ = 0;
  AddAnswers();
  AddPrompts();
  CHECK(!batch_.empty(), "the oldest request has no blocks");
  runner_.Step(batch_);
  for (size_t i = 0; i < batch_.size(); ++i) Deliver(batch_places_[i], batch_[i]);
}

// Null if there is none. In the order of tickets, which places are not in.
BatchScheduler::Place* BatchScheduler::OldestAfter(uint64_t ticket) {
  Place* oldest = nullptr;
  for (Place& place : places_) {
    if (!place.request || place.request->ticket() <= ticket) continue;
    if (oldest == nullptr || place.request->ticket() < oldest->request->ticket()) oldest = &place;
  }
  return oldest;
}

void BatchScheduler::EndCancelled() {
  for (Place& place : places_) {
    if (place.request && place.request->generation()->cancelled()) {
      End(&place, FinishReason::kCancelled, OkStatus());
    }
  }
}

// Nobody overtakes one that waits for blocks: else long prompts might wait for ever.
void BatchScheduler::Admit() {
  for (Place* p = OldestAfter(0); p != nullptr; p = OldestAfter(p->request->ticket())) {
    if (p->admitted) continue;
    if (!TakeBlocks(p)) {
      p->sequence->Reset();
      return;
    }
    p->admitted = p->fresh = true;
    if (!p->request->started()) {
      prompt_tokens_ += p->request->prompt_tokens();
      p->request->Start();
    }
  }
}

bool BatchScheduler::TakeBlocks(Place* place) {
  const RunningRequest& request = *place->request;
  SequenceState& sequence = *place->sequence;
  sequence.Reset();
  const uint32_t cached = sequence.TakePrefix(request.tokens());
  const uint32_t tokens = static_cast<uint32_t>(request.tokens().size());
  return sequence.Reserve(std::min(tokens + kAnswerReserve, request.most_tokens()) - cached);
}

// For one more token. False if that took the place's own blocks.
bool BatchScheduler::MakeRoom(Place* place) {
  while (!place->sequence->Reserve(1)) {
    Place* youngest = place;
    for (Place& other : places_) {
      if (other.request && other.admitted &&
          other.request->ticket() > youngest->request->ticket()) {
        youngest = &other;
      }
    }
    Preempt(youngest);
    if (youngest == place) return false;
  }
  return true;
}

void BatchScheduler::Preempt(Place* place) {
  place->sequence->Reset();
  place->admitted = place->fresh = false;
  ++preempted_;
}

// Oldest first: who has to give its blocks up is behind those who are in the batch.
void BatchScheduler::AddAnswers() {
  for (Place* p = OldestAfter(0); p != nullptr; p = OldestAfter(p->request->ticket())) {
    if (p->answers() && MakeRoom(p)) Add(p, 1);
  }
}

void BatchScheduler::AddPrompts() {
  const uint32_t chunk = runner_.prefill_chunk();
  uint32_t room = batch_.empty() ? chunk : std::max(chunk / kMixedShare, kLeastMixedTokens);
  room = std::min({room, chunk, runner_.step_tokens() - batch_tokens_});
  for (Place* p = OldestAfter(0); p != nullptr && room > 0;
       p = OldestAfter(p->request->ticket())) {
    if (!p->admitted || p->answers()) continue;
    if (std::exchange(p->fresh, false)) {
      // Once more, now that those before it have computed what they may have in common.
      CHECK(TakeBlocks(p), "a request has lost the blocks that it was admitted with");
      if (!p->request->answering()) {
        p->request->SetCached(p->sequence->length());
        reused_tokens_ += p->sequence->length();
      }
    }
    const uint32_t tokens = std::min(p->missing(), room);
    Add(p, tokens);
    room -= tokens;
  }
}

void BatchScheduler::Add(Place* place, uint32_t tokens) {
  const RunningRequest& request = *place->request;
  BatchSegment segment;
  segment.tokens = request.tokens().subspan(place->sequence->length(), tokens);
  segment.state = place->sequence;
  segment.logits = tokens == place->missing() ? LogitsMode::kLast : LogitsMode::kNone;
  segment.sink = request.sink();
  segment.cancelled = request.generation()->flag();
  segment.decode = place->answers();
  batch_.push_back(std::move(segment));
  batch_places_.push_back(place);
  batch_tokens_ += tokens;
}

void BatchScheduler::Deliver(Place* place, const BatchSegment& segment) {
  RunningRequest& request = *place->request;
  if (!segment.status.ok()) {
    const bool cancelled = segment.status.code() == StatusCode::kCancelled;
    End(place, cancelled ? FinishReason::kCancelled : FinishReason::kError, segment.status);
    return;
  }
  place->sequence->Publish(request.tokens());
  if (!request.answering()) request.OnPrefilled(place->sequence->length());
  if (place->missing() > 0) return;
  const std::optional<FinishReason> reason = request.OnLogits();
  if (reason) End(place, *reason, OkStatus());
}

void BatchScheduler::End(Place* place, FinishReason reason, const Status& error) {
  const std::unique_ptr<RunningRequest> request = std::move(place->request);
  place->sequence->Reset();
  place->admitted = place->fresh = false;
  --taken_;
  ++requests_;
  failed_ += reason == FinishReason::kError;
  cancelled_ += reason == FinishReason::kCancelled;
  before_end_();
  request->Finish(reason, error);
}

void BatchScheduler::GetGenerations(
    std::vector<std::shared_ptr<Generation>>* generations) const {
  generations->clear();
  for (const Place& place : places_) {
    if (place.request) generations->push_back(place.request->generation());
  }
}

void BatchScheduler::AddTo(EngineStats* stats) const {
  stats->requests = requests_;
  stats->requests_failed = failed_;
  stats->requests_cancelled = cancelled_;
  stats->running = static_cast<uint32_t>(taken_);
  stats->kv.prompt_tokens = prompt_tokens_;
  stats->kv.reused_tokens = reused_tokens_;
  stats->kv.preempted = preempted_;
}

}  // namespace moraine
