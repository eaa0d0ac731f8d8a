#include "engine/gpu/gpu_experts.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/bytes.h"
#include "engine/gpu/record_loader.h"

namespace moraine {

Result<std::unique_ptr<GpuExperts>> GpuExperts::Load(const Store& store, const VramPlan& plan,
                                                     const Options& options) {
  std::unique_ptr<GpuExperts> experts(new GpuExperts());
  ASSIGN_OR_RETURN(experts->copy_stream_, gpu::OwnedStream::Create());
  if (options.link) {
    experts->pacer_ =
        std::make_unique<gpu::LinkPacer>(options.link, experts->copy_stream_.get());
  }
  experts->source_ = options.source;
  if (options.source != nullptr) {
    ASSIGN_OR_RETURN(experts->copier_, StreamCopier::Create(experts->copy_stream_.get(),
                                                             experts->pacer_.get()));
  }
  RETURN_IF_ERROR(experts->Place(store.manifest(), options.layers, plan));
  RETURN_IF_ERROR(experts->MakeRing(plan));
  RETURN_IF_ERROR(experts->WriteTables());
  if (experts->fed() && plan.hot_slots > 0) RETURN_IF_ERROR(experts->MakeFedTables());

  std::vector<RecordTarget> targets;
  for (uint32_t i = 0; i < experts->layers_.size(); ++i) {
    const Layer& layer = experts->layers_[i];
    if (layer.memory == nullptr) continue;  // fed
    for (uint32_t e = 0; e < layer.expert_count; ++e) {
      targets.push_back({{LayerId(i), ExpertId(e)}, layer.memory + e * layer.record_bytes,
                         !layer.streamed});
    }
  }
  if (!targets.empty()) {
    ASSIGN_OR_RETURN(const auto loader, RecordLoader::Create(store, options.io, options.threads));
    const uint64_t total =
        plan.anchored_bytes + (options.source == nullptr ? plan.streamed_bytes : 0);
    RETURN_IF_ERROR(loader->Load(targets, [&](uint64_t done) {
      if (options.progress) options.progress(done, total);
    }));
  }
  if (!experts->streamed_.empty() && !experts->fed()) RETURN_IF_ERROR(experts->Rewind(0));
  return experts;
}

GpuExperts::~GpuExperts() {
  if (copy_stream_.get() == nullptr) return;
  FinishFeeding();
  const Status idle = copy_stream_.Synchronize();
  static_cast<void>(idle);  // whoever used the layers has been told
}

Status GpuExperts::Place(const Manifest& manifest, LayerRange range, const VramPlan& plan) {
  ASSIGN_OR_RETURN(anchored_, gpu::DeviceMemory::Allocate(plan.anchored_bytes, "experts"));
  if (plan.hot_slots > 0) {
    ASSIGN_OR_RETURN(hot_, gpu::DeviceMemory::Allocate(plan.hot_bytes, "single experts"));
    hot_slots_ = {.memory = hot_.data(), .slot_bytes = plan.hot_slot_bytes, .count = plan.hot_slots};
  }
  if (plan.streamed_bytes > 0 && source_ == nullptr) {
    auto host = HostArena::Allocate(plan.streamed_bytes, {});
    if (!host.ok()) return host.status().WithContext("experts that are streamed to the GPU");
    host_ = std::move(*host);
    ASSIGN_OR_RETURN(lock_, gpu::PageLock::Lock(host_.span()));
  }
  uint64_t anchored = 0, streamed = 0;
  for (uint32_t i = 0; i < manifest.layers.size(); ++i) {
    Layer layer;
    layer.expert_count = range.contains(i) ? manifest.layers[i].expert_count : 0;
    layer.record_bytes = manifest.layers[i].record_bytes;
    layer.streamed = !plan.anchored[i];
    if (layer.streamed) {
      layer.streamed_index = static_cast<uint32_t>(streamed_.size());
      streamed_.push_back(i);
      if (source_ == nullptr) layer.memory = host_.data() + streamed;
      streamed += layer.bytes();
    } else {
      layer.memory = anchored_.data() + anchored;
      anchored += layer.bytes();
    }
    layers_.push_back(layer);
  }
  return OkStatus();
}

Status GpuExperts::MakeRing(const VramPlan& plan) {
  if (plan.ring_slots == 0) return OkStatus();
  ASSIGN_OR_RETURN(ring_, gpu::DeviceMemory::Allocate(plan.ring_bytes, "ring of streamed layers"));
  slots_.resize(plan.ring_slots);
  for (uint32_t i = 0; i < plan.ring_slots; ++i) {
    slots_[i].memory = ring_.data() + i * (plan.ring_bytes / plan.ring_slots);
    ASSIGN_OR_RETURN(slots_[i].copied, gpu::Event::Create());
    ASSIGN_OR_RETURN(slots_[i].released, gpu::Event::Create());
  }
  return OkStatus();
}

Status GpuExperts::WriteTables() {
  std::vector<const std::byte*> addresses;
  const auto append = [&](const Layer& layer, const std::byte* first) {
    const size_t at = addresses.size();
    for (uint32_t e = 0; e < layer.expert_count; ++e) {
      addresses.push_back(first + e * layer.record_bytes);
    }
    return at;
  };
  std::vector<size_t> layer_at;
  for (const Layer& layer : layers_) {
    if (layer.memory == nullptr) {
      layer_at.push_back(addresses.size());  // fed: in the ring only
      continue;
    }
    layer_at.push_back(append(
        layer, layer.streamed ? lock_.device_address() + (layer.memory - host_.data())
                              : layer.memory));
  }
  std::vector<std::vector<size_t>> slot_at(slots_.size());
  for (size_t s = 0; s < slots_.size(); ++s) {
    for (const uint32_t i : streamed_) {
      slot_at[s].push_back(append(layers_[i], slots_[s].memory));
    }
  }
  const uint64_t bytes = addresses.size() * sizeof(addresses[0]);
  ASSIGN_OR_RETURN(tables_, gpu::DeviceMemory::Allocate(bytes, "addresses of experts"));
  RETURN_IF_ERROR(gpu::Copy(tables_.data(), addresses.data(), bytes, copy_stream_.get()));
  RETURN_IF_ERROR(copy_stream_.Synchronize());
  const auto* const table = reinterpret_cast<const std::byte* const*>(tables_.data());
  for (size_t i = 0; i < layers_.size(); ++i) layers_[i].table = table + layer_at[i];
  for (size_t s = 0; s < slots_.size(); ++s) {
    for (const size_t at : slot_at[s]) slots_[s].tables.push_back(table + at);
  }
  return OkStatus();
}

Status GpuExperts::MakeFedTables() {
  uint32_t most = 0;
  for (const uint32_t i : streamed_) most = std::max(most, layers_[i].expert_count);
  fed_table_bytes_ = most * sizeof(std::byte*);
  ASSIGN_OR_RETURN(fed_addresses_,
                   gpu::PinnedMemory::Allocate(streamed_.size() * fed_table_bytes_));
  ASSIGN_OR_RETURN(fed_tables_, gpu::DeviceMemory::Allocate(slots_.size() * fed_table_bytes_,
                                                            "addresses of experts"));
  for (size_t s = 0; s < slots_.size(); ++s) {
    slots_[s].fed_table = fed_tables_.data() + s * fed_table_bytes_;
  }
  return OkStatus();
}

// The next layer in turn into a slot, once compute has let go of it.
Status GpuExperts::Fill(Slot& slot) {
  const Layer& layer = layers_[streamed_[next_layer_]];
  RETURN_IF_ERROR(slot.released.Before(copy_stream_.get()));
  RETURN_IF_ERROR(pacer_ ? pacer_->Copy(slot.memory, layer.memory, layer.bytes())
                         : gpu::Copy(slot.memory, layer.memory, layer.bytes(), copy_stream_.get()));
  RETURN_IF_ERROR(slot.copied.Record(copy_stream_.get()));
  slot.layer = streamed_[next_layer_];
  next_layer_ = (next_layer_ + 1) % static_cast<uint32_t>(streamed_.size());
  return OkStatus();
}

// After a chunk that was given up the ring is somewhere in the middle.
Status GpuExperts::Rewind(uint32_t streamed_index) {
  next_layer_ = streamed_index;
  for (size_t i = 0; i < slots_.size(); ++i) {
    RETURN_IF_ERROR(Fill(slots_[(next_slot_ + i) % slots_.size()]));
  }
  return OkStatus();
}

Result<const std::byte* const*> GpuExperts::Acquire(uint32_t index, gpu::Stream compute) {
  const Layer& layer = layers_[index];
  if (!layer.streamed) return layer.table;
  if (fed()) RETURN_IF_ERROR(Feed(slots_[next_slot_], layer));
  if (!fed() && slots_[next_slot_].layer != index) RETURN_IF_ERROR(Rewind(layer.streamed_index));
  const Slot& slot = slots_[next_slot_];
  RETURN_IF_ERROR(slot.copied.Before(compute));
  if (slot.fed_table != nullptr) return reinterpret_cast<const std::byte* const*>(slot.fed_table);
  return slot.tables[layer.streamed_index];
}

Status GpuExperts::Release(uint32_t index, gpu::Stream compute) {
  if (!layers_[index].streamed) return OkStatus();
  Slot& slot = slots_[next_slot_];
  next_slot_ = (next_slot_ + 1) % static_cast<uint32_t>(slots_.size());
  RETURN_IF_ERROR(slot.released.Record(compute));
  return fed() ? OkStatus() : Fill(slot);
}

// Nothing runs ahead but the drive: a layer's copies begin when the layer before has been enqueued, which is
// long before it has been computed.
Status GpuExperts::Feed(Slot& slot, const Layer& layer) {
  RETURN_IF_ERROR(slot.released.Before(copy_stream_.get()));
  LayerCopy copy{.layer = streamed_[layer.streamed_index],
                 .record_bytes = layer.record_bytes,
                 .to = slot.memory};
  if (layer.streamed_index + 1 < streamed_.size()) copy.next = streamed_[layer.streamed_index + 1];
  if (slot.fed_table != nullptr) {
    copy.addresses = reinterpret_cast<const std::byte**>(
        fed_addresses_.data() + layer.streamed_index * fed_table_bytes_);
  }
  RETURN_IF_ERROR(source_->CopyLayer(copy, *copier_));
  if (slot.fed_table != nullptr) {
    for (uint32_t e = 0; e < layer.expert_count; ++e) {
      const std::byte*& address = copy.addresses[e];
      if (address == nullptr) address = slot.memory + e * layer.record_bytes;
    }
    RETURN_IF_ERROR(gpu::Copy(slot.fed_table, copy.addresses,
                              layer.expert_count * sizeof(std::byte*), copy_stream_.get()));
  }
  return slot.copied.Record(copy_stream_.get());
}

void GpuExperts::FinishFeeding() {
  if (fed()) source_->Finish(*copier_);
}

}  // namespace moraine
