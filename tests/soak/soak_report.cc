#include "soak_report.h"

#include <malloc.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/bytes.h"
#include "memory/topology.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define MORAINE_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define MORAINE_SANITIZED 1
#endif
#endif

namespace moraine {
namespace {

#ifdef MORAINE_SANITIZED
constexpr bool kSanitized = true;  // their allocators keep what is freed; LeakSanitizer looks instead
#else
constexpr bool kSanitized = false;
#endif

// What may be there at the end that was not there early on. Between engines the heap holds nothing of
// theirs; the resident set also what the allocator keeps in pieces, within which it moves up and down.
constexpr uint64_t kHeapBoundBytes = 1 * kMiB;
constexpr uint64_t kResidentBoundBytes = 16 * kMiB;

// From so many requests on nothing may have been missed.
constexpr uint64_t kManyRequests = 300;
constexpr double kLongSeconds = 3600;  // what is rare comes within an hour

}  // namespace

ProcessSample SampleProcess() {
  malloc_trim(0);
  const struct mallinfo2 heap = mallinfo2();
  ProcessSample sample;
  sample.resident_bytes = ReadProcessMemory().resident_bytes;
  sample.heap_bytes = heap.uordblks + heap.hblkhd;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    sample.descriptors += entry.is_symlink();
  }
  return sample;
}

// The highest of the second and third tenth of the rounds; the first grows pools to their size.
uint64_t SoakReport::Early(uint64_t ProcessSample::*field) const {
  const size_t tenth = std::max<size_t>(1, samples.size() / 10);
  const size_t begin = std::min(tenth, samples.size() - 1);
  uint64_t most = 0;
  for (size_t i = begin; i < std::min(begin + 2 * tenth, samples.size()); ++i) {
    most = std::max(most, samples[i].*field);
  }
  return most;
}

bool SoakReport::Flat() const {
  const ProcessSample& end = samples.back();
  if (end.descriptors != samples[0].descriptors) return false;
  if (kSanitized) return true;
  return end.resident_bytes <= Early(&ProcessSample::resident_bytes) + kResidentBoundBytes &&
         end.heap_bytes <= Early(&ProcessSample::heap_bytes) + kHeapBoundBytes;
}

std::string SoakReport::ToJson(bool* passed) const {
  const Tally& t = tally;
  const nlohmann::ordered_json counts = {
      {"rounds", t.rounds}, {"checkpoints", t.checkpoints}, {"requests", t.requests},
      {"finished", t.finished}, {"tokens", t.tokens}, {"logits_checks", t.logits_checks},
      {"cancelled_waiting", t.cancelled_waiting},
      {"cancelled_in_prefill", t.cancelled_in_prefill},
      {"cancelled_in_decode", t.cancelled_in_decode}, {"failed_io", t.failed_io},
      {"failed_corrupt", t.failed_corrupt}, {"failed_deadline", t.failed_deadline},
      {"queue_full", t.queue_full}, {"closed_while_running", t.closed_while_running},
      {"budgets", t.budgets}, {"budgets_refused", t.budgets_refused}, {"warmings", t.warmings},
      {"reads", faults.reads}, {"errors", faults.errors}, {"short_reads", faults.short_reads},
      {"flips", faults.flips}, {"slow", faults.slow}, {"hangs", faults.hangs},
      {"healed", t.healed}, {"quarantined", t.quarantined}, {"retries", t.retries},
      {"evictions", t.evictions}, {"moved", t.moved}, {"prefetched", t.prefetched}};
  // A soak that never meets what it is about proves nothing.
  bool complete = true;
  for (const auto& [what, count] : counts.items()) {
    const bool rare = what == "hangs" || what == "failed_deadline";
    if (count != 0 || t.requests < kManyRequests || (rare && seconds < kLongSeconds)) continue;
    std::fprintf(stderr, "never happened: %s\n", what.c_str());
    complete = false;
  }
  nlohmann::ordered_json json = {{"soak", "engine"}, {"seed", seed}, {"seconds", seconds}};
  json.update(counts);
  const auto both = [&](const std::string& name, uint64_t ProcessSample::*field) {
    json[name + "_early"] = Early(field);
    json[name + "_end"] = samples.back().*field;
  };
  both("resident_bytes", &ProcessSample::resident_bytes);
  both("heap_bytes", &ProcessSample::heap_bytes);
  both("descriptors", &ProcessSample::descriptors);
  *passed = Flat() && complete;
  json["passed"] = *passed;
  return json.dump();
}

}  // namespace moraine
