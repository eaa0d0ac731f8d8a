// moraine bench kernels: what the CPU kernels reach of what this machine gives, in one run.
//
// GEMV (1 to 8 tokens) is bound by memory: bytes of weights over time, beside a read-only stream
// over the same bytes elsewhere in the working set. GEMM (more tokens) is bound by arithmetic:
// operations over time, beside a loop of the same instructions in registers. Kernels of all ISAs
// and the peaks take turns, repetition by repetition, on the same threads; every figure is a median.
// The weights lie in a working set far beyond the caches on huge pages, and every repetition takes
// the next of them. On a machine that others use --cpu-time counts the process's CPU time instead
// of the wall's: what threads reach that nobody interrupts (a wait over 50 us sleeps, and is free).
//
// Attention is the same: a token reads all keys and values of a layer, many tokens use each many
// times (beside the loop of fused multiply-adds); its `encoding` is the format of the KV cache.
//
// A JSON line is {"bench":..,"encoding":..,"isa":..,"threads":..,"gb_per_s":..,
// "peak_gb_per_s":..,"fraction":..} (gemm: tops, peak_tops), then which matrix and how many tokens.
#include <fmt/format.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>

#include "base/random.h"
#include "commands.h"
#include "common_options.h"
#include "compute/cpu/isa.h"
#include "compute/cpu/peak.h"
#include "compute/random_tiles.h"
#include "io/read_measurement.h"
#include "memory/host_arena.h"

namespace moraine {
namespace {

// Qwen3-30B-A3B: the experts of one token, and its largest dense matrix but the vocabulary.
constexpr uint32_t kHidden = 2048, kIntermediate = 768, kTopK = 8;
constexpr uint32_t kDenseRows = 4096;
constexpr uint32_t kQueryHeads = 32, kKvHeads = 4, kHeadDim = 128;
constexpr uint32_t kMaxTokens = 512;
// Experts a GEMM repetition: some 10 ms, so that a region's ends do not show.
constexpr uint32_t kGemmExperts = 2;

struct BenchKernelsArguments {
  int threads = 0;
  double gib = 1;
  uint32_t repetitions = 60;
  std::vector<std::string> isas, encodings = {"q4", "q8", "bf16"};
  std::vector<uint32_t> tokens = {1, 2, 4, 8, 128, 512};
  std::vector<std::string> kv_formats = {"f32"};
  uint32_t positions = 2048;
  std::string matrix;
  bool cpu_time = false, json = false;
};

// What is compared within one repetition: one kernel call an ISA and, for each, a peak.
struct Contender {
  Isa isa;
  std::unique_ptr<CpuBackend> backend;
  std::vector<double> seconds, peak_rates;
};

class KernelBench {
 public:
  explicit KernelBench(const BenchKernelsArguments& arguments)
      : arguments_(arguments),
        pool_(Topology::Detect(), {.thread_count = arguments.threads}),
        x_(size_t{kMaxTokens} * std::max(kHidden, kQueryHeads * kHeadDim)),
        y_(size_t{kMaxTokens} * std::max(kDenseRows, kTopK * kHidden)),
        token_rows_(kMaxTokens) {
    Random random(1);
    for (float& value : x_) value = random.Normal();
    std::iota(token_rows_.begin(), token_rows_.end(), 0);
  }

  Status Run() {
    for (const Isa isa : kAllIsas) {
      if (isa == Isa::kScalar) continue;
      const bool wanted = arguments_.isas.empty() ||
                          std::count(arguments_.isas.begin(), arguments_.isas.end(), IsaName(isa));
      if (!wanted) continue;
      if (!arguments_.isas.empty()) RETURN_IF_ERROR(ChooseIsa(IsaName(isa)).status());
      if (!IsaSupported(isa)) continue;
      contenders_.push_back(
          {isa, std::make_unique<CpuBackend>(isa, pool_, kMaxTokens, kHidden), {}, {}});
    }
    if (contenders_.empty()) return Unsupported("this CPU lacks AVX2: there is nothing to measure");
    ASSIGN_OR_RETURN(arena_,
                     HostArena::Allocate(static_cast<uint64_t>(arguments_.gib * 0x1p30), {}));
    MeasureBarrier();
    if (!arguments_.json) PrintHeader();
    for (const std::string& name : arguments_.encodings) {
      const Encoding encoding = *ParseEncoding(name);
      if (arguments_.matrix == "attention") break;
      const uint64_t tile = TileBytes(encoding);
      FillRandomTiles(encoding, 0.02f, 1, arena_.span().first(arena_.size_bytes() / tile * tile));
      for (const char* matrix : {"experts", "dense"}) {
        if (!arguments_.matrix.empty() && arguments_.matrix != matrix) continue;
        for (const uint32_t tokens : arguments_.tokens) {
          const Work work = matrix == std::string("dense") ? DenseWork(encoding, tokens)
                                                           : ExpertWork(encoding, tokens);
          Measure(work, EncodingName(encoding), matrix, tokens);
        }
      }
    }
    if (!arguments_.matrix.empty() && arguments_.matrix != "attention") return OkStatus();
    for (const std::string& name : arguments_.kv_formats) {
      const KvFormat format = *ParseKvFormat(name);
      const uint64_t bytes = FillWithKeysAndValues(format);
      if (bytes > arena_.size_bytes()) {
        return InvalidArgument(fmt::format("--gib {}: {} positions of {} take {} bytes",
                                           arguments_.gib, arguments_.positions, name, bytes));
      }
      for (const uint32_t tokens : arguments_.tokens) {
        Measure(AttentionWork(format, tokens), KvFormatName(format), "attention", tokens);
      }
    }
    return OkStatus();
  }

