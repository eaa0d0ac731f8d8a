#include "model/constraint/unique_items.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <map>
#include <nlohmann/json.hpp>

namespace moraine {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kMaxDepth = 16;  // of schemas within schemas, and of $refs that lead to each other
constexpr size_t kMaxValues = 64;  // bits of a set

bool Append(const Json& schema, const Json& document, int depth, std::vector<Json>* out);

bool AppendAll(const Json& schemas, const Json& document, int depth, std::vector<Json>* out) {
  return schemas.is_array() && std::all_of(schemas.begin(), schemas.end(), [&](const Json& schema) {
    return Append(schema, document, depth, out);
  });
}

bool AppendType(const Json& type, std::vector<Json>* out) {
  if (type == "null") {
    out->emplace_back(nullptr);
    return true;
  }
  if (type != "boolean") return false;
  out->emplace_back(true);
  out->emplace_back(false);
  return true;
}

// In the order in which JsonGrammar takes these keywords. False: the values cannot be listed.
bool Append(const Json& schema, const Json& document, int depth, std::vector<Json>* out) {
  if (!schema.is_object() || depth > kMaxDepth) return false;
  const auto has = [&](const char* name) { return schema.contains(name); };
  if (has("$ref")) {
    const Json& ref = schema["$ref"];
    if (!ref.is_string() || !ref.get<std::string>().starts_with('#')) return false;
    try {
      const Json::json_pointer pointer(ref.get<std::string>().substr(1));
      return document.contains(pointer) && Append(document.at(pointer), document, depth + 1, out);
    } catch (const nlohmann::json::exception&) {  // not a pointer
      return false;
    }
  }
  if (has("const")) {
    out->push_back(schema["const"]);
    return true;
  }
  if (has("enum")) {
    const Json& list = schema["enum"];
    if (!list.is_array()) return false;
    out->insert(out->end(), list.begin(), list.end());
    return true;
  }
  for (const char* name : {"anyOf", "oneOf", "allOf"}) {
    if (has(name)) return AppendAll(schema[name], document, depth + 1, out);
  }
  const auto type = schema.find("type");
  if (type == schema.end()) return false;
  if (!type->is_array()) return AppendType(*type, out);
  return std::all_of(type->begin(), type->end(),
                     [&](const Json& name) { return AppendType(name, out); });
}

std::string Spelled(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

class UniqueList {
 public:
  UniqueList(const UniqueItems& items, std::vector<Expression> values, uint32_t* choices_left)
      : items_(items), values_(std::move(values)), choices_left_(choices_left) {}

  // What may follow when the values of `written` have been.
  Expression After(uint64_t written) {
    if (const auto found = done_.find(written); found != done_.end()) return found->second;
    const auto count = static_cast<uint32_t>(std::popcount(written));
    std::vector<Expression> choices;
    if (count >= items_.min) choices.emplace_back();
    for (size_t i = 0; i < values_.size() && count < items_.max; ++i) {
      const uint64_t bit = uint64_t{1} << i;
      if ((written & bit) != 0) continue;
      if (*choices_left_ == 0) {
        too_many_ = true;
        break;
      }
      --*choices_left_;
      const Expression separator = written == 0 ? Expression() : items_.separator;
      choices.push_back(Sequence({separator, values_[i], After(written | bit)}));
    }
    const Expression all = choices.empty() ? Expression() : Choice(std::move(choices));
    done_.emplace(written, all);
    return all;
  }
  bool too_many() const { return too_many_; }

 private:
  const UniqueItems& items_;
  const std::vector<Expression> values_;
  uint32_t* choices_left_;
  std::map<uint64_t, Expression> done_;
  bool too_many_ = false;
};

}  // namespace

std::optional<std::vector<Json>> ListValues(const Json& schema, const Json& document) {
  std::vector<Json> values;
  if (!Append(schema, document, 0, &values)) return std::nullopt;
  return values;
}

Result<Expression> ListOfUnique(const UniqueItems& items, const std::string& path,
                                uint32_t* choices_left) {
  // Equal as JSON: members of objects in any order, hence not ordered_json's own comparison.
  struct Distinct {
    nlohmann::json value;
    std::vector<Expression> spellings;
  };
  std::vector<Distinct> distinct;
  for (const Json& value : items.values) {
    const nlohmann::json plain = nlohmann::json::parse(Spelled(value));
    auto same = std::find_if(distinct.begin(), distinct.end(),
                             [&](const Distinct& entry) { return entry.value == plain; });
    if (same == distinct.end()) same = distinct.insert(distinct.end(), Distinct{plain, {}});
    same->spellings.push_back(Literal(Spelled(value)));
  }
  if (distinct.size() < items.min) {
    return InvalidArgument(fmt::format("{}.minItems: expected at most the {} values that items can be",
                                       path, distinct.size()));
  }
  const auto too_many = [&] {
    return Unsupported(fmt::format("{}.uniqueItems: {} values in lists of up to {} need too large a "
                                   "grammar", path, distinct.size(),
                                   std::min<size_t>(items.max, distinct.size())));
  };
  if (distinct.size() > kMaxValues) return too_many();
  std::vector<Expression> values;
  for (Distinct& entry : distinct) values.push_back(Choice(std::move(entry.spellings)));
  UniqueList list(items, std::move(values), choices_left);
  const Expression all = list.After(0);
  if (list.too_many()) return too_many();
  return all;
}

}  // namespace moraine
