#include "engine/text_assembler.h"

#include <gtest/gtest.h>

#include "test_store.h"

namespace moraine {
namespace {

const Tokenizer& DemoTokenizer() {
  static const auto tokenizer = Tokenizer::FromFiles(DemoModelPath() + "/tokenizer.json",
                                                     DemoModelPath() + "/tokenizer_config.json");
  return *tokenizer;
}

// Feeds the tokens of `text`; returns what came out before the end, and all of it.
struct Output {
  std::vector<std::string> pieces;
  std::string all, stopped_by;
};
Output Assemble(const std::string& text, std::vector<std::string> stop) {
  TextAssembler assembler(&DemoTokenizer(), std::move(stop));
  Output output;
  const auto ids = DemoTokenizer().Encode(text);
  CHECK(ids.ok(), ids.status().message());
  for (const int32_t token : *ids) {
    output.pieces.push_back(assembler.Push(token));
    output.all += output.pieces.back();
  }
  output.all += assembler.Flush();
  output.stopped_by = assembler.stopped_by();
  return output;
}

TEST(TextAssembler, PassesTextThrough) {
  EXPECT_EQ(Assemble("Once upon a time", {}).all, "Once upon a time");
}

TEST(TextAssembler, NeverSendsHalfACharacter) {
  // Each byte of these is a token of its own in the demo tokenizer.
  const Output output = Assemble("日本語 é", {});
  EXPECT_EQ(output.all, "日本語 é");
  for (const std::string& piece : output.pieces) {
    EXPECT_TRUE(piece.empty() || (static_cast<unsigned char>(piece[0]) & 0xC0) != 0x80) << piece;
  }
}

TEST(TextAssembler, StopStringAndWhatFollowsAreCut) {
  const Output output = Assemble("one two three four", {"three"});
  EXPECT_EQ(output.all, "one two ");
  EXPECT_EQ(output.stopped_by, "three");
}

TEST(TextAssembler, TheEarliestStopStringWins) {
  EXPECT_EQ(Assemble("a b c d e", {"d", "b"}).all, "a ");
}

TEST(TextAssembler, APrefixOfAStopStringIsHeldBackAndReleased) {
  const Output output = Assemble("ab abc abd", {"abde"});
  EXPECT_EQ(output.all, "ab abc abd");
  EXPECT_TRUE(output.stopped_by.empty());
  // The last piece could still have become the stop string, so it came only with Flush.
  EXPECT_TRUE(output.pieces.back().empty() || output.pieces.back().find("abd") == std::string::npos);
}

}  // namespace
}  // namespace moraine
