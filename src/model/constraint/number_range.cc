#include "model/constraint/number_range.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <compare>
#include <map>
#include <numeric>
#include <vector>

namespace moraine {
namespace {

// What a number has when nothing bounds it: more digits are noise, and weak models write them for ever.
constexpr uint32_t kMaxWholeDigits = 15;
constexpr uint32_t kMaxFractionDigits = 16;
// Of a step: ten times a remainder still fits 64 bits.
constexpr size_t kMaxStepDigits = 15;

constexpr std::array<uint64_t, 19> kPowersOfTen = [] {
  std::array<uint64_t, 19> powers{1};
  for (size_t i = 1; i < powers.size(); ++i) powers[i] = 10 * powers[i - 1];
  return powers;
}();

int CompareMagnitudes(const Decimal& a, const Decimal& b) {
  if (a.whole.size() != b.whole.size()) return a.whole.size() < b.whole.size() ? -1 : 1;
  if (const int order = a.whole.compare(b.whole); order != 0) return order;
  return a.fraction.compare(b.fraction);
}

// A step as a whole number of units of 10^-scale.
struct ScaledStep {
  uint64_t units = 1;
  uint32_t scale = 0;
};

Result<ScaledStep> Scale(const Decimal& step, bool integer, const std::string& path) {
  const std::string digits = (step.whole == "0" ? "" : step.whole) + step.fraction;
  if (digits.size() > kMaxStepDigits) {
    return Unsupported(fmt::format("{}.multipleOf: more than {} digits", path, kMaxStepDigits));
  }
  ScaledStep out;
  out.scale = static_cast<uint32_t>(step.fraction.size());
  std::from_chars(digits.data(), digits.data() + digits.size(), out.units);
  if (integer) {  // the whole numbers among the multiples are those of another step
    out.units /= std::gcd(out.units, kPowersOfTen[out.scale]);
    out.scale = 0;
  }
  return out;
}

// Numbers without a sign.
class MagnitudeAutomaton {
 public:
  struct Options {
    std::optional<NumberBound> low, high;  // not negative
    std::optional<ScaledStep> step;
    uint32_t fraction_digits = 0;  // that may be written
    uint32_t* choices_left = nullptr;
  };
  explicit MagnitudeAutomaton(const Options& options) : o_(options) {}

  // One choice for each count of digits before the point. Nothing: there is no such number, or too_many().
  std::vector<Expression> Numbers() {
    std::vector<Expression> numbers;
    const size_t fewest = o_.low ? o_.low->value.whole.size() : 1;
    const size_t most = o_.high ? o_.high->value.whole.size() : kMaxWholeDigits;
    for (size_t count = fewest; count <= std::min<size_t>(most, kMaxWholeDigits); ++count) {
      State state;
      state.whole_left = static_cast<uint32_t>(count);
      state.on_low = o_.low && o_.low->value.whole.size() == count;
      state.on_high = o_.high && o_.high->value.whole.size() == count;
      std::vector<Expression> choices;
      AppendDigits(state, count == 1 ? 0 : 1, &choices);
      if (!choices.empty()) numbers.push_back(Choice(std::move(choices)));
    }
    return numbers;
  }
  bool too_many() const { return too_many_; }

 private:
  struct State {
    uint32_t whole_left = 0;  // digits before the point, to come
    uint32_t written = 0;     // digits behind it
    bool in_fraction = false;
    bool on_low = false, on_high = false;  // the digits so far are the bound's
    uint64_t needed = 0;  // modulo the step: what the digits to come must be, in units of it
    auto operator<=>(const State&) const = default;
  };

  // The digits of a step that are to come.
  uint32_t DigitsLeft(const State& state) const {
    return state.whole_left + o_.step->scale - std::min(state.written, o_.step->scale);
  }

  static uint32_t NextDigitOf(const Decimal& bound, const State& state) {
    if (!state.in_fraction) {
      return static_cast<uint32_t>(bound.whole[bound.whole.size() - state.whole_left] - '0');
    }
    if (state.written >= bound.fraction.size()) return 0;
    return static_cast<uint32_t>(bound.fraction[state.written] - '0');
  }

  std::optional<State> After(State state, uint32_t digit) const {
    if (state.on_low) {
      const uint32_t least = NextDigitOf(o_.low->value, state);
      if (digit < least) return std::nullopt;
      state.on_low = digit == least;
    }
    if (state.on_high) {
      const uint32_t most = NextDigitOf(o_.high->value, state);
      if (digit > most) return std::nullopt;
      state.on_high = digit == most;
    }
    if (state.whole_left > 0) {
      --state.whole_left;
    } else {
      ++state.written;
    }
    if (!o_.step) return state;
    if (state.written > o_.step->scale) return digit == 0 ? std::optional(state) : std::nullopt;
    const uint32_t left = DigitsLeft(state);
    const uint64_t units = o_.step->units;
    uint64_t place = 1 % units;
    for (uint32_t i = 0; i < left; ++i) place = place * 10 % units;
    state.needed = (state.needed + units - digit * place % units) % units;
    if (left < kPowersOfTen.size() && state.needed >= kPowersOfTen[left]) return std::nullopt;
    return state;
  }

  // Nothing but zeros would follow.
  bool CanEnd(const State& state) const {
    if (state.in_fraction && state.written == 0) return false;
    if (o_.step && state.needed != 0) return false;
    const auto at_bound = [&](const NumberBound& bound) {
      return state.written >= bound.value.fraction.size();  // what is left of one ends in another digit
    };
    if (state.on_low && (!at_bound(*o_.low) || o_.low->open)) return false;
    return !(state.on_high && at_bound(*o_.high) && o_.high->open);
  }

