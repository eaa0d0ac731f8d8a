// Numbers of schemas against a validator that computes with whole numbers.
#include "model/constraint/number_range.h"

#include <gtest/gtest.h>

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <optional>
#include <random>

#include "constraint_test_support.h"

namespace moraine {
namespace {

constexpr int kScaleDigits = 6;  // all decimals here are whole numbers of millionths
constexpr int64_t kScale = 1'000'000;

// Trailing zeros of the fraction go; "-0" is 0.
std::string Decimals(int64_t millionths) {
  std::string text = fmt::format("{}{}.{:06}", millionths < 0 ? "-" : "", std::abs(millionths) / kScale,
                                 std::abs(millionths) % kScale);
  text.erase(text.find_last_not_of('0') + 1);
  if (text.back() == '.') text.pop_back();
  return text;
}

struct Spelled {
  int64_t millionths = 0;
  bool negative = false;
  int fraction_digits = 0;
};

// As numbers are to be written: no exponent, no zero too many in front.
std::optional<Spelled> Parse(std::string text) {
  Spelled out;
  out.negative = text.starts_with('-');
  if (out.negative) text.erase(0, 1);
  const size_t point = text.find('.');
  const std::string whole = text.substr(0, point);
  std::string fraction = point == std::string::npos ? "" : text.substr(point + 1);
  const auto is_digits = [](const std::string& s) {
    return !s.empty() && s.find_first_not_of("0123456789") == std::string::npos;
  };
  if (!is_digits(whole) || (whole.size() > 1 && whole[0] == '0')) return std::nullopt;
  if (point != std::string::npos && !is_digits(fraction)) return std::nullopt;
  out.fraction_digits = static_cast<int>(fraction.size());
  if (fraction.size() > kScaleDigits) return std::nullopt;  // none are made here
  fraction.resize(kScaleDigits, '0');
  out.millionths = std::atoll(whole.c_str()) * kScale + std::atoll(fraction.c_str());
  if (out.negative) out.millionths = -out.millionths;
  return out;
}

struct Case {
  bool integer = false;
  std::optional<int64_t> minimum, maximum, exclusive_minimum, exclusive_maximum, step;

  std::string Schema() const {
    std::string schema = fmt::format(R"({{"type":"{}")", integer ? "integer" : "number");
    const auto add = [&](const char* name, const std::optional<int64_t>& value) {
      if (value) schema += fmt::format(R"(,"{}":{})", name, Decimals(*value));
    };
    add("minimum", minimum);
    add("maximum", maximum);
    add("exclusiveMinimum", exclusive_minimum);
    add("exclusiveMaximum", exclusive_maximum);
    add("multipleOf", step);
    return schema + "}";
  }
  bool Allows(const std::string& text) const {
    const auto number = Parse(text);
    if (!number || (number->negative && number->millionths == 0)) return false;
    const int64_t value = number->millionths;
    if (integer && number->fraction_digits > 0) return false;
    if (step) {
      const std::string digits = Decimals(*step);
      const size_t point = digits.find('.');
      const int scale = point == std::string::npos ? 0 : static_cast<int>(digits.size() - point - 1);
      if (number->fraction_digits > std::max(1, scale) || value % *step != 0) return false;
    }
    return (!minimum || value >= *minimum) && (!maximum || value <= *maximum) &&
           (!exclusive_minimum || value > *exclusive_minimum) &&
           (!exclusive_maximum || value < *exclusive_maximum);
  }
};

class Cases {
 public:
  explicit Cases(uint32_t seed) : random_(seed) {}

  // Up to 999.999999 in size, mostly with few decimals.
  int64_t Number() {
    const int64_t unit = std::array<int64_t, 4>{kScale, 100'000, 10'000, 1}[random_() % 4];
    const int64_t most = std::array<int64_t, 3>{3, 60, 999}[random_() % 3] * kScale / unit;
    return (static_cast<int64_t>(random_() % static_cast<uint64_t>(2 * most + 1)) - most) * unit;
  }
  Case Next() {
    Case c;
    c.integer = Coin();
    std::optional<int64_t>& low = Coin() ? c.minimum : c.exclusive_minimum;
    std::optional<int64_t>& high = Coin() ? c.maximum : c.exclusive_maximum;
    if (Coin()) low = Number();
    if (Coin()) high = Number();
    if (low && high && *low > *high) std::swap(low, high);
    if (Coin()) c.step = std::max<int64_t>(1, std::abs(Number()));
    // Not too many remainders.
    if (c.step && *c.step % kScale == 0) c.step = kScale * (1 + *c.step / kScale % 120);
    if (c.step && *c.step % kScale != 0) c.step = 10'000 * (1 + *c.step / 10'000 % 300);
    return c;
  }
  // Near a bound, a multiple, or anything; spelled in any way.
  std::string Text(const Case& c) {
    int64_t value = Number();
    for (const auto& bound : {c.minimum, c.maximum, c.exclusive_minimum, c.exclusive_maximum}) {
      if (bound && random_() % 3 == 0) value = *bound + static_cast<int64_t>(random_() % 3) - 1;
    }
    if (Coin()) value = value / kScale * kScale;
    if (c.step && Coin()) value = value / *c.step * *c.step;
    std::string text = Decimals(value);
    if (text.find('.') == std::string::npos && random_() % 4 == 0) text += ".0";
    if (text.find('.') != std::string::npos && random_() % 8 == 0 && Parse(text)->fraction_digits < 6) text += "0";
    if (random_() % 16 == 0) text = "-" + text;
    if (random_() % 16 == 0) text = "0" + text;
    return text;
  }
  std::mt19937& random() { return random_; }

