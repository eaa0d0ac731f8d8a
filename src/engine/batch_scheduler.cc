#include "engine/batch_scheduler.h"

#include <algorithm>

#include "base/check.h"
#include "base/clock.h"
#include "engine/prefix_disk.h"
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
// A prompt is not computed before the disk has had this long: what computing takes is known too little for
// less, and nobody minds.
constexpr int64_t kLeastPatienceNs = 1'000'000'000;
// With nothing to compute: cancelled and new requests are looked for this often.
constexpr int64_t kDiskWaitNs = 5'000'000;
// Copies to be written, in steps that somebody waits for (prefix_disk.h).
constexpr uint32_t kSavesBesideAnswers = 1;

}  // namespace

BatchScheduler::BatchScheduler(Runner& runner, const TextModel& text,
                               std::function<void()> before_end)
    : runner_(runner),
      context_{.text = &text, .model = &runner.info()},
      before_end_(std::move(before_end)),
      places_(runner.sequence_count()),
      disk_(runner.prefix_disk()) {
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
  place->admitted = place->fresh = place->preempted = false;
  place->token_ns = 0;
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
  if (idle()) {
    SaveToDisk();
    return;
  }
  Admit();
  batch_.clear();
  batch_places_.clear();
  batch_tokens_ = 0;
  AddAnswers();
  const bool answers = !batch_.empty();
  AddPrompts();
  timer_.Charge(StepPart::kAdmit);
  if (batch_.empty()) {
    const bool restoring = std::ranges::any_of(places_, [](const Place& p) { return p.restoring; });
    CHECK(restoring, "the oldest request has no blocks");
    disk_->Wait(kDiskWaitNs);
    timer_.Charge(StepPart::kRestore);
    return;
  }
  Compute(answers);
  for (size_t i = 0; i < batch_.size(); ++i) Deliver(batch_places_[i], batch_[i]);
  timer_.Charge(StepPart::kDeliver);
  if (disk_ != nullptr) disk_->Save(answers ? kSavesBesideAnswers : UINT32_MAX);
  timer_.Charge(StepPart::kSave);
}

void BatchScheduler::Compute(bool answers) {
  const auto stalled_ns = [&] {
    return runner_.prefill_stats().stall_ns + runner_.decode_stats().stall_ns;
  };
  const int64_t stalled_before_ns = stalled_ns(), resizing_before_ns = runner_.resizing_ns();
  runner_.Step(batch_);
  const bool prompts =
      std::ranges::any_of(batch_, [](const BatchSegment& segment) { return !segment.decode; });
  const StepPart part = !answers  ? StepPart::kPrompt
                        : prompts ? StepPart::kMixed
                                  : StepPart::kDecode;
  timer_.Charge(part);
  timer_.Move(part, StepPart::kDrive, stalled_ns() - stalled_before_ns);
  timer_.Move(part, StepPart::kResize, runner_.resizing_ns() - resizing_before_ns);
}

bool BatchScheduler::SaveToDisk() {
  if (disk_ == nullptr) return false;
  disk_->Save(UINT32_MAX);
  return disk_->saving();
}

void BatchScheduler::FlushToDisk(int64_t limit_ns) {
  const int64_t end_ns = RealClock().NowNs() + limit_ns;
  while (SaveToDisk() && RealClock().NowNs() < end_ns) disk_->Wait(kDiskWaitNs);
}

void BatchScheduler::SetOnSaved(std::function<void()> on_saved) {
  if (disk_ != nullptr) disk_->SetOnSaved(std::move(on_saved));
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
  EndRestore(place);
  place->sequence->Reset();
  place->admitted = place->fresh = false;
  place->preempted = true;
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
    if (!BeginPrompt(p)) return;
    const uint32_t tokens = std::min(p->missing(), room);
    Add(p, tokens);
    room -= tokens;
  }
}

// Takes what need not be computed. False: it is still being read.
bool BatchScheduler::BeginPrompt(Place* p) {
  if (!p->fresh && !p->restoring) return true;
  if (std::exchange(p->fresh, false)) {
    // Once more, now that those before it have computed what they may have in common.
    CHECK(TakeBlocks(p), "a request has lost the blocks that it was admitted with");
    p->restoring = disk_ != nullptr && disk_->Begin(p->request->tokens(), p->sequence->length());
    restore_began_ns_ = RealClock().NowNs();
  }
  if (p->restoring && !Restore(p)) return false;
  if (!p->request->answering()) {
    p->request->SetCached(p->sequence->length());
    reused_tokens_ += p->sequence->length();
  }
  return true;
}

// False: there is more to come, and computing it would not have been faster so far. So the disk costs nobody
// more than as much again as there would be to wait without it.
bool BatchScheduler::Restore(Place* place) {
  for (auto content = disk_->Next(); !content.empty(); content = disk_->Next()) {
    place->sequence->Restore(content.data());
    restored_tokens_ += kKvBlockPositions;
  }
  place->sequence->Publish(place->request->tokens());
  if (disk_->restoring()) {
    const PhaseStats& prefill = runner_.prefill_stats();
    const double token_ns = prefill.tokens == 0 ? 0 : static_cast<double>(prefill.wall_ns) /
                                                          static_cast<double>(prefill.tokens);
    const int64_t computing_ns =
        static_cast<int64_t>(token_ns * disk_->restoring_blocks() * kKvBlockPositions);
    const int64_t waited_ns = RealClock().NowNs() - restore_began_ns_;
    if (waited_ns < std::max(computing_ns, kLeastPatienceNs)) return false;
  }
  EndRestore(place);
  return true;
}

void BatchScheduler::EndRestore(Place* place) {
  if (std::exchange(place->restoring, false)) disk_->EndRestore();
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
  if (!request.answering()) {
    request.OnPrefilled(place->sequence->length());
    if (disk_ != nullptr) disk_->Note(request.tokens().first(place->sequence->length()));
  }
  if (place->missing() > 0) return;
  const std::optional<FinishReason> reason = request.OnLogits();
  place->token_ns = timer_.Token(place->token_ns, std::exchange(place->preempted, false));
  if (reason) End(place, *reason, OkStatus());
}

void BatchScheduler::End(Place* place, FinishReason reason, const Status& error) {
  const std::unique_ptr<RunningRequest> request = std::move(place->request);
  EndRestore(place);
  if (disk_ != nullptr) disk_->Note(request->tokens().first(place->sequence->length()));
  place->sequence->Reset();
  place->admitted = place->fresh = false;
  --taken_;
  ++requests_;
  failed_ += reason == FinishReason::kError;
  cancelled_ += reason == FinishReason::kCancelled;
  timer_.Charge(StepPart::kDeliver);
  before_end_();
  timer_.Charge(StepPart::kPublish);
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
  stats->kv.restored_tokens = restored_tokens_;
  stats->steps = timer_.stats();
  if (disk_ == nullptr) return;
  const PrefixDiskStats disk = disk_->stats();
  stats->kv.disk_blocks = disk.blocks;
  stats->kv.disk_failures = disk.failed;
}

}  // namespace moraine
