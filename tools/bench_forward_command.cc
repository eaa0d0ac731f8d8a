// moraine bench decode, moraine bench prefill: the whole engine over a store, beside the bound of the same run.
//
// The bound is DESIGN's: tokens a second <= 1 / max(compute, bytes read / drive), each a token. Compute is
// the measured time outside waiting and checksums; bytes are all that the drive delivered, wasted
// speculation included; the drive's rate is measured on the same packs, with as many random records
// outstanding as a layer can miss, before and after each round. What the run lacks to the bound is
// therefore waiting that better overlap would hide.
#include <fmt/format.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "commands.h"
#include "common_options.h"
#include "engine/gpu/gpu_model.h"
#include "engine/runner.h"
#include "forward_workload.h"
#include "io/read_measurement.h"
#include "model/kv_pool.h"

namespace moraine {
namespace {

using Json = nlohmann::ordered_json;

struct BenchForwardArguments {
  RunnerArguments runner;
  std::string text;
  uint32_t prompt_tokens = 64, tokens = 128, warm_tokens = 32, batch = 1;
  int rounds = 3;
  uint64_t seed = 1;
  bool against_no_lookahead = false, warm = false, json = false;
};

// What one measured stretch did, a token.
struct Sample {
  double tok_per_s = 0, bound_tok_per_s = 0, fraction = 0, drive_gb_per_s = 0;
  double attention_ms = 0, experts_ms = 0, stall_ms = 0, checksums_ms = 0, residency_ms = 0,
         other_ms = 0;
  double hit_rate = 0, mib = 0, useful_mib = 0, late_mib = 0, wasted_mib = 0;
};

constexpr std::pair<const char*, double Sample::*> kFields[] = {
    {"tok_per_s", &Sample::tok_per_s},       {"bound_tok_per_s", &Sample::bound_tok_per_s},
    {"fraction", &Sample::fraction},         {"drive_gb_per_s", &Sample::drive_gb_per_s},
    {"attention_ms", &Sample::attention_ms}, {"experts_ms", &Sample::experts_ms},
    {"stall_ms", &Sample::stall_ms},         {"checksums_ms", &Sample::checksums_ms},
    {"residency_ms", &Sample::residency_ms}, {"other_ms", &Sample::other_ms},
    {"hit_rate", &Sample::hit_rate},         {"mib_per_token", &Sample::mib},
    {"useful_mib", &Sample::useful_mib},     {"late_mib", &Sample::late_mib},
    {"wasted_mib", &Sample::wasted_mib}};

Sample Difference(const EngineStats& before, const EngineStats& after, bool decode,
                  double drive_gb_per_s) {
  const PhaseStats& a = decode ? before.decode : before.prefill;
  const PhaseStats& b = decode ? after.decode : after.prefill;
  const double tokens = static_cast<double>(b.tokens - a.tokens);
  const auto ms = [&](int64_t ns) { return static_cast<double>(ns) * 1e-6 / tokens; };
  const auto mib = [&](uint64_t bytes) {
    return static_cast<double>(bytes) / (1024.0 * 1024.0) / tokens;
  };
  const LookupCounters& x = decode ? before.residency.decode : before.residency.prefill;
  const LookupCounters& y = decode ? after.residency.decode : after.residency.prefill;
  const double hits = static_cast<double>(y.hit + y.prefetch_hit - x.hit - x.prefetch_hit);
  const double misses = static_cast<double>(y.cold_miss + y.in_flight_miss - x.cold_miss -
                                            x.in_flight_miss);
  Sample s;
  s.attention_ms = ms(b.attention_ns - a.attention_ns);
  s.experts_ms = ms(b.expert_ns - a.expert_ns);
  s.stall_ms = ms(b.stall_ns - a.stall_ns);
  s.checksums_ms = ms(b.verify_ns - a.verify_ns);
  s.residency_ms = ms(b.residency_ns - a.residency_ns);
  s.other_ms = ms(b.other_ns() - a.other_ns());
  s.hit_rate = hits + misses > 0 ? hits / (hits + misses) : 0;
  const uint64_t bytes = after.reads.demand_bytes + after.reads.speculative_bytes -
                         before.reads.demand_bytes - before.reads.speculative_bytes;
  s.mib = mib(bytes);
  s.useful_mib = mib(after.residency.prefetch_useful_bytes - before.residency.prefetch_useful_bytes);
  s.late_mib = mib(after.residency.prefetch_late_bytes - before.residency.prefetch_late_bytes);
  s.wasted_mib = mib(after.residency.prefetch_wasted_bytes - before.residency.prefetch_wasted_bytes);
  const double wall_ms = ms(b.wall_ns - a.wall_ns);
  const double compute_ms = wall_ms - s.stall_ms - s.checksums_ms;
  const double read_ms = static_cast<double>(bytes) / tokens / (drive_gb_per_s * 1e6);
  s.drive_gb_per_s = drive_gb_per_s;
  s.tok_per_s = 1000 / wall_ms;
  s.bound_tok_per_s = 1000 / std::max(compute_ms, read_ms);
  s.fraction = s.tok_per_s / s.bound_tok_per_s;
  return s;
}

Sample Median(const std::vector<Sample>& samples) {
  Sample median;
  for (const auto& [name, field] : kFields) {
    std::vector<double> values;
    for (const Sample& sample : samples) values.push_back(sample.*field);
    median.*field = Quantile(&values, 0.5);
  }
  return median;
}

class ForwardBench {
 public:
  ForwardBench(const BenchForwardArguments& arguments, bool decode)
      : arguments_(arguments), decode_(decode) {}

