// What tests of whole models measure beside evaluations: logits of texts, and how far they are apart.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <iterator>
#include <span>
#include <string>
#include <vector>

#include "base/check.h"
#include "engine/runner.h"
#include "engine/text_model.h"
#include "evaluation_support.h"
#include "test_store.h"

namespace moraine {

// Tokens of text, as the demo model was not trained on random ones.
inline std::vector<int32_t> Tokens(Runner& runner, size_t count) {
  std::ifstream file(GoldenPath("demo/valid-books.txt"));
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const auto model = TextModel::Load(runner.store().manifest());
  CHECK(model.ok(), model.status().message());
  std::vector<int32_t> tokens = *model->tokenizer().Encode(text.substr(0, 8 * count));
  CHECK(tokens.size() >= count, "too little text");
  tokens.resize(count);
  return tokens;
}

inline std::vector<float> AllLogits(Runner& runner, std::span<const int32_t> tokens) {
  std::vector<float> all;
  const Runner::LogitsSink keep = [&](uint32_t position, std::span<const float> logits) {
    CHECK(position * logits.size() == all.size(), "logits out of order");
    all.insert(all.end(), logits.begin(), logits.end());
  };
  runner.ResetSequence();
  const Status status =
      runner.Forward(tokens, {.logits = Runner::LogitsMode::kAll, .sink = &keep});
  CHECK(status.ok(), status.message());
  return all;
}

inline std::vector<float> Logits(const RunnerOptions& options, size_t count) {
  const auto runner = Runner::Open(options);
  CHECK(runner.ok(), runner.status().message());
  return AllLogits(**runner, Tokens(**runner, count));
}

inline double Distance(const std::vector<float>& a, const std::vector<float>& reference) {
  double difference = 0, norm = 0;
  CHECK(a.size() == reference.size(), "other numbers of logits");
  for (size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(double{a[i]} - reference[i], 2);
    norm += std::pow(double{reference[i]}, 2);
  }
  return std::sqrt(difference / norm);
}

}  // namespace moraine
