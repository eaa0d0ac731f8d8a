#include "store/bulk_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/check.h"
#include "base/clock.h"

namespace moraine {
namespace {

// What O_DIRECT may ask of offsets, sizes and memory; a file system that asks for more refuses, and is read
// buffered.
constexpr uint64_t kDirectAlignment = 4096;
constexpr uint64_t kPieceBytes = 1 * kMiB;
// Through the page cache: stays in the first or second level between the kernel's copy and its use.
constexpr uint64_t kBufferedPieceBytes = 76 * kKiB;
// Smaller reads are of several in a row, and the kernel reads ahead.
constexpr uint64_t kLeastDirectBytes = 256 * kKiB;
// Small models stay cached.
constexpr uint64_t kDropBehindBytes = 64 * kMiB;

// The piece that a thread reads into, with room for what alignment adds at both ends.
std::byte* ThreadBuffer() {
  struct Free {
    void operator()(std::byte* buffer) const { std::free(buffer); }
  };
  thread_local const std::unique_ptr<std::byte, Free> buffer(static_cast<std::byte*>(
      std::aligned_alloc(kDirectAlignment, kPieceBytes + 2 * kDirectAlignment)));
  CHECK(buffer != nullptr, "out of memory for a read buffer");
  return buffer.get();
}

bool IsAligned(uint64_t value) { return value % kDirectAlignment == 0; }

}  // namespace

BulkFile::BulkFile(PosixFile file, Access access) : buffered_(std::move(file)) {
  const int flags = (access == Access::kRead ? O_RDONLY : O_RDWR) | O_DIRECT;
  // By its descriptor: under its name there may be another file by now.
  const std::string same = "/proc/self/fd/" + std::to_string(buffered_.fd());
  if (Result<PosixFile> direct = PosixFile::Open(same, flags); direct.ok()) {
    direct_ = std::move(*direct);
  }
  const Result<uint64_t> size = buffered_.Size();
  if (access != Access::kRead || !direct_.is_open() || !size.ok() || *size == 0) return;
  void* const mapping = mmap(nullptr, *size, PROT_READ, MAP_SHARED, buffered_.fd(), 0);
  if (mapping == MAP_FAILED) return;
  mapping_ = mapping;
  mapping_bytes_ = *size;
}

BulkFile::~BulkFile() {
  if (mapping_ != nullptr) munmap(mapping_, mapping_bytes_);
}

bool BulkFile::direct() const {
  return direct_.is_open() && !refused_.load(std::memory_order_relaxed);
}

int64_t BulkFile::reading_ns() const { return reading_ns_.load(std::memory_order_relaxed); }

// More than half of it; for a file that is neither ours nor writable the kernel says that all is.
bool BulkFile::IsCached(uint64_t offset, uint64_t bytes) const {
  if (mapping_ == nullptr || offset + bytes > mapping_bytes_) return false;
  const uint64_t page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  const uint64_t begin = offset / page * page;
  std::vector<unsigned char> pages((offset + bytes - begin + page - 1) / page);
  if (mincore(static_cast<std::byte*>(mapping_) + begin, offset + bytes - begin, pages.data()) != 0) {
    return false;
  }
  const auto cached = std::count_if(pages.begin(), pages.end(), [](auto p) { return (p & 1) != 0; });
  return static_cast<size_t>(cached) > pages.size() / 2;
}

// Whole blocks around the range, as far as the drive delivers: how many bytes of the buffer are there.
uint64_t BulkFile::ReadDirect(uint64_t offset, uint64_t bytes, std::byte* buffer) const {
  CHECK(IsAligned(offset) && IsAligned(bytes), "not aligned");
  uint64_t done = 0;
  while (done < bytes) {
    const ssize_t got = pread(direct_.fd(), buffer + done, bytes - done,
                              static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EINVAL) refused_.store(true, std::memory_order_relaxed);
    if (got <= 0) break;
    done += static_cast<uint64_t>(got);
    if (!IsAligned(done)) break;  // the file's end
  }
  return done;
}

Status BulkFile::ReadPieces(uint64_t offset, uint64_t bytes, uint64_t unit_bytes,
                            const std::function<void(std::span<const std::byte>)>& take) const {
  CHECK(bytes % unit_bytes == 0 && unit_bytes <= kBufferedPieceBytes, "not whole units");
  const int64_t begin_ns = RealClock().NowNs();
  const bool large = bytes >= kLeastDirectBytes;
  const bool cached = large && IsCached(offset, bytes);
  // The whole range at once, so that it is not fetched in readahead windows of 128 KiB.
  if (large && !cached && !direct()) {
    (void)posix_fadvise(buffered_.fd(), static_cast<off_t>(offset), static_cast<off_t>(bytes),
                        POSIX_FADV_WILLNEED);
  }
  int64_t reading_ns = RealClock().NowNs() - begin_ns;
  std::byte* const buffer = ThreadBuffer();
  uint64_t missed_bytes = 0;
  Status status;
  for (uint64_t done = 0; status.ok() && done < bytes;) {
    const bool past_cache = large && !cached && direct();
    const uint64_t most = past_cache ? kPieceBytes : kBufferedPieceBytes;
    const uint64_t count = std::min(most / unit_bytes * unit_bytes, bytes - done);
    const uint64_t at = offset + done, begin = at / kDirectAlignment * kDirectAlignment;
    const int64_t start_ns = RealClock().NowNs();
    std::span<std::byte> piece(buffer + (at - begin), count);
    const bool complete =
        past_cache && ReadDirect(begin, AlignUp(at + count, kDirectAlignment) - begin, buffer) >=
                          at + count - begin;
    if (!complete) {
      status = buffered_.ReadAt(at, piece);
      if (!cached) missed_bytes += count;
    }
    reading_ns += RealClock().NowNs() - start_ns;
    if (status.ok()) take(piece);
    done += count;
  }
  reading_ns_.fetch_add(reading_ns, std::memory_order_relaxed);
  DropBehind(missed_bytes);
  return status;
}

void BulkFile::DropBehind(uint64_t bytes) const {
  if (bytes == 0) return;
  const uint64_t before = buffered_bytes_.fetch_add(bytes, std::memory_order_relaxed);
  if (before / kDropBehindBytes != (before + bytes) / kDropBehindBytes) buffered_.DropCache(0, 0);
}

Status BulkFile::WriteAt(uint64_t offset, std::span<const std::byte> source) const {
  uint64_t done = 0;
  const bool aligned = IsAligned(offset) && IsAligned(source.size()) &&
                       IsAligned(reinterpret_cast<uintptr_t>(source.data()));
  while (aligned && direct() && done < source.size() && IsAligned(done)) {
    const ssize_t written = pwrite(direct_.fd(), source.data() + done, source.size() - done,
                                   static_cast<off_t>(offset + done));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0 && errno == EINVAL) refused_.store(true, std::memory_order_relaxed);
    if (written <= 0) break;
    done += static_cast<uint64_t>(written);
  }
  if (done == source.size()) return OkStatus();
  RETURN_IF_ERROR(buffered_.WriteAt(offset + done, source.subspan(done)));
  buffered_.StartWriteback(offset + done, source.size() - done);
  return OkStatus();
}

void BulkFile::Reserve(uint64_t bytes) const {
  (void)fallocate(buffered_.fd(), 0, 0, static_cast<off_t>(bytes));
}

}  // namespace moraine
