#include "toml_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <set>

namespace moraine {
namespace {

bool IsBareKeyCharacter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
}

// One file, from front to back.
class TomlParser {
 public:
  TomlParser(std::string_view text, const std::string& name) : text_(text), name_(name) {}

  Result<std::vector<TomlSetting>> Parse() {
    std::vector<TomlSetting> settings;
    std::set<std::string> seen;
    std::string table;
    for (SkipBlank(true); !AtEnd(); SkipBlank(true)) {
      if (Take('[')) {
        if (Peek() == '[') return Expected("a table, not an array of tables");
        RETURN_IF_ERROR(ReadTable(&table));
      } else {
        TomlSetting& setting = settings.emplace_back();
        setting.table = table;
        setting.line = line_;
        RETURN_IF_ERROR(ReadSetting(&setting));
        if (!seen.insert(table + "\n" + setting.key).second) {
          return InvalidArgument(fmt::format("{}:{}: {} is set twice", name_, setting.line, setting.key));
        }
      }
      SkipBlank(false);
      if (!AtEnd() && Peek() != '\n') return Expected("the end of the line");
    }
    return settings;
  }

 private:
  bool AtEnd() const { return at_ >= text_.size(); }
  char Peek() const { return AtEnd() ? '\0' : text_[at_]; }
  bool Take(char c) {
    if (AtEnd() || text_[at_] != c) return false;
    ++at_;
    if (c == '\n') ++line_;
    return true;
  }
  // Blanks and comments; lines' ends, too, if asked for.
  void SkipBlank(bool lines) {
    for (;;) {
      if (Peek() == '#') at_ = std::min(text_.find('\n', at_), text_.size());
      const bool skipped = Take(' ') || Take('\t') || Take('\r') || (lines && Take('\n'));
      if (!skipped) return;
    }
  }
  Status Expected(std::string_view what) const {
    const std::string_view rest = text_.substr(std::min(at_, text_.size()));
    const std::string found(rest.substr(0, std::min<size_t>(rest.find('\n'), 20)));
    return InvalidArgument(fmt::format("{}:{}: expected {}, found {}", name_, line_, what,
                                       found.empty() ? "the end of the line" : "'" + found + "'"));
  }

  Status ReadKey(std::string* key) {
    const size_t begin = at_;
    while (IsBareKeyCharacter(Peek())) ++at_;
    *key = text_.substr(begin, at_ - begin);
    return key->empty() ? Expected("a name") : OkStatus();
  }

  Status ReadTable(std::string* table) {
    table->clear();
    do {
      std::string part;
      SkipBlank(false);
      RETURN_IF_ERROR(ReadKey(&part));
      SkipBlank(false);
      *table += (table->empty() ? "" : ".") + part;
    } while (Take('.'));
    return Take(']') ? OkStatus() : Expected("] after the table's name");
  }

  Status ReadSetting(TomlSetting* setting) {
    RETURN_IF_ERROR(ReadKey(&setting->key));
    SkipBlank(false);
    if (!Take('=')) return Expected("= after " + setting->key);
    SkipBlank(false);
    setting->is_array = Take('[');
    if (!setting->is_array) return ReadValue(&setting->values.emplace_back());
    for (;;) {
      SkipBlank(true);
      if (Take(']')) return OkStatus();
      RETURN_IF_ERROR(ReadValue(&setting->values.emplace_back()));
      SkipBlank(true);
      if (!Take(',') && Peek() != ']') return Expected(", or ] after a value");
    }
  }

  Status ReadValue(std::string* value) {
    if (text_.substr(at_).starts_with("\"\"\"") || text_.substr(at_).starts_with("'''")) {
      return Expected("a string within one line");
    }
    if (Take('"')) return ReadString(value);
    if (Take('\'')) {
      const size_t end = text_.find_first_of("'\n", at_);
      if (end == std::string_view::npos || text_[end] == '\n') return Expected("' at the string's end");
      *value = text_.substr(at_, end - at_);
      at_ = end + 1;
      return OkStatus();
    }
    const size_t begin = at_;
    while (IsBareKeyCharacter(Peek()) || Peek() == '.' || Peek() == '+') ++at_;
    std::string word(text_.substr(begin, at_ - begin));
    if (word != "true" && word != "false") {
      std::erase(word, '_');  // 1_000
      double number = 0;
      const char* first = word.data() + (word.starts_with('+') ? 1 : 0);
      const char* last = word.data() + word.size();
      const auto [end, error] = std::from_chars(first, last, number);
      if (word.empty() || error != std::errc() || end != last) {
        at_ = begin;
        return Expected("a string in quotes, a number, true, false or an array");
      }
    }
    *value = std::move(word);
    return OkStatus();
  }

  Status ReadString(std::string* value) {
    while (!Take('"')) {
      const char c = Peek();
      if (AtEnd() || c == '\n') return Expected("\" at the string's end");
      ++at_;
      if (c != '\\') {
        *value += c;
        continue;
      }
      static constexpr std::string_view kNames = "\"\\nt", kCharacters = "\"\\\n\t";
      const size_t escape = kNames.find(Peek());
      if (AtEnd() || escape == std::string_view::npos) return Expected("one of \" \\ n t after \\");
      *value += kCharacters[escape];
      ++at_;
    }
    return OkStatus();
  }

  std::string_view text_;
  const std::string& name_;
  size_t at_ = 0;
  int line_ = 1;
};

}  // namespace

Result<std::vector<TomlSetting>> ParseToml(std::string_view text, const std::string& name) {
  return TomlParser(text, name).Parse();
}

}  // namespace moraine
