#include "engine/gpu/gpu_handover.h"

#include <algorithm>
#include <variant>

#include "base/check.h"

namespace moraine {

Result<std::unique_ptr<GpuHandover>> GpuHandover::Create(const ModelConfig& config,
                                                         const GpuNetwork& network,
                                                         const KvPool& pool,
                                                         uint32_t max_tokens) {
  std::unique_ptr<GpuHandover> handover(new GpuHandover(network, pool));
  ASSIGN_OR_RETURN(handover->back_, gpu::OwnedStream::Create());
  const size_t layers = network.layers().size();
  for (size_t i = 0; i < layers; ++i) {
    ASSIGN_OR_RETURN(gpu::Event event, gpu::Event::Create());
    handover->written_.push_back(std::move(event));
  }
  handover->layer_stride_ = uint64_t{max_tokens} * config.top_k;
  ASSIGN_OR_RETURN(handover->routed_, gpu::PinnedMemory::Allocate(
                                          layers * handover->layer_stride_ * sizeof(uint32_t)));
  for (auto* runs : {&handover->stale_runs_, &handover->written_runs_}) {
    runs->reserve(pool.block_count());
  }
  handover->sorted_.reserve(pool.block_count());
  return handover;
}

GpuHandover::~GpuHandover() {
  if (back_.get() != nullptr) static_cast<void>(back_.Synchronize());
}

// Pages of one sequence are distinct; in which order they are copied does not matter.
void GpuHandover::CollectRuns(std::span<const uint32_t> pages, std::vector<uint32_t>* sorted,
                              std::vector<Run>* runs) {
  sorted->assign(pages.begin(), pages.end());
  std::ranges::sort(*sorted);
  runs->clear();
  for (const uint32_t page : *sorted) {
    if (!runs->empty() && runs->back().first + runs->back().count == page) {
      ++runs->back().count;
    } else {
      runs->push_back({page, 1});
    }
  }
}

namespace {

// A layer's pools, which a block of the CPU's has one behind the other.
struct Pools {
  std::byte* data[2] = {};
  uint32_t count = 0;
  uint64_t page_bytes = 0;
};

Pools PoolsOf(const GpuGqa& gqa) {
  const gpu::PagedKv& kv = gqa.kv;
  const uint64_t elements = gpu::KvPageElements(kv.kv_heads, kv.head_dim);
  if (kv.keys_f32 != nullptr) {
    return {{reinterpret_cast<std::byte*>(kv.keys_f32), reinterpret_cast<std::byte*>(kv.values_f32)},
            2, elements * sizeof(float)};
  }
  if (kv.keys_fp8 != nullptr) {
    return {{reinterpret_cast<std::byte*>(kv.keys_fp8), reinterpret_cast<std::byte*>(kv.values_fp8)},
            2, gpu::Fp8PageBytes(kv.kv_heads, kv.head_dim)};
  }
  return {{reinterpret_cast<std::byte*>(kv.keys), reinterpret_cast<std::byte*>(kv.values)},
          2, elements * sizeof(uint16_t)};
}

// Prompts alone are not computed of such models (gpu_support.h).
Pools PoolsOf(const GpuDelta&) { return {}; }

Pools PoolsOf(const GpuMla& mla) {
  const gpu::LatentCache& cache = mla.cache;
  const uint64_t elements = gpu::LatentPageElements(cache.rank, cache.rope);
  if (cache.f32 != nullptr) {
    return {{reinterpret_cast<std::byte*>(cache.f32)}, 1, elements * sizeof(float)};
  }
  return {{reinterpret_cast<std::byte*>(cache.bf16)}, 1, elements * sizeof(uint16_t)};
}

}  // namespace

Status GpuHandover::CopyPages(uint32_t layer, const Run& run, bool to_gpu,
                              gpu::Stream stream) const {
  const Pools pools = std::visit([](const auto& mixer) { return PoolsOf(mixer); },
                                 network_.layers()[layer].mixer);
  const uint64_t block_bytes = pool_.block_bytes(layer);
  CHECK(block_bytes == pools.count * pools.page_bytes, "a block that is not a page of each pool");
  std::byte* const blocks = pool_.layer(layer) + run.first * block_bytes;
  for (uint32_t i = 0; i < pools.count; ++i) {
    std::byte* const page = pools.data[i] + run.first * pools.page_bytes;
    std::byte* const block = blocks + i * pools.page_bytes;
    gpu::RowCopy copy{.row_bytes = pools.page_bytes, .rows = run.count};
    copy.to = to_gpu ? page : block;
    copy.to_stride = to_gpu ? pools.page_bytes : block_bytes;
    copy.from = to_gpu ? block : page;
    copy.from_stride = to_gpu ? block_bytes : pools.page_bytes;
    RETURN_IF_ERROR(gpu::CopyRows(copy, stream));
  }
  return OkStatus();
}

Status GpuHandover::Begin(std::span<const uint32_t> stale, std::span<const uint32_t> written,
                          gpu::Stream compute) {
  CollectRuns(stale, &sorted_, &stale_runs_);
  CollectRuns(written, &sorted_, &written_runs_);
  for (uint32_t layer = 0; layer < network_.layers().size(); ++layer) {
    for (const Run& run : stale_runs_) {
      RETURN_IF_ERROR(CopyPages(layer, run, /*to_gpu=*/true, compute));
    }
  }
  return OkStatus();
}

Status GpuHandover::OnKeysAndValues(uint32_t layer, gpu::Stream compute) {
  RETURN_IF_ERROR(written_[layer].Record(compute));
  RETURN_IF_ERROR(written_[layer].Before(back_.get()));
  for (const Run& run : written_runs_) {
    RETURN_IF_ERROR(CopyPages(layer, run, /*to_gpu=*/false, back_.get()));
  }
  return OkStatus();
}

Status GpuHandover::OnRouted(uint32_t layer, const uint32_t* experts, uint32_t count,
                             gpu::Stream compute) {
  CHECK(count <= layer_stride_, "more tokens than a chunk has");
  return gpu::Copy(routed_.as<uint32_t>() + layer * layer_stride_, experts,
                   count * sizeof(uint32_t), compute);
}

Status GpuHandover::TakeWritten() {
  for (uint32_t layer = 0; layer < network_.layers().size(); ++layer) {
    for (const Run& run : written_runs_) {
      RETURN_IF_ERROR(CopyPages(layer, run, /*to_gpu=*/false, back_.get()));
    }
  }
  return Finish();
}

void GpuHandover::AppendPages(const uint32_t* pages, uint32_t first, uint32_t count,
                              std::vector<uint32_t>* to) {
  const uint32_t last = (first + count - 1) / gpu::kKvPagePositions;
  for (uint32_t page = first / gpu::kKvPagePositions; page <= last; ++page) {
    to->push_back(pages[page]);
  }
}

Status GpuHandover::Finish() { return back_.Synchronize(); }

}  // namespace moraine
