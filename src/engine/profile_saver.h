// ProfileSaver: keeps a profile in the store up to date, away from the decode path.
//
// The engine thread hands over a snapshot, which is copies of a few arrays (6144 experts: 420 KiB);
// this thread learns from it, encodes and writes. There is one place for a snapshot: while a write is
// slow, newer ones replace the one that waits, and nothing is lost, since each says what all tokens so
// far have taught.
//
// A write that fails is logged once and tried again with the next snapshot. RocksDB's log is written
// before Save returns, so a killed process loses what it learnt since the last snapshot and no more.
//
// Threads: Submit from one thread.
#pragma once

#include <condition_variable>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "engine/workload_profile.h"

namespace moraine {

class ProfileSaver {
 public:
  // `store` outlives this. `profile`: what was there at the start.
  ProfileSaver(Store& store, std::string name, WorkloadProfile profile);
  ~ProfileSaver();  // writes what waits

  void Submit(ProfileSnapshot snapshot);

 private:
  void ThreadMain();

  Store& store_;
  const std::string name_;
  WorkloadProfile profile_;       // the thread's
  uint64_t learnt_tokens_ = 0;    // the thread's; of snapshots' tokens
  bool failed_ = false;           // the thread's

  std::mutex mutex_;
  std::condition_variable wake_;
  std::optional<ProfileSnapshot> waiting_;  // guarded by mutex_
  bool stopping_ = false;                   // guarded by mutex_
  std::thread thread_;
};

}  // namespace moraine
