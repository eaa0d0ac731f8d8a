#include "engine/residency_feed.h"

#include <utility>

namespace moraine {

std::unique_ptr<ResidencyFeed::Watch> ResidencyFeed::TryWatch(int limit) {
  std::lock_guard lock(mutex_);
  if (watchers_ >= limit) return nullptr;
  auto watch = std::make_unique<Watch>(shared_from_this());
  if (++watchers_ == 1 && wanted_) wanted_();
  return watch;
}

void ResidencyFeed::SetWanted(std::function<void()> wanted) {
  std::lock_guard lock(mutex_);
  wanted_ = std::move(wanted);
}

bool ResidencyFeed::watched() const {
  std::lock_guard lock(mutex_);
  return watchers_ > 0;
}

void ResidencyFeed::Publish(std::unique_ptr<ResidencySnapshot> snapshot) {
  std::shared_ptr<const ResidencySnapshot> before;  // freed after the lock
  std::lock_guard lock(mutex_);
  if (watchers_ == 0) return;
  snapshot->sequence = ++sequence_;
  before = std::exchange(latest_, std::move(snapshot));
}

std::shared_ptr<const ResidencySnapshot> ResidencyFeed::Latest() const {
  std::lock_guard lock(mutex_);
  return latest_;
}

void ResidencyFeed::Leave() {
  std::lock_guard lock(mutex_);
  if (--watchers_ == 0) latest_.reset();  // the next one shall not see an old one
}

}  // namespace moraine
