#include "engine/leased_experts.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace moraine {
namespace {

constexpr uint64_t kUnmarked = UINT64_MAX;

}  // namespace

LeasedExperts::LeasedExperts(ResidencyManager& residency, std::vector<uint32_t> experts_per_layer,
                             const VramTier* tier)
    : residency_(residency), experts_per_layer_(std::move(experts_per_layer)), tier_(tier) {
  const uint32_t most = experts_per_layer_.empty() ? 0 : *std::ranges::max_element(experts_per_layer_);
  experts_.reserve(most);
  leases_.resize(most);
  held_.resize(2 * size_t{most});
  stream_.reserve(most);
}

// Those in memory first: leasing them pins them before a miss can evict them. Then those on their way, then
// the others in file order. all: those in VRAM, too.
void LeasedExperts::OrderByResidency(LayerId layer, bool all) {
  experts_.clear();
  for (int wanted = 0; wanted < 3; ++wanted) {
    for (uint32_t e = 0; e < experts_per_layer_[layer.value()]; ++e) {
      const ExpertState state = residency_.state({layer, ExpertId(e)});
      const int rank = state == ExpertState::kReady || state == ExpertState::kLeased ? 0
                       : state == ExpertState::kReading                              ? 1
                                                                                     : 2;
      if (rank != wanted || (!all && IsInVram({layer, ExpertId(e)}))) continue;
      experts_.emplace_back(e);
    }
  }
}

void LeasedExperts::PlanStream(uint32_t next) {
  stream_.clear();
  stream_next_ = 0;
  if (next == kNoLayer) return;
  stream_layer_ = LayerId(next);
  for (uint32_t e = 0; e < experts_per_layer_[next]; ++e) {
    if (!IsInVram({stream_layer_, ExpertId(e)})) stream_.emplace_back(e);
  }
}

void LeasedExperts::SetAddresses(const LayerCopy& layer) const {
  if (layer.addresses == nullptr) return;
  for (uint32_t e = 0; e < experts_per_layer_[layer.layer]; ++e) {
    const ExpertKey key{LayerId(layer.layer), ExpertId(e)};
    layer.addresses[e] = tier_ == nullptr ? nullptr : tier_->Find(key);
  }
}

void LeasedExperts::Stream() {
  if (stream_next_ == stream_.size()) return;
  stream_next_ += residency_.Stream(stream_layer_, std::span(stream_).subspan(stream_next_));
}

Status LeasedExperts::CopyLayer(const LayerCopy& layer, DeviceCopier& copier) {
  OrderByResidency(LayerId(layer.layer), /*all=*/layer.addresses == nullptr);
  SetAddresses(layer);
  PlanStream(layer.next);
  const Status status = CopyAll(layer, copier);
  for (Lease& lease : leases_) lease.Release();  // after an error
  return status;
}

Status LeasedExperts::CopyAll(const LayerCopy& layer, DeviceCopier& copier) {
  const size_t count = experts_.size();
  size_t acquired = 0, copied = 0;
  while (copied < count) {
    if (acquired < count) {
      const std::span<const ExpertId> rest = std::span(experts_).subspan(acquired);
      acquired += residency_.Acquire(LayerId(layer.layer), rest, {}, AcquireMode::kUpload,
                                     std::span(leases_).subspan(acquired, rest.size()));
    }
    const size_t decided = residency_.Poll(0);
    if (acquired == count) Stream();
    const size_t copied_before = copied;
    RETURN_IF_ERROR(CopyReady(layer, acquired, copier, &copied));
    const size_t held_before = held_count_;
    LetGo(held_count_, copier);
    if (copied > copied_before || decided > 0 || held_count_ < held_before) continue;
    if (acquired < count && held_count_ > 0) {
      LetGo(held_count_ - 1, copier);  // its slot is the next one's
    } else if (residency_.Poll(-1) == 0 && acquired == copied) {
      return ResourceExhausted(fmt::format(
          "no slot for expert {} of layer {}: all are held by reads that have not returned",
          experts_[acquired].value(), layer.layer));
    }
  }
  Stream();
  return OkStatus();
}

Status LeasedExperts::CopyReady(const LayerCopy& layer, size_t acquired, DeviceCopier& copier,
                                size_t* copied) {
  const size_t copied_before = *copied;
  Status status;
  for (size_t i = 0; i < acquired && status.ok(); ++i) {
    Lease& lease = leases_[i];
    if (lease.state() == Lease::State::kFailed) {
      status = lease.failure();
    } else if (lease.state() == Lease::State::kReady) {
      LetGo(held_.size() - 1, copier);
      status = copier.Copy(layer.to + experts_[i].value() * layer.record_bytes, lease.data(),
                           layer.record_bytes);
      // Of a copy that could not be asked for nobody knows how far it got: held, too.
      held_[(first_held_ + held_count_++) % held_.size()] = {std::move(lease), kUnmarked};
      copied_bytes_ += layer.record_bytes;
      ++*copied;
    }
  }
  if (*copied == copied_before) return status;
  const Result<uint64_t> mark = copier.Mark();
  // A device that cannot mark has failed, and copies nothing any more.
  for (size_t i = 0; i < *copied - copied_before && i < held_count_; ++i) {
    held_[(first_held_ + held_count_ - 1 - i) % held_.size()].mark = mark.ok() ? *mark : 0;
  }
  return status.ok() ? mark.status() : status;
}

// What has been copied; and until no more than most_held are held, what has not, by waiting.
void LeasedExperts::LetGo(size_t most_held, DeviceCopier& copier) {
  while (held_count_ > 0) {
    Held& oldest = held_[first_held_];
    if (held_count_ > most_held) {
      CHECK(oldest.mark != kUnmarked, "a layer of more experts than the largest");
      copier.Wait(oldest.mark);
    } else if (oldest.mark == kUnmarked || !copier.Reached(oldest.mark)) {
      return;
    }
    oldest.lease.Release();
    first_held_ = (first_held_ + 1) % held_.size();
    --held_count_;
  }
}

void LeasedExperts::Finish(DeviceCopier& copier) { LetGo(0, copier); }

}  // namespace moraine
