// BudgetControl: what changes the RAM budget of a running server beside the API: a file that SIGHUP
// has read again, and memory pressure.
//
// Threads: Start and Reload from any thread, Start once; the pressure is read on a thread of its own,
// which the destructor ends.
#pragma once

#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>

#include "engine/engine.h"

namespace moraine {

// The first line of the file, as --ram-budget takes it. Errors name the file.
Result<RamBudget> ReadBudgetFile(const std::string& path);

class BudgetControl {
 public:
  BudgetControl(std::string budget_file, bool follow_pressure)
      : budget_file_(std::move(budget_file)), follow_pressure_(follow_pressure) {}
  ~BudgetControl();

  // `engine` outlives this.
  void Start(Engine* engine);
  // Reads the file and sets what it says. A file that says nothing usable changes nothing but the log.
  void Reload();

 private:
  void FollowPressure(const std::string& path);

  const std::string budget_file_;
  const bool follow_pressure_;
  std::mutex mutex_;
  std::condition_variable wake_;
  Engine* engine_ = nullptr;   // guarded by mutex_ until the thread has started
  bool stopping_ = false;      // guarded by mutex_
  uint64_t ceiling_bytes_ = 0;  // of what is taken again after pressure; its thread's only
  std::thread thread_;
};

}  // namespace moraine
