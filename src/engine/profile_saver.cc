#include "engine/profile_saver.h"

#include <ctime>
#include <utility>

#include "base/log.h"

namespace moraine {

ProfileSaver::ProfileSaver(Store& store, std::string name, WorkloadProfile profile)
    : store_(store), name_(std::move(name)), profile_(std::move(profile)) {
  thread_ = std::thread([this] { ThreadMain(); });
}

ProfileSaver::~ProfileSaver() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void ProfileSaver::Submit(ProfileSnapshot snapshot) {
  {
    std::lock_guard lock(mutex_);
    if (waiting_) snapshot.sections.merge(waiting_->sections);  // those that are not newer here
    waiting_ = std::move(snapshot);
  }
  wake_.notify_one();
}

void ProfileSaver::ThreadMain() {
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [&] { return stopping_ || waiting_.has_value(); });
    if (!waiting_) return;
    const ProfileSnapshot snapshot = *std::exchange(waiting_, std::nullopt);
    lock.unlock();
    profile_.Learn(snapshot, snapshot.tokens - learnt_tokens_, std::time(nullptr));
    learnt_tokens_ = snapshot.tokens;
    const Status saved = profile_.Save(store_, name_);
    if (!saved.ok() && !std::exchange(failed_, true)) {
      LOG_WARN("profile '{}' was not saved: {}", name_, saved.ToString());
    }
    if (saved.ok()) failed_ = false;
    lock.lock();
  }
}

}  // namespace moraine
