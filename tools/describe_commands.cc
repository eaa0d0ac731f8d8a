// moraine config, completion and man: what the command says of itself, in three forms.
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>

#include "command_tree.h"
#include "commands.h"
#include "common_options.h"
#include "completion.h"
#include "config_file.h"
#include "man_page.h"
#include "model_arguments.h"
#include "tuned_options.h"

namespace moraine {
namespace {

bool IsNumberOrBool(const std::string& text) {
  if (text == "true" || text == "false") return true;
  char* end = nullptr;
  std::strtod(text.c_str(), &end);
  return !text.empty() && *end == '\0' && text.find_first_not_of("+-0123456789.eE") == std::string::npos;
}

std::string TomlValue(const std::string& text) {
  if (IsNumberOrBool(text)) return text;
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + "\"";
}

// "[a,b]" as CLI11 spells several values.
std::string TomlArray(const std::string& text) {
  std::string out;
  for (size_t at = 1; at < text.size();) {
    const size_t end = std::min(text.find_first_of(",]", at), text.size());
    if (end > at) out += (out.empty() ? "" : ", ") + TomlValue(text.substr(at, end - at));
    at = end + 1;
  }
  return "[" + out + "]";
}

// A line of a configuration file; commented out where nothing is set. tuned: what moraine tune has found for it.
void PrintOption(const OptionDescription& option, const ConfigFile& config, const std::string& tuned,
                 bool with_origin) {
  const char* from_environment =
      option.environment.empty() ? nullptr : std::getenv(option.environment.c_str());
  const bool in_environment = from_environment != nullptr && *from_environment != '\0';
  const bool in_file = config.options.count(option.option) > 0;
  const bool is_tuned = !in_environment && !in_file && !tuned.empty();
  std::string value = is_tuned ? tuned : ConfiguredText(option);
  // A --no-... flag's value is what it turns off.
  const bool turns_off = !option.takes_value && option.option->get_flag_value(option.long_name, "true") == "false";
  if (turns_off && in_file) value = value == "false" ? "true" : "false";
  const bool is_set = in_environment || in_file || !value.empty();
  if (option.long_name == "api-key" && is_set) value = "(hidden)";
  const bool is_array = option.repeats && value.starts_with('[');
  const std::string setting = is_set ? option.ConfigName() + " = " + (is_array ? TomlArray(value) : TomlValue(value))
                                     : "# " + option.ConfigName() + " =";
  std::string origin;
  if (with_origin) {
    origin = "  # " + (in_environment ? "environment: " + option.environment
                       : in_file      ? "file: " + config.path
                       : is_tuned     ? "tuned"
                       : is_set       ? "default"
                                      : "not set");
  }
  std::printf("%s%s\n", setting.c_str(), origin.c_str());
}

// As a configuration file.
Status ShowConfig(CLI::App* app, const ConfigFile& config, const std::string& path,
                  const std::string& store, bool with_origin) {
  const CommandDescription program = DescribeCommands(app);
  std::printf("# %s\n", config.path.empty() ? "no configuration file" : config.path.c_str());
  bool found = false;
  for (const CommandDescription* command : AllCommands(program)) {
    if (!path.empty() && command->path != path) continue;
    found = true;
    if (command->options.empty()) continue;
    std::string table = command->path;
    for (char& c : table) c = c == ' ' ? '.' : c;
    std::printf("\n[%s]\n", table.c_str());
    const TunedSettings tuned = FindTunedSettings(*command, store);
    for (const OptionDescription& option : command->options) {
      if (!option.configurable) continue;
      PrintOption(option, config, TunedText(tuned, option.long_name), with_origin);
    }
  }
  return found ? OkStatus() : InvalidArgument("'" + path + "' is no subcommand");
}

Status WriteManPages(CLI::App* app, const std::string& path, const std::string& directory) {
  const CommandDescription program = DescribeCommands(app);
  std::vector<const CommandDescription*> all = AllCommands(program);
  all.insert(all.begin(), &program);
  for (const CommandDescription* command : all) {
    const std::string page = ManPage(program, *command, MORAINE_VERSION);
    if (directory.empty()) {
      if (command->path != path) continue;
      std::fputs(page.c_str(), stdout);
      return OkStatus();
    }
    const std::string file = directory + "/" + ManPageName(*command) + ".1";
    std::ofstream out(file, std::ios::binary | std::ios::trunc);
    out << page << std::flush;
    if (!out) return IoErrorFromErrno(file, errno);
  }
  return directory.empty() ? InvalidArgument("'" + path + "' is no subcommand") : OkStatus();
}

std::string JoinedWords(const std::vector<std::string>& words) {
  std::string out;
  for (const std::string& word : words) out += (out.empty() ? "" : " ") + word;
  return out;
}

}  // namespace

void RegisterDescribeCommands(CLI::App& app, const ConfigFile* config, int* exit_code) {
  struct Arguments {
    std::vector<std::string> command;
    std::string shell, directory, store;
    bool origin = false;
  };
  auto a = std::make_shared<Arguments>();
  const auto finish = [exit_code](const Status& status) {
    if (!status.ok()) *exit_code = PrintError(status);
  };
  CLI::App* configuration = app.add_subcommand("config", "Options from files and the environment");
  configuration->require_subcommand(1);
  CLI::App* show = configuration->add_subcommand(
      "show", "Print what each option is without flags, in the form of a configuration file");
  show->add_option("COMMAND", a->command, "only of this subcommand");
  show->add_option("--store", a->store,
                   "with what moraine tune has found for this one (default: the one that is configured)")
      ->transform(StoreByName());
  show->add_flag("--origin", a->origin, "say where each value comes from");
  show->callback([=, &app] { finish(ShowConfig(&app, *config, JoinedWords(a->command), a->store, a->origin)); });

  CLI::App* completion = app.add_subcommand("completion", "Print the completions of a shell");
  completion->add_option("SHELL", a->shell, "bash, zsh or fish")
      ->required()
      ->check(CLI::IsMember({"bash", "zsh", "fish"}));
  completion->callback([=, &app] {
    const CommandDescription program = DescribeCommands(&app);
    const std::string text = a->shell == "bash"  ? BashCompletion(program)
                             : a->shell == "zsh" ? ZshCompletion(program)
                                                 : FishCompletion(program);
    std::fputs(text.c_str(), stdout);
  });

  CLI::App* man = app.add_subcommand("man", "Print a manual page, or write all of them");
  man->add_option("COMMAND", a->command, "of this subcommand (default: of moraine itself)");
  man->add_option("--directory", a->directory, "write the pages of all subcommands here");
  man->callback([=, &app] { finish(WriteManPages(&app, JoinedWords(a->command), a->directory)); });
}

}  // namespace moraine
