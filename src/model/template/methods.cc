// Methods of dicts, lists and loops; those of strings are in string_methods.cc.
#include <algorithm>
#include <unordered_map>

#include "model/template/interpreter.h"
#include "model/template/string_methods.h"

namespace moraine::jinja {
namespace {

using I = Interpreter;
using V = Value;
using A = Arguments;

using MethodMap = std::unordered_map<std::string_view, Method>;

V Pair(I& interpreter, const V& first, const V& second) {
  return interpreter.heap().NewList({first, second}, Kind::kTuple);
}

V DictItems(I& interpreter, const V& self, const A&) {
  std::vector<V> items;
  for (const auto& [key, value] : self.dict->items) items.push_back(Pair(interpreter, key, value));
  return interpreter.heap().NewList(std::move(items));
}

V DictGet(I& interpreter, const V& self, const A& arguments) {
  arguments.AtMost(2);
  if (const V* value = FindKey(interpreter.meter(), *self.dict, arguments.Get(0, nullptr))) {
    return *value;
  }
  const V* fallback = arguments.Find(1, nullptr);
  return fallback != nullptr ? *fallback : V::None();
}

V DictPop(I& interpreter, const V& self, const A& arguments) {
  V* found = FindKey(interpreter.meter(), *self.dict, arguments.Get(0, nullptr));
  if (found == nullptr) {
    if (const V* fallback = arguments.Find(1, nullptr)) return *fallback;
    Fail("pop: there is no such key");
  }
  V value = *found;
  std::erase_if(self.dict->items, [&](const auto& item) { return &item.second == found; });
  return value;
}

V DictUpdate(I& interpreter, const V& self, const A& arguments) {
  arguments.AtMost(1 + arguments.named.size());
  if (!arguments.positional.empty()) {
    const V& other = arguments.positional[0];
    if (!other.is(Kind::kDict)) Fail("update takes a dict");
    const auto items = other.dict->items;
    for (const auto& [key, value] : items) interpreter.heap().Set(*self.dict, key, value);
  }
  for (const auto& [name, value] : arguments.named) {
    interpreter.heap().Set(*self.dict, name, value);
  }
  return V::None();
}

V DictSetDefault(I& interpreter, const V& self, const A& arguments) {
  const V& key = arguments.Get(0, nullptr);
  if (const V* value = FindKey(interpreter.meter(), *self.dict, key)) return *value;
  const V* fallback = arguments.Find(1, nullptr);
  V value = fallback != nullptr ? *fallback : V::None();
  interpreter.heap().Set(*self.dict, key, value);
  return value;
}

V DictCopy(I& interpreter, const V& self, const A&) {
  Dict* copy = nullptr;
  V value = interpreter.heap().NewDict(&copy);
  interpreter.meter().Step(static_cast<int64_t>(self.dict->items.size()));
  interpreter.meter().Allocate(self.dict->items.size() * 2 * sizeof(V));
  copy->items = self.dict->items;
  return value;
}

int64_t ListIndex(const V& self, const A& arguments, size_t argument, int64_t fallback) {
  const auto count = static_cast<int64_t>(self.list->items.size());
  int64_t index = arguments.GetInt(argument, nullptr, fallback);
  if (index < 0) index += count;
  return index;
}

V ListPop(I&, const V& self, const A& arguments) {
  std::vector<V>& items = self.list->items;
  const int64_t index = ListIndex(self, arguments, 0, -1);
  if (index < 0 || index >= static_cast<int64_t>(items.size())) Fail("pop index out of range");
  V value = items[index];
  items.erase(items.begin() + index);
  return value;
}

V ListInsert(I& interpreter, const V& self, const A& arguments) {
  std::vector<V>& items = self.list->items;
  const auto count = static_cast<int64_t>(items.size());
  const int64_t index = std::clamp<int64_t>(ListIndex(self, arguments, 0, 0), 0, count);
  interpreter.heap().Push(*self.list, arguments.Get(1, nullptr));
  interpreter.meter().Step((count - index) / 16);
  std::rotate(items.begin() + index, items.end() - 1, items.end());
  return V::None();
}

V ListExtend(I& interpreter, const V& self, const A& arguments) {
  for (V& item : interpreter.Iterate(arguments.Get(0, nullptr))) {
    interpreter.heap().Push(*self.list, std::move(item));
  }
  return V::None();
}

V ListFind(I& interpreter, const V& self, const A& arguments) {
  const std::vector<V>& items = self.list->items;
  for (size_t i = 0; i < items.size(); ++i) {
    if (Equal(interpreter.meter(), items[i], arguments.Get(0, nullptr))) {
      return V::Int(static_cast<int64_t>(i));
    }
  }
  Fail("the value is not in the list");
}

V ListRemove(I& interpreter, const V& self, const A& arguments) {
  const int64_t index = ListFind(interpreter, self, arguments).integer;
  self.list->items.erase(self.list->items.begin() + index);
  return V::None();
}

V ListCount(I& interpreter, const V& self, const A& arguments) {
  const V& wanted = arguments.Get(0, nullptr);
  return V::Int(std::count_if(
      self.list->items.begin(), self.list->items.end(),
      [&](const V& item) { return Equal(interpreter.meter(), item, wanted); }));
}

const MethodMap& DictMethods() {
  static const MethodMap methods = {
      {"items", DictItems}, {"get", DictGet}, {"pop", DictPop}, {"update", DictUpdate},
      {"setdefault", DictSetDefault}, {"copy", DictCopy},
      {"keys",
       [](I& i, const V& self, const A&) { return i.heap().NewList(i.Iterate(self)); }},
      {"values",
       [](I& i, const V& self, const A&) {
         std::vector<V> values;
         for (const auto& [key, value] : self.dict->items) values.push_back(value);
         return i.heap().NewList(std::move(values));
       }},
      {"clear",
       [](I&, const V& self, const A&) {
         self.dict->items.clear();
         return V::None();
       }},
  };
  return methods;
}

const MethodMap& ListMethods() {
  static const MethodMap methods = {
      {"pop", ListPop}, {"insert", ListInsert}, {"extend", ListExtend}, {"remove", ListRemove},
      {"append",
       [](I& i, const V& self, const A& a) {
         a.AtMost(1);
         i.heap().Push(*self.list, a.Get(0, nullptr));
         return V::None();
       }},
      {"clear",
       [](I&, const V& self, const A&) {
         self.list->items.clear();
         return V::None();
       }},
      {"reverse",
       [](I& i, const V& self, const A&) {
         i.meter().Step(static_cast<int64_t>(self.list->items.size()));
         std::reverse(self.list->items.begin(), self.list->items.end());
         return V::None();
       }},
      {"copy",
       [](I& i, const V& self, const A&) { return i.heap().NewList(self.list->items); }},
  };
  return methods;
}

const MethodMap& LoopMethods() {
  static const MethodMap methods = {
      {"cycle",
       [](I&, const V& self, const A& a) {
         if (a.positional.empty()) Fail("no items for cycling given");
         return a.positional[self.loop->index % a.positional.size()];
       }},
      {"changed",
       [](I& i, const V& self, const A& a) {
         Loop& loop = *self.loop;
         const bool same =
             loop.has_changed &&
             std::equal(loop.last_changed.begin(), loop.last_changed.end(), a.positional.begin(),
                        a.positional.end(),
                        [&](const V& x, const V& y) { return Equal(i.meter(), x, y); });
         loop.has_changed = true;
         loop.last_changed = a.positional;
         return V::Bool(!same);
       }},
  };
  return methods;
}

Method FindIn(const MethodMap& methods, std::string_view name) {
  const auto found = methods.find(name);
  return found == methods.end() ? nullptr : found->second;
}

}  // namespace

Method FindMethod(const Value& self, std::string_view name) {
  switch (self.kind) {
    case Kind::kString: return FindStringMethod(name);
    case Kind::kDict: return FindIn(DictMethods(), name);
    case Kind::kList: case Kind::kTuple:
      if (name == "index") return ListFind;
      if (name == "count") return ListCount;
      return self.is(Kind::kList) ? FindIn(ListMethods(), name) : nullptr;
    case Kind::kLoop: return FindIn(LoopMethods(), name);
    default: return nullptr;
  }
}

}  // namespace moraine::jinja
