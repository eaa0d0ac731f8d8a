// Filters on sequences: map, select, sort, join, ...
#include <algorithm>
#include <unordered_map>

#include "model/template/interpreter.h"

namespace moraine::jinja {
namespace {

using I = Interpreter;
using V = Value;
using A = Arguments;

V NewTuple(I& interpreter, std::vector<V> items) {
  return interpreter.heap().NewList(std::move(items), Kind::kTuple);
}

// The value that sorting, unique and min compare: an attribute, and letters of both cases as one.
V SortKey(I& interpreter, const V& item, const V* attribute, bool case_sensitive) {
  V key = attribute == nullptr || attribute->is(Kind::kNone) ? item
                                                              : interpreter.GetPath(item, *attribute);
  if (case_sensitive || !key.is_string()) return key;
  return interpreter.ApplyFilter("lower", key, {});
}

V Join(I& interpreter, const V& value, const A& arguments) {
  const V* given = arguments.Find(0, "d");
  const TextPtr separator = given != nullptr ? interpreter.ToText(*given) : V::Constant("").text;
  const V* attribute = arguments.Find(1, "attribute");
  TextBuilder out(interpreter.meter());
  bool first = true;
  for (const V& item : interpreter.Iterate(value)) {
    if (!std::exchange(first, false)) out.Append(*separator);
    const bool whole = attribute == nullptr || attribute->is(Kind::kNone);
    AppendStr(out, interpreter.meter(), whole ? item : interpreter.GetPath(item, *attribute));
  }
  return V::String(out.Build());
}

V First(I& interpreter, const V& value, const A&) {
  const std::vector<V> items = interpreter.Iterate(value);
  return items.empty() ? V::Undefined("No first item, sequence was empty.") : items.front();
}

V Last(I& interpreter, const V& value, const A&) {
  const std::vector<V> items = interpreter.Iterate(value);
  return items.empty() ? V::Undefined("No last item, sequence was empty.") : items.back();
}

V ToList(I& interpreter, const V& value, const A&) {
  return interpreter.heap().NewList(interpreter.Iterate(value));
}

V Items(I& interpreter, const V& value, const A&) {
  if (value.is_undefined()) return interpreter.heap().NewList({});
  if (!value.is(Kind::kDict)) Fail("Can only get item pairs from a mapping.");
  return FindMethod(value, "items")(interpreter, value, {});
}

V Reverse(I& interpreter, const V& value, const A&) {
  if (value.is_string()) {
    return interpreter.Slice(value, V::None(), V::None(), V::Int(-1));
  }
  std::vector<V> items = interpreter.Iterate(value);
  std::reverse(items.begin(), items.end());
  return interpreter.heap().NewList(std::move(items));
}

void StableSort(I& interpreter, std::vector<std::pair<V, V>>& keyed, bool reverse) {
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& a, const auto& b) {
    const int order = Compare(interpreter.meter(), a.first, b.first);
    return reverse ? order > 0 : order < 0;
  });
}

V Sort(I& interpreter, const V& value, const A& arguments) {
  const bool reverse = arguments.GetBool(0, "reverse", false);
  const bool case_sensitive = arguments.GetBool(1, "case_sensitive", false);
  const V* attribute = arguments.Find(2, "attribute");
  std::vector<std::pair<V, V>> keyed;
  for (const V& item : interpreter.Iterate(value)) {
    // "a,b" sorts by several attributes.
    V key;
    if (attribute != nullptr && attribute->is_string() &&
        attribute->text->bytes.find(',') != std::string::npos) {
      std::vector<V> parts;
      const std::string& names = attribute->text->bytes;
      for (size_t begin = 0; begin <= names.size();) {
        const size_t end = std::min(names.find(',', begin), names.size());
        const V name = V::Constant(names.substr(begin, end - begin));
        parts.push_back(SortKey(interpreter, item, &name, case_sensitive));
        begin = end + 1;
      }
      key = NewTuple(interpreter, std::move(parts));
    } else {
      key = SortKey(interpreter, item, attribute, case_sensitive);
    }
    keyed.emplace_back(std::move(key), item);
  }
  StableSort(interpreter, keyed, reverse);
  std::vector<V> sorted;
  for (auto& [key, item] : keyed) sorted.push_back(std::move(item));
  return interpreter.heap().NewList(std::move(sorted));
}

