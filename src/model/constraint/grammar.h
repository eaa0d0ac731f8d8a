// Grammar: expressions compiled to a graph that TokenConstraint walks byte by byte.
//
// A recursive transition network rather than a flat list of rules (llama.cpp's GBNF): what follows a
// node is in the node, so a step is one look at a byte set, and only calls and counted repetition push
// anything.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "model/constraint/expression.h"

namespace moraine {

// Immutable, so thread-safe.
class Grammar {
 public:
  using NodeId = uint32_t;
  struct Node {
    enum class Kind : uint8_t {
      kBytes,   // a byte of sets[index], then next
      kSplit,   // any of targets[index .. index + count)
      kCall,    // the nodes from `body` up to a kReturn, then next
      kRepeat,  // the same min to max times, then next
      kReturn,
    };
    Kind kind = Kind::kReturn;
    NodeId next = 0;
    NodeId body = 0;
    uint32_t index = 0, count = 0;
    uint32_t min = 0, max = 0;
  };

  // `rules[root]` matches the whole text. kResourceExhausted if there would be more than kMaxNodes:
  // a schema can be small and its grammar huge.
  static Result<Grammar> Build(const std::vector<Expression>& rules, RuleId root);
  static constexpr size_t kMaxNodes = 1 << 20;

  NodeId start() const { return start_; }
  const Node& node(NodeId id) const { return nodes_[id]; }
  const ByteSet& set(uint32_t index) const { return sets_[index]; }
  NodeId target(uint32_t index) const { return targets_[index]; }

 private:
  friend class GrammarCompiler;

  NodeId start_ = 0;
  std::vector<Node> nodes_;
  std::vector<ByteSet> sets_;
  std::vector<NodeId> targets_;
};

}  // namespace moraine
