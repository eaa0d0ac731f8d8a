#include "memory/host_arena.h"

#include <numa.h>
#include <numaif.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <utility>

#include "base/bytes.h"
#include "base/log.h"
#include "memory/topology.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23  // Linux 5.14
#endif

namespace moraine {
namespace {

// The x86-64 and arm64 (4 KiB granule) PMD size; the only huge page size asked for.
constexpr uint64_t kHugePageBytes = 2 * kMiB;
constexpr int kMapHuge2MiB = 21 << 26;  // MAP_HUGE_2MB: log2 of the size above MAP_HUGE_SHIFT

uint64_t SmallPageBytes() {
  static const uint64_t bytes = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

bool TransparentHugePagesEnabled() {
  std::ifstream file("/sys/kernel/mm/transparent_hugepage/enabled");
  std::string line;
  return std::getline(file, line) && line.find("[never]") == std::string::npos;
}

Status CheckNode(int numa_node) {
  if (numa_node < 0) return OkStatus();
  const bool exists =
      numa_available() < 0
          ? numa_node == 0
          : numa_node <= numa_max_node() &&
                numa_bitmask_isbitset(numa_all_nodes_ptr, static_cast<unsigned>(numa_node));
  if (exists) return OkStatus();
  return InvalidArgument("numa node " + std::to_string(numa_node) + " does not exist here");
}

// Before any page is faulted in: a policy does not move pages that exist.
Status BindToNode(std::byte* data, uint64_t bytes, int numa_node) {
  if (numa_node < 0 || numa_available() < 0) return OkStatus();
  bitmask* mask = numa_allocate_nodemask();
  numa_bitmask_setbit(mask, static_cast<unsigned>(numa_node));
  const long result = mbind(data, bytes, MPOL_BIND, mask->maskp, mask->size + 1, 0);
  const int error_number = errno;
  numa_free_nodemask(mask);
  if (result == 0) return OkStatus();
  return IoErrorFromErrno(
      "mbind of " + FormatByteSize(bytes) + " to numa node " + std::to_string(numa_node),
      error_number);
}

// Faults every page in. Returns 0 or an errno. MADV_POPULATE_WRITE reports what a plain touch would
// turn into SIGBUS (no huge page left on the bound node).
int Populate(std::byte* data, uint64_t bytes, PageKind kind) {
  int result;
  do {
    result = madvise(data, bytes, MADV_POPULATE_WRITE);
  } while (result != 0 && (errno == EINTR || errno == EAGAIN));
  if (result == 0) return 0;
  if (errno != EINVAL || kind == PageKind::kHugeTlb) return errno;
  // Linux before 5.14.
  for (uint64_t offset = 0; offset < bytes; offset += SmallPageBytes()) {
    *const_cast<volatile std::byte*>(data + offset) = std::byte{0};
  }
  return 0;
}

// An anonymous mapping that starts on a huge page boundary, so that THP can use every page of it.
std::byte* MapAligned(uint64_t bytes, uint64_t alignment) {
  const uint64_t padded_bytes = bytes + alignment;
  void* mapping = mmap(nullptr, padded_bytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) return nullptr;
  const uint64_t address = reinterpret_cast<uint64_t>(mapping);
  const uint64_t aligned = AlignUp(address, alignment);
  if (aligned > address) munmap(mapping, aligned - address);
  const uint64_t tail_bytes = address + padded_bytes - (aligned + bytes);
  if (tail_bytes > 0) munmap(reinterpret_cast<void*>(aligned + bytes), tail_bytes);
  return reinterpret_cast<std::byte*>(aligned);
}

}  // namespace

const char* PageKindName(PageKind kind) {
  switch (kind) {
    case PageKind::kHugeTlb:
      return "hugetlb";
    case PageKind::kTransparentHuge:
      return "transparent huge";
    case PageKind::kSmall:
      return "small";
  }
  return "unknown";
}

Result<HostArena> HostArena::Allocate(uint64_t bytes, const HostArenaOptions& options) {
  if (bytes == 0) return InvalidArgument("a host arena of 0 bytes");
  RETURN_IF_ERROR(CheckNode(options.numa_node));
  const uint64_t page_bytes = options.huge_pages ? kHugePageBytes : SmallPageBytes();
  if (bytes > (1ull << 46)) {  // half of the user address space; also keeps the sums below exact
    return ResourceExhausted("a host arena of " + FormatByteSize(bytes) +
                             " does not fit the address space");
  }
  HostArena arena;
  arena.size_bytes_ = AlignUp(bytes, page_bytes);
  arena.numa_node_ = options.numa_node;

  // hugetlbfs pages are reserved by the administrator and not part of "available" memory, so they
  // are tried before that is looked at.
  if (options.huge_pages) {
    void* mapping = mmap(nullptr, arena.size_bytes_, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | kMapHuge2MiB, -1, 0);
    if (mapping != MAP_FAILED) {
      arena.data_ = static_cast<std::byte*>(mapping);
      arena.page_kind_ = PageKind::kHugeTlb;
      // Populated even when not asked to: the reservation is machine-wide, and a later fault on a
      // bound node that has none left is a SIGBUS.
      if (BindToNode(arena.data_, arena.size_bytes_, options.numa_node).ok() &&
          Populate(arena.data_, arena.size_bytes_, PageKind::kHugeTlb) == 0) {
        return arena;
      }
      munmap(std::exchange(arena.data_, nullptr), arena.size_bytes_);
    }
  }

  if (options.populate) {
    // The kernel overcommits: without this look, a budget that does not fit would not fail here but
    // be killed later.
    const Result<MemoryLimit> limit = DetectMemoryLimit();
    if (limit.ok() && arena.size_bytes_ > limit->available_bytes) {
      return ResourceExhausted("a host arena of " + FormatByteSize(arena.size_bytes_) +
                               " does not fit: " + FormatByteSize(limit->available_bytes) +
                               " are available (" + limit->source + ")");
    }
  }
  arena.data_ = MapAligned(arena.size_bytes_, page_bytes);
  if (arena.data_ == nullptr) {
    return ResourceExhausted("mmap of " + FormatByteSize(arena.size_bytes_) + ": " +
                             std::strerror(errno));
  }
  arena.page_kind_ = PageKind::kSmall;
  if (options.huge_pages && TransparentHugePagesEnabled() &&
      madvise(arena.data_, arena.size_bytes_, MADV_HUGEPAGE) == 0) {
    arena.page_kind_ = PageKind::kTransparentHuge;
  }
  RETURN_IF_ERROR(BindToNode(arena.data_, arena.size_bytes_, options.numa_node));
  if (options.populate) {
    const int error_number = Populate(arena.data_, arena.size_bytes_, arena.page_kind_);
    if (error_number != 0) {
      return ResourceExhausted("populating a host arena of " + FormatByteSize(arena.size_bytes_) +
                               ": " + std::strerror(error_number));
    }
  }
  return arena;
}

HostArena::~HostArena() {
  if (data_ != nullptr) munmap(data_, size_bytes_);
}

HostArena::HostArena(HostArena&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_bytes_(std::exchange(other.size_bytes_, 0)),
      page_kind_(other.page_kind_),
      numa_node_(other.numa_node_) {}

HostArena& HostArena::operator=(HostArena&& other) noexcept {
  HostArena moved(std::move(other));  // takes our old mapping along and unmaps it
  std::swap(data_, moved.data_);
  std::swap(size_bytes_, moved.size_bytes_);
  std::swap(page_kind_, moved.page_kind_);
  std::swap(numa_node_, moved.numa_node_);
  return *this;
}

}  // namespace moraine
