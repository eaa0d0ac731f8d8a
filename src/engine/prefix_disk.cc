#include "engine/prefix_disk.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/bytes.h"
#include "base/check.h"
#include "base/log.h"

namespace moraine {
namespace {

// Of each kind: enough small blocks that a step's worth goes at once, and of large ones two, so that one is
// copied while the other is read or written.
constexpr uint64_t kBufferBytes = 8 * kMiB;
constexpr uint64_t kFewestBuffers = 2, kMostBuffers = 8;
// Prompts that wait to be written; beyond, the oldest are not.
constexpr size_t kMostBacklog = 64;

uint64_t BufferCount(uint64_t slot_bytes) {
  return std::clamp(kBufferBytes / slot_bytes, kFewestBuffers, kMostBuffers);
}

std::span<const int32_t> BlockAt(std::span<const int32_t> tokens, size_t block) {
  return tokens.subspan(block * kKvBlockPositions, kKvBlockPositions);
}

}  // namespace

uint64_t PrefixDisk::MemoryBytes(std::span<const LayerStateShape> layers, uint64_t budget_bytes) {
  uint64_t payload = 0;
  for (const LayerStateShape& shape : layers) {
    payload += AlignUp(shape.position_bytes * kKvBlockPositions, 64);
  }
  const uint64_t slot = PrefixFile::SlotBytes(payload);
  // A node of the hash map and one of the set of leaves are about 48 bytes each.
  return 2 * BufferCount(slot) * slot +
         PrefixFile::SlotCount(payload, budget_bytes) * (sizeof(Entry) + 2 * 48);
}

Result<std::unique_ptr<PrefixDisk>> PrefixDisk::Open(const PrefixDiskOptions& options,
                                                     const std::string& identity,
                                                     const KvPool& pool) {
  std::unique_ptr<PrefixDisk> disk(new PrefixDisk());
  disk->pool_ = &pool;
  disk->before_io_ = options.before_io;
  std::vector<PrefixFile::Found> found;
  ASSIGN_OR_RETURN(disk->file_, PrefixFile::Open({.directory = options.directory,
                                                  .identity = identity,
                                                  .block_tokens = kKvBlockPositions,
                                                  .payload_bytes = pool.content_bytes(),
                                                  .budget_bytes = options.budget_bytes},
                                                 &found));
  RETURN_IF_ERROR(disk->AllocateBuffers());
  disk->Index(found);
  disk->thread_ = std::thread([raw = disk.get()] { raw->ThreadMain(); });
  return disk;
}

PrefixDisk::~PrefixDisk() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    reads_.clear();
  }
  work_.notify_all();
  if (thread_.joinable()) thread_.join();
}

Status PrefixDisk::AllocateBuffers() {
  const uint64_t count = BufferCount(file_->slot_bytes());
  ASSIGN_OR_RETURN(memory_, HostArena::Allocate(2 * count * file_->slot_bytes(),
                                                {.huge_pages = false, .populate = false}));
  for (uint64_t i = 0; i < 2 * count; ++i) {
    (i < count ? write_buffers_ : read_buffers_).push_back(memory_.data() + i * file_->slot_bytes());
  }
  return OkStatus();
}

// By serial, so a parent is there before its children, and what was used last touches its parents last.
void PrefixDisk::Index(const std::vector<PrefixFile::Found>& found) {
  entries_.resize(file_->slot_count());
  std::unordered_map<uint64_t, uint32_t> slots;  // by serial
  slots.emplace(0, kNone);
  for (const PrefixFile::Found& f : found) {
    next_serial_ = std::max(next_serial_, f.block.serial + 1);
    const auto parent = slots.find(f.block.parent);
    if (f.block.serial == 0 || parent == slots.end()) continue;  // what is in front of it is gone
    if (!slots.emplace(f.block.serial, f.slot).second) continue;
    Add(f.slot, f.block.serial, parent->second, f.block.tokens);
    entries_[f.slot].written = true;
  }
  for (uint32_t slot = file_->slot_count(); slot-- > 0;) {
    if (entries_[slot].serial == 0) free_.push_back(slot);
  }
}

// --- Index ----------------------------------------------------------------------------------------

