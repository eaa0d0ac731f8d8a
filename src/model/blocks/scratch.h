// Scratch: memory that the blocks of a forward pass use one after the other. Owned by the model and
// sized once by what its greediest block says, so that Forward allocates nothing.
#pragma once

#include <cstddef>
#include <vector>

#include "base/bytes.h"
#include "base/check.h"

namespace moraine {

class Scratch {
 public:
  // What Take(floats) uses up.
  static constexpr size_t Padded(size_t floats) { return AlignUp(floats, 16); }

  explicit Scratch(size_t floats) : memory_(floats) {}

  // Everything that was taken is free again.
  void Clear() { used_ = 0; }
  // What is taken between mark and Return is free again.
  using Mark = size_t;
  Mark mark() const { return used_; }
  void Return(Mark mark) { used_ = mark; }
  float* Take(size_t floats) {
    float* const result = memory_.data() + used_;
    used_ += Padded(floats);
    CHECK(used_ <= memory_.size(), "a block takes more scratch than it said");
    return result;
  }

 private:
  std::vector<float> memory_;
  size_t used_ = 0;
};

}  // namespace moraine
