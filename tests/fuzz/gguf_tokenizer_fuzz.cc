// The input is the metadata of a GGUF as JSON: it is refused with a status, or becomes files that our
// own reader takes or refuses with a status.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "model/tokenizer/gguf_tokenizer.h"
#include "model/tokenizer/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace moraine;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const auto files = TokenizerFromGguf(input, "fuzz.gguf");
  if (!files.ok()) return 0;
  const Result<Tokenizer> tokenizer =
      Tokenizer::FromContents(files->tokenizer_json, files->tokenizer_config_json);
  if (tokenizer.ok()) (void)tokenizer->Encode("I'm 12 naïve 中文\n", {});
  return 0;
}
