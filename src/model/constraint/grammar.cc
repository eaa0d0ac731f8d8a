#include "model/constraint/grammar.h"

#include <fmt/format.h>

#include <map>
#include <unordered_map>

#include "base/check.h"

namespace moraine {

class GrammarCompiler {
 public:
  GrammarCompiler(const std::vector<Expression>& rules, Grammar* out) : rules_(rules), out_(*out) {}

  Status Run(RuleId root) {
    // The bodies of rules are filled in when all have an entrance: they may call each other.
    const NodeId end = Add({.kind = Kind::kReturn});
    for (size_t i = 0; i < rules_.size(); ++i) entrances_.push_back(Add({.kind = Kind::kSplit}));
    for (size_t i = 0; i < rules_.size(); ++i) {
      const NodeId body = Compile(rules_[i], end);
      MakeSplit(entrances_[i], {body});
    }
    if (full_) {
      return ResourceExhausted(fmt::format("the grammar needs more than {} nodes", Grammar::kMaxNodes));
    }
    out_.start_ = entrances_.at(root);
    return OkStatus();
  }

 private:
  using NodeId = Grammar::NodeId;
  using Kind = Grammar::Node::Kind;

  NodeId Add(Grammar::Node node) {
    if (out_.nodes_.size() >= Grammar::kMaxNodes) {
      full_ = true;
      return 0;
    }
    out_.nodes_.push_back(node);
    return static_cast<NodeId>(out_.nodes_.size() - 1);
  }
  void MakeSplit(NodeId node, const std::vector<NodeId>& targets) {
    out_.nodes_[node].index = static_cast<uint32_t>(out_.targets_.size());
    out_.nodes_[node].count = static_cast<uint32_t>(targets.size());
    out_.targets_.insert(out_.targets_.end(), targets.begin(), targets.end());
  }
  NodeId AddBytes(const ByteSet& bytes, NodeId next) {
    const auto [found, is_new] =
        sets_.try_emplace(bytes, static_cast<uint32_t>(out_.sets_.size()));
    if (is_new) out_.sets_.push_back(bytes);
    return Add({.kind = Kind::kBytes, .next = next, .index = found->second});
  }

  // The node from which `expression` and then `next` is matched.
  NodeId Compile(const Expression& expression, NodeId next) {
    if (full_) return 0;
    const std::pair key(&expression.node(), next);
    if (const auto found = done_.find(key); found != done_.end()) return found->second;
    const NodeId node = CompileNew(expression.node(), next);
    done_.emplace(key, node);
    return node;
  }

  NodeId CompileNew(const Expression::Node& e, NodeId next) {
    switch (e.kind) {
      case Expression::Kind::kBytes: return AddBytes(e.bytes, next);
      case Expression::Kind::kLiteral: {
        for (auto byte = e.text.rbegin(); byte != e.text.rend() && !full_; ++byte) {
          next = AddBytes(ByteSet().set(static_cast<uint8_t>(*byte)), next);
        }
        return next;
      }
      case Expression::Kind::kSequence: {
        for (auto part = e.parts.rbegin(); part != e.parts.rend(); ++part) next = Compile(*part, next);
        return next;
      }
      case Expression::Kind::kChoice: {
        std::vector<NodeId> targets;
        for (const Expression& part : e.parts) targets.push_back(Compile(part, next));
        const NodeId split = Add({.kind = Kind::kSplit});
        MakeSplit(split, targets);
        return split;
      }
      case Expression::Kind::kRepeat: return CompileRepeat(e, next);
      case Expression::Kind::kUntil: return CompileUntil(e.text, next);
      case Expression::Kind::kRule:
        return Add({.kind = Kind::kCall, .next = next, .body = entrances_.at(e.rule)});
    }
    return next;
  }

  NodeId CompileRepeat(const Expression::Node& e, NodeId next) {
    const Expression& part = e.parts.front();
    if (e.max == 0) return next;
    if (e.min == 0 && e.max == 1) {
      const NodeId body = Compile(part, next);
      const NodeId split = Add({.kind = Kind::kSplit});
      MakeSplit(split, {body, next});
      return split;
    }
    if (e.min <= 1 && e.max == kUnbounded) {
      const NodeId split = Add({.kind = Kind::kSplit});
      const NodeId body = Compile(part, split);
      MakeSplit(split, {body, next});
      return e.min == 0 ? split : body;
    }
    const NodeId end = Add({.kind = Kind::kReturn});
    const NodeId body = Compile(part, end);
    return Add({.kind = Kind::kRepeat, .next = next, .body = body, .min = e.min, .max = e.max});
  }

  // Knuth, Morris and Pratt's automaton: node i has seen i bytes of the mark.
  NodeId CompileUntil(const std::string& mark, NodeId next) {
    std::vector<NodeId> nodes;
    for (size_t i = 0; i < mark.size(); ++i) nodes.push_back(Add({.kind = Kind::kSplit}));
    if (full_) return 0;
    nodes.push_back(next);
    for (size_t i = 0; i < mark.size(); ++i) {
      std::map<NodeId, ByteSet> bytes_to;
      for (int byte = 0; byte < 256; ++byte) {
        if (static_cast<char>(byte) == kSpecialTokenByte) continue;
        std::string seen = mark.substr(0, i) + static_cast<char>(byte);
        while (!mark.starts_with(seen)) seen.erase(0, 1);
        bytes_to[nodes[seen.size()]].set(static_cast<size_t>(byte));
      }
      std::vector<NodeId> targets;
      for (const auto& [target, bytes] : bytes_to) targets.push_back(AddBytes(bytes, target));
      if (full_) return 0;
      MakeSplit(nodes[i], targets);
    }
    return nodes[0];
  }

  struct SetHash {
    size_t operator()(const ByteSet& set) const { return std::hash<ByteSet>()(set); }
  };

  const std::vector<Expression>& rules_;
  Grammar& out_;
  std::vector<NodeId> entrances_;
  std::map<std::pair<const Expression::Node*, NodeId>, NodeId> done_;
  std::unordered_map<ByteSet, uint32_t, SetHash> sets_;
  bool full_ = false;
};

Result<Grammar> Grammar::Build(const std::vector<Expression>& rules, RuleId root) {
  CHECK(root < rules.size(), "the root is one of the rules");
  Grammar grammar;
  RETURN_IF_ERROR(GrammarCompiler(rules, &grammar).Run(root));
  return grammar;
}

}  // namespace moraine