  Status Run() {
    ASSIGN_OR_RETURN(RunnerOptions options, FinishRunnerOptions(arguments_.runner));
    // Sequences have whole blocks.
    const uint32_t each = KvPool::BlocksFor(arguments_.prompt_tokens + arguments_.warm_tokens +
                                            arguments_.tokens + 1) * kKvBlockPositions;
    options.max_sequences = arguments_.batch;
    options.max_context = std::max(options.max_context, arguments_.batch * each);
    io_ = options.io;
    ASSIGN_OR_RETURN(runner_, Runner::Open(options));
    if (runner_->gpu() != nullptr) return RunOnGpu();
    if (runner_->store().manifest().expert_count() == 0) {
      return InvalidArgument(options.store_directory + ": a model without experts reads nothing");
    }
    if (arguments_.warm) {
      RETURN_IF_ERROR(runner_->Warm(WarmOrder::kStatic, [](uint64_t, uint64_t) {}));
    }
    RETURN_IF_ERROR(MakeWorkload());
    std::vector<Sample> with, without;
    for (int round = 0; round < arguments_.rounds; ++round) {
      RETURN_IF_ERROR(Round(round, true, &with));
      if (arguments_.against_no_lookahead) RETURN_IF_ERROR(Round(round, false, &without));
    }
    Print(Median(with), options.lookahead);
    if (!without.empty()) Print(Median(without), false);
    return OkStatus();
  }

 private:
  Status MakeWorkload() {
    ASSIGN_OR_RETURN(workload_, ForwardWorkload::Create(*runner_,
                                                        {.text = arguments_.text,
                                                         .prompt_tokens = arguments_.prompt_tokens,
                                                         .tokens = arguments_.tokens,
                                                         .warm_tokens = arguments_.warm_tokens,
                                                         .batch = arguments_.batch,
                                                         .seed = arguments_.seed}));
    return OkStatus();
  }

