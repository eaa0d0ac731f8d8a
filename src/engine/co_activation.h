// CoActivation: which experts of a layer are taken together, by sampling.
//
// Each expert keeps its few most frequent partners (Space-Saving, Metwally et al. 2005: a new partner
// takes the place of the rarest and inherits its count, so that a frequent one is never missed). Every
// eighth decode step is looked at. Cost: top_k^2 short scans a layer then, 64 bytes an expert.
//
// It is kept, exported and shown; nothing prefetches by it: the next router, asked ahead of time,
// names the experts themselves.
//
// Threads: thread-compatible. No allocation after construction.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "base/ids.h"

namespace moraine {

class CoActivation {
 public:
  using Pairs = std::vector<std::vector<std::pair<uint32_t, uint32_t>>>;
  static constexpr uint32_t kPartners = 8;
  static constexpr uint32_t kSampleSteps = 8;

  CoActivation() = default;  // of no experts
  explicit CoActivation(const std::vector<uint32_t>& experts_per_layer) {
    for (const uint32_t experts : experts_per_layer) {
      first_.push_back(static_cast<uint32_t>(experts_.size()));
      experts_.resize(experts_.size() + experts);
    }
  }

  void BeginStep() { sampled_ = ++steps_ % kSampleSteps == 0; }
  // The experts of a layer that one token routes to.
  void Record(LayerId layer, std::span<const uint32_t> experts) {
    if (!sampled_) return;
    const uint32_t first = first_[layer.value()];
    for (const uint32_t a : experts) {
      for (const uint32_t b : experts) {
        if (a != b) Count(&experts_[first + a], first + b);
      }
    }
  }

  // By expert, most frequent partner first; partners are indices over all layers.
  Pairs Export() const {
    Pairs all(experts_.size());
    for (size_t i = 0; i < experts_.size(); ++i) {
      for (const Partner& partner : experts_[i]) {
        if (partner.samples > 0) all[i].push_back({partner.expert, partner.samples});
      }
      std::stable_sort(all[i].begin(), all[i].end(),
                       [](const auto& a, const auto& b) { return a.second > b.second; });
    }
    return all;
  }
  // What Export gave, of the same shape.
  void Import(const Pairs& pairs) {
    for (size_t i = 0; i < std::min(pairs.size(), experts_.size()); ++i) {
      experts_[i] = {};
      for (size_t p = 0; p < std::min<size_t>(pairs[i].size(), kPartners); ++p) {
        experts_[i][p] = {pairs[i][p].first, pairs[i][p].second};
      }
    }
  }

 private:
  struct Partner {
    uint32_t expert = 0, samples = 0;
  };
  using Partners = std::array<Partner, kPartners>;

  static void Count(Partners* partners, uint32_t expert) {
    Partner* rarest = partners->data();
    for (Partner& partner : *partners) {
      if (partner.samples > 0 && partner.expert == expert) {
        // So that what was frequent last month can be overtaken.
        if (++partner.samples >= kMostSamples) Halve(partners);
        return;
      }
      if (partner.samples < rarest->samples) rarest = &partner;
    }
    *rarest = {expert, rarest->samples + 1};
  }
  static void Halve(Partners* partners) {
    for (Partner& partner : *partners) partner.samples /= 2;
  }

  static constexpr uint32_t kMostSamples = 4096;
  std::vector<uint32_t> first_;  // of each layer
  std::vector<Partners> experts_;
  uint32_t steps_ = 0;
  bool sampled_ = false;
};

}  // namespace moraine
