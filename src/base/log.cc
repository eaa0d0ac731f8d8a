#include "base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>

namespace moraine {

void InitLogging(std::string_view level) {
  auto logger = spdlog::stderr_color_mt("moraine");
  logger->set_pattern("%^%L%$ %H:%M:%S.%e %v");
  const auto parsed = spdlog::level::from_str(std::string(level));
  const bool known = parsed != spdlog::level::off || level == "off";
  logger->set_level(known ? parsed : spdlog::level::info);
  spdlog::set_default_logger(std::move(logger));
}

}  // namespace moraine
