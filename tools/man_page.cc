#include "man_page.h"

#include <fmt/format.h>

#include <algorithm>

namespace moraine {
namespace {

// Text as roff prints it: backslashes, hyphens that are typed, and dots and quotes at a line's beginning,
// which are requests there.
std::string Roff(const std::string& text) {
  std::string out;
  bool line_begins = true;
  for (const char c : text) {
    if (line_begins && (c == '.' || c == '\'')) out += "\\&";
    line_begins = c == '\n';
    if (c == '\\') {
      out += "\\e";
    } else if (c == '-') {
      out += "\\-";
    } else {
      out += c;
    }
  }
  return out;
}

std::string Bold(const std::string& text) { return "\\fB" + Roff(text) + "\\fR"; }
std::string Italic(const std::string& text) { return "\\fI" + Roff(text) + "\\fR"; }

std::string NameOf(const CommandDescription& command) {
  return command.path.empty() ? "moraine" : "moraine " + command.path;
}

std::string Joined(const std::vector<std::string>& words, const char* between) {
  std::string out;
  for (const std::string& word : words) out += (out.empty() ? "" : between) + word;
  return out;
}

// Longer lists than this do not fit the line of an option, which is never broken.
bool ListsChoices(const OptionDescription& option) {
  return option.choices.size() > 1 && Joined(option.choices, "|").size() <= 30;
}

std::string ValueOf(const OptionDescription& option) {
  if (ListsChoices(option)) return Joined(option.choices, "|");
  if (!option.choices.empty()) return "VALUE";
  const std::string type = option.option->get_type_name();
  return type.substr(0, type.find(':'));
}

std::string OptionItem(const OptionDescription& option) {
  std::string term;
  if (!option.positional.empty()) {
    term = Italic(option.positional);
  } else {
    if (!option.short_name.empty()) term += Bold("-" + option.short_name);
    if (!option.long_name.empty()) term += (term.empty() ? "" : ", ") + Bold("--" + option.long_name);
    if (option.takes_value) term += " " + Italic(ValueOf(option));
  }
  std::string out = ".TP\n" + term + "\n" + Roff(option.help);
  if (!option.choices.empty() && !ListsChoices(option)) {
    out += Roff(": " + Joined(option.choices, ", "));
  }
  if (!option.default_text.empty()) out += Roff(" (default: " + option.default_text + ")");
  if (!option.environment.empty()) out += Roff(". Environment: " + option.environment);
  return out + "\n";
}

std::string Synopsis(const CommandDescription& command) {
  std::string out = Bold(NameOf(command));
  const bool has_options = std::any_of(command.options.begin(), command.options.end(),
                                       [](const auto& option) { return option.positional.empty(); });
  if (has_options) out += " [" + Italic("OPTIONS") + "]";
  for (const OptionDescription& option : command.options) {
    if (option.positional.empty()) continue;
    const std::string word = Italic(option.positional) + (option.repeats ? "..." : "");
    out += option.required ? " " + word : " [" + word + "]";
  }
  if (!command.commands.empty()) out += " " + Italic("COMMAND") + " ...";
  return out;
}

}  // namespace

std::string ManPageName(const CommandDescription& command) {
  std::string name = NameOf(command);
  std::replace(name.begin(), name.end(), ' ', '-');
  return name;
}

std::string ManPage(const CommandDescription& program, const CommandDescription& command,
                    const std::string& version) {
  std::string title = ManPageName(command);
  std::transform(title.begin(), title.end(), title.begin(),
                 [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  const std::string summary = command.help.substr(0, command.help.find('\n'));
  std::string out = fmt::format(".TH \"{}\" 1 \"\" \"moraine {}\" \"Moraine\"\n.SH NAME\n{} \\- {}\n", title,
                                version, Roff(ManPageName(command)), Roff(summary));
  out += ".SH SYNOPSIS\n" + Synopsis(command) + "\n.SH DESCRIPTION\n" + Roff(command.help) + "\n";
  if (!command.commands.empty()) out += ".SH COMMANDS\n";
  for (const CommandDescription& inner : command.commands) {
    out += ".TP\n" + Bold(inner.app->get_name()) + "\n" + Roff(inner.help) + "\n";
  }
  if (!command.options.empty()) out += ".SH OPTIONS\n";
  for (const OptionDescription& option : command.options) out += OptionItem(option);
  out += ".SH EXIT STATUS\n0: success. 1: the operation failed, and standard error says why. 2: the command "
         "line or the configuration file was wrong.\n";
  out += ".SH SEE ALSO\n";
  std::string others;
  if (&command != &program) others = Bold("moraine") + "(1)";
  for (const CommandDescription& inner : command.commands) {
    others += (others.empty() ? "" : ", ") + Bold(ManPageName(inner)) + "(1)";
  }
  return out + others + "\n";
}

}  // namespace moraine
