// Our side of the differential test. The first line of the input describes the tokenizer:
// {"tokenizer_json": "...", "config": "..."}, or "tiktoken_model" in place of the former. Each further
// line is a text as hexadecimal bytes; the answer is {"ids": [...], "text": "..."}, the text being
// what the ids decode to.
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

#include "model/tokenizer/tokenizer.h"

namespace {

using nlohmann::json;

moraine::Result<moraine::Tokenizer> Load(const json& request) {
  const std::string config = request.value("config", "");
  if (request.contains("tiktoken_model")) {
    return moraine::Tokenizer::FromTiktoken(request["tiktoken_model"].get<std::string>(), config);
  }
  return moraine::Tokenizer::FromContents(request["tokenizer_json"].get<std::string>(), config);
}

std::string FromHex(const std::string& hex) {
  std::string bytes;
  for (size_t i = 0; i + 1 < hex.size(); i += 2) {
    bytes.push_back(static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  }
  return bytes;
}

}  // namespace

int main() {
  std::string line;
  if (!std::getline(std::cin, line)) return 2;
  const auto tokenizer = Load(json::parse(line));
  if (!tokenizer.ok()) {
    std::cerr << tokenizer.status().ToString() << '\n';
    return 1;
  }
  while (std::getline(std::cin, line)) {
    json answer;
    if (const auto ids = tokenizer->Encode(FromHex(line)); ids.ok()) {
      answer["ids"] = *ids;
      answer["text"] = tokenizer->Decode(*ids);
    } else {
      answer["error"] = ids.status().ToString();
    }
    std::cout << answer.dump() << '\n';
  }
}