  void AppendDigits(const State& state, uint32_t first_digit, std::vector<Expression>* choices) {
    std::map<State, ByteSet> targets;
    for (uint32_t digit = first_digit; digit <= 9; ++digit) {
      if (const auto next = After(state, digit)) targets[*next].set('0' + digit);
    }
    for (const auto& [target, digits] : targets) {
      const std::optional<Expression> rest = From(target);
      if (rest) Append(Sequence({OneOf(digits), *rest}), choices);
    }
  }

  void Append(Expression choice, std::vector<Expression>* choices) {
    if (*o_.choices_left == 0) {
      too_many_ = true;
      return;
    }
    --*o_.choices_left;
    choices->push_back(std::move(choice));
  }

  // Nothing: no number goes on from here.
  std::optional<Expression> From(const State& state) {
    if (const auto found = done_.find(state); found != done_.end()) return found->second;
    if (too_many_) return std::nullopt;
    std::vector<Expression> choices;
    if (state.whole_left > 0) {
      AppendDigits(state, 0, &choices);
    } else {
      if (CanEnd(state)) choices.emplace_back();
      if (state.in_fraction && state.written < o_.fraction_digits) AppendDigits(state, 0, &choices);
      if (!state.in_fraction && o_.fraction_digits > 0) {
        State behind = state;
        behind.in_fraction = true;
        const std::optional<Expression> rest = From(behind);
        if (rest) Append(Sequence({Literal("."), *rest}), &choices);
      }
    }
    std::optional<Expression> result;
    if (!choices.empty()) result = Choice(std::move(choices));
    done_.emplace(state, result);
    return result;
  }

  const Options o_;
  std::map<State, std::optional<Expression>> done_;
  bool too_many_ = false;
};

NumberBound Mirrored(NumberBound bound) {
  bound.value.negative = false;
  return bound;
}

}  // namespace

Decimal ParseDecimal(std::string_view json) {
  Decimal out;
  out.negative = json.starts_with('-');
  if (out.negative) json.remove_prefix(1);
  int64_t exponent = 0;
  const size_t mark = json.find_first_of("eE");
  if (mark != std::string_view::npos) {
    std::string_view digits = json.substr(mark + 1);
    if (digits.starts_with('+')) digits.remove_prefix(1);
    std::from_chars(digits.data(), digits.data() + digits.size(), exponent);
    json = json.substr(0, mark);
  }
  const size_t point = std::min(json.find('.'), json.size());
  std::string whole(json.substr(0, point));
  std::string fraction(json.substr(std::min(point + 1, json.size())));
  for (; exponent > 0; --exponent) {
    whole.push_back(fraction.empty() ? '0' : fraction.front());
    if (!fraction.empty()) fraction.erase(0, 1);
  }
  for (; exponent < 0; ++exponent) {
    fraction.insert(fraction.begin(), whole.empty() ? '0' : whole.back());
    if (!whole.empty()) whole.pop_back();
  }
  whole.erase(0, whole.find_first_not_of('0'));  // all of them if there is no other
  fraction.erase(fraction.find_last_not_of('0') + 1);
  out.whole = whole.empty() ? "0" : whole;
  out.fraction = fraction;
  if (out.is_zero()) out.negative = false;
  return out;
}

int Compare(const Decimal& a, const Decimal& b) {
  if (a.negative != b.negative) return a.negative ? -1 : 1;
  return a.negative ? CompareMagnitudes(b, a) : CompareMagnitudes(a, b);
}

Result<Expression> NumberIn(const NumberRange& range, const std::string& path,
                            uint32_t* choices_left) {
  MagnitudeAutomaton::Options options;
  options.choices_left = choices_left;
  options.fraction_digits = range.integer ? 0 : kMaxFractionDigits;
  if (range.step) {
    ASSIGN_OR_RETURN(options.step, Scale(*range.step, range.integer, path));
    if (!range.integer) options.fraction_digits = std::max(1u, options.step->scale);
  }
  std::vector<Expression> choices;
  bool too_many = false;
  if (!range.high || !range.high->value.negative) {
    options.high = range.high;
    if (range.low && !range.low->value.negative) options.low = range.low;
    MagnitudeAutomaton automaton(options);
    choices = automaton.Numbers();
    too_many = automaton.too_many();
  }
  const bool high_below_zero = range.high && range.high->value.negative;
  if (!range.low || range.low->value.negative) {
    // The high bound is the smaller one in size.
    options.low = high_below_zero ? Mirrored(*range.high) : NumberBound{Decimal(), /*open=*/true};
    options.high = std::nullopt;
    if (range.low) options.high = Mirrored(*range.low);
    MagnitudeAutomaton automaton(options);
    std::vector<Expression> numbers = automaton.Numbers();
    if (!numbers.empty()) choices.push_back(Sequence({Literal("-"), Choice(std::move(numbers))}));
    too_many |= automaton.too_many();
  }
  if (too_many) {
    return Unsupported(fmt::format("{}.{}: needs too large a grammar", path,
                                   range.step ? "multipleOf" : "minimum, maximum"));
  }
  if (choices.empty()) {
    return InvalidArgument(fmt::format("{}: no {} is between the bounds", path,
                                       range.step ? "multiple" : "number"));
  }
  return Choice(std::move(choices));
}

}  // namespace moraine