 private:
  // Seconds, of the wall or of one of the threads on average.
  double Now() const {
    timespec now;
    clock_gettime(arguments_.cpu_time ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &now);
    const double seconds = static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
    return arguments_.cpu_time ? seconds / pool_.thread_count() : seconds;
  }

  // One kernel call on the weights at `place`; the bytes and operations of it.
  struct Work {
    std::function<void(CpuBackend&, const std::byte* place)> run;
    uint64_t bytes = 0;       // of weights, or of keys and values
    double operations = 0;
    PeakWork peak = PeakWork::kFloatFma;  // the instructions of many tokens
  };
  static PeakWork PeakOf(Encoding encoding) {
    return encoding == Encoding::kBf16 ? PeakWork::kFloatFma : PeakWork::kInt8Dot;
  }

  Work ExpertWork(Encoding encoding, uint32_t tokens) {
    const ExpertLayout layout = {encoding, encoding, kHidden, kIntermediate};
    const uint32_t experts = tokens > 8 ? kGemmExperts : kTopK;
    Work work;
    work.bytes = experts * layout.record_bytes();
    work.operations = 2.0 * 3 * kHidden * kIntermediate * experts * tokens;
    work.peak = PeakOf(encoding);
    work.run = [this, layout, experts, tokens, encoding](CpuBackend& backend,
                                                         const std::byte* place) {
      ExpertTask tasks[kTopK];
      for (uint32_t e = 0; e < experts; ++e) {
        tasks[e] = {ViewExpert(layout, place + e * layout.record_bytes()), token_rows_.data(),
                    tokens, y_.data() + size_t{e} * tokens * kHidden};
      }
      backend.SetExpertInput(x_.data(), kHidden, tokens, kHidden, encoding);
      backend.RunExperts({tasks, experts});
    };
    return work;
  }

  Work DenseWork(Encoding encoding, uint32_t tokens) {
    Work work;
    work.bytes = MatrixBytes(encoding, kDenseRows, kHidden);
    work.operations = 2.0 * kDenseRows * kHidden * tokens;
    work.peak = PeakOf(encoding);
    work.run = [this, tokens, encoding](CpuBackend& backend, const std::byte* place) {
      backend.MatMul(MatrixView::Plain(place, encoding, kDenseRows, kHidden), x_.data(), kHidden,
                     tokens, y_.data(), kDenseRows);
    };
    return work;
  }

  // Of a head's keys, or of its values: whole blocks, as fp8 has them.
  size_t PlaneBytes(KvFormat format) const {
    return AlignUp(arguments_.positions, kKvBlockPositions) * KvHeadBytes(format, kHeadDim);
  }

  // One layer's keys and values again and again. Returns the bytes of one copy; if that is more
  // than the arena has, nothing is written.
  uint64_t FillWithKeysAndValues(KvFormat format) {
    const size_t plane = PlaneBytes(format);
    const uint64_t step = AlignUp(2 * kKvHeads * plane, 4096);
    if (step > arena_.size_bytes()) return step;
    Random random(1);
    std::vector<float> position(kKvHeads * kHeadDim);
    const KvStrides strides = {KvHeadBytes(format, kHeadDim), 2 * plane};
    for (uint32_t p = 0; p < 2 * arguments_.positions; ++p) {
      for (float& value : position) value = random.Normal();
      EncodeKv(format, position.data(), 0, 1, kKvHeads, kHeadDim,
               {arena_.data() + p % 2 * plane, strides, p / 2});
    }
    for (uint64_t i = 1; i < arena_.size_bytes() / step; ++i) {
      std::memcpy(arena_.data() + i * step, arena_.data(), step);
    }
    return step;
  }

