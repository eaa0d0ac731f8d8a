#include "command_tree.h"

#include <algorithm>
#include <cctype>

namespace moraine {
namespace {

// CLI11 describes IsMember as "TEXT:{a,b,c}".
std::vector<std::string> ChoicesOf(const CLI::Option& option) {
  const std::string type = option.get_type_name();
  const size_t begin = type.find(":{"), end = type.rfind('}');
  if (begin == std::string::npos || end == std::string::npos) return {};
  std::vector<std::string> choices;
  for (size_t at = begin + 2; at <= end;) {
    const size_t comma = std::min(type.find(',', at), end);
    choices.push_back(type.substr(at, comma - at));
    at = comma + 1;
  }
  return choices;
}

// Validators that model_arguments.h made have a name.
std::string NamesOf(CLI::Option* option) {
  for (const char* kind : {"stores", "checkpoints", "models"}) {
    try {
      option->get_validator(kind);
      return kind;
    } catch (const CLI::OptionNotFound&) {  // the only way that CLI11 has to ask
    }
  }
  return "";
}

OptionDescription Describe(CLI::Option* option) {
  OptionDescription out;
  out.option = option;
  if (!option->get_lnames().empty()) out.long_name = option->get_lnames().front();
  if (!option->get_snames().empty()) out.short_name = option->get_snames().front();
  if (option->get_positional()) out.positional = option->get_name(/*positional=*/true);
  out.help = option->get_description();
  out.default_text = option->get_default_str();
  out.environment = option->get_envname();
  out.choices = ChoicesOf(*option);
  out.names = NamesOf(option);
  out.takes_value = option->get_items_expected_max() > 0;
  out.required = option->get_required();
  out.repeats = option->get_items_expected_max() > 1;
  return out;
}

// Those of its groups, too, which CLI11 has as subcommands without a name.
void AppendOptions(CLI::App* app, std::vector<OptionDescription>* out) {
  for (CLI::Option* option : app->get_options()) {
    if (option != app->get_help_ptr()) out->push_back(Describe(option));
  }
  for (CLI::App* group : app->get_subcommands([](CLI::App* inner) { return inner->get_name().empty(); })) {
    AppendOptions(group, out);
  }
}

CommandDescription DescribeAt(CLI::App* app, const std::string& path) {
  CommandDescription out;
  out.app = app;
  out.path = path;
  out.help = app->get_description();
  AppendOptions(app, &out.options);
  const auto positionals = std::count_if(out.options.begin(), out.options.end(),
                                         [](const auto& option) { return !option.positional.empty(); });
  for (OptionDescription& option : out.options) {
    option.configurable = option.positional.empty() || positionals == 1;
  }
  for (CLI::App* command : app->get_subcommands([](CLI::App* inner) { return !inner->get_name().empty(); })) {
    const std::string inner = path.empty() ? command->get_name() : path + " " + command->get_name();
    out.commands.push_back(DescribeAt(command, inner));
  }
  return out;
}

void Append(const CommandDescription& command, std::vector<const CommandDescription*>* out) {
  for (const CommandDescription& inner : command.commands) {
    out->push_back(&inner);
    Append(inner, out);
  }
}

}  // namespace

std::string OptionDescription::ConfigName() const {
  if (!long_name.empty()) return long_name;
  std::string name = positional;
  std::transform(name.begin(), name.end(), name.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return name.empty() ? short_name : name;
}

CommandDescription DescribeCommands(CLI::App* app) { return DescribeAt(app, ""); }

std::vector<const CommandDescription*> AllCommands(const CommandDescription& program) {
  std::vector<const CommandDescription*> all;
  Append(program, &all);
  return all;
}

}  // namespace moraine