// FNV-1a over words; where it collides, tokens and parents are compared.
uint64_t PrefixDisk::HashOf(uint32_t parent, std::span<const int32_t> tokens) const {
  uint64_t hash = 0xcbf29ce484222325u ^ (parent == kNone ? 0 : entries_[parent].serial);
  for (const int32_t token : tokens) {
    hash = (hash ^ static_cast<uint32_t>(token)) * 0x100000001b3u;
    hash ^= hash >> 29;
  }
  return hash;
}

uint32_t PrefixDisk::Find(uint32_t parent, std::span<const int32_t> tokens) const {
  const auto [begin, end] = by_hash_.equal_range(HashOf(parent, tokens));
  for (auto i = begin; i != end; ++i) {
    const Entry& entry = entries_[i->second];
    if (entry.parent == parent && std::ranges::equal(entry.tokens, tokens)) return i->second;
  }
  return kNone;
}

std::vector<uint32_t> PrefixDisk::ChainOf(std::span<const int32_t> tokens) const {
  std::vector<uint32_t> chain;
  for (size_t block = 0; block < tokens.size() / kKvBlockPositions; ++block) {
    const uint32_t slot = Find(chain.empty() ? kNone : chain.back(), BlockAt(tokens, block));
    if (slot == kNone) break;
    chain.push_back(slot);
  }
  return chain;
}

void PrefixDisk::Touch(uint32_t slot) {
  const uint64_t use = next_use_++;
  for (; slot != kNone; slot = entries_[slot].parent) {
    Entry& entry = entries_[slot];
    if (entry.children == 0) {
      leaves_.erase({entry.used, slot});
      leaves_.emplace(use, slot);
    }
    entry.used = use;
  }
}

// An empty one, or the one that has not been used for longest; kNone if there is none but not_this.
uint32_t PrefixDisk::TakeSlot(uint32_t not_this) {
  if (free_.empty()) {
    auto oldest = leaves_.begin();
    if (oldest != leaves_.end() && oldest->second == not_this) ++oldest;
    if (oldest == leaves_.end()) return kNone;
    Remove(oldest->second);
    ++stats_.evicted;
  }
  const uint32_t slot = free_.back();
  free_.pop_back();
  return slot;
}

void PrefixDisk::Add(uint32_t slot, uint64_t serial, uint32_t parent,
                     std::span<const int32_t> tokens) {
  Entry& entry = entries_[slot];
  entry = {.serial = serial, .parent = parent};
  std::ranges::copy(tokens, entry.tokens.begin());
  by_hash_.emplace(HashOf(parent, tokens), slot);
  if (parent != kNone && entries_[parent].children++ == 0) {
    leaves_.erase({entries_[parent].used, parent});
  }
  leaves_.emplace(entry.used, slot);
  ++stats_.blocks;
  Touch(slot);
}

void PrefixDisk::Remove(uint32_t slot) {
  Entry& entry = entries_[slot];
  CHECK(entry.serial != 0 && entry.children == 0, "a block goes after those behind it");
  const auto [begin, end] = by_hash_.equal_range(HashOf(entry.parent, entry.tokens));
  by_hash_.erase(std::find_if(begin, end, [&](const auto& item) { return item.second == slot; }));
  leaves_.erase({entry.used, slot});
  if (entry.parent != kNone && --entries_[entry.parent].children == 0) {
    leaves_.emplace(entries_[entry.parent].used, entry.parent);
  }
  entry = {};
  free_.push_back(slot);
  --stats_.blocks;
}

// O(blocks) for each, after a fault.
void PrefixDisk::RemoveWithAllBehind(uint32_t slot) {
  std::vector<uint32_t> going{slot};
  for (size_t i = 0; i < going.size(); ++i) {
    for (uint32_t child = 0; child < entries_.size(); ++child) {
      if (entries_[child].serial != 0 && entries_[child].parent == going[i]) going.push_back(child);
    }
  }
  for (; !going.empty(); going.pop_back()) Remove(going.back());
}

PrefixFile::Block PrefixDisk::BlockOf(uint32_t slot) const {
  const Entry& entry = entries_[slot];
  return {entry.serial, entry.parent == kNone ? 0 : entries_[entry.parent].serial,
          {entry.tokens.begin(), entry.tokens.end()}};
}

// --- Saving ---------------------------------------------------------------------------------------