  // The last `tokens` of `positions`; of a head its keys, then its values.
  Work AttentionWork(KvFormat format, uint32_t tokens) {
    const size_t head_bytes = KvHeadBytes(format, kHeadDim), plane = PlaneBytes(format);
    const uint32_t first = arguments_.positions - tokens;
    Work work;
    work.bytes = 2 * kKvHeads * head_bytes * arguments_.positions;
    const double seen = (first + 1.0 + arguments_.positions) / 2 * tokens;
    work.operations = 4 * seen * kQueryHeads * kHeadDim;
    work.run = [this, format, tokens, first, head_bytes, plane](CpuBackend& backend,
                                                                const std::byte* place) {
      const AttentionShape shape{kQueryHeads, kKvHeads, kHeadDim, 0.088f, 0};
      const uint32_t width = kQueryHeads * kHeadDim;
      backend.Attention(shape, x_.data(), width,
                        {format, place, place + plane, {head_bytes, 2 * plane}}, first, tokens,
                        y_.data(), width);
    };
    return work;
  }

  // GB/s of a read-only stream over the given bytes.
  double ReadRate(const std::byte* place, uint64_t bytes) {
    constexpr uint64_t kPart = 8 * kReadStreamBytes;
    const uint32_t parts = static_cast<uint32_t>(bytes / kPart);
    const double begin = Now();
    pool_.ParallelFor(parts, [&](uint32_t part, uint32_t) {
      sink_.fetch_xor(ReadBytes(place + part * kPart, kPart), std::memory_order_relaxed);
    });
    return static_cast<double>(parts * kPart) / (Now() - begin);
  }

  // Operations a second of the register loop, all threads together.
  double ArithmeticRate(Isa isa, PeakWork work) {
    constexpr uint32_t kIterations = 20000, kTasksPerThread = 4;
    const uint32_t tasks = static_cast<uint32_t>(pool_.thread_count()) * kTasksPerThread;
    double operations = 0;
    const double begin = Now();
    pool_.ParallelFor(tasks, [&](uint32_t task, uint32_t) {
      const double done = RunPeakLoop(isa, work, kIterations);
      if (task == 0) operations = done;
    });
    return tasks * operations / (Now() - begin);
  }

  void Measure(const Work& work, const char* encoding, const char* matrix, uint32_t tokens) {
    const bool gemm = tokens > 8;
    const uint64_t step = AlignUp(work.bytes, 4096);
    const uint64_t places = arena_.size_bytes() / step;
    uint64_t next = 0;
    const auto place = [&](uint64_t i) { return arena_.data() + i % places * step; };
    for (Contender& c : contenders_) {
      c.seconds.clear();
      c.peak_rates.clear();
    }
    const uint32_t repetitions =
        gemm ? std::max(5u, arguments_.repetitions / 4) : arguments_.repetitions;
    for (uint32_t i = 0; i < repetitions; ++i) {
      for (Contender& c : contenders_) {
        // Half the working set lies between the two visits of a place.
        c.peak_rates.push_back(gemm ? ArithmeticRate(c.isa, work.peak)
                                    : ReadRate(place(next + places / 2), work.bytes));
        const double begin = Now();
        work.run(*c.backend, place(next++));
        c.seconds.push_back(Now() - begin);
      }
    }
    for (Contender& c : contenders_) {
      const double rate =
          (gemm ? work.operations : static_cast<double>(work.bytes)) / Quantile(&c.seconds, 0.5);
      Print(gemm, encoding, c.isa, rate, Quantile(&c.peak_rates, 0.5), matrix, tokens);
    }
  }

  void PrintHeader() const {
    std::printf("experts %u x %u, dense %u x %u; working set %.2f GiB on %s pages; medians of %u, "
                "%s time\n%-9s %-9s %6s  %-5s %-12s %10s %10s  %s\n",
                kHidden, kIntermediate, kDenseRows, kHidden, arguments_.gib,
                PageKindName(arena_.page_kind()), arguments_.repetitions,
                arguments_.cpu_time ? "CPU" : "wall", "", "matrix", "tokens",
                "", "isa", "reached", "peak", "");
  }

