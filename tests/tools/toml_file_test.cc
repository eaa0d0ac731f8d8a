#include "toml_file.h"

#include <gtest/gtest.h>

namespace moraine {
namespace {

TEST(TomlFileTest, TablesAndValues) {
  const auto settings = ParseToml(R"(# a comment
top = 1_000   # with blanks
[serve]
store = "/nvme/a # b"
"ignored" = 1
)", "f");
  ASSERT_FALSE(settings.ok());
  EXPECT_EQ(settings.status().message(), "f:5: expected a name, found '\"ignored\" = 1'");
  const auto all = ParseToml(
      "top = 1_000   # with blanks\r\n[ serve ]\nstore = \"/nvme/a # \\\"b\\\"\\\\\"\nadmin=true\n"
      "allowed-host = [ \"a\", 'b\\c' , # one\n  \"d\",\n]\nempty = []\n\n[bench.io]\nshare = -1.5e3",
      "f");
  ASSERT_TRUE(all.ok()) << all.status().ToString();
  ASSERT_EQ(all->size(), 6u);
  const auto is = [&](size_t i, const char* table, const char* key, std::vector<std::string> values,
                      bool is_array, int line) {
    const TomlSetting& s = (*all)[i];
    return s.table == table && s.key == key && s.values == values && s.is_array == is_array && s.line == line;
  };
  EXPECT_TRUE(is(0, "", "top", {"1000"}, false, 1));
  EXPECT_TRUE(is(1, "serve", "store", {"/nvme/a # \"b\"\\"}, false, 3));
  EXPECT_TRUE(is(2, "serve", "admin", {"true"}, false, 4));
  EXPECT_TRUE(is(3, "serve", "allowed-host", {"a", "b\\c", "d"}, true, 5));
  EXPECT_TRUE(is(4, "serve", "empty", {}, true, 8));
  EXPECT_TRUE(is(5, "bench.io", "share", {"-1.5e3"}, false, 11));
  EXPECT_TRUE(ParseToml("", "f")->empty());
}

TEST(TomlFileTest, ErrorsNameTheLine) {
  const std::pair<const char*, const char*> cases[] = {
      {"a = 1\nb", "f:2: expected = after b, found the end of the line"},
      {"a = yes", "f:1: expected a string in quotes, a number, true, false or an array, found 'yes'"},
      {"a = 8GiB", "f:1: expected a string in quotes"},
      {"a =", "f:1: expected a string in quotes"},
      {"a = \"x", "f:1: expected \" at the string's end"},
      {"a = 'x\n'", "f:1: expected ' at the string's end"},
      {"a = \"\\u0041\"", "f:1: expected one of"},
      {"a = \"\"\"x\"\"\"", "f:1: expected a string within one line"},
      {"a = [1 2]", "f:1: expected , or ]"},
      {"a = [1,", "f:1: expected a string"},
      {"a = {b = 1}", "f:1: expected a string"},
      {"a.b = 1", "f:1: expected = after a"},
      {"a = 1 b = 2", "f:1: expected the end of the line, found 'b = 2'"},
      {"[a", "f:1: expected ] after the table's name"},
      {"[[a]]", "f:1: expected a table, not an array of tables"},
      {"[]", "f:1: expected a name"},
      {"[a]\nb = 1\nc = 2\nb = 3", "f:4: b is set twice"},
  };
  for (const auto& [text, message] : cases) {
    const auto settings = ParseToml(text, "f");
    ASSERT_FALSE(settings.ok()) << text;
    EXPECT_EQ(settings.status().message().rfind(message, 0), 0u) << text << ": " << settings.status().message();
  }
}

// Whatever is cut off: an error or fewer settings, and no read beyond the end.
TEST(TomlFileTest, EveryPrefixIsReadOrRefused) {
  const std::string text = "[serve]\nstore = \"/a\\\"b\" # c\nhosts = ['x', \"y\", 3]\nadmin = false\n";
  for (size_t length = 0; length <= text.size(); ++length) {
    const std::string prefix = text.substr(0, length);
    const auto settings = ParseToml(std::string_view(prefix), "f");
    if (settings.ok()) {
      EXPECT_LE(settings->size(), 3u);
    } else {
      EXPECT_EQ(settings.status().message().rfind("f:", 0), 0u);
    }
  }
}

}  // namespace
}  // namespace moraine
