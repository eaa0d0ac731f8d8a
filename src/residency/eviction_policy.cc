#include "residency/eviction_policy.h"

#include <array>

#include "residency/policy_base.h"

namespace moraine {
namespace {

constexpr std::array kNames = {"heat", "lru", "lru_layer", "lfu", "sieve", "s3fifo", "arc"};

}  // namespace

void EvictionPolicy::OnPredicted(LayerId, std::span<const ExpertId>, float) {}

std::span<const char* const> EvictionPolicyNames() { return kNames; }

Result<std::unique_ptr<EvictionPolicy>> CreateEvictionPolicy(std::string_view name,
                                                             const PolicyShape& shape) {
  if (name == "heat") return CreateHeatPolicy(shape);
  if (name == "lru") return CreateLruPolicy(shape);
  if (name == "lru_layer") return CreateLayerLruPolicy(shape);
  if (name == "lfu") return CreateLfuPolicy(shape);
  if (name == "sieve") return CreateSievePolicy(shape);
  if (name == "s3fifo") return CreateS3FifoPolicy(shape);
  if (name == "arc") return CreateArcPolicy(shape);
  std::string known;
  for (size_t i = 0; i < kNames.size(); ++i) {
    known += i == 0 ? "" : i + 1 == kNames.size() ? " or " : ", ";
    known += kNames[i];
  }
  return InvalidArgument("eviction policy '" + std::string(name) + "': expected " + known);
}

}  // namespace moraine
