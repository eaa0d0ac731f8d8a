// TokenConstraint: which tokens may come next so that the output stays a text of a grammar.
//
// The grammar is nondeterministic and has a stack; what can be reached after the bytes so far is a set of
// configurations (node, stack), stacks sharing their lower parts. Such a set is a state. States, and the
// steps between them, are made when they are first needed and kept: a deterministic automaton that grows
// as far as the output goes. A state's mask of tokens is one pass over the TokenTrie, also kept; inside a
// string, where most tokens are spent, state and mask are the same from token to token, so a token costs
// a look-up. xgrammar's split into context-free and context-dependent tokens is not needed at this rate:
// a new mask of a string costs 6 ms for 150,000 tokens (token_trie.h), once for each string of a schema.
//
// Memory: a state has 1 KiB, a mask a bit a token. Beyond kMaxStates everything but the current state is
// forgotten. Ambiguous grammars ((a{1,99}){1,99}) are bounded twice: of more than kMaxConfigurations ways
// some are given up, which leaves texts of the grammar and loses others; a mask that takes more than
// kMaxWork, a second or two, is not made at all (too_complex).
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "model/constraint/grammar.h"
#include "model/constraint/token_trie.h"

namespace moraine {

// One per sequence. Thread-compatible.
class TokenConstraint {
 public:
  // `end_tokens` end the output where the grammar allows it.
  TokenConstraint(std::shared_ptr<const Grammar> grammar, std::shared_ptr<const TokenTrie> trie,
                  std::vector<int32_t> end_tokens);

  // Bit t % 64 of word t / 64: token t may be next. Valid until the next call.
  std::span<const uint64_t> AllowedTokens();
  // The token's bytes were appended. False if they do not fit: then nothing has changed.
  bool Accept(int32_t token);
  bool AcceptBytes(std::string_view bytes);
  // The text so far is a whole one.
  bool can_end() const { return states_[static_cast<size_t>(current_)].accepting; }
  // And nothing can follow.
  bool must_end() const { return can_end() && states_[static_cast<size_t>(current_)].configurations.empty(); }

  // AllowedTokens gave up: it allows nothing, and never will again.
  bool too_complex() const { return too_complex_; }

  // For tests of the bound.
  size_t state_count() const { return states_.size(); }
  static constexpr size_t kMaxStates = 16 * 1024;
  static constexpr size_t kMaxFrames = 256 * 1024;
  static constexpr size_t kMaxConfigurations = 2048;
  static constexpr uint64_t kMaxWork = 4'000'000;  // configurations followed
  // Calls that may be open at one time: how deep JSON may be nested, about twice.
  static constexpr uint32_t kMaxDepth = 512;

 private:
  using NodeId = Grammar::NodeId;
  using StateId = int32_t;
  static constexpr StateId kDead = -1, kUnknown = -2;

  // A call or counted repetition that is open. Frame 0 is the bottom.
  struct Frame {
    NodeId node = 0;
    uint32_t count = 0;  // of a repetition
    uint32_t parent = 0;
    uint32_t depth = 0;
  };
  struct Configuration {
    NodeId node = 0;  // a kBytes node
    uint32_t frame = 0;
    auto operator<=>(const Configuration&) const = default;
  };
  struct State {
    std::vector<Configuration> configurations;
    bool accepting = false;
    std::array<StateId, 256> steps;
    int32_t mask = -1;  // into masks_
  };
  struct FrameHash {
    size_t operator()(const Frame& frame) const;
  };
  struct FrameEqual {
    bool operator()(const Frame& a, const Frame& b) const {
      return a.node == b.node && a.count == b.count && a.parent == b.parent;
    }
  };

  StateId Step(StateId state, uint8_t byte) {
    const StateId next = states_[static_cast<size_t>(state)].steps[byte];
    return next != kUnknown ? next : MakeStep(state, byte);
  }
  StateId MakeStep(StateId state, uint8_t byte);
  void Reach(NodeId node, uint32_t frame);
  void Follow(NodeId node, uint32_t frame);
  void FollowRepeat(NodeId node, uint32_t count, uint32_t frame);
  void Push(NodeId node, uint32_t count, uint32_t parent, NodeId body);
  StateId InternReached();
  void ComputeMask(StateId state);
  void ForgetIfFull();
  bool Seen(const Configuration& configuration);

  std::shared_ptr<const Grammar> grammar_;
  std::shared_ptr<const TokenTrie> trie_;
  std::vector<int32_t> end_tokens_;

  std::vector<Frame> frames_;
  std::unordered_map<Frame, uint32_t, FrameHash, FrameEqual> frame_ids_;
  std::vector<State> states_;
  std::unordered_map<uint64_t, std::vector<StateId>> state_ids_;  // by hash
  std::vector<std::vector<uint64_t>> masks_;
  StateId current_ = 0;

  // Scratch of a step.
  std::vector<Configuration> todo_, seen_, reached_;
  std::unordered_set<uint64_t> seen_set_;  // the same as seen_, once that is long
  uint64_t work_ = 0;
  bool too_complex_ = false;
  std::vector<uint64_t> nothing_;  // the mask of what is too complex
  bool accepts_ = false;
  std::vector<StateId> path_;
};

}  // namespace moraine
