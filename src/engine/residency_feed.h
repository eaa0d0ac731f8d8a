// ResidencyFeed: snapshots from the engine thread to whoever watches.
//
// The engine makes snapshots only while somebody watches, and never waits for a reader: it swaps a
// pointer. A reader that is slow misses snapshots, nothing else.
//
//   reader:  Watch() ... Latest() now and then ... the watch goes out of scope
//   engine:  if (feed->watched()) feed->Publish(snapshot), where it publishes its statistics
//
// Threads: thread-safe.
#pragma once

#include <functional>
#include <memory>
#include <mutex>

#include "engine/residency_snapshot.h"

namespace moraine {

class ResidencyFeed : public std::enable_shared_from_this<ResidencyFeed> {
 public:
  // Held by a reader for as long as it wants snapshots. Move-only.
  class Watch {
   public:
    explicit Watch(std::shared_ptr<ResidencyFeed> feed) : feed_(std::move(feed)) {}
    Watch(Watch&&) = default;
    Watch& operator=(Watch&&) = delete;
    ~Watch() {
      if (feed_) feed_->Leave();
    }
    // The newest snapshot; null until the engine has made the first.
    std::shared_ptr<const ResidencySnapshot> Latest() const { return feed_->Latest(); }

   private:
    std::shared_ptr<ResidencyFeed> feed_;
  };

  // Null if `limit` others watch already.
  std::unique_ptr<Watch> TryWatch(int limit);

  // The rest is for the engine. `wanted` is called, by the reader's thread and under the lock, when the
  // first one comes: an engine that idles must make a snapshot then. Null: nobody to ask any more.
  void SetWanted(std::function<void()> wanted);
  bool watched() const;
  // Numbers the snapshot. Dropped if nobody watches.
  void Publish(std::unique_ptr<ResidencySnapshot> snapshot);

 private:
  std::shared_ptr<const ResidencySnapshot> Latest() const;
  void Leave();

  mutable std::mutex mutex_;
  std::function<void()> wanted_;                        // guarded by mutex_
  int watchers_ = 0;                                    // guarded by mutex_
  uint64_t sequence_ = 0;                               // guarded by mutex_
  std::shared_ptr<const ResidencySnapshot> latest_;     // guarded by mutex_
};

}  // namespace moraine
