#include "residency/expert_state.h"

#include <string>

#include "base/check.h"

namespace moraine {
namespace {

constexpr uint32_t To() { return 0; }
template <typename... States>
constexpr uint32_t To(ExpertState first, States... rest) {
  return 1u << static_cast<int>(first) | To(rest...);
}

// Row: from; bits: the states that may follow. The diagram in the header, nothing else.
constexpr uint32_t kAllowed[kExpertStateCount] = {
    /* kAbsent      */ To(ExpertState::kReserved),
    /* kReserved    */ To(ExpertState::kReading, ExpertState::kAbsent),
    /* kReading     */
    To(ExpertState::kReady, ExpertState::kAbsent, ExpertState::kDraining,
       ExpertState::kQuarantined),
    /* kReady       */ To(ExpertState::kLeased, ExpertState::kEvicting),
    /* kLeased      */ To(ExpertState::kReady),
    /* kEvicting    */ To(ExpertState::kAbsent),
    /* kDraining    */ To(ExpertState::kAbsent),
    /* kQuarantined */ To(),
};

}  // namespace

const char* ExpertStateName(ExpertState state) {
  switch (state) {
    case ExpertState::kAbsent: return "absent";
    case ExpertState::kReserved: return "reserved";
    case ExpertState::kReading: return "reading";
    case ExpertState::kReady: return "ready";
    case ExpertState::kLeased: return "leased";
    case ExpertState::kEvicting: return "evicting";
    case ExpertState::kDraining: return "draining";
    case ExpertState::kQuarantined: return "quarantined";
  }
  return "invalid";
}

bool IsAllowedTransition(ExpertState from, ExpertState to) {
  return (kAllowed[static_cast<int>(from)] >> static_cast<int>(to) & 1) != 0;
}

void Transition(ExpertState* state, ExpertState to) {
  CHECK(IsAllowedTransition(*state, to),
        std::string(ExpertStateName(*state)) + " -> " + ExpertStateName(to));
  *state = to;
}

}  // namespace moraine
