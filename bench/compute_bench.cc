// Speed of encoding, and quality of the encodings. (The kernels' speed: moraine bench kernels.)
//
//   compute_bench                        encoding speed, one thread
//   compute_bench --quality models/demo  relative error of q8 and q4 on a checkpoint's weights
#include <time.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/random.h"
#include "compute/aligned_array.h"
#include "compute/cpu/isa.h"
#include "compute/cpu_backend.h"
#include "compute/encode.h"

namespace moraine {
namespace {

double ThreadCpuTime() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

// Source bytes over thread CPU time, the best decile: a figure of one thread, whoever else is there.
void RunEncode() {
  constexpr uint32_t kRows = 512, kCols = 2048;
  Random random(1);
  std::vector<float> values(size_t{kRows} * kCols);
  for (float& value : values) value = random.Normal() * 0.02f;
  for (const Encoding encoding : {Encoding::kQ4, Encoding::kQ8, Encoding::kBf16}) {
    AlignedArray<std::byte> bytes(MatrixBytes(encoding, kRows, kCols));
    const MatrixView view = MatrixView::Plain(bytes.data(), encoding, kRows, kCols);
    std::vector<double> seconds;
    for (int i = 0; i < 20; ++i) {
      const double begin = ThreadCpuTime();
      CHECK(EncodeRows(view, 0, kRows, values.data()).ok());
      seconds.push_back(ThreadCpuTime() - begin);
    }
    std::sort(seconds.begin(), seconds.end());
    std::printf("{\"bench\":\"encode\",\"encoding\":\"%s\",\"isa\":\"%s\",\"threads\":1,"
                "\"source_mb_per_s\":%.0f}\n",
                EncodingName(encoding), IsaName(BestIsa()),
                2.0 * kRows * kCols / seconds[seconds.size() / 10] / 1e6);
  }
}

struct Tensor {
  std::string name;
  uint32_t rows = 0, cols = 0;
  std::vector<float> values;
};

// The two-dimensional BF16 tensors of a safetensors file.
void ReadTensors(const std::filesystem::path& path, std::vector<Tensor>* tensors) {
  std::ifstream file(path, std::ios::binary);
  uint64_t header_bytes = 0;
  file.read(reinterpret_cast<char*>(&header_bytes), 8);
  std::string header(header_bytes, '\0');
  file.read(header.data(), static_cast<std::streamsize>(header_bytes));
  CHECK(file.good(), path.string());
  const nlohmann::json entries = nlohmann::json::parse(header);
  for (const auto& [name, entry] : entries.items()) {
    if (!entry.contains("dtype") || entry["dtype"] != "BF16" || entry["shape"].size() != 2) continue;
    Tensor tensor{name, entry["shape"][0], entry["shape"][1], {}};
    std::vector<uint16_t> bits(size_t{tensor.rows} * tensor.cols);
    file.seekg(static_cast<std::streamoff>(8 + header_bytes +
                                           entry["data_offsets"][0].get<uint64_t>()));
    file.read(reinterpret_cast<char*>(bits.data()), static_cast<std::streamsize>(bits.size() * 2));
    CHECK(file.good(), path.string());
    for (const uint16_t b : bits) tensor.values.push_back(Bf16ToFloat(b));
    tensors->push_back(std::move(tensor));
  }
}

// Squared error of one group under the best of the candidate scales, in double: the plain statement
// of what EncodeRows does, for any group size.
double GroupError(const float* x, uint32_t count, const ScaleSearch& search) {
  double extreme = 0;
  for (uint32_t i = 0; i < count; ++i) {
    if (std::fabs(x[i]) > std::fabs(extreme)) extreme = x[i];
  }
  if (extreme == 0) return 0;
  double best = 1e300;
  for (int k = -search.steps; k <= search.steps; ++k) {
    const double inverse = (search.nominal + k * search.step) / extreme;
    double xn = 0, nn = 0;
    std::vector<double> codes(count);
    for (uint32_t i = 0; i < count; ++i) {
      codes[i] = std::clamp<double>(std::nearbyint(x[i] * inverse), search.low, search.high);
      xn += codes[i] * x[i];
      nn += codes[i] * codes[i];
    }
    // Without a search the scale is the nominal one, as in GGUF; with it, the least-squares one.
    const double wanted = search.steps == 0 ? 1 / inverse : xn / nn;
    const double scale = F16ToFloat(FloatToF16(static_cast<float>(wanted)));
    double error = 0;
    for (uint32_t i = 0; i < count; ++i) error += std::pow(x[i] - scale * codes[i], 2.0);
    best = std::min(best, error);
  }
  return best;
}

void PrintQuality(const std::string& directory) {
  std::vector<Tensor> tensors;
  for (const auto& file : std::filesystem::directory_iterator(directory)) {
    if (file.path().extension() == ".safetensors") ReadTensors(file.path(), &tensors);
  }
  CHECK(!tensors.empty(), "no two-dimensional BF16 tensor in " + directory);
  double power = 0;
  for (const Tensor& tensor : tensors) {
    for (const float value : tensor.values) power += double{value} * value;
  }
  std::printf("%zu tensors of %s\n\n| codes | group | scale | relative RMS error | bits a weight |\n"
              "|---|---|---|---|---|\n",
              tensors.size(), directory.c_str());
  for (const bool q8 : {true, false}) {
    for (const uint32_t group : {32u, 64u}) {
      for (const int steps : {0, 2, 9}) {
        const ScaleSearch search = q8 ? ScaleSearch{-127, 127, 127, 0.5f, steps, 1e6f}
                                      : ScaleSearch{-8, 7, -8, 0.1f, steps, 1e6f};
        double error = 0;
        for (const Tensor& tensor : tensors) {
          for (size_t i = 0; i < tensor.values.size(); i += group) {
            const size_t left = std::min<size_t>(group, tensor.values.size() - i);
            error += GroupError(&tensor.values[i], static_cast<uint32_t>(left), search);
          }
        }
        std::printf("| %s | %u | %s | %.4f %% | %.2f |\n", q8 ? "int8" : "int4", group,
                    steps == 0   ? "extreme / last code"
                    : steps == 2 ? "best of 5, least squares"
                                 : "best of 19, least squares",
                    100 * std::sqrt(error / power), (q8 ? 8 : 4) + 16.0 / group);
      }
    }
    const Encoding encoding = q8 ? Encoding::kQ8 : Encoding::kQ4;
    double error = 0;
    for (const Tensor& tensor : tensors) {
      std::vector<std::byte> storage(MatrixBytes(encoding, tensor.rows, tensor.cols));
      const MatrixView view = MatrixView::Plain(storage.data(), encoding, tensor.rows, tensor.cols);
      CHECK(EncodeRows(view, 0, tensor.rows, tensor.values.data()).ok(), tensor.name);
      std::vector<float> row(tensor.cols);
      for (uint32_t r = 0; r < tensor.rows; ++r) {
        DecodeRow(view, r, row.data());
        for (uint32_t c = 0; c < tensor.cols; ++c) {
          error += std::pow(row[c] - tensor.values[size_t{r} * tensor.cols + c], 2.0);
        }
      }
    }
    std::printf("| **%s as EncodeRows writes it** | 32 | | **%.4f %%** | %.2f |\n",
                EncodingName(encoding), 100 * std::sqrt(error / power), (q8 ? 8 : 4) + 0.5);
  }
}

int Main(int argc, char** argv) {
  CLI::App app{"Speed of encoding and quality of the encodings"};
  std::string quality;
  app.add_option("--quality", quality, "print the encodings' error on this checkpoint and exit");
  CLI11_PARSE(app, argc, argv);
  if (quality.empty()) {
    RunEncode();
  } else {
    PrintQuality(quality);
  }
  return 0;
}

}  // namespace
}  // namespace moraine

int main(int argc, char** argv) { return moraine::Main(argc, argv); }
