#include "model/tokenizer/bpe.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <queue>

namespace moraine {
namespace {

constexpr uint64_t kEmptyKey = ~uint64_t{0};  // no id is 2^32-1

uint64_t KeyOf(int32_t left, int32_t right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
}

struct Symbol {
  int32_t id;
  int32_t previous, next;  // -1 at the ends
  int32_t begin, end;      // its bytes in the pre-token
  bool merged_away = false;
};

struct Candidate {
  int32_t rank, position, id;
  bool operator>(const Candidate& other) const {
    return rank != other.rank ? rank > other.rank : position > other.position;
  }
};

}  // namespace

void MergeTable::Reserve(size_t merge_count) {
  const size_t slots = std::bit_ceil(std::max<size_t>(2 * merge_count, 16));
  shift_ = 64 - std::countr_zero(slots);
  entries_.assign(slots, Entry{kEmptyKey, {}});
}

void MergeTable::Insert(int32_t left, int32_t right, Merge merge) {
  const uint64_t key = KeyOf(left, right);
  size_t slot = SlotOf(key);
  while (entries_[slot].key != kEmptyKey) {
    if (entries_[slot].key == key) break;
    slot = (slot + 1) & (entries_.size() - 1);
  }
  entries_[slot] = {key, merge};
}

MergeTable::Merge MergeTable::Find(int32_t left, int32_t right) const {
  const uint64_t key = KeyOf(left, right);
  size_t slot = SlotOf(key);
  while (entries_[slot].key != kEmptyKey) {
    if (entries_[slot].key == key) return entries_[slot].merge;
    slot = (slot + 1) & (entries_.size() - 1);
  }
  return {};
}

Bpe::Bpe(BpeOptions options, MergeTable merges,
         std::unordered_map<std::string_view, int32_t> ids_of_bytes)
    : options_(options),
      merges_(std::move(merges)),
      ids_of_bytes_(std::move(ids_of_bytes)),
      cache_(std::make_unique<std::array<Stripe, kCacheSlots / kStripeSlots>>()) {}

void Bpe::Encode(std::string_view bytes, std::vector<int32_t>& ids) const {
  if (bytes.empty()) return;
  if (options_.ignore_merges) {
    if (const auto found = ids_of_bytes_.find(bytes); found != ids_of_bytes_.end()) {
      ids.push_back(found->second);
      return;
    }
  }
  if (bytes.size() > kCachedBytes) return Merge(bytes, ids);
  const size_t slot = std::hash<std::string_view>()(bytes) % kCacheSlots;
  Stripe& stripe = (*cache_)[slot / kStripeSlots];
  std::unique_lock<std::mutex> lock(stripe.mutex, std::try_to_lock);
  if (!lock.owns_lock()) return Merge(bytes, ids);
  CachedWord& word = stripe.words[slot % kStripeSlots];
  if (word.byte_count == bytes.size() && !std::memcmp(word.bytes, bytes.data(), bytes.size())) {
    ids.insert(ids.end(), word.ids, word.ids + word.id_count);
    return;
  }
  const size_t before = ids.size();
  Merge(bytes, ids);
  const size_t id_count = ids.size() - before;
  if (id_count > kCachedIds) return;
  word.byte_count = static_cast<uint8_t>(bytes.size());
  word.id_count = static_cast<uint8_t>(id_count);
  std::memcpy(word.bytes, bytes.data(), bytes.size());
  std::copy(ids.begin() + before, ids.end(), word.ids);
}

void Bpe::Merge(std::string_view bytes, std::vector<int32_t>& ids) const {
  std::vector<Symbol> symbols;
  symbols.reserve(bytes.size());
  bool previous_unknown = false;
  for (int32_t at = 0; at < static_cast<int32_t>(bytes.size()); ++at) {
    const auto byte = static_cast<uint8_t>(bytes[at]);
    int32_t id = options_.byte_ids[byte];
    if (id < 0) id = options_.fallback_ids[byte];
    const bool unknown = id < 0;
    if (unknown) id = options_.unknown_id;
    // Without an unknown token a byte outside the vocabulary vanishes, as in the reference.
    if (id < 0 || (unknown && previous_unknown && options_.fuse_unknown)) continue;
    previous_unknown = unknown;
    const auto index = static_cast<int32_t>(symbols.size());
    symbols.push_back({id, index - 1, index + 1, at, at + 1});
  }
  if (symbols.empty()) return;
  symbols.back().next = -1;

  std::vector<Candidate> initial;
  const auto candidate_at = [&](int32_t position) -> Candidate {
    const Symbol& left = symbols[position];
    const Symbol& right = symbols[left.next];
    if (options_.merge_by_id_max_bytes == 0) {
      const MergeTable::Merge merge = merges_.Find(left.id, right.id);
      return {merge.rank, position, merge.id};
    }
    const auto length = static_cast<size_t>(right.end - left.begin);
    if (length > options_.merge_by_id_max_bytes) return {-1, position, -1};
    const auto found = ids_of_bytes_.find(bytes.substr(left.begin, length));
    const int32_t id = found == ids_of_bytes_.end() ? -1 : found->second;
    return {id, position, id};
  };
  for (int32_t i = 0; i + 1 < static_cast<int32_t>(symbols.size()); ++i) {
    if (const Candidate candidate = candidate_at(i); candidate.rank >= 0) initial.push_back(candidate);
  }
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue(std::greater<>(),
                                                                              std::move(initial));
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    Symbol& left = symbols[top.position];
    if (left.merged_away || left.next < 0) continue;
    // A neighbour may have been merged since this candidate was found.
    if (candidate_at(top.position).id != top.id) continue;
    Symbol& right = symbols[left.next];
    right.merged_away = true;
    left.id = top.id;
    left.end = right.end;
    left.next = right.next;
    if (left.next >= 0) {
      symbols[left.next].previous = top.position;
      if (const Candidate next = candidate_at(top.position); next.rank >= 0) queue.push(next);
    }
    if (left.previous >= 0) {
      if (const Candidate next = candidate_at(left.previous); next.rank >= 0) queue.push(next);
    }
  }
  for (int32_t i = 0; i >= 0; i = symbols[i].next) ids.push_back(symbols[i].id);
}

}  // namespace moraine
