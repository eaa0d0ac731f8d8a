#include "completion.h"

#include <fmt/format.h>

namespace moraine {
namespace {

// In single quotes, for all three shells.
std::string Quoted(const std::string& text) {
  std::string out = "'";
  for (const char c : text) {
    if (c == '\'') {
      out += "'\\''";
    } else {
      out += c;
    }
  }
  return out + "'";
}

std::string Joined(const std::vector<std::string>& words) {
  std::string out;
  for (const std::string& word : words) out += (out.empty() ? "" : " ") + word;
  return out;
}

std::vector<std::string> WordsOf(const CommandDescription& command) {
  std::vector<std::string> words;
  for (const CommandDescription& inner : command.commands) words.push_back(inner.app->get_name());
  for (const OptionDescription& option : command.options) {
    if (!option.long_name.empty()) words.push_back("--" + option.long_name);
    if (!option.short_name.empty()) words.push_back("-" + option.short_name);
  }
  words.push_back("--help");
  return words;
}

// Values for the word after an option, by "PATH --option"; options whose values are not known complete to
// files.
std::string BashValues(const CommandDescription& command) {
  std::string out;
  for (const OptionDescription& option : command.options) {
    if (!option.takes_value || option.long_name.empty()) continue;
    const std::string values = option.choices.empty()
                                   ? "COMPREPLY=($(compgen -f -- \"$word\"))"
                                   : fmt::format("COMPREPLY=($(compgen -W {} -- \"$word\"))",
                                                 Quoted(Joined(option.choices)));
    out += fmt::format("    {}) {}; return ;;\n", Quoted(command.path + " --" + option.long_name), values);
  }
  return out;
}

// What of `moraine models` a command takes for an argument without a dash; empty: nothing.
std::string NamesOf(const CommandDescription& command) {
  for (const OptionDescription& option : command.options) {
    if (!option.positional.empty() && !option.names.empty()) return option.names;
  }
  return "";
}

}  // namespace

// The words before the cursor that are commands make the path; the rest is the path's options, names of models
// that are here, or files. Names have colons, at which bash divides words: what is typed is taken from the line,
// and what is before its last colon is on the line already.
std::string BashCompletion(const CommandDescription& program) {
  std::string paths, values = BashValues(program), words, names;
  for (const CommandDescription* command : AllCommands(program)) {
    paths += fmt::format("      {}) path=\"$next\" ;;\n", Quoted(command->path));
    values += BashValues(*command);
    words += fmt::format("    {}) words={} ;;\n", Quoted(command->path), Quoted(Joined(WordsOf(*command))));
    if (const std::string kind = NamesOf(*command); !kind.empty()) {
      names += fmt::format("    {}) names={} ;;\n", Quoted(command->path), kind);
    }
  }
  return fmt::format(R"sh(# bash completion of moraine; made by `moraine completion bash`
_moraine() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" path="" next words i
  local names="" typed="${{COMP_LINE:0:COMP_POINT}}" found known
  typed="${{typed##*[[:space:]]}}"
  for ((i = 1; i < COMP_CWORD; ++i)); do
    next="${{path:+$path }}${{COMP_WORDS[i]}}"
    case "$next" in
{}    esac
  done
  case "$path $before" in
{}  esac
  case "$path" in
    '') words={} ;;
{}  esac
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  if [[ "$word" == -* || -z "$path" ]]; then return; fi
  case "$path" in
{}  esac
  if [[ -n "$names" ]]; then
    known="$("${{COMP_WORDS[0]/#\~/$HOME}}" models --names "$names" --beginning "$typed" 2> /dev/null)"
    while IFS= read -r found; do
      if [[ -z "$found" ]]; then continue; fi
      if [[ "$typed" == *:* && "$COMP_WORDBREAKS" == *:* ]]; then found="${{found#"${{typed%:*}}:"}}"; fi
      COMPREPLY+=("$found")
    done <<< "$known"
    # Else a name's colons would be written with backslashes.
    if [[ -n "$known" ]]; then compopt +o filenames 2> /dev/null; fi
  fi
  COMPREPLY+=($(compgen -f -- "$word"))
}}
complete -o filenames -F _moraine moraine
)sh",
                     paths, values, Quoted(Joined(WordsOf(program))), words, names);
}

std::string ZshCompletion(const CommandDescription& program) {
  // zsh reads bash's completions; what is lost are only the descriptions.
  return "# zsh completion of moraine; made by `moraine completion zsh`, to be sourced after compinit\n"
         "autoload -U +X bashcompinit && bashcompinit\n" +
         BashCompletion(program);
}

std::string FishCompletion(const CommandDescription& program) {
  std::string out =
      "# fish completion of moraine; made by `moraine completion fish`\n"
      "function __moraine_path\n"
      "  # The commands on the line so far, which is all that begins without a dash before the cursor.\n"
      "  string join ' ' -- (commandline -opc)[2..] | string match -q -r -- \"^$argv[1]( |\\$)\"\n"
      "end\n";
  const auto first_line = [](const std::string& text) { return text.substr(0, text.find('\n')); };
  for (const CommandDescription& command : program.commands) {
    out += fmt::format("complete -c moraine -n __fish_use_subcommand -f -a {} -d {}\n",
                       command.app->get_name(), Quoted(first_line(command.help)));
  }
  for (const CommandDescription* command : AllCommands(program)) {
    const std::string when = Quoted("__moraine_path " + Quoted(command->path));
    for (const CommandDescription& inner : command->commands) {
      out += fmt::format("complete -c moraine -n {} -f -a {} -d {}\n", when, inner.app->get_name(),
                         Quoted(first_line(inner.help)));
    }
    if (const std::string names = NamesOf(*command); !names.empty()) {
      out += fmt::format("complete -c moraine -n {} -a '(moraine models --names {} --beginning "
                         "(commandline -ct) 2> /dev/null)' -d model\n", when, names);
    }
    for (const OptionDescription& option : command->options) {
      if (option.long_name.empty()) continue;
      out += fmt::format("complete -c moraine -n {} -l {}{}{}{} -d {}\n", when, option.long_name,
                         option.short_name.empty() ? "" : " -s " + option.short_name,
                         option.takes_value ? " -r" : "",
                         option.choices.empty() ? "" : " -f -a " + Quoted(Joined(option.choices)),
                         Quoted(first_line(option.help)));
    }
  }
  return out;
}

}  // namespace moraine
