#include "config_file.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <iterator>

#include "command_tree.h"
#include "toml_file.h"

namespace moraine {
namespace {

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

const CommandDescription* FindCommand(const CommandDescription& program, const std::string& table) {
  std::string path = table;
  std::replace(path.begin(), path.end(), '.', ' ');
  for (const CommandDescription* command : AllCommands(program)) {
    if (command->path == path) return command;
  }
  return nullptr;
}

Status Apply(const TomlSetting& setting, const OptionDescription& option) {
  const bool is_flag = !option.takes_value;
  if (is_flag && (setting.is_array || (setting.values[0] != "true" && setting.values[0] != "false"))) {
    return InvalidArgument(fmt::format("{}: expected true or false", setting.key));
  }
  if (setting.is_array && !option.repeats) {
    return InvalidArgument(fmt::format("{}: expected one value, found an array", setting.key));
  }
  try {
    option.option->run_callback_for_default(true);
    if (is_flag) {
      // --no-... flags turn something off: their "true" is its "false".
      option.option->default_val(option.option->get_flag_value(option.long_name, setting.values[0]));
    } else if (option.repeats) {
      option.option->default_val(setting.values);
    } else {
      option.option->default_val(setting.values[0]);
    }
  } catch (const CLI::Error& error) {
    return InvalidArgument(error.what());
  }
  option.option->required(false);
  return OkStatus();
}

}  // namespace

std::string FindConfigFile(int argc, const char* const* argv) {
  for (int i = 1; i < argc && argv[i][0] == '-'; ++i) {
    const std::string word = argv[i];
    if (word == "--config" && i + 1 < argc) return argv[i + 1];
    if (word.starts_with("--config=")) return word.substr(9);
  }
  if (const std::string named = Environment("MORAINE_CONFIG"); !named.empty()) return named;
  std::string user = Environment("XDG_CONFIG_HOME");
  if (user.empty() && !Environment("HOME").empty()) user = Environment("HOME") + "/.config";
  for (const std::string& path : {user + "/moraine/config.toml", std::string("/etc/moraine/config.toml")}) {
    if (::access(path.c_str(), F_OK) == 0) return path;
  }
  return "";
}

Result<ConfigFile> ApplyConfigFile(const std::string& path, CLI::App* app) {
  ConfigFile config;
  config.path = path;
  if (path.empty()) return config;
  std::ifstream file(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  if (!file) return IoErrorFromErrno(path, errno);
  ASSIGN_OR_RETURN(const std::vector<TomlSetting> settings, ParseToml(text, path));
  const CommandDescription program = DescribeCommands(app);
  for (const TomlSetting& setting : settings) {
    const std::string where = fmt::format("{}:{}", path, setting.line);
    const CommandDescription* command = FindCommand(program, setting.table);
    if (command == nullptr) {
      return InvalidArgument(fmt::format("{}: expected a subcommand's table, such as [serve], before {}, found {}",
                                         where, setting.key,
                                         setting.table.empty() ? "none" : "[" + setting.table + "]"));
    }
    const auto option = std::find_if(command->options.begin(), command->options.end(), [&](const auto& o) {
      return o.ConfigName() == setting.key;
    });
    if (option == command->options.end()) {
      return InvalidArgument(fmt::format("{}: {} is no option of moraine {}", where, setting.key, command->path));
    }
    if (!option->configurable) {
      return InvalidArgument(fmt::format("{}: {} is one of several arguments of moraine {}, which must be typed",
                                         where, setting.key, command->path));
    }
    const Status applied = Apply(setting, *option);
    if (!applied.ok()) return InvalidArgument(where + ": " + applied.message());
    config.options.insert(option->option);
  }
  return config;
}

}  // namespace moraine