  void Print(bool gemm, const char* encoding, Isa isa, double rate, double peak,
             const char* matrix, uint32_t tokens) const {
    const double unit = gemm ? 1e12 : 1e9;
    const char* bench =
        matrix == std::string("attention") ? matrix : gemm ? "gemm" : "gemv";
    if (!arguments_.json) {
      std::printf("%-9s %-9s %6u  %-5s %-12s %10.3f %10.3f  %5.1f %%  %s\n", bench, matrix,
                  tokens, encoding, IsaName(isa), rate / unit, peak / unit, 100 * rate / peak,
                  gemm ? "TOPS" : "GB/s");
      return;
    }
    const char* name = gemm ? "tops" : "gb_per_s";
    std::printf("%s\n",
                fmt::format("{{\"bench\":\"{}\",\"encoding\":\"{}\",\"isa\":\"{}\",\"threads\":{},"
                            "\"{}\":{:.3f},\"peak_{}\":{:.3f},\"fraction\":{:.3f},"
                            "\"matrix\":\"{}\",\"tokens\":{}}}",
                            bench, encoding, IsaName(isa), pool_.thread_count(), name,
                            rate / unit, name, peak / unit, rate / peak, matrix, tokens)
                    .c_str());
  }

  // What a parallel region costs beside its work: hand-over to all threads and the wait for them.
  void MeasureBarrier() {
    std::vector<double> us;
    for (uint32_t i = 0; i < 20 * arguments_.repetitions; ++i) {
      const double begin = Now();
      pool_.ParallelFor(static_cast<uint32_t>(pool_.thread_count()), [](uint32_t, uint32_t) {});
      us.push_back(1e6 * (Now() - begin));
    }
    const double median = Quantile(&us, 0.5);
    if (arguments_.json) {
      std::printf("{\"bench\":\"barrier\",\"threads\":%d,\"us\":%.2f}\n", pool_.thread_count(),
                  median);
    } else {
      std::printf("a parallel region without work, %d threads: %.2f us\n", pool_.thread_count(),
                  median);
    }
  }

  const BenchKernelsArguments& arguments_;
  ThreadPool pool_;
  HostArena arena_;
  std::vector<Contender> contenders_;
  std::vector<float> x_, y_;
  std::vector<uint32_t> token_rows_;
  std::atomic<uint64_t> sink_{0};
};

}  // namespace

void RegisterBenchKernelsCommand(CLI::App& bench, int* exit_code) {
  auto a = std::make_shared<BenchKernelsArguments>();
  CLI::App* command = bench.add_subcommand(
      "kernels", "The CPU kernels beside this machine's memory bandwidth and arithmetic");
  command->add_option("--threads", a->threads, "compute threads (default: one a CPU)")
      ->check(CLI::Range(1, 4096));
  command->add_option("--gib", a->gib, "working set, GiB; far more than the last-level cache")
      ->check(CLI::Range(0.0625, 1024.0))
      ->capture_default_str();
  command->add_option("--repetitions", a->repetitions, "medians of so many; a GEMM takes a quarter")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  command->add_option("--isa", a->isas, "only these (default: all that this CPU has)")
      ->check(CLI::IsMember({"avx2", "avx_vnni", "avx512_vnni", "amx"}));
  command->add_option("--encoding", a->encodings, "of the weights")
      ->check(CLI::IsMember({"q4", "q4_bf16", "mxfp4", "iq4_nl", "q8", "bf16"}))
      ->capture_default_str();
  command->add_option("--tokens", a->tokens, "up to 8: GB/s of weights; more: operations a second")
      ->check(CLI::Range(1u, kMaxTokens))
      ->capture_default_str();
  command->add_option("--matrix", a->matrix, "only experts, dense or attention")
      ->check(CLI::IsMember({"experts", "dense", "attention"}));
  command->add_option("--kv", a->kv_formats, "formats of the KV cache, for attention")
      ->check(CLI::IsMember({"f32", "bf16", "q8", "fp8"}))
      ->capture_default_str();
  command->add_option("--positions", a->positions, "of attention: the last tokens of so many")
      ->check(CLI::Range(kMaxTokens, 1u << 20))
      ->capture_default_str();
  command->add_flag("--cpu-time", a->cpu_time,
                    "the process's CPU time instead of the wall's: for a machine that others use");
  command->add_flag("--json", a->json, "one JSON line a figure");
  command->callback([a, exit_code] {
    const Status status = KernelBench(*a).Run();
    if (!status.ok()) *exit_code = PrintError(status);
  });
}

}  // namespace moraine
