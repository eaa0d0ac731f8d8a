// Evaluations of stores as tests want them: parts by name, errors as CHECKs, the report on stdout.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "base/check.h"
#include "engine/evaluation.h"
#include "test_store.h"

namespace moraine {

struct EvaluationParts {
  bool reference = false, texts = false, chat = false;
  std::string fixture = {};  // a directory of tests/golden/fixtures; empty: none
};

inline EvaluationReport Evaluate(const RunnerOptions& options, const EvaluationParts& parts) {
  const auto runner = Runner::Open(options);
  CHECK(runner.ok(), runner.status().message());
  const auto evaluation = Evaluation::Create(**runner);
  CHECK(evaluation.ok(), evaluation.status().message());
  const auto check = [](const Status& status) { CHECK(status.ok(), status.message()); };
  if (parts.reference) check((*evaluation)->AddReference(GoldenPath("demo/reference.json")));
  if (!parts.fixture.empty()) check((*evaluation)->AddFixture(parts.fixture));
  if (parts.texts) {
    check((*evaluation)->AddText(GoldenPath("demo/valid-books.txt")));
    check((*evaluation)->AddText(GoldenPath("demo/valid-chat.txt")));
  }
  if (parts.chat) check((*evaluation)->AddChat(GoldenPath("demo/chat_eval.json")));
  EvaluationReport report = (*evaluation)->Finish();
  std::printf("%s", report.ToText().c_str());
  return report;
}

// relative: how far the demo texts' NLL may lie from float32's.
inline void ExpectNll(const EvaluationReport& report, double relative) {
  std::ifstream file(GoldenPath("demo/text_nll.json"));
  const auto json = nlohmann::json::parse(file);
  for (const auto& [name, expected] : json.items()) {
    ASSERT_TRUE(report.nll.contains(name)) << name;
    EXPECT_LT(std::abs(report.nll.at(name) / expected.at("nll").get<double>() - 1), relative)
        << name;
  }
}

}  // namespace moraine
