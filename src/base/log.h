// Logging: spdlog behind one include, so that the choice can change in one place.
// Messages go to stderr; stdout belongs to the command's result.
#pragma once

#include <spdlog/spdlog.h>

#include <string_view>

namespace moraine {

// level: trace, debug, info, warn, error, off. Unknown names mean info. Call once, from main.
void InitLogging(std::string_view level);

}  // namespace moraine

#define LOG_DEBUG(...) SPDLOG_DEBUG(__VA_ARGS__)
#define LOG_INFO(...) ::spdlog::info(__VA_ARGS__)
#define LOG_WARN(...) ::spdlog::warn(__VA_ARGS__)
#define LOG_ERROR(...) ::spdlog::error(__VA_ARGS__)