void PrefixDisk::Note(std::span<const int32_t> tokens) {
  tokens = tokens.first(tokens.size() / kKvBlockPositions * kKvBlockPositions);
  if (tokens.empty()) return;
  const std::vector<uint32_t> chain = ChainOf(tokens);
  if (!chain.empty()) Touch(chain.back());
  if (chain.size() * kKvBlockPositions == tokens.size()) return;
  // A conversation's earlier state, if it still waits, is the beginning of this one.
  std::erase_if(backlog_, [&](const std::vector<int32_t>& earlier) {
    return earlier.size() <= tokens.size() && std::ranges::equal(earlier, tokens.first(earlier.size()));
  });
  if (backlog_.size() == kMostBacklog) backlog_.pop_front();
  backlog_.emplace_back(tokens.begin(), tokens.end());
}

void PrefixDisk::Save(uint32_t most_blocks) {
  Collect();
  while (most_blocks > 0 && !backlog_.empty() && !write_buffers_.empty()) {
    if (SaveNext(backlog_.front())) {
      --most_blocks;
    } else {
      backlog_.pop_front();
    }
  }
}

// False: the disk has them all, or cannot take another, or the pool has lost it.
bool PrefixDisk::SaveNext(std::span<const int32_t> tokens) {
  const std::vector<uint32_t> chain = ChainOf(tokens);
  if (chain.size() * kKvBlockPositions == tokens.size()) return false;
  uint32_t block = KvPool::kNoBlock;
  for (size_t i = 0; i <= chain.size(); ++i) {
    block = pool_->Find(block, BlockAt(tokens, i));
    if (block == KvPool::kNoBlock) return false;
  }
  const uint32_t parent = chain.empty() ? kNone : chain.back();
  const uint32_t slot = TakeSlot(parent);
  if (slot == kNone) return false;
  Job job;
  job.write = true;
  job.slot = slot;
  job.buffer = write_buffers_.back();
  write_buffers_.pop_back();
  pool_->CopyOut(block, job.buffer + PrefixFile::kHeadBytes);
  Add(slot, next_serial_++, parent, BlockAt(tokens, chain.size()));
  job.block = BlockOf(slot);
  ++writing_;
  Submit(std::move(job));
  return true;
}

void PrefixDisk::SetOnSaved(std::function<void()> on_saved) {
  std::lock_guard lock(mutex_);
  on_saved_ = std::move(on_saved);
}

void PrefixDisk::OnWritten(const Job& job) {
  write_buffers_.push_back(job.buffer);
  --writing_;
  Entry& entry = entries_[job.slot];
  if (entry.serial != job.block.serial) return;  // gone meanwhile, with one in front of it
  if (job.status.ok()) {
    entry.written = true;
    ++stats_.saved;
    return;
  }
  ++stats_.failed;
  Warn(job.status);
  RemoveWithAllBehind(job.slot);
  // A full disk takes nothing new; what is in the file can still be overwritten. Any other slot that
  // could not be written is not tried again.
  if (job.status.code() == StatusCode::kResourceExhausted) {
    free_.clear();
  } else {
    std::erase(free_, job.slot);
  }
}

// --- Restoring ------------------------------------------------------------------------------------

bool PrefixDisk::Begin(std::span<const int32_t> tokens, uint32_t length) {
  CHECK(!tokens.empty() && length % kKvBlockPositions == 0);
  Collect();
  if (!chain_.empty() || reading_ > 0) return false;
  const std::vector<uint32_t> chain = ChainOf(tokens.first(tokens.size() - 1));
  for (size_t i = length / kKvBlockPositions; i < chain.size(); ++i) {
    if (!entries_[chain[i]].written) break;
    chain_.emplace_back(chain[i], entries_[chain[i]].serial);
  }
  if (chain_.empty()) return false;
  Touch(chain.back());
  ++restore_;
  asked_ = given_ = 0;
  AskForMore();
  return true;
}

void PrefixDisk::AskForMore() {
  for (; asked_ < chain_.size() && !read_buffers_.empty(); ++asked_) {
    const auto [slot, serial] = chain_[asked_];
    if (entries_[slot].serial != serial) {  // overwritten since
      chain_.resize(asked_);
      return;
    }
    Job job;
    job.slot = slot;
    job.block = BlockOf(slot);
    job.buffer = read_buffers_.back();
    job.restore = restore_;
    read_buffers_.pop_back();
    ++reading_;
    Submit(std::move(job));
  }
}

