// moraine plan: what a model needs and how fast this machine can serve it at most, before it is downloaded,
// imported or run.
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>

#include "base/bytes.h"
#include "commands.h"
#include "common_options.h"
#include "compute/aligned_array.h"
#include "compute/cpu/isa.h"
#include "compute/cpu/peak.h"
#include "compute/thread_pool.h"
#include "doctor/drive_curve.h"
#include "engine/fixed_memory.h"
#include "engine/gpu/gpu_rates.h"
#include "engine/gpu/gpu_support.h"
#include "engine/gpu/vram_needs.h"
#include "engine/import_plan.h"
#include "engine/published_models.h"
#include "engine/serving_plan.h"
#include "engine/synthetic_model.h"
#include "engine/workload_profile.h"
#include "memory/topology.h"
#include "model/config.h"
#include "model_arguments.h"
#include "store/checkpoint.h"
#include "store/store.h"

namespace moraine {
namespace {

using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

constexpr uint64_t kMeasuredBytes = uint64_t{512} << 20;  // more than a last-level cache
constexpr double kDriveSeconds = 1;
constexpr double kBillion = 1e9;

struct PlanArguments {
  std::string model;
  std::vector<std::string> ram_budgets;
  std::string experts = "q4", dense, kv_format = "f32", profile = kDefaultProfile;
  bool encodings_given = false, kv_given = false, chunk_given = false;
  uint32_t max_context = kDefaultContext, prefill_chunk = 512, parallel = 1;
  int threads = 0;
  double memory_gbps = 0, drive_gbps = 0, tops = 0;
  std::vector<std::string> vram_budgets;
  double link_gbps = 0, vram_gbps = 0, gpu_tflops = 0;
  bool json = false;
};

// The model as its store would be.
struct PlannedModel {
  std::string what;  // "store", "checkpoint", "config"
  Manifest manifest{};
  ModelConfig config{};
  std::vector<std::string> packs{};  // of a store
  std::optional<WorkloadProfile> profile{};
};

Result<std::string> ReadTextFile(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file) return NotFound(path + ": cannot be read: " + std::strerror(errno));
  return std::move(text).str();
}

Result<PlannedModel> OpenStore(const PlanArguments& a) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Store> store, Store::Open(a.model, StoreMode::kReadOnly));
  PlannedModel model = {.what = "store", .manifest = store->manifest()};
  ASSIGN_OR_RETURN(model.config, ParseModelConfig(model.manifest.model_config,
                                                  a.model + ": config.json"));
  model.packs = store->expert_pack_paths();
  auto profile = WorkloadProfile::Load(*store, a.profile,
                                       IdentityOf(model.manifest, model.config.top_k));
  const bool absent = profile.status().code() == StatusCode::kNotFound;
  if (absent && a.profile == kDefaultProfile) return model;
  RETURN_IF_ERROR(profile.status());
  if (MissCurve(profile->heat).learnt()) model.profile = std::move(*profile);
  return model;
}

Result<PlannedModel> PlanCheckpoint(const PlanArguments& a, const ImportPlanOptions& options) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint, OpenCheckpoint(a.model));
  ASSIGN_OR_RETURN(const std::unique_ptr<ImportPlan> plan, MakeImportPlan(*checkpoint, options));
  PlannedModel model = {.what = "checkpoint", .manifest = plan->manifest()};
  ASSIGN_OR_RETURN(model.config, ParseModelConfig(model.manifest.model_config,
                                                  a.model + ": config.json"));
  return model;
}

Result<PlannedModel> PlanConfig(const PlanArguments& a, const ImportPlanOptions& encodings,
                                const std::string& name, std::string config) {
  SyntheticModelOptions options;
  options.config = std::move(config);
  options.name = name;
  if (encodings.experts) options.experts = *encodings.experts;
  options.dense = encodings.dense;
  auto synthetic = MakeSyntheticModel(options);
  if (!synthetic.ok()) return synthetic.status().WithContext(a.model);
  PlannedModel model = {.what = "config", .manifest = synthetic->plan->manifest()};
  ASSIGN_OR_RETURN(model.config, ParseModelConfig(options.config, a.model));
  return model;
}