  // A round more than asked for: the first warms up. On a GPU nothing is read from the drive; what can be
  // a bound is the link, over which a prompt's chunks each get the experts that do not fit.
  Status RunOnGpu() {
    RETURN_IF_ERROR(MakeWorkload());
    std::vector<double> rates;
    for (int round = -1; round < arguments_.rounds; ++round) {
      EngineStats before;
      RETURN_IF_ERROR(workload_->Compute(round, decode_, &before));
      const EngineStats after = runner_->Stats();
      const PhaseStats& a = decode_ ? before.decode : before.prefill;
      const PhaseStats& b = decode_ ? after.decode : after.prefill;
      if (round < 0) continue;
      rates.push_back(1e9 * static_cast<double>(b.tokens - a.tokens) /
                      static_cast<double>(b.wall_ns - a.wall_ns));
    }
    ASSIGN_OR_RETURN(const double link, runner_->gpu()->MeasureLink());
    ASSIGN_OR_RETURN(const PeerSpeed peers, runner_->gpu()->MeasurePeers());
    PrintGpu(Quantile(&rates, 0.5), link, peers);
    return OkStatus();
  }

  // Bytes of weights that a token's products read, each once.
  double WeightBytes() const {
    const Manifest& manifest = runner_->store().manifest();
    const ModelConfig& config = runner_->config();
    uint64_t bytes = 0;
    for (const DenseTensor& tensor : manifest.dense) {
      if (tensor.name != "embedding" || config.tied_embeddings) bytes += tensor.bytes;
    }
    for (const LayerManifest& layer : manifest.layers) {
      if (layer.expert_count > 0) bytes += config.top_k * layer.record_bytes;
    }
    return static_cast<double>(bytes);
  }

  // Bytes of streamed experts that a token's products read, in place.
  double StreamedBytes() const {
    const std::vector<LayerManifest>& layers = runner_->store().manifest().layers;
    uint64_t bytes = 0;
    for (size_t i = 0; i < layers.size(); ++i) {
      if (layers[i].expert_count > 0 && !runner_->gpu()->plan().anchored[i]) {
        bytes += runner_->config().top_k * layers[i].record_bytes;
      }
    }
    return static_cast<double>(bytes);
  }

  void PrintGpu(double rate, double link_gb_per_s, const PeerSpeed& peers) const {
    const VramPlan& plan = runner_->gpu()->plan();
    const uint32_t chunks = (arguments_.prompt_tokens + plan.chunk - 1) / plan.chunk;
    // Over the link of the GPU that has the most of them.
    uint64_t most = 0;
    for (const StagePlan& stage : runner_->gpu()->stages()) most = std::max(most, stage.vram.streamed_bytes);
    const auto streamed = static_cast<double>(most);
    Json json = {{"bench", decode_ ? "decode" : "prefill"},
                 {"model", runner_->info().name},
                 {"gpu", runner_->gpu()->gpu_name()},
                 {"gpus", runner_->gpu()->stages().size()},
                 {"prompt_tokens", arguments_.prompt_tokens},
                 {"tok_per_s", rate},
                 {"vram_bytes", plan.total_bytes()},
                 {"streamed_bytes", plan.streamed_bytes},
                 {"resident_layers", plan.anchored_layers},
                 {"streamed_layers", plan.streamed_layers},
                 {"chunk", plan.chunk},
                 {"link_gb_per_s", link_gb_per_s},
                 {"link_emulated", !arguments_.runner.link_limit.empty()}};
    if (runner_->gpu()->stages().size() > 1) {
      json["peer_gb_per_s"] = peers.gb_per_s;
      json["peer_small_copy_us"] = peers.small_us;
    }
    if (decode_) {
      json["tokens"] = arguments_.tokens;
      json["weight_bytes_per_token"] = WeightBytes();
      json["streamed_bytes_per_token"] = StreamedBytes();
      json["weight_gb_per_s"] = WeightBytes() * rate * 1e-9;
    } else if (plan.streamed_layers > 0) {
      const double bound = arguments_.prompt_tokens * link_gb_per_s * 1e9 / (streamed * chunks);
      json["link_bound_tok_per_s"] = bound;
      json["fraction_of_link"] = rate / bound;
    }
    if (!arguments_.json) {
      std::printf("%s %s on %s: %.1f tok/s\n  %s\n", decode_ ? "decode " : "prefill",
                  runner_->info().name.c_str(), runner_->gpu()->gpu_name().c_str(), rate,
                  plan.ToText().c_str());
    }
    std::printf("%s\n", json.dump().c_str());
  }

