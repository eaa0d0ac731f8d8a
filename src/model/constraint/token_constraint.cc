#include "model/constraint/token_constraint.h"

#include <algorithm>

#include "base/check.h"

namespace moraine {
namespace {

uint64_t Mix(uint64_t hash, uint64_t value) {
  // The multiplier of Knuth's linear congruential generator; good enough for a hash table.
  return (hash ^ value) * 6364136223846793005ull + 1442695040888963407ull;
}

}  // namespace

size_t TokenConstraint::FrameHash::operator()(const Frame& frame) const {
  return static_cast<size_t>(Mix(Mix(Mix(0, frame.node), frame.count), frame.parent) >> 13);
}

TokenConstraint::TokenConstraint(std::shared_ptr<const Grammar> grammar,
                                 std::shared_ptr<const TokenTrie> trie,
                                 std::vector<int32_t> end_tokens)
    : grammar_(std::move(grammar)),
      trie_(std::move(trie)),
      end_tokens_(std::move(end_tokens)),
      path_(trie_->max_depth() + 1) {
  frames_.push_back({});
  Reach(grammar_->start(), 0);
  current_ = InternReached();
  CHECK(current_ != kDead, "a grammar that matches nothing");
}

void TokenConstraint::Push(NodeId node, uint32_t count, uint32_t parent, NodeId body) {
  Frame frame{node, count, parent, frames_[parent].depth + 1};
  if (frame.depth > kMaxDepth) return;  // deeper texts are not allowed
  const auto [found, is_new] = frame_ids_.try_emplace(frame, static_cast<uint32_t>(frames_.size()));
  if (is_new) frames_.push_back(frame);
  todo_.push_back({body, found->second});
}

void TokenConstraint::FollowRepeat(NodeId id, uint32_t count, uint32_t frame) {
  const Grammar::Node& node = grammar_->node(id);
  if (count < node.max) {
    // Without an upper limit the count need not go on: few states instead of one an element.
    const uint32_t next = node.max == kUnbounded ? std::min(count + 1, node.min) : count + 1;
    Push(id, next, frame, node.body);
  }
  if (count >= node.min) todo_.push_back({node.next, frame});
}

void TokenConstraint::Follow(NodeId id, uint32_t frame_id) {
  const Grammar::Node& node = grammar_->node(id);
  switch (node.kind) {
    case Grammar::Node::Kind::kBytes: reached_.push_back({id, frame_id}); return;
    case Grammar::Node::Kind::kSplit:
      for (uint32_t i = 0; i < node.count; ++i) {
        todo_.push_back({grammar_->target(node.index + i), frame_id});
      }
      return;
    case Grammar::Node::Kind::kCall: return Push(id, 0, frame_id, node.body);
    case Grammar::Node::Kind::kRepeat: return FollowRepeat(id, 0, frame_id);
    case Grammar::Node::Kind::kReturn: break;
  }
  if (frame_id == 0) {
    accepts_ = true;
    return;
  }
  const Frame frame = frames_[frame_id];
  if (grammar_->node(frame.node).kind == Grammar::Node::Kind::kRepeat) {
    FollowRepeat(frame.node, frame.count, frame.parent);
  } else {
    todo_.push_back({grammar_->node(frame.node).next, frame.parent});
  }
}

bool TokenConstraint::Seen(const Configuration& configuration) {
  // Few, nearly always: then looking through all is quicker than hashing.
  constexpr size_t kFew = 32;
  const auto key = [](const Configuration& c) { return uint64_t{c.node} << 32 | c.frame; };
  if (seen_.size() < kFew) {
    if (std::find(seen_.begin(), seen_.end(), configuration) != seen_.end()) return true;
  } else {
    if (seen_set_.empty()) {
      for (const Configuration& c : seen_) seen_set_.insert(key(c));
    }
    if (!seen_set_.insert(key(configuration)).second) return true;
  }
  seen_.push_back(configuration);
  return false;
}

// Adds what can be reached from a node without a byte to reached_ and accepts_.
void TokenConstraint::Reach(NodeId node, uint32_t frame) {
  todo_.push_back({node, frame});
  while (!todo_.empty()) {
    const Configuration next = todo_.back();
    todo_.pop_back();
    if (reached_.size() >= kMaxConfigurations || Seen(next)) continue;
    ++work_;
    Follow(next.node, next.frame);
  }
}

TokenConstraint::StateId TokenConstraint::InternReached() {
  std::sort(reached_.begin(), reached_.end());
  reached_.erase(std::unique(reached_.begin(), reached_.end()), reached_.end());
  const bool accepting = std::exchange(accepts_, false);
  seen_.clear();
  seen_set_.clear();
  StateId id = kDead;
  if (!reached_.empty() || accepting) {
    uint64_t hash = accepting ? 1 : 0;
    for (const Configuration& c : reached_) hash = Mix(Mix(hash, c.node), c.frame);
    std::vector<StateId>& same_hash = state_ids_[hash];
    for (const StateId candidate : same_hash) {
      const State& state = states_[static_cast<size_t>(candidate)];
      if (state.accepting == accepting && state.configurations == reached_) id = candidate;
    }
    if (id == kDead) {
      id = static_cast<StateId>(states_.size());
      same_hash.push_back(id);
      State& state = states_.emplace_back();
      state.configurations = reached_;
      state.accepting = accepting;
      state.steps.fill(kUnknown);
    }
  }
  reached_.clear();
  return id;
}

TokenConstraint::StateId TokenConstraint::MakeStep(StateId from, uint8_t byte) {
  for (size_t i = 0; i < states_[static_cast<size_t>(from)].configurations.size(); ++i) {
    const Configuration c = states_[static_cast<size_t>(from)].configurations[i];
    const Grammar::Node& node = grammar_->node(c.node);
    if (grammar_->set(node.index).test(byte)) Reach(node.next, c.frame);
  }
  const StateId next = InternReached();
  states_[static_cast<size_t>(from)].steps[byte] = next;
  return next;
}

void TokenConstraint::ComputeMask(StateId state) {
  std::vector<uint64_t> mask((trie_->vocab_size() + 63) / 64);
  const auto allow = [&](int32_t token) {
    mask[static_cast<size_t>(token) / 64] |= uint64_t{1} << (token % 64);
  };
  path_[0] = state;
  work_ = 0;
  const std::vector<TokenTrie::Node>& nodes = trie_->nodes();
  for (uint32_t i = 0; i < nodes.size();) {
    if (work_ > kMaxWork || states_.size() > 4 * kMaxStates) {
      too_complex_ = true;
      return;
    }
    const TokenTrie::Node& node = nodes[i];
    const StateId next = Step(path_[node.depth], node.byte);
    if (next == kDead) {
      i = node.subtree_end;
      continue;
    }
    path_[node.depth + 1u] = next;
    if (node.token >= 0) allow(node.token);
    ++i;
  }
  if (states_[static_cast<size_t>(state)].accepting) {
    for (const int32_t token : end_tokens_) allow(token);
  }
  states_[static_cast<size_t>(state)].mask = static_cast<int32_t>(masks_.size());
  masks_.push_back(std::move(mask));
}

std::span<const uint64_t> TokenConstraint::AllowedTokens() {
  ForgetIfFull();
  const size_t current = static_cast<size_t>(current_);
  if (states_[current].mask < 0 && !too_complex_) ComputeMask(current_);
  if (too_complex_) {
    nothing_.assign((trie_->vocab_size() + 63) / 64, 0);
    return nothing_;
  }
  return masks_[static_cast<size_t>(states_[current].mask)];
}

bool TokenConstraint::AcceptBytes(std::string_view bytes) {
  StateId state = current_;
  for (const char byte : bytes) {
    state = Step(state, static_cast<uint8_t>(byte));
    if (state == kDead) return false;
  }
  current_ = state;
  return true;
}

bool TokenConstraint::Accept(int32_t token) {
  if (too_complex_ || token < 0 || static_cast<uint32_t>(token) >= trie_->vocab_size()) return false;
  const std::string& bytes = trie_->TokenBytes(token);
  return !bytes.empty() && AcceptBytes(bytes);
}

void TokenConstraint::ForgetIfFull() {
  if (states_.size() < kMaxStates && frames_.size() < kMaxFrames) return;
  const State kept = std::move(states_[static_cast<size_t>(current_)]);
  const std::vector<Frame> old_frames = std::exchange(frames_, {Frame{}});
  states_.clear();
  state_ids_.clear();
  masks_.clear();
  frame_ids_.clear();
  // The current state's stacks are all that is still needed; a frame comes after its parent.
  std::vector<uint32_t> new_ids(old_frames.size());
  std::vector<bool> needed(old_frames.size());
  for (const Configuration& c : kept.configurations) needed[c.frame] = true;
  for (size_t id = old_frames.size(); id-- > 1;) {
    if (needed[id]) needed[old_frames[id].parent] = true;
  }
  for (size_t id = 1; id < old_frames.size(); ++id) {
    if (!needed[id]) continue;
    Frame frame = old_frames[id];
    frame.parent = new_ids[frame.parent];
    new_ids[id] = static_cast<uint32_t>(frames_.size());
    frame_ids_.emplace(frame, new_ids[id]);
    frames_.push_back(frame);
  }
  for (const Configuration& c : kept.configurations) {
    reached_.push_back({c.node, new_ids[c.frame]});
  }
  accepts_ = kept.accepting;
  current_ = InternReached();
}

}  // namespace moraine
