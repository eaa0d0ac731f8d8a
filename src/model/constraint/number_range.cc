// Decimal numbers between two bounds, digit by digit.
#include <algorithm>
#include <cmath>
#include <string>

#include "base/check.h"
#include "model/constraint/json_grammar.h"

namespace moraine {
namespace {

// What a number has when nothing bounds it: more digits are noise, and weak models write them for ever.
constexpr uint32_t kMaxFractionDigits = 16;

ByteSet DigitSet(char first, char last) {
  ByteSet set;
  for (char c = first; c <= last; ++c) set.set(static_cast<uint8_t>(c));
  return set;
}
Expression Digits(uint32_t min, uint32_t max) {
  return Repeat(OneOf(DigitSet('0', '9')), min, max);
}

// Texts of digits of one length, from low to high.
Expression DigitsBetween(const std::string& low, const std::string& high) {
  const uint32_t length = static_cast<uint32_t>(low.size());
  if (low == std::string(length, '0') && high == std::string(length, '9')) {
    return Digits(length, length);
  }
  if (length == 1) return OneOf(DigitSet(low[0], high[0]));
  const std::string low_rest = low.substr(1), high_rest = high.substr(1);
  const std::string zeros(length - 1, '0'), nines(length - 1, '9');
  if (low[0] == high[0]) {
    return Sequence({OneOf(DigitSet(low[0], low[0])), DigitsBetween(low_rest, high_rest)});
  }
  std::vector<Expression> choices = {
      Sequence({OneOf(DigitSet(low[0], low[0])), DigitsBetween(low_rest, nines)}),
      Sequence({OneOf(DigitSet(high[0], high[0])), DigitsBetween(zeros, high_rest)})};
  if (low[0] + 1 < high[0]) {
    choices.push_back(Sequence(
        {OneOf(DigitSet(static_cast<char>(low[0] + 1), static_cast<char>(high[0] - 1))),
         Digits(length - 1, length - 1)}));
  }
  return Choice(std::move(choices));
}

// 0 <= low <= high.
Expression NaturalBetween(uint64_t low, uint64_t high) {
  const std::string last = std::to_string(high);
  std::vector<Expression> choices;
  for (size_t length = std::to_string(low).size(); length <= last.size(); ++length) {
    const std::string smallest = length == 1 ? "0" : "1" + std::string(length - 1, '0');
    const std::string from = std::max(smallest, length == std::to_string(low).size()
                                                    ? std::to_string(low) : smallest);
    const std::string to = length == last.size() ? last : std::string(length, '9');
    choices.push_back(DigitsBetween(from, to));
  }
  return Choice(std::move(choices));
}

uint64_t SizeOf(int64_t value) {
  return value < 0 ? uint64_t{0} - static_cast<uint64_t>(value) : static_cast<uint64_t>(value);
}

// 0 <= low <= high, open or closed; null if there is no such number.
void AppendDecimals(uint64_t low, bool low_open, uint64_t high, bool high_open,
                    const Expression& sign, std::vector<Expression>* out) {
  const Expression fraction = Sequence({Literal("."), Digits(1, kMaxFractionDigits)});
  const Expression nonzero_fraction = Sequence(
      {Literal("."), Digits(0, kMaxFractionDigits - 1), OneOf(DigitSet('1', '9'))});
  const Expression zero_fraction =
      Sequence({Literal("."), Repeat(Literal("0"), 1, kMaxFractionDigits)});
  if (low == high) {
    if (low_open || high_open) return;
    out->push_back(Sequence({sign, NaturalBetween(low, low), Optional(zero_fraction)}));
    return;
  }
  out->push_back(Sequence({sign, NaturalBetween(low, low),
                           low_open ? nonzero_fraction : Optional(fraction)}));
  if (low + 1 <= high - 1) {
    out->push_back(Sequence({sign, NaturalBetween(low + 1, high - 1), Optional(fraction)}));
  }
  if (!high_open) {
    out->push_back(Sequence({sign, NaturalBetween(high, high), Optional(zero_fraction)}));
  }
}

}  // namespace

Expression IntegerBetween(int64_t low, int64_t high) {
  CHECK(low <= high, "bounds in order");
  std::vector<Expression> choices;
  if (high >= 0) choices.push_back(NaturalBetween(SizeOf(std::max<int64_t>(low, 0)), SizeOf(high)));
  if (low < 0) {
    const uint64_t smallest = high < 0 ? SizeOf(high) : 1;
    choices.push_back(Sequence({Literal("-"), NaturalBetween(smallest, SizeOf(low))}));
  }
  return Choice(std::move(choices));
}

Expression DecimalBetween(const NumberBounds& bounds) {
  constexpr double kMost = 1e15;
  const double low = bounds.has_low ? bounds.low : -kMost;
  const double high = bounds.has_high ? bounds.high : kMost;
  std::vector<Expression> choices;
  if (high >= 0) {
    AppendDecimals(static_cast<uint64_t>(std::max(low, 0.0)), bounds.low_open && low >= 0,
                   static_cast<uint64_t>(high), bounds.high_open, Expression(), &choices);
  }
  if (low < 0) {
    // Mirrored: the high bound is the smaller one in size. "-0" is no number below zero.
    const bool to_zero = high >= 0;
    AppendDecimals(to_zero ? 0 : static_cast<uint64_t>(-high), to_zero || bounds.high_open,
                   static_cast<uint64_t>(-low), bounds.low_open, Literal("-"), &choices);
  }
  CHECK(!choices.empty(), "bounds in order");
  return Choice(std::move(choices));
}

}  // namespace moraine