  // GB/s of random records, as many at once as a layer of a step can miss.
  Result<double> DriveRate(int round) {
    ASSIGN_OR_RETURN(std::unique_ptr<BlockReader> reader, CreateBlockReader(io_));
    const Store& store = runner_->store();
    const Manifest& manifest = store.manifest();
    std::vector<ExpertKey> keys;
    ReadMeasurementOptions options;
    options.paths = store.expert_pack_paths();
    for (uint32_t layer = 0; layer < manifest.layers.size(); ++layer) {
      for (uint32_t e = 0; e < manifest.layers[layer].expert_count; ++e) {
        keys.push_back({LayerId(layer), ExpertId(e)});
        options.max_record_bytes = std::max(options.max_record_bytes, store.Locate(keys.back()).bytes);
      }
    }
    options.pick = [&](Random& random) {
      const RecordLocation& place = store.Locate(keys[random.Below(keys.size())]);
      return ReadPlace{place.pack, place.offset, place.bytes, 0};
    };
    options.chunk_bytes = ReadSchedulerOptions{}.chunk_bytes;
    options.records = std::min(arguments_.batch * runner_->config().top_k,
                               runner_->config().expert_count);
    options.seconds = 0.5;
    options.seed = arguments_.seed + static_cast<uint64_t>(round);
    ASSIGN_OR_RETURN(const ReadMeasurement measured, MeasureReads(std::move(reader), options));
    return measured.gb_per_s;
  }

  Status Round(int round, bool lookahead, std::vector<Sample>* samples) {
    ASSIGN_OR_RETURN(const double drive_before, DriveRate(round));
    runner_->SetLookahead(lookahead && arguments_.runner.options.lookahead);
    EngineStats before;
    RETURN_IF_ERROR(workload_->Compute(round, decode_, &before));
    const EngineStats after = runner_->Stats();
    ASSIGN_OR_RETURN(const double drive_after, DriveRate(round));
    samples->push_back(Difference(before, after, decode_, (drive_before + drive_after) / 2));
    return OkStatus();
  }

  void Print(const Sample& s, bool lookahead) const {
    const EngineStats stats = runner_->Stats();
    if (!arguments_.json) {
      std::printf("%s %s, batch %u, %u of %llu experts have slots, %s\n",
                  decode_ ? "decode " : "prefill", stats.model.c_str(), arguments_.batch,
                  stats.residency.slot_count,
                  static_cast<unsigned long long>(stats.expert_count),
                  lookahead ? "reading ahead" : "without reading ahead");
      std::printf("  %.2f tok/s, %.1f %% of the bound of %.2f (drive %.2f GB/s, %.1f MiB a token, "
                  "%.1f %% hits)\n", s.tok_per_s, 100 * s.fraction, s.bound_tok_per_s,
                  s.drive_gb_per_s, s.mib, 100 * s.hit_rate);
      std::printf("  ms a token: attention %.3f, experts %.3f, stall %.3f, checksums %.3f, residency "
                  "%.3f, other %.3f\n", s.attention_ms, s.experts_ms, s.stall_ms, s.checksums_ms,
                  s.residency_ms, s.other_ms);
      std::printf("  read ahead, MiB a token: useful %.2f, late %.2f, wasted %.2f\n", s.useful_mib,
                  s.late_mib, s.wasted_mib);
    }
    Json json = {{"bench", decode_ ? "decode" : "prefill"}, {"model", stats.model},
                 {"slots", stats.residency.slot_count},     {"experts", stats.expert_count},
                 {"policy", stats.policy},                  {"isa", stats.isa},
                 {"threads", stats.threads},                {"lookahead", lookahead},
                 {"prompt_tokens", arguments_.prompt_tokens}};
    if (decode_) {
      json["tokens"] = arguments_.tokens;
      json["batch"] = arguments_.batch;
    }
    for (const auto& [name, field] : kFields) json[name] = s.*field;
    if (runner_->gpu_prefill() != nullptr) {
      const GpuPrefillStats& gpu = stats.gpu_prefill;
      json["gpu_prefill"] = {{"gpu", gpu.gpu},
                             {"tokens", gpu.tokens},
                             {"chunks", gpu.chunks},
                             {"copied_bytes", gpu.copied_bytes},
                             {"break_even_tokens", gpu.break_even_tokens},
                             {"failures", gpu.failures}};
    }
    if (runner_->gpu_answers() != nullptr) json["gpu_answers"] = AnswersJson(stats.gpu_answers);
    std::printf("%s\n", json.dump().c_str());
  }

