// Strong integer ids: a LayerId cannot be passed where an ExpertId is meant.
#pragma once

#include <compare>
#include <cstdint>
#include <functional>

namespace moraine {

template <typename Tag>
class Id {
 public:
  using Value = uint32_t;
  constexpr Id() = default;
  constexpr explicit Id(Value value) : value_(value) {}
  constexpr Value value() const { return value_; }
  friend constexpr auto operator<=>(const Id&, const Id&) = default;

 private:
  Value value_ = 0;
};

// Index of a decoder layer in the model, 0-based, counting dense layers too.
using LayerId = Id<struct LayerIdTag>;
// Index of a routed expert inside its layer.
using ExpertId = Id<struct ExpertIdTag>;
// Index of a slot in the host (or device) slabs.
using SlotIndex = Id<struct SlotIndexTag>;

struct ExpertKey {
  LayerId layer;
  ExpertId expert;
  friend constexpr auto operator<=>(const ExpertKey&, const ExpertKey&) = default;
};

}  // namespace moraine

template <typename Tag>
struct std::hash<moraine::Id<Tag>> {
  size_t operator()(const moraine::Id<Tag>& id) const noexcept { return id.value(); }
};
template <>
struct std::hash<moraine::ExpertKey> {
  size_t operator()(const moraine::ExpertKey& key) const noexcept {
    return (static_cast<uint64_t>(key.layer.value()) << 32 | key.expert.value()) *
           0x9E3779B97F4A7C15ull >> 17;
  }
};
