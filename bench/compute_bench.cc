// Speed of the CPU kernels against what this machine's memory gives, and quality of the encodings.
//
//   compute_bench                        GEMV, experts, GEMM and encoding speed
//   compute_bench --quality models/demo  relative error of q8 and q4 on a checkpoint's weights
//
// A GEMV figure is bytes of weights over time, beside the read-only bandwidth measured in the same
// run on the same chunks with the same threads. Both are cut into repetitions of a few milliseconds
// that take turns, over a working set far beyond the last-level cache, and both report their best
// decile: on a machine that others use, the median measures the others. The median is printed too.
#include <immintrin.h>
#include <time.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/random.h"
#include "compute/cpu/isa.h"
#include "compute/cpu_backend.h"
#include "compute/encode.h"
#include "memory/host_arena.h"
#include "memory/topology.h"

namespace moraine {
namespace {

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double ThreadCpuTime() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

struct Rate {
  double best = 0, median = 0;  // best: the 9th decile
};

Rate RateOf(std::vector<double> seconds, double amount) {
  std::sort(seconds.begin(), seconds.end());
  return {amount / seconds[seconds.size() / 10], amount / seconds[seconds.size() / 2]};
}

// Reads every byte once with wide loads, prefetching 2 KiB ahead (without that the hardware's
// prefetcher stops at every 4 KiB and the "peak" is below what a GEMV reaches). The sum keeps the
// compiler from dropping the loads.
__attribute__((target("avx2"))) uint64_t ReadAll(const std::byte* data, size_t bytes) {
  __m256i even = _mm256_setzero_si256(), odd = even;
  for (size_t i = 0; i < bytes; i += 64) {
    const __m256i* p = reinterpret_cast<const __m256i*>(data + i);
    _mm_prefetch(reinterpret_cast<const char*>(p) + 2048, _MM_HINT_T0);
    even = _mm256_xor_si256(even, _mm256_load_si256(p));
    odd = _mm256_xor_si256(odd, _mm256_load_si256(p + 1));
  }
  const __m256i all = _mm256_xor_si256(even, odd);
  return static_cast<uint64_t>(_mm256_extract_epi64(all, 0)) ^
         static_cast<uint64_t>(_mm256_extract_epi64(all, 2));
}

struct Bench {
  HostArena arena;
  int repetitions = 400;
  std::vector<int> thread_counts;
  Topology topology;