V DictSort(I& interpreter, const V& value, const A& arguments) {
  if (!value.is(Kind::kDict)) Fail("dictsort takes a mapping");
  const bool case_sensitive = arguments.GetBool(0, "case_sensitive", false);
  const std::string_view by = arguments.GetString(1, "by", "key");
  if (by != "key" && by != "value") Fail("You can only sort by either \"key\" or \"value\"");
  const auto items = value.dict->items;
  std::vector<std::pair<V, V>> keyed;
  for (const auto& [key, item] : items) {
    keyed.emplace_back(SortKey(interpreter, by == "key" ? key : item, nullptr, case_sensitive),
                       NewTuple(interpreter, {key, item}));
  }
  StableSort(interpreter, keyed, arguments.GetBool(2, "reverse", false));
  std::vector<V> sorted;
  for (auto& [key, pair] : keyed) sorted.push_back(std::move(pair));
  return interpreter.heap().NewList(std::move(sorted));
}

V Unique(I& interpreter, const V& value, const A& arguments) {
  const bool case_sensitive = arguments.GetBool(0, "case_sensitive", false);
  const V* attribute = arguments.Find(1, "attribute");
  std::vector<V> seen, unique;
  for (const V& item : interpreter.Iterate(value)) {
    V key = SortKey(interpreter, item, attribute, case_sensitive);
    const bool is_known = std::any_of(seen.begin(), seen.end(), [&](const V& other) {
      return Equal(interpreter.meter(), key, other);
    });
    if (is_known) continue;
    seen.push_back(std::move(key));
    unique.push_back(item);
  }
  return interpreter.heap().NewList(std::move(unique));
}

V Extreme(I& interpreter, const V& value, const A& arguments, bool want_max) {
  const bool case_sensitive = arguments.GetBool(0, "case_sensitive", false);
  const V* attribute = arguments.Find(1, "attribute");
  const std::vector<V> items = interpreter.Iterate(value);
  if (items.empty()) return V::Undefined("No aggregated item, sequence was empty.");
  V best = items[0], best_key = SortKey(interpreter, best, attribute, case_sensitive);
  for (size_t i = 1; i < items.size(); ++i) {
    V key = SortKey(interpreter, items[i], attribute, case_sensitive);
    const int order = Compare(interpreter.meter(), key, best_key);
    if (want_max ? order > 0 : order < 0) {
      best = items[i];
      best_key = std::move(key);
    }
  }
  return best;
}

V Sum(I& interpreter, const V& value, const A& arguments) {
  const V* attribute = arguments.Find(0, "attribute");
  const V* start = arguments.Find(1, "start");
  V total = start != nullptr ? *start : V::Int(0);
  for (const V& item : interpreter.Iterate(value)) {
    const bool whole = attribute == nullptr || attribute->is(Kind::kNone);
    total = interpreter.Add(total, whole ? item : interpreter.GetPath(item, *attribute));
  }
  return total;
}

// What map, select and their like go over: nothing for any false value, as in Jinja2.
std::vector<V> IterateIfTrue(I& interpreter, const V& value) {
  return IsTrue(value) ? interpreter.Iterate(value) : std::vector<V>();
}

V Map(I& interpreter, const V& value, const A& arguments) {
  std::vector<V> mapped;
  if (arguments.positional.empty()) {
    const V& attribute = arguments.Get(0, "attribute");
    const V* fallback = arguments.Find(1, "default");
    for (const V& item : IterateIfTrue(interpreter, value)) {
      mapped.push_back(interpreter.GetPath(item, attribute, fallback));
    }
  } else {
    const std::string name(arguments.GetString(0, nullptr, ""));
    A rest = arguments;
    rest.positional.erase(rest.positional.begin());
    for (const V& item : IterateIfTrue(interpreter, value)) {
      mapped.push_back(interpreter.ApplyFilter(name, item, rest));
    }
  }
  return interpreter.heap().NewList(std::move(mapped));
}

// select, reject and their attr forms: `is_attribute` takes the tested attribute off the arguments.
V Choose(I& interpreter, const V& value, const A& arguments, bool wanted, bool is_attribute) {
  A rest = arguments;
  V attribute;
  if (is_attribute) {
    attribute = arguments.Get(0, nullptr);
    rest.positional.erase(rest.positional.begin());
  }
  std::string test;
  if (!rest.positional.empty()) {
    test = rest.GetString(0, nullptr, "");
    rest.positional.erase(rest.positional.begin());
  }
  std::vector<V> chosen;
  for (const V& item : IterateIfTrue(interpreter, value)) {
    const V tested = is_attribute ? interpreter.GetPath(item, attribute) : item;
    const bool holds = test.empty() ? IsTrue(tested) : interpreter.ApplyTest(test, tested, rest);
    if (holds == wanted) chosen.push_back(item);
  }
  return interpreter.heap().NewList(std::move(chosen));
}

