#include "store/prefix_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string_view>

#include "base/bytes.h"
#include "store/record_checksum.h"

namespace moraine {
namespace {

constexpr uint64_t kPageBytes = PrefixFile::kHeadBytes;
constexpr uint64_t kChecksumAt = kPageBytes - sizeof(uint64_t);  // of a page's other bytes
constexpr std::string_view kFileMagic = "moraine prefix cache, format 1\n";
constexpr char kBlockMagic[8] = {'M', 'O', 'R', 'A', 'K', 'V', 'B', '1'};

struct BlockHead {
  char magic[8];
  uint64_t serial, parent;
  uint64_t payload_bytes, payload_checksum;
  uint64_t token_count;  // int32 each, behind this
};
static_assert(sizeof(BlockHead) == 48);
constexpr uint32_t kMostTokens = (kChecksumAt - sizeof(BlockHead)) / sizeof(int32_t);

void Seal(std::byte* page) {
  const uint64_t checksum = XXH3_64bits(page, kChecksumAt);
  std::memcpy(page + kChecksumAt, &checksum, sizeof(checksum));
}

bool IsSealed(const std::byte* page) {
  uint64_t checksum = 0;
  std::memcpy(&checksum, page + kChecksumAt, sizeof(checksum));
  return checksum == XXH3_64bits(page, kChecksumAt);
}

BlockHead HeadOf(const std::byte* page) {
  BlockHead head;
  std::memcpy(&head, page, sizeof(head));
  return head;
}

bool IsBlock(const std::byte* page, uint64_t payload_bytes, uint32_t block_tokens) {
  const BlockHead head = HeadOf(page);
  return std::memcmp(head.magic, kBlockMagic, sizeof(kBlockMagic)) == 0 && IsSealed(page) &&
         head.payload_bytes == payload_bytes && head.token_count == block_tokens;
}

Result<HostArena> Page() {
  return HostArena::Allocate(kPageBytes, {.huge_pages = false, .populate = false});
}

std::string HeaderText(const std::string& identity, uint64_t payload_bytes) {
  return fmt::format("{}{}\nblock bytes {}\n", kFileMagic, identity, payload_bytes);
}

}  // namespace

uint64_t PrefixFile::SlotBytes(uint64_t payload_bytes) {
  return kHeadBytes + AlignUp(payload_bytes, kPageBytes);
}

uint32_t PrefixFile::SlotCount(uint64_t payload_bytes, uint64_t budget_bytes) {
  if (budget_bytes < kHeadBytes) return 0;
  const uint64_t slots = (budget_bytes - kHeadBytes) / SlotBytes(payload_bytes);
  return static_cast<uint32_t>(std::min<uint64_t>(slots, UINT32_MAX - 1));
}

Result<std::unique_ptr<PrefixFile>> PrefixFile::Open(const PrefixFileOptions& o,
                                                     std::vector<Found>* found) {
  CHECK(o.block_tokens <= kMostTokens && o.identity.find('\n') == std::string::npos);
  std::unique_ptr<PrefixFile> file(new PrefixFile());
  file->block_tokens_ = o.block_tokens;
  file->payload_bytes_ = o.payload_bytes;
  file->slot_bytes_ = SlotBytes(o.payload_bytes);
  file->slot_count_ = SlotCount(o.payload_bytes, o.budget_bytes);
  if (file->slot_count_ == 0) {
    return InvalidArgument(fmt::format("{}: a budget of {} has no room for a block of {}", o.directory,
                                       FormatByteSize(o.budget_bytes),
                                       FormatByteSize(file->slot_bytes_)));
  }
  if (mkdir(o.directory.c_str(), 0700) != 0 && errno != EEXIST) {
    return IoErrorFromErrno("mkdir " + o.directory, errno);
  }
  const uint64_t hash = XXH3_64bits(o.identity.data(), o.identity.size());
  RETURN_IF_ERROR(file->OpenFile(fmt::format("{}/prefix-{:016x}.kv", o.directory, hash)));
  RETURN_IF_ERROR(file->CheckHeader(o.identity));
  file->Scan(found);
  return file;
}

// Past the page cache: a block is read once, straight to where it is wanted, and what is written should
// push nothing out. File systems without O_DIRECT do it their way.
Status PrefixFile::OpenFile(const std::string& path) {
  auto file = PosixFile::Open(path, O_RDWR | O_CREAT | O_DIRECT);
  if (!file.ok()) file = PosixFile::Open(path, O_RDWR | O_CREAT);
  if (!file.ok()) return file.status();
  file_ = std::move(*file);
  // What people have written is in it.
  if (fchmod(file_.fd(), 0600) != 0) return IoErrorFromErrno("chmod " + path, errno);
  if (flock(file_.fd(), LOCK_EX | LOCK_NB) == 0) return OkStatus();
  if (errno != EWOULDBLOCK) return IoErrorFromErrno("flock " + path, errno);
  return FailedPrecondition(path + ": another process keeps its prefix cache there");
}

Status PrefixFile::CheckHeader(const std::string& identity) {
  const std::string wanted = HeaderText(identity, payload_bytes_);
  CHECK(wanted.size() < kChecksumAt, "the identity does not fit the header");
  ASSIGN_OR_RETURN(const HostArena page, Page());
  ASSIGN_OR_RETURN(const uint64_t size, file_.Size());
  const std::span<std::byte> bytes(page.data(), kPageBytes);
  if (size >= kPageBytes) RETURN_IF_ERROR(file_.ReadAt(0, bytes));
  const char* const text = reinterpret_cast<const char*>(page.data());
  const std::string found(text, strnlen(text, kChecksumAt));
  if (size >= kPageBytes && IsSealed(page.data()) && found.starts_with(kFileMagic)) {
    if (found == wanted) {
      if (size > OffsetOf(slot_count_)) return file_.Truncate(OffsetOf(slot_count_));
      return OkStatus();
    }
    return FailedPrecondition(fmt::format("{}: belongs to \"{}\", expected \"{}\"", path(),
                                          found.substr(kFileMagic.size()),
                                          wanted.substr(kFileMagic.size())));
  }
  // Empty, killed before the header was there, or damaged: without it the rest means nothing.
  RETURN_IF_ERROR(file_.Truncate(0));
  std::memset(page.data(), 0, kPageBytes);
  std::memcpy(page.data(), wanted.data(), wanted.size());
  Seal(page.data());
  return file_.WriteAt(0, bytes);
}

void PrefixFile::Scan(std::vector<Found>* found) const {
  found->clear();
  const auto page = Page();
  const auto size = file_.Size();
  if (!page.ok() || !size.ok()) return;
  for (uint32_t slot = 0; slot < slot_count_ && OffsetOf(slot + 1) <= *size; ++slot) {
    const Status read = file_.ReadAt(OffsetOf(slot), {page->data(), kPageBytes});
    if (!read.ok() || !IsBlock(page->data(), payload_bytes_, block_tokens_)) continue;
    const BlockHead head = HeadOf(page->data());
    Found here{slot, {head.serial, head.parent, std::vector<int32_t>(block_tokens_)}};
    std::memcpy(here.block.tokens.data(), page->data() + sizeof(head),
                block_tokens_ * sizeof(int32_t));
    found->push_back(std::move(here));
  }
  std::ranges::sort(*found, {}, [](const Found& f) { return f.block.serial; });
}

Status PrefixFile::Write(uint32_t slot, const Block& block, std::span<std::byte> buffer) const {
  CHECK(slot < slot_count_ && buffer.size() == slot_bytes_);
  CHECK(block.tokens.size() == block_tokens_ && block.parent < block.serial);
  std::memset(buffer.data(), 0, kHeadBytes);
  BlockHead head;
  std::memcpy(head.magic, kBlockMagic, sizeof(kBlockMagic));
  head.serial = block.serial;
  head.parent = block.parent;
  head.payload_bytes = payload_bytes_;
  head.payload_checksum = RecordChecksum(buffer.subspan(kHeadBytes, payload_bytes_));
  head.token_count = block_tokens_;
  std::memcpy(buffer.data(), &head, sizeof(head));
  std::memcpy(buffer.data() + sizeof(head), block.tokens.data(), block_tokens_ * sizeof(int32_t));
  Seal(buffer.data());
  return file_.WriteAt(OffsetOf(slot), buffer);
}

Status PrefixFile::Read(uint32_t slot, const Block& block, std::span<std::byte> buffer) const {
  CHECK(slot < slot_count_ && buffer.size() == slot_bytes_);
  RETURN_IF_ERROR(file_.ReadAt(OffsetOf(slot), buffer));
  const std::byte* const page = buffer.data();
  const auto wrong = [&](const std::string& what) {
    return Corruption(fmt::format("{} at offset {}: {}", path(), OffsetOf(slot), what));
  };
  if (!IsBlock(page, payload_bytes_, block_tokens_)) return wrong("no head of a block");
  const BlockHead head = HeadOf(page);
  if (head.serial != block.serial || head.parent != block.parent ||
      std::memcmp(page + sizeof(head), block.tokens.data(), block_tokens_ * sizeof(int32_t)) != 0) {
    return wrong(fmt::format("expected block {} behind {}, found {} behind {}, or other tokens",
                             block.serial, block.parent, head.serial, head.parent));
  }
  const uint64_t checksum = RecordChecksum(buffer.subspan(kHeadBytes, payload_bytes_));
  if (checksum != head.payload_checksum) {
    return wrong(fmt::format("payload checksum: expected {:016x}, found {:016x}",
                             head.payload_checksum, checksum));
  }
  return OkStatus();
}

}  // namespace moraine
