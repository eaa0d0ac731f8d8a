// FaultyReader: a real reader over a drive that misbehaves when told to.
//
// SimulatedReader replaces the device; this decorates one, so that io_uring, its registered buffers and
// the kernel's own timing stay in the test. FaultyDrive is the switchboard: it says what happens to
// reads from now on and remembers what has happened to which record, by which a test can tell whether
// an error was deserved.
//
// Flips heal: after one, the record is left alone for longer than the engine needs to read it again. A
// rotten record is wrong at every read.
//
// Threads: FaultyDrive is thread-safe; readers as any BlockReader.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/random.h"
#include "io/block_reader.h"

namespace moraine {

// What happens to reads from now on. Chances are per read; records are indices of FaultyDrive's.
struct DriveFaults {
  double error = 0;       // -EIO
  double short_read = 0;  // fewer bytes, at least 4 KiB
  double flip = 0;        // one bit
  double slow = 0;        // completes up to slow_ns later
  int64_t slow_ns = 0;
  std::set<uint32_t> broken = {};  // -EIO every time
  std::set<uint32_t> rotten = {};  // the first bit is wrong every time
  uint32_t hangs = 0;         // so many reads from now on complete hang_ns later
  int64_t hang_ns = 0;
};

struct FaultCounts {
  uint64_t reads = 0, errors = 0, short_reads = 0, flips = 0, slow = 0, hangs = 0;
};

class FaultyDrive {
 public:
  struct Record {
    std::string path;  // as the reader opens it
    uint64_t offset = 0, bytes = 0;
  };
  // What a record has suffered since the last Forget.
  struct Suffered {
    uint32_t errors = 0, flips = 0, rotten = 0, hangs = 0;
  };

  FaultyDrive(std::vector<Record> records, uint64_t seed);

  void Set(DriveFaults faults);
  FaultCounts counts() const;
  Suffered suffered(uint32_t record) const;
  void Forget();

  // The fate of one read, drawn when it is submitted.
  struct Fate {
    uint32_t length = 0;  // to ask the device for
    bool error = false, flip = false, flip_first = false;
    uint64_t flip_bit = 0;  // of what arrives, modulo its size
    int64_t delay_ns = 0;
  };
  Fate Draw(const std::string& path, const BlockRead& read);

 private:
  static constexpr uint32_t kNoRecord = UINT32_MAX;
  uint32_t RecordOf(const std::string& path, uint64_t offset) const;

  const std::vector<Record> records_;
  std::map<std::pair<std::string, uint64_t>, uint32_t> index_;  // by path and offset

  mutable std::mutex mutex_;
  Random random_;                       // guarded by mutex_
  DriveFaults faults_;                  // guarded by mutex_
  FaultCounts counts_;                  // guarded by mutex_
  std::vector<Suffered> suffered_;      // guarded by mutex_
  std::vector<uint32_t> immune_starts_; // guarded by mutex_
};

// on_submit (may be null) is called after each Submit on the reader's thread. `drive` outlives it.
std::unique_ptr<BlockReader> CreateFaultyReader(std::unique_ptr<BlockReader> inner, FaultyDrive* drive,
                                                std::function<void()> on_submit);

}  // namespace moraine
