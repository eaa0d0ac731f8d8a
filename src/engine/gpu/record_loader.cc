#include "engine/gpu/record_loader.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/bytes.h"

namespace moraine {
namespace {

// In flight, being checked and being copied: several times what a drive needs (docs/io.md: 8 MiB).
constexpr uint64_t kStagingBytes = 128 * kMiB;
constexpr uint32_t kFewestSlots = 4;

}  // namespace

RecordLoader::RecordLoader(const Store& store, int threads)
    : store_(store), pool_(Topology::Detect(), {threads, true}) {}

Result<std::unique_ptr<RecordLoader>> RecordLoader::Create(const Store& store,
                                                           const BlockReaderOptions& io,
                                                           int threads) {
  std::unique_ptr<RecordLoader> loader(new RecordLoader(store, threads));
  ASSIGN_OR_RETURN(loader->stream_, gpu::OwnedStream::Create());
  loader->slot_bytes_ = std::max<uint64_t>(store.manifest().max_record_bytes(), 4096);
  const auto slots = static_cast<uint32_t>(
      std::max<uint64_t>(kStagingBytes / loader->slot_bytes_, kFewestSlots));
  ASSIGN_OR_RETURN(loader->staging_, gpu::PinnedMemory::Allocate(slots * loader->slot_bytes_));
  for (uint32_t slot = 0; slot < slots; ++slot) loader->free_slots_.push_back(slot);
  ASSIGN_OR_RETURN(std::unique_ptr<BlockReader> reader, CreateBlockReader(io));
  for (const std::string& path : store.expert_pack_paths()) {
    ASSIGN_OR_RETURN(const FileId file, reader->OpenFile(path));
    loader->files_.push_back(file);
  }
  loader->scheduler_ = std::make_unique<ReadScheduler>(std::move(reader), ReadSchedulerOptions{});
  return loader;
}

void RecordLoader::Issue(const RecordTarget& target) {
  const RecordLocation& place = store_.Locate(target.key);
  Pending pending{.target = &target};
  // A slot either way: it bounds what is in flight.
  pending.slot = free_slots_.back();
  free_slots_.pop_back();
  std::byte* const buffer =
      target.on_gpu ? staging_.data() + pending.slot * slot_bytes_ : target.memory;
  pending.id = scheduler_->Enqueue(
      {.file = files_[place.pack], .offset = place.offset, .length = place.bytes, .buffer = buffer});
  pending_.push_back(pending);
}

Status RecordLoader::TakeIn(std::span<const Pending> arrived) {
  checked_.assign(arrived.size(), OkStatus());
  const auto bytes_of = [&](const Pending& pending) {
    const std::byte* data = pending.target->on_gpu ? staging_.data() + pending.slot * slot_bytes_
                                                   : pending.target->memory;
    return std::span(data, store_.Locate(pending.target->key).bytes);
  };
  pool_.ParallelFor(static_cast<uint32_t>(arrived.size()), [&](uint32_t i, uint32_t) {
    checked_[i] = store_.VerifyRecord(arrived[i].target->key, bytes_of(arrived[i]));
  });
  bool copied = false;
  for (size_t i = 0; i < arrived.size(); ++i) {
    RETURN_IF_ERROR(checked_[i]);
    if (!arrived[i].target->on_gpu) continue;
    const std::span<const std::byte> bytes = bytes_of(arrived[i]);
    RETURN_IF_ERROR(
        gpu::Copy(arrived[i].target->memory, bytes.data(), bytes.size(), stream_.get()));
    copied = true;
  }
  // Reads go on meanwhile; the link is several times faster than drives.
  if (copied) RETURN_IF_ERROR(stream_.Synchronize());
  for (const Pending& pending : arrived) free_slots_.push_back(pending.slot);
  return OkStatus();
}

Status RecordLoader::Load(std::span<const RecordTarget> targets,
                          const std::function<void(uint64_t)>& loaded) {
  size_t next = 0;
  uint64_t done_bytes = 0;
  std::vector<ReadOutcome> outcomes;
  std::vector<Pending> arrived;
  while (next < targets.size() || !pending_.empty()) {
    while (next < targets.size() && !free_slots_.empty()) Issue(targets[next++]);
    scheduler_->Flush();
    outcomes.clear();
    arrived.clear();
    scheduler_->Poll(&outcomes, -1);
    for (const ReadOutcome& outcome : outcomes) {
      const auto at = std::ranges::find(pending_, outcome.id, &Pending::id);
      CHECK(at != pending_.end(), "a read that nobody asked for");
      const ExpertKey key = at->target->key;
      if (!outcome.status.ok()) {
        return outcome.status.WithContext(
            fmt::format("layer {} expert {}", key.layer.value(), key.expert.value()));
      }
      done_bytes += store_.Locate(key).bytes;
      arrived.push_back(*at);
      pending_.erase(at);
    }
    RETURN_IF_ERROR(TakeIn(arrived));
    if (loaded) loaded(done_bytes);
  }
  return OkStatus();
}

}  // namespace moraine
