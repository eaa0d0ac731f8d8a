// A DeviceCopier without a device: copies happen when they are waited for, or at random when they
// are asked after: as late as copies can.
#pragma once

#include <cstring>
#include <deque>
#include <vector>

#include "base/random.h"
#include "engine/gpu/streamed_experts.h"

namespace moraine {

class LateCopier final : public DeviceCopier {
 public:
  explicit LateCopier(uint64_t seed) : random_(seed) {}
  Status Copy(std::byte* to, const std::byte* from, uint64_t bytes) override {
    if (fails_) return Internal("the device is gone");
    copies_.push_back({to, from, bytes});
    return OkStatus();
  }
  Result<uint64_t> Mark() override {
    if (fails_) return Internal("the device is gone");
    marks_.push_back(begun_ + copies_.size());
    return marks_.size() - 1;
  }
  bool Reached(uint64_t mark) override {
    if (fails_) return true;
    if (begun_ < marks_[mark] && random_.Chance(0.2)) Wait(mark);
    return begun_ >= marks_[mark];
  }
  void Wait(uint64_t mark) override {
    while (!fails_ && begun_ < marks_[mark]) {
      const auto& [to, from, bytes] = copies_.front();
      std::memcpy(to, from, bytes);
      copies_.pop_front();
      ++begun_;
    }
  }
  bool idle() const { return copies_.empty(); }
  // From now on nothing is copied any more.
  void Fail() {
    fails_ = true;
    copies_.clear();
  }

 private:
  struct Pending {
    std::byte* to;
    const std::byte* from;
    uint64_t bytes;
  };
  Random random_;
  std::deque<Pending> copies_;
  std::vector<uint64_t> marks_;  // number of copies that must have been made
  uint64_t begun_ = 0;
  bool fails_ = false;
};

}  // namespace moraine