 private:
  bool Coin() { return random_() % 2 == 0; }
  std::mt19937 random_;
};

TEST(NumberRangeTest, AgreesWithArithmetic) {
  int accepted = 0, refused = 0, empty = 0;
  for (uint32_t seed = 0; seed < 250; ++seed) {
    SCOPED_TRACE(seed);
    Cases cases(seed);
    const Case c = cases.Next();
    JsonGrammar json;
    auto expression = json.Schema(nlohmann::ordered_json::parse(c.Schema()), "schema");
    if (!expression.ok()) {
      ASSERT_EQ(expression.status().code(), StatusCode::kInvalidArgument) << c.Schema();
      ++empty;
      for (int i = 0; i < 200; ++i) ASSERT_FALSE(c.Allows(cases.Text(c))) << c.Schema();
      continue;
    }
    auto built = std::move(json).Build(*expression);
    ASSERT_TRUE(built.ok());
    const auto grammar = std::make_shared<const Grammar>(std::move(*built));
    for (int i = 0; i < 60; ++i) {
      const std::string text = cases.Text(c);
      // Without any bound a number may have an exponent, and nothing is decided here.
      const bool allowed = c.Allows(text);
      const bool unbound = c.Schema() == R"({"type":"number"})";
      if (unbound) continue;
      ASSERT_EQ(Matches(grammar, text), allowed) << text << " " << c.Schema();
      ++(allowed ? accepted : refused);
    }
  }
  EXPECT_GT(accepted, 1000);
  EXPECT_GT(refused, 1000);
  EXPECT_GT(empty, 0);
}

// Whatever is written by the masks is allowed, and always comes to an end.
TEST(NumberRangeTest, WalksAreAllowed) {
  int checked = 0;
  for (uint32_t seed = 1000; seed < 1150; ++seed) {
    SCOPED_TRACE(seed);
    Cases cases(seed);
    const Case c = cases.Next();
    JsonGrammar json;
    auto expression = json.Schema(nlohmann::ordered_json::parse(c.Schema()), "schema");
    if (!expression.ok() || c.Schema() == R"({"type":"number"})") continue;
    const auto grammar = std::make_shared<const Grammar>(*std::move(json).Build(*expression));
    for (int i = 0; i < 20; ++i) {
      std::string text = RandomText(grammar, &cases.random());
      // The validator has six decimals, and 64 bits.
      const size_t point = std::min(text.find('.'), text.size());
      if (point > 12 || text.size() - point > 7) continue;
      ++checked;
      ASSERT_TRUE(c.Allows(text)) << text << " " << c.Schema();
    }
  }
  EXPECT_GT(checked, 500);
}

TEST(NumberRangeTest, WholeBoundsOneByOne) {
  std::mt19937 random(1);
  for (int round = 0; round < 100; ++round) {
    std::uniform_int_distribution<int> any(-1200, 1200);
    int low = any(random), high = any(random);
    if (low > high) std::swap(low, high);
    const auto grammar = GrammarOfSchema(
        fmt::format(R"({{"type":"integer","minimum":{},"maximum":{}}})", low, high));
    for (int value = -1300; value <= 1300; value += 1 + round % 3) {
      ASSERT_EQ(Matches(grammar, std::to_string(value)), value >= low && value <= high)
          << value << " in " << low << ".." << high << ", round " << round;
    }
    ASSERT_FALSE(Matches(grammar, "-0") || Matches(grammar, "00") || Matches(grammar, ""));
  }
  const auto wide = GrammarOfSchema(
      R"({"type":"integer","minimum":-999999999999999,"maximum":999999999999999})");
  EXPECT_TRUE(Matches(wide, "-999999999999999") && Matches(wide, "0") && Matches(wide, "42"));
  EXPECT_FALSE(Matches(wide, "1000000000000000"));
}

struct Example {
  const char* schema;
  std::vector<const char*> accepted, refused;
};

TEST(NumberRangeTest, WhatDoublesGetWrong) {
  const Example examples[] = {
      {R"({"type":"number","multipleOf":0.1})", {"0.3", "0.7", "1.1", "-2.9", "5", "5.0", "123456789012345.6"},
       {"0.35", "0.30", "1e1", "-0"}},
      {R"({"type":"number","multipleOf":0.01})", {"19.99", "4.35", "1.1", "0.07"}, {"19.995", "0.001"}},
      {R"({"type":"number","multipleOf":1e-7})", {"0.0000003", "12.5"}, {"0.00000003"}},
      {R"({"type":"number","multipleOf":2.5})", {"0", "2.5", "-7.5", "10", "10.0"}, {"1", "2.50", "5.5"}},
      {R"({"type":"number","multipleOf":3})", {"3", "3.0", "-99"}, {"3.5", "4", "3.00"}},
      {R"({"type":"number","minimum":0.1,"maximum":0.3})", {"0.1", "0.10", "0.3", "0.2999", "0.1000000000000001"},
       {"0.09", "0.31", "0.3000000000000001", "0", "0.0999999999999999"}},
      {R"({"type":"number","exclusiveMinimum":0.1,"exclusiveMaximum":0.2})", {"0.11", "0.1000000000000001"},
       {"0.1", "0.10", "0.2"}},
      {R"({"type":"number","minimum":-0.5,"maximum":-0.25})", {"-0.5", "-0.3", "-0.25"}, {"-0.2", "0.3", "-0.6"}},
      {R"({"type":"number","minimum":1e-20})", {"0.0000000000000001", "1"}, {"0", "0.0"}},
      {R"({"type":"number","maximum":9007199254740993})", {"9", "-5"}, {"x"}},
      {R"({"type":"integer","multipleOf":0.5})", {"0", "1", "-7"}, {"0.5", "1.0"}},
      {R"({"type":"integer","multipleOf":1.5})", {"0", "3", "-6"}, {"1", "2", "4"}},
      {R"({"type":"integer","multipleOf":1000000})", {"0", "7000000", "-12000000"}, {"100000", "7000001"}},
      {R"({"type":"integer","multipleOf":997})", {"0", "997", "996999999999003"}, {"998", "1"}},
      {R"({"type":"integer","multipleOf":360,"minimum":0,"exclusiveMaximum":720})", {"0", "360"}, {"720", "-360"}},
      {R"({"multipleOf":7})", {"14", "-7.0"}, {"15", "\"a\""}},
      {R"({"type":["string","integer"],"multipleOf":2})", {"\"a\"", "4"}, {"3"}},
      {R"({"type":"number","minimum":1,"exclusiveMinimum":1})", {"1.5"}, {"1", "1.0"}},
  };
  for (const Example& example : examples) {
    const auto grammar = GrammarOfSchema(example.schema);
    for (const char* text : example.accepted) EXPECT_TRUE(Matches(grammar, text)) << example.schema << " " << text;
    for (const char* text : example.refused) EXPECT_FALSE(Matches(grammar, text)) << example.schema << " " << text;
  }
}

TEST(NumberRangeTest, DecimalsAreReadInEverySpelling) {
  const std::tuple<const char*, bool, const char*, const char*> cases[] = {
      {"0", false, "0", ""},        {"-0.0", false, "0", ""},      {"10.50", false, "10", "5"},
      {"1e-07", false, "0", "0000001"}, {"1.25e+3", false, "1250", ""}, {"-12.5e-1", true, "1", "25"},
      {"1e2", false, "100", ""},    {"0.5E1", false, "5", ""}};
  for (const auto& [text, negative, whole, fraction] : cases) {
    const Decimal decimal = ParseDecimal(text);
    EXPECT_EQ(decimal.negative, negative) << text;
    EXPECT_EQ(decimal.whole, whole) << text;
    EXPECT_EQ(decimal.fraction, fraction) << text;
  }
  const char* ordered[] = {"-10", "-9.5", "-0.1", "-0.05", "0", "0.05", "0.5", "0.51", "2", "10"};
  for (size_t a = 0; a < std::size(ordered); ++a) {
    for (size_t b = 0; b < std::size(ordered); ++b) {
      const int order = Compare(ParseDecimal(ordered[a]), ParseDecimal(ordered[b]));
      EXPECT_EQ(order < 0, a < b) << ordered[a] << " " << ordered[b];
      EXPECT_EQ(order > 0, a > b) << ordered[a] << " " << ordered[b];
    }
  }
}

// Many numbers in one schema share a limit, so that a small request cannot make a huge grammar.
TEST(NumberRangeTest, AGrammarsNumbersHaveALimitTogether) {
  nlohmann::ordered_json properties;
  for (int i = 0; i < 3; ++i) properties[std::to_string(i)] = {{"type", "integer"}, {"multipleOf", 997}};
  const auto refused = JsonGrammar().Schema({{"properties", properties}}, "schema");
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.status().code(), StatusCode::kUnsupported);
  properties.clear();
  for (int i = 0; i < 512; ++i) {
    properties[std::to_string(i)] = {{"type", "number"}, {"minimum", 0.25}, {"maximum", 99.75}};
  }
  EXPECT_TRUE(JsonGrammar().Schema({{"properties", properties}}, "schema").ok());
}

}  // namespace
}  // namespace moraine