Result<PlannedModel> FindModel(const PlanArguments& a) {
  namespace fs = std::filesystem;
  ImportPlanOptions encodings;
  encodings.experts = ParseEncoding(a.experts);
  if (!a.dense.empty()) encodings.dense = ParseEncoding(a.dense);
  if (const PublishedModel* published = FindPublishedModel(a.model)) {
    return PlanConfig(a, encodings, published->name, PublishedConfig(*published, 0));
  }
  if (!fs::exists(a.model)) {
    std::string names;
    for (const PublishedModel& m : PublishedModels()) names += fmt::format(" {}", m.name);
    return NotFound(fmt::format("{}: neither a store, a checkpoint nor a config.json, and not one of:{}",
                                a.model, names));
  }
  if (fs::exists(fs::path(a.model) / "STORE_FORMAT")) return OpenStore(a);
  if (fs::path(a.model).extension() == ".json") {
    ASSIGN_OR_RETURN(std::string config, ReadTextFile(a.model));
    return PlanConfig(a, encodings, fs::path(a.model).parent_path().filename(), std::move(config));
  }
  return PlanCheckpoint(a, a.encodings_given ? encodings : ImportPlanOptions());
}

double Seconds(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

double MeasureMemory(ThreadPool& pool) {
  constexpr uint64_t kPart = 8 * kReadStreamBytes;
  constexpr uint32_t kParts = static_cast<uint32_t>(kMeasuredBytes / kPart);
  const AlignedArray<std::byte> data(kMeasuredBytes);
  std::memset(data.data(), 1, kMeasuredBytes);
  std::atomic<uint64_t> sink{0};
  double best_s = 1e9;
  for (int round = 0; round < 5; ++round) {
    const auto begin = Clock::now();
    pool.ParallelFor(kParts, [&](uint32_t part, uint32_t) {
      sink.fetch_xor(ReadBytes(data.data() + part * kPart, kPart), std::memory_order_relaxed);
    });
    best_s = std::min(best_s, Seconds(begin));
  }
  return static_cast<double>(kParts * kPart) / best_s;
}

double MeasureArithmetic(ThreadPool& pool, bool quantised) {
  if (BestIsa() == Isa::kScalar) return 0;
  const uint32_t tasks = static_cast<uint32_t>(pool.thread_count()) * 8;
  std::atomic<double> operations{0};
  const auto begin = Clock::now();
  pool.ParallelFor(tasks, [&](uint32_t, uint32_t) {
    operations = RunPeakLoop(BestIsa(), quantised ? PeakWork::kInt8Dot : PeakWork::kFloatFma, 20000);
  });
  return tasks * operations / Seconds(begin);
}

Result<MachineRates> Measure(const PlanArguments& a, const PlannedModel& model) {
  ThreadPool pool(Topology::Detect(), {.thread_count = a.threads});
  MachineRates rates;
  rates.memory_bytes_per_s = a.memory_gbps > 0 ? a.memory_gbps * kBillion : MeasureMemory(pool);
  const bool quantised = !model.manifest.layers.empty() &&
                         model.manifest.layers.back().gate_up_encoding != "bf16";
  rates.operations_per_s = a.tops > 0 ? a.tops * 1e12 : MeasureArithmetic(pool, quantised);
  rates.drive_bytes_per_s = a.drive_gbps * kBillion;
  if (a.drive_gbps == 0 && !model.packs.empty()) {
    ASSIGN_OR_RETURN(const std::vector<CurvePoint> curve,
                     MeasureDriveCurve(model.packs, kDriveSeconds));
    rates.drive_bytes_per_s = FastestPoint(curve).gb_per_s * kBillion;
  }
  return rates;
}

std::string OrNa(double value, const char* format) {
  return value > 0 ? fmt::format(fmt::runtime(format), value) : "n/a";
}

Json ToJson(const ServingEstimate& e) {
  const auto known = [](double value) { return value > 0 ? Json(value) : Json(nullptr); };
  return {{"budget_bytes", e.budget_bytes},
          {"slots", e.slot_count},
          {"resident_share", e.resident_share},
          {"hit_rate", e.hit_rate},
          {"read_bytes_per_token", e.read_bytes_per_token},
          {"decode_tok_per_s", known(e.decode_tok_per_s)},
          {"decode_bound_by", e.decode_bound_by},
          {"prefill_tok_per_s", known(e.prefill_tok_per_s)},
          {"prefill_bound_by", e.prefill_bound_by}};
}

// Of a VRAM budget: what lies there, and what it is worth with so much of the experts in DRAM.
struct VramRow {
  VramPlan plan, with_cpu;  // of --gpu, and of --gpu-hybrid
  double dram_share = 0;
  GpuEstimate estimate{};
};

// The GPU that is planned for: rates that were given, the others measured if there is one here.
struct PlannedGpu {
  GpuRates rates;
  std::string measured_on;  // empty: nothing was
  std::string missing;      // why something is not known; empty: all is
};

PlannedGpu FindGpuRates(const PlanArguments& a) {
  PlannedGpu planned;
  planned.rates = {.link_bytes_per_s = a.link_gbps * kBillion,
                   .memory_bytes_per_s = a.vram_gbps * kBillion,
                   .operations_per_s = a.gpu_tflops * 1e12};
  const auto fill = [&](double* rate, double measured) {
    if (*rate == 0) *rate = measured;
  };
  GpuRates& rates = planned.rates;
  if (a.vram_budgets.empty() ||
      (rates.link_bytes_per_s > 0 && rates.memory_bytes_per_s > 0 && rates.operations_per_s > 0)) {
    return planned;
  }
  const Result<MeasuredGpu> measured = MeasureGpu();
  if (!measured.ok()) {
    planned.missing = measured.status().message();
    return planned;
  }
  fill(&rates.link_bytes_per_s, measured->to_device_bytes_per_s);
  fill(&rates.memory_bytes_per_s, measured->memory_bytes_per_s);
  fill(&rates.operations_per_s, measured->operations_per_s);
  planned.measured_on = measured->gpu.name;
  return planned;
}

// A row for each VRAM budget and RAM budget; all experts in DRAM if no RAM budget was given.
Result<std::vector<VramRow>> PlanVramBudgets(const PlanArguments& a, const ServingPlanInput& input,
                                             const GpuRates& rates, uint32_t context,
                                             const std::vector<ServingEstimate>& estimates) {
  std::vector<VramRow> rows;
  if (a.vram_budgets.empty()) return rows;
  ASSIGN_OR_RETURN(KvFormat kv_format, ParseKvFormat(a.kv_format));
  if (!a.kv_given) kv_format = KvFormat::kBf16;
  std::vector<ExpertLayout> layouts;
  for (const LayerManifest& layer : input.manifest.layers) {
    ExpertLayout layout;
    layout.gate_up = ParseEncoding(layer.gate_up_encoding).value_or(Encoding::kBf16);
    layout.down = ParseEncoding(layer.down_encoding).value_or(Encoding::kBf16);
    layouts.push_back(layout);
  }
  RETURN_IF_ERROR(CheckGpuSupport(input.config, layouts, input.manifest, kv_format));
  const VramNeeds needs = CountVramNeeds(input.manifest, input.config,
                                         {.max_context = context,
                                          .prefill_chunk = a.chunk_given ? a.prefill_chunk : 0,
                                          .kv_format = kv_format});
  VramNeeds with_cpu = needs;
  with_cpu.hot_experts = !HasRecurrentState(input.config);
  const TokenDemand demand = DemandOfToken(input.manifest, input.config);
  std::vector<double> shares;
  for (const ServingEstimate& e : estimates) shares.push_back(e.resident_share);
  if (a.ram_budgets.empty()) shares = {1};
  for (const std::string& text : a.vram_budgets) {
    ASSIGN_OR_RETURN(const uint64_t budget, ParseByteSize(text));
    for (const double share : shares) {
      VramRow row{.plan = {}, .with_cpu = {}, .dram_share = share};
      ASSIGN_OR_RETURN(row.plan, PlanVram(needs, budget));
      ASSIGN_OR_RETURN(row.with_cpu, PlanVram(with_cpu, budget));
      row.estimate = EstimateOnGpu(demand, row.plan, rates, input.rates.drive_bytes_per_s, share);
      rows.push_back(std::move(row));
    }
  }
  return rows;
}

Json ToJson(const VramRow& row) {
  const auto known = [](double value) { return value > 0 ? Json(value) : Json(nullptr); };
  const VramPlan& p = row.plan;
  return {{"budget_bytes", p.budget_bytes},
          {"dense_bytes", p.dense_bytes},
          {"kv_bytes", p.kv_bytes},
          {"scratch_bytes", p.scratch_bytes},
          {"expert_bytes", p.anchored_bytes},
          {"ring_bytes", p.ring_bytes},
          {"streamed_bytes", p.streamed_bytes},
          {"resident_layers", p.anchored_layers},
          {"streamed_layers", p.streamed_layers},
          {"chunk", p.chunk},
          {"hot_slots", row.with_cpu.hot_slots},
          {"hot_bytes", row.with_cpu.hot_bytes},
          {"dram_share", row.dram_share},
          {"prefill_tok_per_s", known(row.estimate.prefill_tok_per_s)},
          {"prefill_bound_by", row.estimate.prefill_bound_by},
          {"decode_tok_per_s", known(row.estimate.decode_tok_per_s)},
          {"decode_bound_by", row.estimate.decode_bound_by}};
}

Json ToJson(const PlannedGpu& gpu) {
  const auto known = [](double value) { return value > 0 ? Json(value) : Json(nullptr); };
  return {{"link_gb_per_s", known(gpu.rates.link_bytes_per_s / kBillion)},
          {"vram_gb_per_s", known(gpu.rates.memory_bytes_per_s / kBillion)},
          {"tflops", known(gpu.rates.operations_per_s / 1e12)},
          {"measured_on", gpu.measured_on}};
}

void PrintVram(const PlannedGpu& gpu, const std::vector<VramRow>& rows) {
  if (rows.empty()) return;
  const GpuRates& rates = gpu.rates;
  fmt::print("\non a GPU (link {} GB/s, VRAM {} GB/s, {} TFLOP/s); decode is that of --gpu, which needs all "
             "experts in DRAM or VRAM;\nwith --gpu-prefill it is the CPU's, above\n",
             OrNa(rates.link_bytes_per_s / kBillion, "{:.1f}"),
             OrNa(rates.memory_bytes_per_s / kBillion, "{:.0f}"),
             OrNa(rates.operations_per_s / 1e12, "{:.0f}"));
  if (!gpu.measured_on.empty()) fmt::print("what was not given is measured on {}\n", gpu.measured_on);
  if (!gpu.missing.empty()) {
    fmt::print("n/a: not given, and not measured here: {}\n", gpu.missing);
  }
  for (const VramRow& row : rows) {
    fmt::print("{} VRAM, {:.1f} % of experts in DRAM: prefill tok/s <= {} ({}), decode tok/s <= {} ({})\n"
               "  {}\n",
               FormatByteSize(row.plan.budget_bytes), 100 * row.dram_share,
               OrNa(row.estimate.prefill_tok_per_s, "{:.0f}"), row.estimate.prefill_bound_by,
               OrNa(row.estimate.decode_tok_per_s, "{:.1f}"), row.estimate.decode_bound_by,
               row.plan.ToText());
    if (row.with_cpu.hot_slots == 0) continue;
    fmt::print("  with --gpu-hybrid: {}\n", row.with_cpu.ToText());
  }
}

void PrintPlan(const PlanArguments& a, const PlannedModel& model, const ServingPlanInput& input,
               const std::vector<ServingEstimate>& estimates) {
  const Manifest& m = model.manifest;
  const TokenDemand demand = DemandOfToken(m, model.config);
  const FixedMemory& fixed = input.fixed;
  fmt::print("{} ({}): {} experts of {} in {} layers, top-{}; {} of experts, {} dense weights\n",
             a.model, model.what, m.expert_count(), FormatByteSize(m.max_record_bytes()),
             m.layers.size(), model.config.top_k, FormatByteSize(m.expert_bytes()),
             FormatByteSize(fixed.dense_bytes));
  fmt::print("a token reads {} of dense weights and {} of experts, and takes {:.2f} GFLOP\n",
             FormatByteSize(demand.dense_bytes), FormatByteSize(demand.expert_bytes),
             demand.operations / kBillion);
  fmt::print("besides experts: {} dense, {} cache for {} tokens, {} scratch, {} process\n",
             FormatByteSize(fixed.dense_bytes), FormatByteSize(fixed.kv_bytes), a.max_context,
             FormatByteSize(fixed.scratch_bytes), FormatByteSize(fixed.process_bytes));
  const MachineRates& rates = input.rates;
  fmt::print("rates: memory {} GB/s, drive {} GB/s, arithmetic {} TOPS\n",
             OrNa(rates.memory_bytes_per_s / kBillion, "{:.1f}"),
             OrNa(rates.drive_bytes_per_s / kBillion, "{:.2f}"),
             OrNa(rates.operations_per_s / 1e12, "{:.2f}"));
  fmt::print("hit rates: {}\n\n", model.profile
                                      ? fmt::format("profile '{}' of this store", a.profile)
                                      : "as in a recorded routing of Qwen3-30B-A3B; yours will differ");
  fmt::print("{:>11} {:>9} {:>6} {:>11} {:>15} {:>10}  {:>15} {:>10}\n", "memory", "resident", "hits",
             "MiB/token", "decode tok/s <=", "bound by", "prefill tok/s <=", "bound by");
  for (const ServingEstimate& e : estimates) {
    fmt::print("{:>11} {:>7.1f} % {:>4.0f} % {:>11.1f} {:>15} {:>10}  {:>16} {:>10}\n",
               FormatByteSize(e.budget_bytes), 100 * e.resident_share, 100 * e.hit_rate,
               e.read_bytes_per_token / (1 << 20), OrNa(e.decode_tok_per_s, "{:.2f}"),
               e.decode_bound_by, OrNa(e.prefill_tok_per_s, "{:.1f}"), e.prefill_bound_by);
  }
  if (rates.drive_bytes_per_s == 0) {
    fmt::print("\nn/a: the drive's rate is not known; --drive-gbps gives it, `moraine doctor DIRECTORY` measures it\n");
  }
}

Status Plan(const PlanArguments& a) {
  ASSIGN_OR_RETURN(const PlannedModel model, FindModel(a));
  ASSIGN_OR_RETURN(const KvFormat kv_format, ParseKvFormat(a.kv_format));
  ServingPlanInput input = {.manifest = model.manifest, .config = model.config};
  const uint32_t context = std::min(a.max_context, model.config.max_position);
  input.prefill_chunk = std::min(a.prefill_chunk, context);
  input.fixed = CountFixedMemory(model.manifest, model.config,
                                 {.context = context,
                                  .sequences = a.parallel,
                                  .step_tokens = std::max(input.prefill_chunk, a.parallel),
                                  .kv_format = kv_format});
  ASSIGN_OR_RETURN(input.rates, Measure(a, model));
  const MissCurve misses =
      model.profile ? MissCurve(model.profile->heat) : MissCurve::OfRecordedRouting();
  std::vector<std::string> budgets = a.ram_budgets;
  if (budgets.empty()) budgets = {"5%", "10%", "25%", "50%", "75%", "100%"};
  std::vector<ServingEstimate> estimates;
  for (const std::string& text : budgets) {
    ASSIGN_OR_RETURN(const RamBudget budget, ParseRamBudget(text));
    auto estimate = EstimateServing(input, misses, budget);
    if (!estimate.ok() && a.ram_budgets.empty()) continue;  // a share that is no slots of this model
    RETURN_IF_ERROR(estimate.status());
    estimates.push_back(*estimate);
  }
  const PlannedGpu gpu = FindGpuRates(a);
  ASSIGN_OR_RETURN(const std::vector<VramRow> vram,
                   PlanVramBudgets(a, input, gpu.rates, context, estimates));
  if (!a.json) {
    PrintPlan(a, model, input, estimates);
    PrintVram(gpu, vram);
    return OkStatus();
  }
  Json rows = Json::array();
  for (const ServingEstimate& e : estimates) rows.push_back(ToJson(e));
  Json vram_rows = Json::array();
  for (const VramRow& row : vram) vram_rows.push_back(ToJson(row));
  const TokenDemand demand = DemandOfToken(model.manifest, model.config);
  const Json json = {{"model", a.model},
                     {"source", model.what},
                     {"experts", model.manifest.expert_count()},
                     {"expert_bytes", model.manifest.expert_bytes()},
                     {"dense_bytes", input.fixed.dense_bytes},
                     {"kv_bytes", input.fixed.kv_bytes},
                     {"context", context},
                     {"dense_bytes_per_token", demand.dense_bytes},
                     {"expert_bytes_per_token", demand.expert_bytes},
                     {"operations_per_token", demand.operations},
                     {"memory_gb_per_s", input.rates.memory_bytes_per_s / kBillion},
                     {"drive_gb_per_s", input.rates.drive_bytes_per_s / kBillion},
                     {"tops", input.rates.operations_per_s / 1e12},
                     {"hit_rates", model.profile ? "profile" : "recorded_routing"},
                     {"gpu", ToJson(gpu)},
                     {"budgets", rows},
                     {"vram", vram_rows}};
  std::printf("%s\n", json.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
  return OkStatus();
}

}  // namespace

void RegisterPlanCommand(CLI::App& app, int* exit_code) {
  auto a = std::make_shared<PlanArguments>();
  CLI::App* command = app.add_subcommand(
      "plan", "Predict memory, hit rates and the bounds of decode and prefill for a model on this machine.\n"
              "MODEL is a store, a checkpoint (directory or GGUF file), a config.json, or the name of a\n"
              "published model (qwen3-235b, deepseek-v3, kimi-k2, ...)");
  const auto by_name = [names = ModelByName()](std::string& text) {
    return FindPublishedModel(text) == nullptr ? names(text) : std::string();
  };
  command->add_option("MODEL", a->model, "what to plan for, or its name (moraine models)")
      ->transform(CLI::Validator(by_name, "", "models"))
      ->required();
  command->add_option("--ram-budget", a->ram_budgets,
                      "memory of the process (64GiB), a share of the experts (25%), or auto; several "
                      "(default: 5 to 100 % of the experts)");
  const auto encodings = {"bf16", "q8", "q4", "q4_bf16", "mxfp4", "iq4_nl"};
  command
      ->add_option("--experts", a->experts, "encoding of the experts of what is not a store")
      ->check(CLI::IsMember(std::vector<std::string>(encodings.begin(), encodings.end())))
      ->capture_default_str();
  command->add_option("--dense", a->dense, "encoding of its dense weights (default: as for an import)")
      ->check(CLI::IsMember({"bf16", "q8", "q4"}));
  command->add_option("--kv", a->kv_format, "keys and values: f32; LOSSY: bf16, q8 or fp8")
      ->check(CLI::IsMember({"f32", "bf16", "q8", "fp8"}))
      ->capture_default_str();
  command->add_option("--max-context", a->max_context, "tokens of KV cache")
      ->check(CLI::Range(1, 1 << 30))
      ->capture_default_str();
  command->add_option("--prefill-chunk", a->prefill_chunk, "tokens that are prefilled together")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  command->add_option("--parallel", a->parallel, "sequences that are computed together")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command->add_option("--threads", a->threads, "compute threads (default: one per CPU)")
      ->check(CLI::Range(0, 1024));
  command->add_option("--memory-gbps", a->memory_gbps, "instead of measuring it here, GB/s")
      ->check(CLI::PositiveNumber);
  command->add_option("--drive-gbps", a->drive_gbps, "instead of measuring a store's drives, GB/s")
      ->check(CLI::PositiveNumber);
  command->add_option("--tops", a->tops, "instead of measuring the multipliers, 10^12 operations a second")
      ->check(CLI::PositiveNumber);
  command->add_option("--vram-budget", a->vram_budgets,
                      "memory of an NVIDIA GPU (16GiB), several: what lies in it, and the bounds there");
  command->add_option("--link-gbps", a->link_gbps,
                      "of its link, from page-locked memory, GB/s (default: measured here)")
      ->check(CLI::PositiveNumber);
  command->add_option("--vram-gbps", a->vram_gbps, "of its memory, GB/s (default: measured here)")
      ->check(CLI::PositiveNumber);
  command->add_option("--gpu-tflops", a->gpu_tflops,
                      "of its tensor cores, bf16, 10^12 operations a second (default: measured here)")
      ->check(CLI::PositiveNumber);
  command->add_option("--profile", a->profile, "a store's profile whose hit rates count")
      ->capture_default_str();
  command->add_flag("--json", a->json, "one JSON object on stdout");
  command->callback([a, command, exit_code] {
    a->encodings_given = command->count("--experts") + command->count("--dense") > 0;
    a->kv_given = command->count("--kv") > 0;
    a->chunk_given = command->count("--prefill-chunk") > 0;
    const Status status = Plan(*a);
    if (!status.ok()) *exit_code = PrintError(status);
  });
}

}  // namespace moraine
