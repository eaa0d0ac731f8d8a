#include "budget_control.h"

#include <cerrno>
#include <chrono>
#include <fstream>
#include <sstream>

#include "base/bytes.h"
#include "base/log.h"
#include "memory/memory_pressure.h"

namespace moraine {
namespace {

Result<uint64_t> ReadPressure(const std::string& path) {
  std::ifstream file(path);
  if (!file) return IoErrorFromErrno(path, errno);
  std::stringstream text;
  text << file.rdbuf();
  auto total = ParsePressure(text.str());
  if (!total.ok()) return total.status().WithContext(path);
  return total;
}

}  // namespace

Result<RamBudget> ReadBudgetFile(const std::string& path) {
  std::ifstream file(path);
  if (!file) return IoErrorFromErrno(path, errno);
  std::string line;
  std::getline(file, line);
  while (!line.empty() && (line.back() == ' ' || line.back() == '\r')) line.pop_back();
  auto budget = ParseRamBudget(line);
  if (!budget.ok()) return budget.status().WithContext(path);
  return budget;
}

BudgetControl::~BudgetControl() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void BudgetControl::Start(Engine* engine) {
  std::lock_guard lock(mutex_);
  engine_ = engine;
  ceiling_bytes_ = engine->ram_budget_range().current_bytes;
  if (!follow_pressure_) return;
  const Result<std::string> path = FindPressureFile();
  if (!path.ok()) {
    LOG_WARN("--follow-pressure: {}", path.status().message());
    return;
  }
  LOG_INFO("following memory pressure in {}", *path);
  thread_ = std::thread([this, path = *path] { FollowPressure(path); });
}

void BudgetControl::Reload() {
  std::lock_guard lock(mutex_);
  if (engine_ == nullptr) {
    LOG_WARN("the RAM budget can be changed once the model is loaded");
    return;
  }
  const Result<RamBudget> budget = ReadBudgetFile(budget_file_);
  const Status status = budget.ok() ? engine_->SetRamBudget(*budget) : budget.status();
  if (!status.ok()) {
    LOG_WARN("the RAM budget stays as it is: {}", status.message());
    return;
  }
  LOG_INFO("{}: the RAM budget is {}", budget_file_,
           FormatByteSize(engine_->ram_budget_range().current_bytes));
}

void BudgetControl::FollowPressure(const std::string& path) {
  PressureController controller;
  uint64_t expected_bytes = engine_->ram_budget_range().current_bytes;
  std::unique_lock lock(mutex_);
  while (!wake_.wait_for(lock, std::chrono::seconds(1), [&] { return stopping_; })) {
    const Result<uint64_t> stalled_us = ReadPressure(path);
    if (!stalled_us.ok()) {
      LOG_WARN("memory pressure is not followed any more: {}", stalled_us.status().message());
      return;
    }
    const RamBudgetRange range = engine_->ram_budget_range();
    // What somebody has set by hand meanwhile is the new ceiling.
    if (range.current_bytes != expected_bytes) ceiling_bytes_ = range.current_bytes;
    expected_bytes = range.current_bytes;
    const auto budget =
        controller.OnReading(RealClock().NowNs(), *stalled_us,
                             {range.minimum_bytes, range.current_bytes, ceiling_bytes_});
    if (!budget) continue;
    const Status status =
        engine_->SetRamBudget({.kind = RamBudget::Kind::kBytes, .bytes = *budget});
    expected_bytes = engine_->ram_budget_range().current_bytes;
    LOG_INFO("memory pressure: RAM budget {} -> {}{}", FormatByteSize(range.current_bytes),
             FormatByteSize(*budget), status.ok() ? "" : ": " + status.message());
  }
}

}  // namespace moraine
