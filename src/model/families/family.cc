#include "model/families/family.h"

#include <algorithm>

namespace moraine {
namespace {

const Family* const kFamilies[] = {&kDeepseek, &kGlm4Moe, &kGptOss,   &kMiniMaxM2,
                                   &kOlmoe,    &kQwen3Moe, &kQwen3Next};

}  // namespace

const Family* FindFamily(std::string_view model_type) {
  for (const Family* family : kFamilies) {
    if (std::ranges::find(family->model_types, model_type) != family->model_types.end()) {
      return family;
    }
  }
  return nullptr;
}

std::string SupportedModelTypes() {
  std::string list;
  for (const Family* family : kFamilies) {
    for (const std::string_view type : family->model_types) {
      list += (list.empty() ? "'" : ", '") + std::string(type) + "'";
    }
  }
  return list;
}

}  // namespace moraine
