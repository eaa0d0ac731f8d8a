// Our side of the differential test: one JSON object a line in, one a line out.
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

#include "model/template/chat_template.h"

int main() {
  moraine::ChatTemplateOptions options;
  options.unix_time_s = [] { return int64_t{1'750'000'000}; };
  for (std::string line; std::getline(std::cin, line);) {
    const auto request = nlohmann::ordered_json::parse(line);
    nlohmann::ordered_json answer;
    const auto chat_template =
        moraine::ChatTemplate::Parse(request["template"].get<std::string>(), options);
    if (!chat_template.ok()) {
      answer["error"] = chat_template.status().ToString();
    } else if (const auto prompt = chat_template->Render(request["context"]); prompt.ok()) {
      answer["text"] = prompt->text();
    } else {
      answer["error"] = prompt.status().ToString();
    }
    std::cout << answer.dump() << std::endl;
  }
}
