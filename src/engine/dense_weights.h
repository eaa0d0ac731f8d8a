// DenseWeights: the resident part of a model, loaded once from the store's dense pack.
#pragma once

#include <memory>
#include <string>
#include <unordered_map>

#include "memory/host_arena.h"
#include "model/weights.h"
#include "store/store.h"

namespace moraine {

class DenseWeights final : public DenseSource {
 public:
  static uint64_t BytesFor(const Manifest& manifest);
  // Reads every dense tensor and verifies its checksum.
  static Result<std::unique_ptr<DenseWeights>> Load(const Store& store);

  MatrixView Matrix(const std::string& role) const override;
  std::span<const float> Vector(const std::string& role) const override;

 private:
  struct Entry {
    const DenseTensor* tensor;
    const std::byte* data;
  };
  const Entry& Find(const std::string& role) const;

  HostArena arena_;
  std::unordered_map<std::string, Entry> entries_;
};

}  // namespace moraine