  double SecondsToRead(ThreadPool& pool, const std::byte* data, size_t bytes) const {
    constexpr size_t kPart = size_t{1} << 18;
    std::vector<uint64_t> sink(static_cast<size_t>(pool.thread_count()) * 8);
    const double begin = Now();
    pool.ParallelFor(static_cast<uint32_t>(bytes / kPart), [&](uint32_t part, uint32_t thread) {
      sink[thread * 8] ^= ReadAll(data + part * kPart, kPart);
    });
    return Now() - begin;
  }
  // Fills [0, bytes) of the arena with copies of one real panel.
  void FillWithPanels(Encoding encoding, uint32_t cols, uint64_t bytes) const;
  void RunGemv() const;
  void RunExpertDecode() const;
  void RunGemm() const;
  void RunEncode() const;
};

void Bench::FillWithPanels(Encoding encoding, uint32_t cols, uint64_t bytes) const {
  const MatrixView first = MatrixView::Plain(arena.data(), encoding, kTileRows, cols);
  Random random(1);
  std::vector<float> values(size_t{kTileRows} * cols);
  for (float& value : values) value = random.Normal() * 0.02f;
  CHECK(EncodeRows(first, 0, kTileRows, values.data()).ok());
  for (uint64_t at = first.panel_stride; at + first.panel_stride <= bytes;
       at += first.panel_stride) {
    std::memcpy(arena.data() + at, arena.data(), first.panel_stride);
  }
}

std::vector<Isa> Isas() {
  std::vector<Isa> isas;
  for (const Isa isa : {Isa::kAvx2, Isa::kAvxVnni, Isa::kAvx512}) {
    if (IsaSupported(isa)) isas.push_back(isa);
  }
  return isas;
}

void PrintRate(const char* bench, Encoding encoding, Isa isa, int threads, const Rate& rate,
               const Rate& peak) {
  std::printf("%-8s %-5s %-9s %d threads  %6.2f GB/s (median %6.2f)  peak %6.2f (median %6.2f)"
              "  %5.1f %% (median %5.1f %%)\n",
              bench, EncodingName(encoding), IsaName(isa), threads, rate.best / 1e9,
              rate.median / 1e9, peak.best / 1e9, peak.median / 1e9, 100 * rate.best / peak.best,
              100 * rate.median / peak.median);
  std::printf("{\"bench\":\"%s\",\"encoding\":\"%s\",\"isa\":\"%s\",\"threads\":%d,"
              "\"gb_per_s\":%.3f,\"peak_gb_per_s\":%.3f,\"fraction\":%.4f}\n",
              bench, EncodingName(encoding), IsaName(isa), threads, rate.best / 1e9,
              peak.best / 1e9, rate.best / peak.best);
}

void Bench::RunGemv() const {
  constexpr uint32_t kCols = 2048;
  constexpr uint64_t kChunk = uint64_t{4} << 20;
  const uint64_t chunk_count = arena.size_bytes() / kChunk;
  std::vector<float> x(kCols, 0.5f);
  for (const Encoding encoding : {Encoding::kQ4, Encoding::kQ8, Encoding::kBf16}) {
    FillWithPanels(encoding, kCols, arena.size_bytes());
    const uint64_t panel = MatrixBytes(encoding, kTileRows, kCols);
    const uint32_t panels = static_cast<uint32_t>(kChunk / panel);
    const uint64_t bytes = panels * panel;
    std::vector<float> y(panels * kTileRows);
    for (const int threads : thread_counts) {
      ThreadPool pool(topology, {.thread_count = threads});
      for (const Isa isa : Isas()) {
        CpuBackend backend(isa, pool, 1, kCols);
        std::vector<double> gemv_seconds, read_seconds;
        for (int i = 0; i < repetitions; ++i) {
          // Half the working set lies between the two visits of a chunk.
          const uint64_t mine = (static_cast<uint64_t>(i) % chunk_count) * bytes;
          const uint64_t other = ((static_cast<uint64_t>(i) + chunk_count / 2) % chunk_count) * bytes;
          const double begin = Now();
          backend.MatMul(MatrixView::Plain(arena.data() + mine, encoding, panels * kTileRows, kCols),
                         x.data(), kCols, 1, y.data(), y.size());
          gemv_seconds.push_back(Now() - begin);
          read_seconds.push_back(SecondsToRead(pool, arena.data() + other, bytes));
        }
        const double read_bytes = static_cast<double>(bytes >> 18 << 18);
        PrintRate("gemv", encoding, isa, threads,
                  RateOf(gemv_seconds, static_cast<double>(bytes)), RateOf(read_seconds, read_bytes));
      }
    }
  }
}

// The decode step of an MoE layer: one token through 8 experts of 2048 x 768 that are nowhere in
// cache.
void Bench::RunExpertDecode() const {
  constexpr uint32_t kHidden = 2048, kIntermediate = 768, kExperts = 8;
  for (const Encoding encoding : {Encoding::kQ4, Encoding::kQ8, Encoding::kBf16}) {
    const ExpertLayout layout = {encoding, encoding, kHidden, kIntermediate};
    FillWithPanels(encoding, kHidden, arena.size_bytes());
    const uint64_t slots = arena.size_bytes() / layout.record_bytes();
    std::vector<float> x(kHidden, 0.5f), y(kExperts * kHidden);
    const uint32_t row = 0;
    for (const int threads : thread_counts) {
      ThreadPool pool(topology, {.thread_count = threads});
      for (const Isa isa : Isas()) {
        CpuBackend backend(isa, pool, 1, kHidden);
        std::vector<double> expert_seconds, read_seconds;
        uint64_t slot = 0;
        const auto next = [&] {
          slot = (slot + 1) % slots;
          return arena.data() + slot * layout.record_bytes();
        };
        for (int i = 0; i < repetitions; ++i) {
          std::vector<ExpertTask> tasks;
          for (uint32_t e = 0; e < kExperts; ++e) {
            tasks.push_back({ViewExpert(layout, next()), &row, 1, y.data() + e * kHidden});
          }
          const double begin = Now();
          backend.SetExpertInput(x.data(), kHidden, 1, kHidden, encoding);
          backend.RunExperts(tasks);
          expert_seconds.push_back(Now() - begin);
          slot = std::min(slot, slots - kExperts - 1);
          read_seconds.push_back(SecondsToRead(pool, next(), kExperts * layout.record_bytes()));
          slot += kExperts - 1;
        }
        const double read_bytes =
            static_cast<double>(kExperts * layout.record_bytes() >> 18 << 18);
        PrintRate("experts", encoding, isa, threads,
                  RateOf(expert_seconds, static_cast<double>(kExperts * layout.payload_bytes())),
                  RateOf(read_seconds, read_bytes));
      }
    }
  }
}

void Bench::RunGemm() const {
  constexpr uint32_t kRows = 4096, kCols = 2048;
  for (const Encoding encoding : {Encoding::kQ4, Encoding::kQ8, Encoding::kBf16}) {
    FillWithPanels(encoding, kCols, MatrixBytes(encoding, kRows, kCols));
    const MatrixView w = MatrixView::Plain(arena.data(), encoding, kRows, kCols);
    for (const uint32_t tokens : {32u, 128u}) {
      std::vector<float> x(size_t{tokens} * kCols, 0.5f), y(size_t{tokens} * kRows);
      for (const int threads : thread_counts) {
        ThreadPool pool(topology, {.thread_count = threads});
        for (const Isa isa : Isas()) {
          CpuBackend backend(isa, pool, tokens, kCols);
          std::vector<double> seconds;
          for (int i = 0; i < std::max(10, repetitions / 10); ++i) {
            const double begin = Now();
            backend.MatMul(w, x.data(), kCols, tokens, y.data(), kRows);
            seconds.push_back(Now() - begin);
          }
          const Rate rate = RateOf(seconds, 2.0 * kRows * kCols * tokens);
          std::printf("{\"bench\":\"gemm\",\"encoding\":\"%s\",\"isa\":\"%s\",\"threads\":%d,"
                      "\"tokens\":%u,\"gflop_per_s\":%.1f}\n",
                      EncodingName(encoding), IsaName(isa), threads, tokens, rate.best / 1e9);
        }
      }
    }
  }
}

void Bench::RunEncode() const {
  constexpr uint32_t kRows = 512, kCols = 2048;
  Random random(1);
  std::vector<float> values(size_t{kRows} * kCols);
  for (float& value : values) value = random.Normal() * 0.02f;
  for (const Encoding encoding : {Encoding::kQ4, Encoding::kQ8, Encoding::kBf16}) {
    const MatrixView view = MatrixView::Plain(arena.data(), encoding, kRows, kCols);
    std::vector<double> seconds;
    for (int i = 0; i < 20; ++i) {
      const double begin = ThreadCpuTime();
      CHECK(EncodeRows(view, 0, kRows, values.data()).ok());
      seconds.push_back(ThreadCpuTime() - begin);
    }
    std::printf("{\"bench\":\"encode\",\"encoding\":\"%s\",\"isa\":\"%s\",\"threads\":1,"
                "\"source_mb_per_s\":%.0f}\n",
                EncodingName(encoding), IsaName(BestIsa()),
                RateOf(seconds, 2.0 * kRows * kCols).best / 1e6);
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
  CLI::App app{"Speed of the CPU kernels and quality of the encodings"};
  std::string quality;
  double gib = 1.0;
  Bench bench;
  bench.topology = Topology::Detect();
  bench.thread_counts = {1, bench.topology.cpu_count()};
  std::string only;
  app.add_option("--quality", quality, "print the encodings' error on this checkpoint and exit");
  app.add_option("--gib", gib, "working set, GiB; far more than the last-level cache");
  app.add_option("--repetitions", bench.repetitions, "timed repetitions a figure");
  app.add_option("--threads", bench.thread_counts, "thread counts");
  app.add_option("--only", only, "gemv, experts, gemm or encode");
  CLI11_PARSE(app, argc, argv);
  if (!quality.empty()) {
    PrintQuality(quality);
    return 0;
  }
  Result<HostArena> arena = HostArena::Allocate(static_cast<uint64_t>(gib * 0x1p30), {});
  if (!arena.ok()) {
    std::fprintf(stderr, "%s\n", arena.status().ToString().c_str());
    return 1;
  }
  bench.arena = std::move(arena).value();
  std::printf("working set %.2f GiB on %s pages; figures are the best decile of %d repetitions\n",
              gib, PageKindName(bench.arena.page_kind()), bench.repetitions);
  const std::pair<const char*, void (Bench::*)() const> parts[] = {
      {"gemv", &Bench::RunGemv},
      {"experts", &Bench::RunExpertDecode},
      {"gemm", &Bench::RunGemm},
      {"encode", &Bench::RunEncode}};
  for (const auto& [name, part] : parts) {
    if (only.empty() || only == name) (bench.*part)();
  }
  return 0;
}

}  // namespace
}  // namespace moraine

int main(int argc, char** argv) { return moraine::Main(argc, argv); }
