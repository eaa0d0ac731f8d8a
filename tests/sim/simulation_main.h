// What the simulations share: many seeds in turn, one seed again, and a failing seed that is named even when
// a CHECK aborts the process.
//
//   X                      the seeds that the tests run
//   X --seed 17            replays one, with the same steps
//   X --seeds 100000 --steps 400
#pragma once

#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/check.h"

namespace moraine {

inline volatile uint64_t running_seed = 0;
inline const char* simulation_name = "";

// Async-signal-safe: a CHECK ends in abort().
inline void NameSeed(int) {
  char digits[20];
  size_t count = 0;
  for (uint64_t rest = running_seed; count == 0 || rest > 0; rest /= 10) {
    digits[count++] = static_cast<char>('0' + rest % 10);
  }
  std::reverse(digits, digits + count);
  const std::string_view parts[] = {"\nreplay with: ", simulation_name, " --seed ",
                                    {digits, count}, "\n"};
  for (const std::string_view part : parts) (void)!write(STDERR_FILENO, part.data(), part.size());
  std::signal(SIGABRT, SIG_DFL);
  std::abort();
}

// How often each thing has happened, over all seeds: the table is what a simulation must meet.
class Coverage {
 public:
  // Printed in this order.
  Coverage(std::initializer_list<std::string_view> names) {
    for (const std::string_view name : names) counts_.emplace_back(name, 0);
  }
  // CHECKs that the table has it.
  uint64_t& operator[](std::string_view name) {
    const auto found = std::find_if(counts_.begin(), counts_.end(),
                                    [&](const auto& count) { return count.first == name; });
    CHECK(found != counts_.end(), "not in the table: " + std::string(name));
    return found->second;
  }
  const std::vector<std::pair<std::string_view, uint64_t>>& counts() const { return counts_; }

 private:
  std::vector<std::pair<std::string_view, uint64_t>> counts_;
};

struct SimulationRun {
  uint64_t first_seed = 1, seeds = 200;
  int steps = 120;
};

// run: one seed. coverage: what all seeds together have met; a simulation that never meets a fault proves
// nothing, so from 100 seeds on nothing of it may be 0.
inline int SimulationMain(
    int argc, char** argv, const char* name, SimulationRun plan,
    const std::function<void(uint64_t seed, int steps)>& run, const Coverage& coverage) {
  simulation_name = name;
  for (int i = 1; i < argc; i += 2) {
    const std::string flag = argv[i];
    const uint64_t value = i + 1 < argc ? std::strtoull(argv[i + 1], nullptr, 10) : 0;
    if (flag == "--seed" && value > 0) {
      plan.first_seed = value;
      plan.seeds = 1;
    } else if (flag == "--seeds" && value > 0) {
      plan.seeds = value;
    } else if (flag == "--steps" && value > 0) {
      plan.steps = static_cast<int>(value);
    } else {
      std::fprintf(stderr, "usage: %s [--seed N] [--seeds N] [--steps N]\n", name);
      return 2;
    }
  }
  std::signal(SIGABRT, NameSeed);
  for (uint64_t seed = plan.first_seed; seed < plan.first_seed + plan.seeds; ++seed) {
    running_seed = seed;
    run(seed, plan.steps);
  }
  bool complete = true;
  for (const auto& [what, count] : coverage.counts()) {
    std::printf("%-28s %llu\n", what.data(), static_cast<unsigned long long>(count));
    complete &= count > 0;
  }
  std::printf("seeds %llu to %llu passed, %d steps each\n",
              static_cast<unsigned long long>(plan.first_seed),
              static_cast<unsigned long long>(plan.first_seed + plan.seeds - 1), plan.steps);
  if (plan.seeds >= 100 && !complete) {
    std::fprintf(stderr, "something above never happened: the simulation has lost its grip\n");
    return 1;
  }
  return 0;
}

}  // namespace moraine