  // Since the beginning.
  static Json AnswersJson(const GpuAnswersStats& s) {
    return {{"tokens", s.tokens},
            {"steps", s.steps},
            {"failed_steps", s.failed_steps},
            {"experts_in_vram", s.experts_in_vram},
            {"experts_over_link", s.experts_over_link},
            {"experts_on_cpu", s.experts_on_cpu},
            {"slots", s.slots},
            {"live", s.live},
            {"promotions", s.promotions},
            {"demotions", s.demotions},
            {"copied_bytes", s.copied_bytes},
            {"cpu_expert_us", static_cast<double>(s.cpu_expert_ns) * 1e-3},
            {"link_expert_us", static_cast<double>(s.link_expert_ns) * 1e-3},
            {"together_step_us", static_cast<double>(s.together_step_ns) * 1e-3},
            {"cpu_step_us", static_cast<double>(s.cpu_step_ns) * 1e-3}};
  }

  const BenchForwardArguments& arguments_;
  const bool decode_;
  BlockReaderOptions io_;
  std::unique_ptr<Runner> runner_;
  std::unique_ptr<ForwardWorkload> workload_;
};

void RegisterForward(CLI::App& bench, const char* name, const char* help, bool decode,
                     uint32_t prompt_tokens, int* exit_code) {
  auto a = std::make_shared<BenchForwardArguments>();
  a->prompt_tokens = prompt_tokens;
  CLI::App* command = bench.add_subcommand(name, help);
  AddRunnerArguments(command, &a->runner);
  AddGpuArguments(command, &a->runner);
  AddLinkLimit(command, &a->runner);
  command->add_option("--text", a->text, "take the prompt from this file (default: random tokens)");
  command->add_option("--prompt-tokens", a->prompt_tokens, "tokens of the prompt")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  if (decode) {
    command->add_option("--tokens", a->tokens, "tokens of each sequence that are measured, a round")
        ->check(CLI::Range(1, 1 << 20))
        ->capture_default_str();
    command->add_option("--batch", a->batch, "sequences that are decoded together; tok/s are of all")
        ->check(CLI::Range(1, 256))
        ->capture_default_str();
    command->add_option("--warm-tokens", a->warm_tokens, "tokens before them that are not")
        ->check(CLI::Range(0, 1 << 20))
        ->capture_default_str();
  }
  command->add_option("--rounds", a->rounds, "medians of so many")->check(CLI::Range(1, 100))
      ->capture_default_str();
  command->add_option("--seed", a->seed, "of tokens and sampling");
  command->add_flag("--against-no-lookahead", a->against_no_lookahead,
                    "every round once more without reading ahead");
  command->add_flag("--warm", a->warm, "fill the cache first, in static order");
  command->add_flag("--json", a->json, "only the JSON lines");
  command->callback([a, decode, exit_code] {
    const Status status = ForwardBench(*a, decode).Run();
    if (!status.ok()) *exit_code = PrintError(status);
  });
}

}  // namespace

void RegisterBenchForwardCommands(CLI::App& bench, int* exit_code) {
  RegisterForward(bench, "decode", "Decode, beside the bound of drive and compute in the same run",
                  true, 64, exit_code);
  RegisterForward(bench, "prefill", "Prefill, beside the bound of drive and compute in the same run",
                  false, 2048, exit_code);
}

}  // namespace moraine