void PrefixDisk::OnRead(const Job& job) {
  --reading_;
  const bool wanted = job.restore == restore_ && given_ + arrived_.size() < chain_.size();
  if (!job.status.ok()) {
    ++stats_.failed;
    Warn(job.status);
    if (entries_[job.slot].serial == job.block.serial) RemoveWithAllBehind(job.slot);
    if (wanted) chain_.resize(given_ + arrived_.size());  // reads end in the order of the chain
  }
  if (wanted && job.status.ok()) {
    arrived_.push_back(job.buffer);
  } else {
    read_buffers_.push_back(job.buffer);
  }
}

std::span<const std::byte> PrefixDisk::Next() {
  if (given_buffer_ != nullptr) read_buffers_.push_back(std::exchange(given_buffer_, nullptr));
  Collect();
  AskForMore();
  if (arrived_.empty()) return {};
  given_buffer_ = arrived_.front();
  arrived_.pop_front();
  ++given_;
  ++stats_.restored;
  return {given_buffer_ + PrefixFile::kHeadBytes, pool_->content_bytes()};
}

void PrefixDisk::EndRestore() {
  if (given_buffer_ != nullptr) read_buffers_.push_back(std::exchange(given_buffer_, nullptr));
  read_buffers_.insert(read_buffers_.end(), arrived_.begin(), arrived_.end());
  arrived_.clear();
  chain_.clear();
  asked_ = given_ = 0;
  ++restore_;  // what is still being read is nobody's
}

// --- The disk thread ------------------------------------------------------------------------------

void PrefixDisk::Submit(Job job) {
  {
    std::lock_guard lock(mutex_);
    (job.write ? writes_ : reads_).push_back(std::move(job));
  }
  work_.notify_one();
}

void PrefixDisk::Collect() {
  std::vector<Job> done;
  {
    std::lock_guard lock(mutex_);
    done.swap(done_);
  }
  for (const Job& job : done) job.write ? OnWritten(job) : OnRead(job);
}

void PrefixDisk::Wait(int64_t limit_ns) {
  std::unique_lock lock(mutex_);
  done_wake_.wait_for(lock, std::chrono::nanoseconds(limit_ns), [&] { return !done_.empty(); });
}

void PrefixDisk::ThreadMain() {
  std::unique_lock lock(mutex_);
  for (;;) {
    work_.wait(lock, [&] { return stopping_ || !reads_.empty() || !writes_.empty(); });
    if (reads_.empty() && writes_.empty()) return;
    std::deque<Job>& from = reads_.empty() ? writes_ : reads_;
    Job job = std::move(from.front());
    from.pop_front();
    lock.unlock();
    if (before_io_) before_io_();
    const std::span<std::byte> buffer(job.buffer, file_->slot_bytes());
    job.status = job.write ? file_->Write(job.slot, job.block, buffer)
                           : file_->Read(job.slot, job.block, buffer);
    const bool wrote = job.write;
    lock.lock();
    done_.push_back(std::move(job));
    done_wake_.notify_one();
    if (wrote && on_saved_) on_saved_();
  }
}

// Once; a disk that is full or broken would say so for every block.
void PrefixDisk::Warn(const Status& status) {
  if (!std::exchange(warned_, true)) {
    LOG_WARN("prefix cache on disk: {}; computed instead, and no more is said of it", status.ToString());
  }
}

PrefixDiskStats PrefixDisk::stats() const { return stats_; }

void PrefixDisk::CheckInvariants() const {
  std::vector<uint32_t> children(entries_.size());
  uint32_t blocks = 0, leaves = 0;
  for (uint32_t slot = 0; slot < entries_.size(); ++slot) {
    const Entry& entry = entries_[slot];
    if (entry.serial == 0) continue;
    ++blocks;
    if (entry.children == 0) {
      ++leaves;
      CHECK(leaves_.contains({entry.used, slot}), "a block without children is no leaf");
    }
    CHECK(Find(entry.parent, entry.tokens) == slot, "a block is not found");
    if (entry.parent == kNone) continue;
    const Entry& parent = entries_[entry.parent];
    CHECK(parent.serial != 0 && parent.serial < entry.serial, "a block has lost its parent");
    CHECK(parent.used >= entry.used, "a block was used after its parent");
    ++children[entry.parent];
  }
  for (uint32_t slot = 0; slot < entries_.size(); ++slot) {
    CHECK(entries_[slot].children == children[slot]);
  }
  CHECK(blocks == stats_.blocks && leaves == leaves_.size() && by_hash_.size() == blocks);
}

}  // namespace moraine
