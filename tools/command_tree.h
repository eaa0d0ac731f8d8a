// CommandTree: the subcommands and options as CLI11 has them, in the form that completions, man pages and
// `moraine config` are made from: one source for what --help says and for all of these.
#pragma once

#include <CLI/CLI.hpp>

#include <string>
#include <vector>

namespace moraine {

struct OptionDescription {
  CLI::Option* option = nullptr;
  std::string long_name;   // without dashes; empty for positional arguments
  std::string short_name;  // one letter, or empty
  std::string positional;  // "STORE", or empty
  std::string help, default_text, environment;
  std::vector<std::string> choices;  // all values there are, if they are few
  std::string names;  // what of `moraine models` it takes: "stores", "checkpoints" or "models"; or empty
  bool takes_value = false, required = false, repeats = false;
  // A configuration file may set it: all but one of several positional arguments, since the words that are
  // typed would be taken for the wrong ones.
  bool configurable = true;

  // How a configuration file calls it: "ram-budget", "store".
  std::string ConfigName() const;
};

struct CommandDescription {
  CLI::App* app = nullptr;
  std::string path;  // "bench io"; empty for the program itself
  std::string help;
  std::vector<OptionDescription> options;  // without --help
  std::vector<CommandDescription> commands;
};

CommandDescription DescribeCommands(CLI::App* app);
// The program's commands and their subcommands, each before its own subcommands.
std::vector<const CommandDescription*> AllCommands(const CommandDescription& program);

}  // namespace moraine
