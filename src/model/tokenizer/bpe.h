// Byte-pair merging of one pre-token.
//
// A heap of candidate merges over a linked list of symbols: O(n log n) for a pre-token of n bytes, so
// that a megabyte of one letter is not a denial of service. Ordinary words come from a cache: text
// repeats itself, and a lookup costs a tenth of merging.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/status.h"

namespace moraine {

// (left id, right id) -> rank and id of the merged token. Open addressing: a merge asks for a few pairs
// per byte, and a node-based map would miss the cache twice each time.
class MergeTable {
 public:
  struct Merge {
    int32_t rank = -1;  // -1: no such merge
    int32_t id = -1;
  };
  void Reserve(size_t merge_count);
  // The last of equal pairs wins, as in the reference, which builds a hash map of them in order.
  void Insert(int32_t left, int32_t right, Merge merge);
  Merge Find(int32_t left, int32_t right) const;

 private:
  struct Entry {
    uint64_t key;
    Merge merge;
  };
  size_t SlotOf(uint64_t key) const { return (key * 0x9E3779B97F4A7C15u) >> shift_; }

  std::vector<Entry> entries_;
  int shift_ = 64;
};

struct BpeOptions {
  bool ignore_merges = false;  // a pre-token that is in the vocabulary is not merged at all
  bool fuse_unknown = false;
  // tiktoken's rule: two neighbours merge if their joined bytes are a token, the least id first. No
  // merge table: a table of all splits of all tokens would hold a million entries, most of them never
  // looked at. 0: the merge table decides; else the length of the longest token in bytes.
  size_t merge_by_id_max_bytes = 0;
  int32_t unknown_id = -1;
  // Ids of single bytes, -1 if the vocabulary lacks one.
  std::array<int32_t, 256> byte_ids;
  // Ids of <0x00>..<0xFF>, used for a byte without an id if byte_fallback is on; else -1.
  std::array<int32_t, 256> fallback_ids;
};

// Thread-safe after construction.
class Bpe {
 public:
  // `ids_of_bytes` is used only with ignore_merges and merge_by_id_max_bytes; its keys must outlive this.
  Bpe(BpeOptions options, MergeTable merges,
      std::unordered_map<std::string_view, int32_t> ids_of_bytes);

  // Appends the ids of one pre-token; `bytes` is shorter than 2 GiB.
  void Encode(std::string_view bytes, std::vector<int32_t>& ids) const;

 private:
  // Words up to 32 bytes cover 99.9 % of the pre-tokens of prose and code; 16384 of them hold the
  // working set of a long document (Heaps' law) in 1.3 MB. Direct-mapped: a collision only costs time.
  static constexpr size_t kCachedBytes = 32, kCachedIds = 10, kCacheSlots = 16384;
  static constexpr size_t kStripeSlots = 64;
  struct CachedWord {
    uint8_t byte_count = 0, id_count = 0;
    char bytes[kCachedBytes];
    int32_t ids[kCachedIds];
  };
  // A stripe in use by another thread is a miss, never a wait.
  struct Stripe {
    std::mutex mutex;
    std::array<CachedWord, kStripeSlots> words;
  };

  void Merge(std::string_view bytes, std::vector<int32_t>& ids) const;

  BpeOptions options_;
  MergeTable merges_;
  std::unordered_map<std::string_view, int32_t> ids_of_bytes_;
  std::unique_ptr<std::array<Stripe, kCacheSlots / kStripeSlots>> cache_;
};

}  // namespace moraine
