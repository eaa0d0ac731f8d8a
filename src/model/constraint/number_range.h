// JSON numbers between bounds that are multiples of a step, digit by digit.
//
// No floating point: bounds and steps are the decimals that people wrote (0.1 is a tenth), and a text of digits is
// walked from the left. What the digits so far leave open is a state: how many may follow, whether they agree
// with a bound until now (then the next digit is compared with the bound's), and the remainder that those to
// come must make up. States from which no number can be finished are left out, so that a text never gets
// stuck. The alternative, a regular expression a bound, needs no states but cannot count remainders.
//
// Numbers are written without an exponent, with at most 15 digits before the point and 16 behind it: of a
// step as many as it has, but zeros may follow a whole one ("5.0"). "-0" is none.
//
// Cost: a state a digit and a bound that it may still agree with; for a step at most 15 times its remainders,
// where factors 2 and 5 hardly count, because few remainders can be made up by the last digits.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/status.h"
#include "model/constraint/expression.h"

namespace moraine {

struct Decimal {
  bool negative = false;  // never of zero
  std::string whole = "0";  // without leading zeros
  std::string fraction;     // without trailing zeros

  bool is_zero() const { return whole == "0" && fraction.empty(); }
};

// Of a number as JSON spells it, exponent included.
Decimal ParseDecimal(std::string_view json);
// Below 0, 0 or above 0 as a is less than, equal to or greater than b.
int Compare(const Decimal& a, const Decimal& b);

struct NumberBound {
  Decimal value;
  bool open = false;  // the value itself is outside
};

struct NumberRange {
  std::optional<NumberBound> low, high;
  std::optional<Decimal> step;  // above 0
  bool integer = false;         // nothing behind a point
};

// kInvalidArgument if there is no such number. kUnsupported for a step of more than 15 digits, or one that needs
// more than *choices_left branches of the grammar, from which those that are made are taken.
Result<Expression> NumberIn(const NumberRange& range, const std::string& path,
                            uint32_t* choices_left);

}  // namespace moraine
