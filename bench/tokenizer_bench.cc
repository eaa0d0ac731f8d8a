// Encoding speed on one core: tokenizer_bench TOKENIZER_DIR TEXT_FILE... prints a JSON line with MB/s
// of UTF-8 text, the best of several passes, with the word cache warm as in a running server. Time is
// the thread's CPU time: encoding is one thread that never waits, and other load must not count.
#include <algorithm>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <iterator>
#include <string>

#include "model/tokenizer/tokenizer.h"

namespace {

double ThreadCpuSeconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: %s TOKENIZER_DIR TEXT_FILE...\n", argv[0]);
    return 2;
  }
  const std::string directory = argv[1];
  const auto tokenizer = moraine::Tokenizer::FromFiles(directory + "/tokenizer.json", "");
  if (!tokenizer.ok()) {
    std::fprintf(stderr, "%s\n", tokenizer.status().ToString().c_str());
    return 1;
  }
  std::string text;
  for (int i = 2; i < argc; ++i) {
    std::ifstream file(argv[i], std::ios::binary);
    if (!file) {
      std::fprintf(stderr, "cannot read %s\n", argv[i]);
      return 1;
    }
    text.append(std::istreambuf_iterator<char>(file), {});
  }
  double best_s = 1e9;
  size_t id_count = 0;
  for (int pass = 0; pass < 7; ++pass) {
    const double start_s = ThreadCpuSeconds();
    const auto ids = tokenizer->Encode(text);
    const double elapsed_s = ThreadCpuSeconds() - start_s;
    if (!ids.ok()) {
      std::fprintf(stderr, "%s\n", ids.status().ToString().c_str());
      return 1;
    }
    id_count = ids->size();
    best_s = std::min(best_s, elapsed_s);
  }
  std::printf("{\"benchmark\":\"tokenizer_encode\",\"text_bytes\":%zu,\"ids\":%zu,\"mb_per_s\":%.2f}\n",
              text.size(), id_count, static_cast<double>(text.size()) / best_s / 1e6);
}
