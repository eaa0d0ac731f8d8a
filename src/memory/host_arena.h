// HostArena: one block of host memory that DMA, kernels and H2D copies share.
//
// A slab of expert slots must be page-aligned for O_DIRECT, on huge pages so that streaming 3 MB
// records does not spend its time in the TLB, bound to one NUMA node, and never moved: registered
// with io_uring and page-locked for the GPU, its address is its identity. malloc gives none of
// that, and hugetlbfs alone would fail on machines that reserve none; so: mmap, MAP_HUGETLB first,
// then transparent huge pages by madvise, then plain pages. Costs: memory is committed at
// allocation (MAP_POPULATE), so that a budget that does not fit fails at start-up, not in a token.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/status.h"

namespace moraine {

enum class PageKind { kHugeTlb, kTransparentHuge, kSmall };
const char* PageKindName(PageKind kind);

struct HostArenaOptions {
  int numa_node = -1;      // -1: no binding
  bool huge_pages = true;  // try huge pages first
  bool populate = true;    // fault every page in now
};

// Move-only owner of the mapping. Thread-compatible.
class HostArena {
 public:
  HostArena() = default;
  // Rounds `bytes` up to the page size asked for. The contents are zero. kResourceExhausted when
  // the memory is not there (with populate: measured against DetectMemoryLimit before it is
  // touched, because the kernel overcommits), kInvalidArgument for a NUMA node that does not exist.
  static Result<HostArena> Allocate(uint64_t bytes, const HostArenaOptions& options);
  ~HostArena();
  HostArena(HostArena&& other) noexcept;
  HostArena& operator=(HostArena&& other) noexcept;

  std::byte* data() const { return data_; }
  uint64_t size_bytes() const { return size_bytes_; }
  std::span<std::byte> span() const { return {data_, size_bytes_}; }
  PageKind page_kind() const { return page_kind_; }
  int numa_node() const { return numa_node_; }

 private:
  std::byte* data_ = nullptr;
  uint64_t size_bytes_ = 0;
  PageKind page_kind_ = PageKind::kSmall;
  int numa_node_ = -1;
};

}  // namespace moraine
