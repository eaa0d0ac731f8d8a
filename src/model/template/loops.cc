#include <utility>

#include "model/template/interpreter.h"

namespace moraine::jinja {

Interpreter::Flow Interpreter::ExecuteFor(const Statement& statement) {
  return RunLoop(statement, Evaluate(*statement.value), scope_, /*depth=*/1);
}

// The scope of one item: its names, above them what surrounds the loop.
void Interpreter::BindItem(const Statement& statement, const Value& item, Scope* outer) {
  scope_ = NewScope(outer);
  if (statement.unpacks) {
    Unpack(statement.targets, item);
  } else {
    Assign(statement.targets.front(), item);
  }
}

Interpreter::Flow Interpreter::RunLoop(const Statement& statement, const Value& iterable,
                                       Scope* outer, int depth) {
  std::vector<Value> all = Iterate(iterable);
  const Restorer<Scope*> scope(scope_, outer);
  const bool chooses = statement.condition != nullptr;
  const Value chosen = heap_.NewList(chooses ? std::vector<Value>() : std::move(all));
  List& items = *chosen.list;

  Loop* loop = heap_.New<Loop>();
  loop->items = &items;
  loop->depth = depth;
  size_t looked_at = 0;
  if (chooses) {
    loop->fetch = [&] {
      const Restorer<Scope*> inner(scope_, outer);
      while (looked_at < all.size()) {
        const Value item = all[looked_at++];
        BindItem(statement, item, outer);
        if (!IsTrue(Evaluate(*statement.condition))) continue;
        heap_.Push(items, item);
        return true;
      }
      return false;
    };
  }
  if (statement.recursive) {
    loop->recurse = [this, &statement, outer, depth](const Value& value) {
      const Meter::Level level(meter_);
      TextBuilder rendered(meter_);
      const Restorer<TextBuilder*> out(out_, &rendered);
      RunLoop(statement, value, outer, depth + 1);
      return rendered.Build();
    };
  }
  if (!loop->Has(0)) {
    loop->fetch = nullptr;
    return Execute(statement.otherwise);
  }
  Value loop_value;
  loop_value.kind = Kind::kLoop;
  loop_value.loop = loop;
  for (size_t i = 0; loop->Has(i); ++i) {
    meter_.Step();
    loop->index = i;
    const Value item = items.items[i];
    BindItem(statement, item, outer);
    AssignName("loop", loop_value);
    if (Execute(statement.body) == Flow::kBreak) break;
  }
  loop->fetch = nullptr;  // it looks at what ends here
  return Flow::kNormal;
}

Value Interpreter::LoopAttribute(Loop& loop, const std::string& name) {
  const size_t index = loop.index;
  const auto number = [](size_t value) { return Value::Int(static_cast<int64_t>(value)); };
  if (name == "index") return number(index + 1);
  if (name == "index0") return number(index);
  if (name == "revindex") return number(loop.FetchAll() - index);
  if (name == "revindex0") return number(loop.FetchAll() - index - 1);
  if (name == "first") return Value::Bool(index == 0);
  if (name == "last") return Value::Bool(!loop.Has(index + 1));
  if (name == "length") return number(loop.FetchAll());
  if (name == "depth") return Value::Int(loop.depth);
  if (name == "depth0") return Value::Int(loop.depth - 1);
  if (name == "previtem") {
    return index > 0 ? loop.items->items[index - 1] : Value::Undefined("there is no previous item");
  }
  if (name == "nextitem") {
    return loop.Has(index + 1) ? loop.items->items[index + 1]
                               : Value::Undefined("there is no next item");
  }
  return Value::Undefined(name);
}

}  // namespace moraine::jinja
