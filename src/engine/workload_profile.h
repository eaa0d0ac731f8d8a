// WorkloadProfile: what a workload has taught about the routing of a model, kept across sessions.
//
// Sections, in the catalogue (store/profile_section.h gives each a length and a checksum):
//   meta           JSON: version, model identity, when and from how many tokens
//   heat           float32 by expert, layer-major: the fraction of tokens that route to it
//   warm_set       uint32 by rank: index of the experts that were resident, hottest first
//   co_activation  by expert: uint32 count, then that many pairs of uint32 (partner, samples)
//   anything else  bytes that somebody else keeps here (token_experts); carried, exported, imported
//
// Decay is by tokens, not by wall time: routing does not change while nobody computes, so a weekend
// must not cost what was learnt on Friday, and a busy hour must not count as much as a month. Half of
// a profile's weight is gone after 64 Ki tokens: some hours of one person's use, so that a single
// long prompt (8 Ki tokens: 8 %) does not turn it over and a new kind of work does within a day. A
// young profile is an average over all it has seen. A session's own heat, with its memory of a
// thousand tokens, goes on deciding what is evicted; the profile only says where it starts.
//
// Identity is the routers' weights, not a path or a date: a profile fits every store of the same
// checkpoint, however its experts are encoded, and no fine-tune of it.
//
// Threads: thread-compatible values.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/ids.h"
#include "base/status.h"
#include "engine/co_activation.h"
#include "store/store.h"

namespace moraine {

inline constexpr char kDefaultProfile[] = "default";

struct ModelIdentity {
  std::string name;                         // shown to people, not compared
  std::vector<uint32_t> experts_per_layer;  // 0 for dense layers
  uint32_t top_k = 0;
  uint64_t routers = 0;                     // XXH3-64 over the checksums of the routers' weights
};
ModelIdentity IdentityOf(const Manifest& manifest, uint32_t top_k);

// Taken by the engine thread between steps: nothing but copies.
struct ProfileSnapshot {
  uint64_t tokens = 0;          // computed since the start of the process
  std::vector<float> heat;      // in the policy's own unit
  std::vector<uint8_t> resident;
  CoActivation co_activation;
  // Sections of others: payloads to be saved under these names, as they are. One that has not changed
  // need not be given: what was saved last stays.
  std::map<std::string, std::string> sections;
};

struct WorkloadProfile {
  ModelIdentity model;
  int64_t saved_unix_s = 0;
  uint64_t tokens = 0;       // all that have gone in
  double weight_tokens = 0;  // of them, what has not decayed
  std::vector<float> heat;
  std::vector<uint32_t> warm_set;
  CoActivation::Pairs co_activation;  // by expert, or empty
  std::map<std::string, std::string> other_sections;
  std::set<std::string> changed_sections;  // of the others, since the last Save

  // A profile that knows nothing.
  static WorkloadProfile Empty(const ModelIdentity& model);
  // Adds what was learnt in the `new_tokens` tokens up to the snapshot.
  void Learn(const ProfileSnapshot& snapshot, uint64_t new_tokens, int64_t unix_s);
  // The payload of a section of somebody else, null if there is none. What SetSection gives is saved by
  // the next Save; own sections' names are CHECKed.
  const std::string* FindSection(const std::string& section) const;
  void SetSection(const std::string& section, std::string payload);
  // In the unit of EvictionPolicy::ImportHeat.
  std::vector<float> PolicyHeat() const;

  // kNotFound if there is none, kCorruption naming section and field, kFailedPrecondition if it is
  // another model's.
  static Result<WorkloadProfile> Load(const Store& store, const std::string& name,
                                      const ModelIdentity& model);
  // Writes what Learn changes, and the other sections that have changed.
  Status Save(Store& store, const std::string& name);
  // Writes everything in place of what is there.
  Status Replace(Store& store, const std::string& name) const;

  // The file of `moraine profile export`: one JSON object, other sections in hexadecimal.
  std::string ToJson() const;
  // kInvalidArgument naming the field; kFailedPrecondition naming what differs from `model`.
  static Result<WorkloadProfile> FromJson(const std::string& text, const ModelIdentity& model);

 private:
  std::map<std::string, std::string> OwnSections() const;
};

}  // namespace moraine
