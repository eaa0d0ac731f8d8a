#include "model/sampler.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"

namespace moraine {
namespace {

// The lowest id on a tie. NaN loses against every number, -inf included; 0 if nothing is a number.
int32_t HighestLogit(std::span<const float> logits) {
  size_t best = 0;
  for (size_t i = 1; i < logits.size(); ++i) {
    if (logits[i] > logits[best] || (std::isnan(logits[best]) && !std::isnan(logits[i]))) best = i;
  }
  return static_cast<int32_t>(best);
}

}  // namespace

Status SamplingOptions::Validate(uint32_t vocab_size) const {
  const auto range = [](const char* field, float value, const char* expected) {
    return InvalidArgument(fmt::format("{} is {}, expected {}", field, value, expected));
  };
  if (!(temperature >= 0 && temperature <= 100)) {
    return range("temperature", temperature, "a number from 0 to 100");
  }
  if (!(top_p > 0 && top_p <= 1)) return range("top_p", top_p, "a number above 0, at most 1");
  if (!(min_p >= 0 && min_p < 1)) return range("min_p", min_p, "a number from 0, below 1");
  if (!(repetition_penalty > 0 && repetition_penalty <= 100)) {
    return range("repetition_penalty", repetition_penalty, "a number above 0, at most 100");
  }
  if (!(std::abs(presence_penalty) <= 2)) {
    return range("presence_penalty", presence_penalty, "a number from -2 to 2");
  }
  if (!(std::abs(frequency_penalty) <= 2)) {
    return range("frequency_penalty", frequency_penalty, "a number from -2 to 2");
  }
  for (const auto& [token, bias] : logit_bias) {
    if (token < 0 || static_cast<uint32_t>(token) >= vocab_size) {
      return InvalidArgument(fmt::format("logit_bias names token {}, expected 0 to {}", token,
                                         vocab_size - 1));
    }
    if (!(std::abs(bias) <= 100)) return range("logit_bias", bias, "a number from -100 to 100");
  }
  return OkStatus();
}

Sampler::Sampler(const SamplingOptions& options, uint32_t vocab_size)
    : options_(options),
      random_(options.seed),
      logits_(vocab_size),
      weights_(vocab_size),
      output_counts_(vocab_size),
      seen_(vocab_size),
      has_penalties_(options.repetition_penalty != 1.0f || options.presence_penalty != 0.0f ||
                     options.frequency_penalty != 0.0f) {
  order_.reserve(vocab_size);
}

void Sampler::AcceptPrompt(std::span<const int32_t> tokens) {
  for (const int32_t token : tokens) seen_[static_cast<size_t>(token)] = true;
}

void Sampler::ApplyPenalties() {
  for (const auto& [token, bias] : options_.logit_bias) logits_[static_cast<size_t>(token)] += bias;
  if (!has_penalties_) return;
  for (size_t token = 0; token < logits_.size(); ++token) {
    float& logit = logits_[token];
    if (seen_[token]) {
      logit = logit > 0 ? logit / options_.repetition_penalty : logit * options_.repetition_penalty;
    }
    if (output_counts_[token] > 0) {
      logit -= options_.presence_penalty +
               options_.frequency_penalty * static_cast<float>(output_counts_[token]);
    }
  }
}

int32_t Sampler::Sample(std::span<const float> logits, std::span<const uint64_t> allowed) {
  CHECK(logits.size() == logits_.size());
  std::copy(logits.begin(), logits.end(), logits_.begin());
  if (!allowed.empty()) Forbid(allowed);
  ApplyPenalties();
  const int32_t best = HighestLogit(logits_);
  const int32_t chosen = options_.temperature == 0 ? best : Draw(best);
  seen_[static_cast<size_t>(chosen)] = true;
  ++output_counts_[static_cast<size_t>(chosen)];
  return chosen;
}

void Sampler::Forbid(std::span<const uint64_t> allowed) {
  constexpr float kNever = -std::numeric_limits<float>::infinity();
  for (size_t token = 0; token < logits_.size(); ++token) {
    const bool may = token / 64 < allowed.size() && (allowed[token / 64] >> (token % 64) & 1) != 0;
    if (!may) logits_[token] = kNever;
  }
}

// A total order: the lower id on a tie.
bool Sampler::Better(int32_t a, int32_t b) const {
  const float x = logits_[static_cast<size_t>(a)], y = logits_[static_cast<size_t>(b)];
  return x > y || (x == y && a < b);
}

double Sampler::MassOf(size_t begin, size_t end) const {
  double mass = 0;
  for (size_t i = begin; i < end; ++i) mass += weights_[static_cast<size_t>(order_[i])];
  return mass;
}

// Each cut keeps the best of what the one before left, so that all that is kept is told by its worst.
// Selection instead of sorting: O(vocabulary), also when the logits are flat and nothing is cut.
int32_t Sampler::WorstKept() {
  const auto begin = order_.begin();
  const auto better = [this](int32_t a, int32_t b) { return Better(a, b); };
  size_t kept = order_.size();
  if (options_.top_k > 0 && options_.top_k < kept) {
    kept = options_.top_k;
    std::nth_element(begin, begin + static_cast<ptrdiff_t>(kept), order_.end(), better);
  }
  if (options_.top_p < 1) {
    // The shortest prefix whose mass reaches p of what top-k left: that of [0, low) does not, that of
    // [0, high) does.
    const double wanted = options_.top_p * MassOf(0, kept);
    size_t low = 0;
    for (double mass_of_low = 0; kept - low > 1;) {
      const size_t middle = low + (kept - low) / 2;
      std::nth_element(begin + static_cast<ptrdiff_t>(low), begin + static_cast<ptrdiff_t>(middle),
                       begin + static_cast<ptrdiff_t>(kept), better);
      const double mass = mass_of_low + MassOf(low, middle);
      if (mass >= wanted) {
        kept = middle;
      } else {
        low = middle;
        mass_of_low = mass;
      }
    }
  }
  const auto end = std::partition(begin, begin + static_cast<ptrdiff_t>(kept), [this](int32_t token) {
    return weights_[static_cast<size_t>(token)] >= options_.min_p;
  });
  return *std::max_element(begin, end, better);
}

int32_t Sampler::Draw(int32_t best_token) {
  const float best = logits_[static_cast<size_t>(best_token)];
  // Tokens below e^-28 = 7e-13 of the best: 150,000 of them have less than 1e-6 of the mass together,
  // and leaving them out saves looking at them again.
  const float floor = best - 28.0f * options_.temperature;
  order_.clear();
  for (size_t token = 0; token < logits_.size(); ++token) {
    if (!(logits_[token] >= floor)) continue;
    weights_[token] = std::exp((logits_[token] - best) / options_.temperature);
    order_.push_back(static_cast<int32_t>(token));
  }
  if (order_.empty()) return best_token;  // the best is NaN: nothing to draw from
  const int32_t worst = WorstKept();
  const auto is_kept = [&](int32_t token) { return token == worst || Better(token, worst); };
  const auto count = static_cast<int32_t>(logits_.size());
  // In the order of ids, so that a seed's tokens do not hang on how a library selects.
  double mass = 0;
  for (int32_t token = 0; token < count; ++token) {
    if (is_kept(token)) mass += weights_[static_cast<size_t>(token)];
  }
  double target = random_.Uniform() * mass;
  int32_t chosen = best_token;
  for (int32_t token = 0; token < count && target >= 0; ++token) {
    if (!is_kept(token)) continue;
    chosen = token;
    target -= weights_[static_cast<size_t>(token)];
  }
  return chosen;
}

Logprobs ComputeLogprobs(std::span<const float> logits, int32_t token, uint32_t count) {
  const double best = logits[static_cast<size_t>(HighestLogit(logits))];
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - best);
  const double log_sum = best + std::log(sum);
  const auto logprob = [&](float logit) { return static_cast<float>(logit - log_sum); };
  const auto better = [](const TokenLogprob& a, const TokenLogprob& b) {
    return a.logprob > b.logprob || (a.logprob == b.logprob && a.token < b.token);
  };
  Logprobs result;
  result.chosen = logprob(logits[static_cast<size_t>(token)]);
  // A heap of the best `count`, the worst of them in front: nothing of the vocabulary's size is
  // allocated for a token. Logits stand in for logprobs until the end, which keeps ties exact.
  std::vector<TokenLogprob>& top = result.top;
  const size_t kept = std::min<size_t>(count, logits.size());
  top.reserve(kept);
  for (size_t i = 0; i < logits.size() && kept > 0; ++i) {
    const TokenLogprob candidate{static_cast<int32_t>(i), logits[i]};
    if (top.size() == kept) {
      if (!better(candidate, top.front())) continue;
      std::pop_heap(top.begin(), top.end(), better);
      top.pop_back();
    }
    top.push_back(candidate);
    std::push_heap(top.begin(), top.end(), better);
  }
  std::sort_heap(top.begin(), top.end(), better);
  for (TokenLogprob& entry : top) entry.logprob = logprob(entry.logprob);
  return result;
}

}  // namespace moraine