V GroupBy(I& interpreter, const V& value, const A& arguments) {
  const V& attribute = arguments.Get(0, "attribute");
  const V* fallback = arguments.Find(1, "default");
  const bool case_sensitive = arguments.GetBool(2, "case_sensitive", false);
  std::vector<std::pair<V, V>> keyed;
  for (const V& item : interpreter.Iterate(value)) {
    V key = SortKey(interpreter, item, &attribute, case_sensitive);
    if (key.is_undefined() && fallback != nullptr) key = *fallback;
    keyed.emplace_back(std::move(key), item);
  }
  StableSort(interpreter, keyed, false);
  std::vector<V> groups;
  for (size_t begin = 0, end = 0; begin < keyed.size(); begin = end) {
    std::vector<V> members;
    for (end = begin; end < keyed.size() &&
                      Equal(interpreter.meter(), keyed[begin].first, keyed[end].first); ++end) {
      members.push_back(keyed[end].second);
    }
    V label = interpreter.GetPath(keyed[begin].second, attribute);
    if (label.is_undefined()) label = keyed[begin].first;
    groups.push_back(
        NewTuple(interpreter, {label, interpreter.heap().NewList(std::move(members))}));
    groups.back().list->is_group = true;
  }
  return interpreter.heap().NewList(std::move(groups));
}

V Batch(I& interpreter, const V& value, const A& arguments) {
  const int64_t size = arguments.GetInt(0, "linecount", 0);
  const V* fill = arguments.Find(1, "fill_with");
  if (size < 1) Fail("batch: the size must be positive");
  std::vector<V> batches, batch;
  const auto flush = [&] {
    batches.push_back(interpreter.heap().NewList(std::exchange(batch, {})));
  };
  for (const V& item : interpreter.Iterate(value)) {
    if (static_cast<int64_t>(batch.size()) == size) flush();
    batch.push_back(item);
  }
  if (!batch.empty()) {
    while (fill != nullptr && !fill->is(Kind::kNone) && static_cast<int64_t>(batch.size()) < size) {
      interpreter.meter().Step();
      batch.push_back(*fill);
    }
    flush();
  }
  return interpreter.heap().NewList(std::move(batches));
}

// Columns: the first ones are one longer if the items do not divide evenly.
V Slice(I& interpreter, const V& value, const A& arguments) {
  const int64_t columns = arguments.GetInt(0, "slices", 0);
  const V* fill = arguments.Find(1, "fill_with");
  if (columns < 1) Fail("slice: the number of slices must be positive");
  const std::vector<V> items = interpreter.Iterate(value);
  const auto count = static_cast<int64_t>(items.size());
  const int64_t longer = count % columns;
  std::vector<V> slices;
  auto next = items.begin();
  for (int64_t column = 0; column < columns; ++column) {
    interpreter.meter().Step();
    const auto end = next + count / columns + (column < longer ? 1 : 0);
    std::vector<V> slice(next, end);
    next = end;
    if (fill != nullptr && !fill->is(Kind::kNone) && column >= longer) slice.push_back(*fill);
    slices.push_back(interpreter.heap().NewList(std::move(slice)));
  }
  return interpreter.heap().NewList(std::move(slices));
}

// x|attr("name"): attributes only, where x.name would also look at items.
V Attribute(I& interpreter, const V& value, const A& arguments) {
  const std::string name(arguments.GetString(0, "name", ""));
  if (!value.is(Kind::kDict)) return interpreter.GetAttribute(value, name);
  return FindMethod(value, name) != nullptr ? interpreter.GetAttribute(value, name)
                                            : V::Undefined(name);
}

}  // namespace

Filter FindSequenceFilter(std::string_view name) {
  static const std::unordered_map<std::string_view, Filter> filters = {
      {"join", Join}, {"first", First}, {"last", Last}, {"list", ToList}, {"items", Items},
      {"reverse", Reverse}, {"sort", Sort}, {"dictsort", DictSort}, {"unique", Unique},
      {"sum", Sum}, {"map", Map}, {"groupby", GroupBy}, {"batch", Batch},
      {"slice", Slice}, {"attr", Attribute},
      {"min", [](I& i, const V& v, const A& a) { return Extreme(i, v, a, false); }},
      {"max", [](I& i, const V& v, const A& a) { return Extreme(i, v, a, true); }},
      {"select", [](I& i, const V& v, const A& a) { return Choose(i, v, a, true, false); }},
      {"reject", [](I& i, const V& v, const A& a) { return Choose(i, v, a, false, false); }},
      {"selectattr", [](I& i, const V& v, const A& a) { return Choose(i, v, a, true, true); }},
      {"rejectattr", [](I& i, const V& v, const A& a) { return Choose(i, v, a, false, true); }},
  };
  const auto found = filters.find(name);
  return found == filters.end() ? nullptr : found->second;
}

}  // namespace moraine::jinja
