// The configuration file: options that need not be typed. A flag goes before the environment, the
// environment before the file, the file before the built-in default.
//
//   [serve]
//   store = "/nvme/qwen3"
//   ram-budget = "8GiB"
//
// Tables are subcommands ([bench.io] for `moraine bench io`), keys are options without dashes, and an only
// argument in small letters. Everything in it is checked whatever subcommand runs: a name that does not
// exist or a value that does not fit is an error with file and line.
#pragma once

#include <CLI/CLI.hpp>

#include <optional>
#include <set>
#include <string>

#include "base/status.h"

namespace moraine {

struct ConfigFile {
  std::string path;  // empty: there is none
  // Options that it sets.
  std::set<const CLI::Option*> options;
};

// The file that --config names in front of the subcommand, else MORAINE_CONFIG, else the first that exists
// of $XDG_CONFIG_HOME/moraine/config.toml (~/.config without the variable) and /etc/moraine/config.toml.
// Empty if there is none.
std::string FindConfigFile(int argc, const char* const* argv);
// Makes what the file says the options' defaults. Before app->parse.
Result<ConfigFile> ApplyConfigFile(const std::string& path, CLI::App* app);

}  // namespace moraine
