// PrefixDisk: the prefix cache's second tier. Full blocks of keys and values are written to a PrefixFile behind
// the engine's back, and read again for prompts whose beginning the KV pool no longer has, or has not had in
// this process.
//
// When a block is written: after the piece of a prompt that fills it, and those of an answer when it ends; not when
// the pool evicts it. Eviction takes children before parents, happens when somebody waits for the memory, and does not happen
// before a restart. So what memory has is mostly on disk, too, and a kill costs little.
//
//   engine thread                                     disk thread
//     Note: remembers the tokens
//     Save: copies blocks into free buffers   ------>   checksum, write
//     Begin: looks the tokens up, asks        ------>   read, checksum; reads go first
//     Next:  content in order                 <------
//
// Nobody waits for the disk but the prompt whose blocks are read, and the engine if it has nothing else to
// do. While somebody answers, Save copies one block a step (12.6 MB for Qwen3-30B in float32, 2 ms), else as many
// as there are buffers; what waits to be written is only tokens, and is skipped if the pool has lost its
// blocks by then.
//
// The index is in memory: a tree like the pool's, tokens compared, parents known by a serial that no other
// block ever had. What has not been used for longest goes first, and never before what is behind it.
// What cannot be read, or is not what its head says, is forgotten with everything behind it, and computed. What
// cannot be written is not there. Neither is an error of a request.
//
// Costs: MemoryBytes, counted into the RAM budget; the bandwidth of the writes (bytes a token of KV times
// tokens a second), which a drive of its own keeps from the reads of experts.
//
// Threads: engine thread; on_saved is called on the disk thread.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <span>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/status.h"
#include "compute/kv_format.h"
#include "engine/prefix_disk_options.h"
#include "memory/host_arena.h"
#include "model/kv_pool.h"
#include "store/prefix_file.h"

namespace moraine {

struct PrefixDiskStats {
  uint32_t blocks = 0;  // on disk
  uint64_t saved = 0, restored = 0, evicted = 0, failed = 0;  // blocks, since Open
};

class PrefixDisk {
 public:
  // Buffers and index.
  static uint64_t MemoryBytes(std::span<const LayerStateShape> layers, uint64_t budget_bytes);
  // pool outlives it. Errors: PrefixFile::Open's.
  static Result<std::unique_ptr<PrefixDisk>> Open(const PrefixDiskOptions& options,
                                                  const std::string& identity, const KvPool& pool);
  // What is being written is written; the rest is not.
  ~PrefixDisk();

  // The pool has the full blocks of these tokens; they shall be kept.
  void Note(std::span<const int32_t> tokens);
  // Hands blocks to the disk thread, at most so many.
  void Save(uint32_t most_blocks);
  bool saving() const { return !backlog_.empty() || writing_ > 0; }
  // After each write; must not call back.
  void SetOnSaved(std::function<void()> on_saved);

  // Reads what the disk has of `tokens` behind the first `length`, whole blocks, and at least one token less than
  // all. False if there is nothing, or another prompt's are being read: one at a time, until EndRestore and until
  // what was asked for has come, so that a drive that hangs is waited for once.
  bool Begin(std::span<const int32_t> tokens, uint32_t length);
  // The content of the next block, until the next call; empty if it has not arrived.
  std::span<const std::byte> Next();
  // There is more to come.
  bool restoring() const { return given_ < chain_.size(); }
  uint32_t restoring_blocks() const { return static_cast<uint32_t>(chain_.size()); }
  void EndRestore();
  bool reading() const { return reading_ > 0; }
  // Until something has been read or written, or for limit_ns.
  void Wait(int64_t limit_ns);

  PrefixDiskStats stats() const;
  const PrefixFile& file() const { return *file_; }
  void CheckInvariants() const;

 private:
  static constexpr uint32_t kNone = UINT32_MAX;
  using Tokens = std::array<int32_t, kKvBlockPositions>;
  struct Entry {            // of a slot
    uint64_t serial = 0;    // 0: the slot is empty
    uint32_t parent = kNone;
    uint32_t children = 0;
    uint64_t used = 0;      // when; of a parent not before its children
    bool written = false;
    Tokens tokens{};
  };
  struct Job {
    bool write = false;
    uint32_t slot = 0;
    PrefixFile::Block block;
    std::byte* buffer = nullptr;
    uint64_t restore = 0;   // of a read: which
    Status status;          // when done
  };

  PrefixDisk() = default;
  Status AllocateBuffers();
  void Index(const std::vector<PrefixFile::Found>& found);

  uint64_t HashOf(uint32_t parent, std::span<const int32_t> tokens) const;
  uint32_t Find(uint32_t parent, std::span<const int32_t> tokens) const;
  std::vector<uint32_t> ChainOf(std::span<const int32_t> tokens) const;
  void Touch(uint32_t slot);  // and its parents
  uint32_t TakeSlot(uint32_t not_this);
  void Add(uint32_t slot, uint64_t serial, uint32_t parent, std::span<const int32_t> tokens);
  void Remove(uint32_t slot);  // has no children
  void RemoveWithAllBehind(uint32_t slot);
  PrefixFile::Block BlockOf(uint32_t slot) const;

  bool SaveNext(std::span<const int32_t> tokens);
  void AskForMore();
  void Submit(Job job);
  void Collect();
  void OnWritten(const Job& job);
  void OnRead(const Job& job);
  void Warn(const Status& status);
  void ThreadMain();

  const KvPool* pool_ = nullptr;
  std::unique_ptr<PrefixFile> file_;
  HostArena memory_;
  std::vector<std::byte*> write_buffers_, read_buffers_;  // free ones
  std::function<void()> before_io_;

  std::vector<Entry> entries_;
  std::unordered_multimap<uint64_t, uint32_t> by_hash_;
  std::set<std::pair<uint64_t, uint32_t>> leaves_;  // by use
  std::vector<uint32_t> free_;
  uint64_t next_serial_ = 1, next_use_ = 1;
  std::deque<std::vector<int32_t>> backlog_;
  uint32_t writing_ = 0, reading_ = 0;

  std::vector<std::pair<uint32_t, uint64_t>> chain_;  // slot and serial of what is restored
  size_t asked_ = 0, given_ = 0;
  uint64_t restore_ = 0;  // counts
  std::deque<std::byte*> arrived_;
  std::byte* given_buffer_ = nullptr;
  PrefixDiskStats stats_;
  bool warned_ = false;

  std::mutex mutex_;
  std::condition_variable work_, done_wake_;
  std::deque<Job> reads_, writes_;    // guarded by mutex_
  std::vector<Job> done_;             // guarded by mutex_
  std::function<void()> on_saved_;    // guarded by mutex_
  bool stopping_ = false;             // guarded by mutex_
  std::thread thread_;
};

}  // namespace moraine
