// EvictionPolicy: which resident expert goes next.
//
// A policy sees accesses, insertions and evictions and answers one question. It knows nothing of
// slots, leases or reads: what may not go right now (leased, in flight, of the current layer) is
// told by the caller through `Evictable`, so that the same object serves the engine, the simulation
// and the replay of traces.
//
// Implementations, one file each group; docs/policies.md compares them with Belady's OPT:
//   heat       default (heat_policy.cc). Heat = probability of use at the layer's next visit, a mixture
//              of moving averages, co-activation and similar tokens, weighted while running; score = heat
//              over the root of the distance, in layers, to that visit; per-layer floors of top-k.
//   lru, lfu   least recently used, least frequently used (ties: LRU); global (list_policies.cc)
//   lru_layer, sieve, s3fifo, arc   of the visited layer if it has its equal share of the slots, else of
//              the layer with the most (list_policies.cc, ghost_policies.cc). As global queues they
//              fail: layers are visited cyclically, and SIEVE's hand never completes a turn.
//
// Threads: owned by the ResidencyManager's thread. No allocation after construction.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "base/status.h"

namespace moraine {

struct PolicyShape {
  std::vector<uint32_t> experts_per_layer;  // 0 for dense layers
  uint32_t top_k = 1;
  uint32_t capacity = 0;  // cache slots
};

class EvictionPolicy {
 public:
  // True if the expert may be evicted now.
  class Evictable {
   public:
    virtual bool operator()(ExpertKey key) const = 0;

   protected:
    ~Evictable() = default;
  };

  virtual ~EvictionPolicy() = default;
  virtual const char* name() const = 0;
  // The cache has another number of slots from now on; at first PolicyShape::capacity. Policies
  // without shares or floors have nothing to do.
  virtual void SetCapacity(uint32_t) {}
  // One decode step, or one prefill chunk of `tokens` tokens, begins.
  virtual void OnStep(uint32_t tokens) = 0;
  // A lookup, hit or miss; all of a call come before its first ChooseVictim. weight: its tokens.
  virtual void OnAccess(ExpertKey key, float weight) = 0;
  // It was used where it does not come from this cache: counts for the long-term heat and for nothing else.
  virtual void OnUseElsewhere(ExpertKey key, float weight) = 0;
  virtual void OnInsert(ExpertKey key) = 0;
  virtual void OnEvict(ExpertKey key) = 0;
  // Something that looks ahead (the layer's router, asked early) expects these experts at the layer's
  // next visit with this probability; they count as that probable until the visit. By default ignored.
  virtual void OnPredicted(LayerId layer, std::span<const ExpertId> experts, float confidence);
  // The victim, or nothing if no inserted expert is evictable. `visiting`: the layer being computed.
  virtual std::optional<ExpertKey> ChooseVictim(LayerId visiting, const Evictable& evictable) = 0;
  // Would `candidate` be kept rather than `victim` if both were resident? Decides whether a prefill
  // read or a speculative read may displace what is there.
  virtual bool Prefers(ExpertKey candidate, ExpertKey victim, LayerId visiting) const = 0;
  // Is this resident expert likely enough to be wanted soon that not even a lookahead (right about
  // three times in four) may displace it?
  virtual bool IsHot(ExpertKey key) const = 0;
  // Long-term heat for persistence and warm-up: layer-major over all layers; 0 where unused.
  virtual void ExportHeat(std::span<float> heat) const = 0;
  virtual void ImportHeat(std::span<const float> heat) = 0;
};

// What CreateEvictionPolicy knows, the default first.
std::span<const char* const> EvictionPolicyNames();

// Anything but a name of EvictionPolicyNames() is kInvalidArgument listing them.
Result<std::unique_ptr<EvictionPolicy>> CreateEvictionPolicy(std::string_view name,
                                                             const PolicyShape& shape);

}  // namespace moraine
