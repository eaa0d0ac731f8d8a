#include "base/bytes.h"

#include <fmt/format.h>

#include <cctype>
#include <charconv>
#include <cmath>

namespace moraine {

Result<uint64_t> ParseByteSize(std::string_view text) {
  const auto fail = [&] {
    return InvalidArgument(fmt::format(
        "'{}' is not a size: expected a number with an optional unit, such as 8GiB or 1.5GB", text));
  };
  double number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || number < 0 || !std::isfinite(number)) return fail();
  std::string unit;
  for (const char* c = end; c != text.data() + text.size(); ++c) {
    if (*c != ' ') unit += static_cast<char>(std::tolower(static_cast<unsigned char>(*c)));
  }
  if (!unit.empty() && unit.back() == 'b') unit.pop_back();
  double scale = 1;
  if (!unit.empty()) {
    const size_t power = std::string_view("kmgt").find(unit[0]);
    if (power == std::string_view::npos) return fail();
    const bool binary = unit.size() == 2 && unit[1] == 'i';
    if (unit.size() > 1 && !binary) return fail();
    scale = std::pow(binary ? 1024.0 : 1000.0, static_cast<double>(power + 1));
  }
  if (number * scale >= 0x1p63) return fail();
  return static_cast<uint64_t>(number * scale);
}

std::string FormatByteSize(uint64_t bytes) {
  constexpr const char* kUnits[] = {"KiB", "MiB", "GiB", "TiB"};
  if (bytes < kKiB) return fmt::format("{} B", bytes);
  double value = static_cast<double>(bytes) / 1024.0;
  int unit = 0;
  while (value >= 1024.0 && unit < 3) {
    value /= 1024.0;
    ++unit;
  }
  return fmt::format("{:.{}f} {}", value, value < 10 ? 2 : 1, kUnits[unit]);
}

}  // namespace moraine
