#include "engine/gpu/stage_devices.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/bytes.h"
#include "engine/gpu/gpu_speed.h"
#include "memory/cuda/gpu_devices.h"

namespace moraine {
namespace {

// Left to CUDA where no budget is given: modules that are loaded when first used, graphs, stacks.
constexpr uint64_t kReserveBytes = 512 * kMiB;

Status SetBudget(const gpu::GpuInfo& info, uint64_t budget_bytes, uint64_t entries,
                 StageDevice* device) {
  if (budget_bytes == 0) {
    budget_bytes = (info.free_bytes - std::min(info.free_bytes, kReserveBytes)) / entries;
  }
  if (budget_bytes * entries > info.free_bytes) {
    return ResourceExhausted(fmt::format("VRAM budget {}{}: {} has {} of {} free",
                                         entries > 1 ? fmt::format("{} x ", entries) : "",
                                         FormatByteSize(budget_bytes), device->name,
                                         FormatByteSize(info.free_bytes),
                                         FormatByteSize(info.total_bytes)));
  }
  device->budget_bytes = budget_bytes;
  return OkStatus();
}

// Of those of the same name, the mean.
void LevelEqualCards(std::span<const std::string> names, std::vector<StageDevice>* devices) {
  const std::vector<StageDevice> measured = *devices;
  for (size_t i = 0; i < names.size(); ++i) {
    StageDevice& device = (*devices)[i];
    double operations = 0, link = 0, count = 0;
    for (size_t k = 0; k < names.size(); ++k) {
      if (names[k] != names[i]) continue;
      operations += measured[k].operations_per_s;
      link += measured[k].link_bytes_per_s;
      ++count;
    }
    device.operations_per_s = operations / count;
    device.link_bytes_per_s = link / count;
  }
}

std::string NameOfAll(std::span<const std::string> names) {
  const bool same = std::ranges::all_of(names, [&](const auto& name) { return name == names[0]; });
  if (same) return names.size() == 1 ? names[0] : fmt::format("{} x {}", names.size(), names[0]);
  return fmt::format("{}", fmt::join(names, " + "));
}

}  // namespace

Result<StageDevices> FindStageDevices(std::span<const uint32_t> gpus, uint64_t budget_bytes) {
  StageDevices found;
  std::vector<std::string> names;
  for (const uint32_t gpu : gpus) {
    RETURN_IF_ERROR(gpu::UseGpu(gpu));
    ASSIGN_OR_RETURN(const gpu::GpuInfo info, gpu::QueryGpu());
    names.push_back(info.name);
    StageDevice device;
    device.name = gpus.size() == 1 ? info.name : fmt::format("GPU {} ({})", gpu, info.name);
    const auto entries = static_cast<uint64_t>(std::ranges::count(gpus, gpu));
    RETURN_IF_ERROR(SetBudget(info, budget_bytes, entries, &device));
    const auto before = std::ranges::find(gpus.first(found.devices.size()), gpu);
    if (const auto at = static_cast<size_t>(before - gpus.begin()); at < found.devices.size()) {
      device.operations_per_s = found.devices[at].operations_per_s;
      device.link_bytes_per_s = found.devices[at].link_bytes_per_s;
    } else if (gpus.size() > 1) {
      auto operations = MeasureProducts();
      if (!operations.ok()) return operations.status().WithContext(device.name);
      auto link = MeasureLinkRate();
      if (!link.ok()) return link.status().WithContext(device.name);
      device.operations_per_s = *operations;
      device.link_bytes_per_s = *link;
    }
    found.devices.push_back(std::move(device));
  }
  LevelEqualCards(names, &found.devices);
  found.name = NameOfAll(names);
  return found;
}

}  // namespace moraine
