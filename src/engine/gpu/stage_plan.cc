#include "engine/gpu/stage_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <map>
#include <utility>

#include "base/check.h"
#include "engine/gpu/pass_layout.h"

namespace moraine {
namespace {

// A shorter piece fills the pipeline better, a longer one the tensor cores: of Qwen3-30B's shape 2048 tokens reach 97
// % of the speed of 8192, 512 reach 45 % (docs/gpu.md). Where layers are streamed each piece brings them over.
constexpr uint32_t kPiece = 2048, kStreamedPiece = 8192, kShortestPiece = 512;
constexpr uint64_t kScratchShare = 8;  // of the smallest budget, at most, for the scratch of a chosen piece

// Fills and empties the pipeline once: of n pieces through s stages n / (n + s - 1) is what is reached. Four pieces a
// stage, and two of streamed ones, which are four times as long.
constexpr uint32_t kPromptTokensOfAStage = 8192, kFewestPiecesOfAStage = 2;

struct Cost {
  double slowest_s = 0;  // of a stage, for a piece
  uint64_t streamed_bytes = 0;
  auto operator<=>(const Cost&) const = default;
};

// Plans and their costs by device and range.
class Planner {
 public:
  Planner(const StageNeeds& needs, std::span<const StageDevice> devices, uint32_t piece)
      : needs_(needs), devices_(devices), piece_(piece) {}

  uint32_t layer_count() const { return static_cast<uint32_t>(needs_.layer_operations.size()); }
  Result<VramPlan> Plan(size_t device, LayerRange layers) {
    return PlanVram(Needs(layers), devices_[device].budget_bytes);
  }
  // None: it does not fit, or not without streaming.
  std::optional<Cost> CostOf(size_t device, LayerRange layers, bool resident_only) {
    const auto plan = Plan(device, layers);
    if (!plan.ok() || (resident_only && plan->streamed_bytes > 0)) return std::nullopt;
    double operations = layers.end == layer_count() ? needs_.row_operations : 0;
    for (uint32_t i = layers.begin; i < layers.end; ++i) {
      operations += piece_ * needs_.layer_operations[i];
    }
    const StageDevice& d = devices_[device];
    return Cost{std::max(operations / d.operations_per_s,
                         static_cast<double>(plan->streamed_bytes) / d.link_bytes_per_s),
                plan->streamed_bytes};
  }

 private:
  const VramNeeds& Needs(LayerRange layers) {
    const auto [at, added] = cache_.try_emplace({layers.begin, layers.end});
    if (added) {
      at->second = needs_.vram(layers);
      at->second.chunk = piece_;
    }
    return at->second;
  }

  const StageNeeds& needs_;
  const std::span<const StageDevice> devices_;
  const uint32_t piece_;
  std::map<std::pair<uint32_t, uint32_t>, VramNeeds> cache_;
};

// best[end]: the cheapest way for the devices so far to have the layers before `end`; the last of them begins at
// `begin`.
struct Step {
  Cost cost;
  uint32_t begin = 0;
};

// Ends of the ranges, one a device; empty: nothing fits.
std::vector<uint32_t> BestEnds(Planner& planner, size_t device_count, bool resident_only) {
  const uint32_t layers = planner.layer_count();
  std::vector<std::vector<std::optional<Step>>> best(
      device_count, std::vector<std::optional<Step>>(layers + 1));
  for (size_t d = 0; d < device_count; ++d) {
    const bool first = d == 0, last = d + 1 == device_count;
    const auto after = static_cast<uint32_t>(device_count - d - 1);  // devices that want a layer each
    for (uint32_t begin = static_cast<uint32_t>(d); begin < layers - after; ++begin) {
      if (first ? begin > 0 : !best[d - 1][begin]) continue;
      for (uint32_t end = last ? layers : begin + 1; end <= layers - after; ++end) {
        std::optional<Cost> cost = planner.CostOf(d, {begin, end}, resident_only);
        if (!cost) continue;
        if (!first) {
          cost->streamed_bytes += best[d - 1][begin]->cost.streamed_bytes;
          cost->slowest_s = std::max(cost->slowest_s, best[d - 1][begin]->cost.slowest_s);
        }
        std::optional<Step>& step = best[d][end];
        if (!step || *cost < step->cost) step = Step{*cost, begin};
      }
    }
  }
  std::vector<uint32_t> ends;
  if (!best[device_count - 1][layers]) return ends;
  uint32_t end = layers;
  for (size_t d = device_count; d-- > 0; end = best[d][end]->begin) ends.push_back(end);
  std::ranges::reverse(ends);
  return ends;
}

// What each would lack had it as many layers as the others.
Status TooLittle(Planner& planner, std::span<const StageDevice> devices) {
  std::string text;
  for (size_t d = 0; d < devices.size(); ++d) {
    const uint64_t layers = planner.layer_count(), count = devices.size();
    const LayerRange range = {static_cast<uint32_t>(layers * d / count),
                              static_cast<uint32_t>(layers * (d + 1) / count)};
    const auto plan = planner.Plan(d, range);
    text += fmt::format("{}{} with layers {} to {}: {}", d == 0 ? "" : "; ", devices[d].name,
                        range.begin, range.end - 1,
                        plan.ok() ? "enough" : std::string(plan.status().message()));
  }
  return ResourceExhausted("no division of the layers fits: " + text);
}

Result<std::vector<StagePlan>> PlanWithPiece(const StageNeeds& needs,
                                             std::span<const StageDevice> devices, uint32_t piece) {
  Planner planner(needs, devices, piece);
  std::vector<uint32_t> ends = BestEnds(planner, devices.size(), /*resident_only=*/true);
  if (ends.empty()) ends = BestEnds(planner, devices.size(), /*resident_only=*/false);
  if (ends.empty()) return TooLittle(planner, devices);
  std::vector<StagePlan> stages;
  for (size_t d = 0; d < devices.size(); ++d) {
    StagePlan stage{.layers = {d == 0 ? 0 : ends[d - 1], ends[d]}, .vram = {}};
    ASSIGN_OR_RETURN(stage.vram, planner.Plan(d, stage.layers));
    stages.push_back(std::move(stage));
  }
  return stages;
}

uint32_t ChoosePiece(const StageNeeds& needs, std::span<const StageDevice> devices,
                     uint32_t longest) {
  uint64_t smallest = std::numeric_limits<uint64_t>::max();
  for (const StageDevice& device : devices) smallest = std::min(smallest, device.budget_bytes);
  const auto layers = static_cast<uint32_t>(needs.layer_operations.size());
  const VramNeeds last = needs.vram({layers - 1, layers});
  uint32_t piece = longest;
  while (piece > kShortestPiece && last.scratch_bytes(piece) > smallest / kScratchShare) piece /= 2;
  return std::min(piece, needs.max_context);
}

}  // namespace

StageNeeds CountStageNeeds(const Manifest& manifest, const ModelConfig& config,
                           const VramNeedsOptions& options) {
  StageNeeds needs;
  needs.vram = [&manifest, &config, options](LayerRange layers) {
    VramNeedsOptions of_range = options;
    of_range.layers = layers;
    return CountVramNeeds(manifest, config, of_range);
  };
  const auto hidden = static_cast<double>(config.hidden);
  for (uint32_t i = 0; i < config.layers.size(); ++i) {
    const LayerConfig& layer = config.layers[i];
    const bool moe = layer.feed_forward == FeedForwardKind::kMoe;
    double weights = moe ? 3.0 * config.top_k * layer.intermediate * hidden : 0;
    for (const DenseTensor* tensor : DenseTensorsOf(manifest, config, {i, i + 1})) {
      if (tensor->name.starts_with("layers.")) weights += 1.0 * tensor->rows * tensor->cols;
    }
    needs.layer_operations.push_back(2 * weights);
  }
  needs.row_operations = 2 * hidden * config.vocab_size;
  needs.max_context = options.max_context;
  // A float32 cache means float32 throughout, which only the way of few tokens has.
  needs.piece = options.kv_format == KvFormat::kF32 ? kFewTokens : options.prefill_chunk;
  return needs;
}

Result<std::vector<StagePlan>> PlanStages(const StageNeeds& needs,
                                          std::span<const StageDevice> devices) {
  CHECK(!devices.empty(), "stages without a GPU");
  if (devices.size() > needs.layer_operations.size()) {
    return InvalidArgument(fmt::format("{} GPUs for {} layers: expected at most one GPU a layer",
                                       devices.size(), needs.layer_operations.size()));
  }
  if (devices.size() == 1) {
    const LayerRange all = {0, static_cast<uint32_t>(needs.layer_operations.size())};
    VramNeeds whole = needs.vram(all);
    whole.chunk = needs.piece;
    auto plan = PlanVram(whole, devices[0].budget_bytes);
    if (!plan.ok()) return plan.status().WithContext(devices[0].name);
    return std::vector<StagePlan>{{all, std::move(*plan)}};
  }
  if (needs.piece > 0) {
    return PlanWithPiece(needs, devices, std::min(needs.piece, needs.max_context));
  }
  const uint32_t piece = ChoosePiece(needs, devices, kPiece);
  auto stages = PlanWithPiece(needs, devices, piece);
  if (!stages.ok() || SumOf(*stages).streamed_bytes == 0) return stages;
  const uint32_t longer = ChoosePiece(needs, devices, kStreamedPiece);
  if (longer == piece) return stages;
  auto streaming = PlanWithPiece(needs, devices, longer);
  return streaming.ok() ? std::move(streaming) : std::move(stages);
}

uint32_t PromptTokens(uint32_t stages, uint32_t piece, uint32_t max_context) {
  if (stages == 1 || piece <= kFewTokens) return piece;
  const uint32_t pieces = stages * std::max(kFewestPiecesOfAStage, kPromptTokensOfAStage / piece);
  return static_cast<uint32_t>(std::min<uint64_t>(uint64_t{pieces} * piece, max_context));
}

VramPlan SumOf(std::span<const StagePlan> stages) {
  VramPlan sum = stages[0].vram;
  for (const StagePlan& stage : stages.subspan(1)) {
    const VramPlan& plan = stage.vram;
    sum.budget_bytes += plan.budget_bytes;
    sum.dense_bytes += plan.dense_bytes;
    sum.kv_bytes += plan.kv_bytes;
    sum.scratch_bytes += plan.scratch_bytes;
    sum.anchored_bytes += plan.anchored_bytes;
    sum.ring_bytes += plan.ring_bytes;
    sum.streamed_bytes += plan.streamed_bytes;
    sum.ring_slots += plan.ring_slots;
    sum.anchored_layers += plan.anchored_layers;
    sum.streamed_layers += plan.streamed_layers;
    for (uint32_t i = stage.layers.begin; i < stage.layers.end; ++i) {
      sum.anchored[i] = plan.anchored[i];
    }
  }
  return sum;
}

}  // namespace moraine
