// Catalogue: the RocksDB database of a store, behind strings, so that rocksdb's headers, statuses
// and tuning stay in one file.
//
// Why RocksDB and not one file of our own: the importer needs atomic batches that survive a kill at
// any byte, and heat needs cheap updates for years; both are a log-structured store with a WAL.
//
// Cost: by these settings a few MB of resident memory (memtables of 1 MiB, a 512 KiB block cache, two background
// threads); not measured apart from the process.
//
// Keys: see keys below. Integers in keys are big-endian, so that iteration is in order.
// Threads: thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/ids.h"
#include "base/status.h"
#include "store/store.h"

namespace moraine {

inline constexpr char kManifestKey[] = "manifest";       // present: the store is complete
inline constexpr char kImportKey[] = "import/plan";      // present: an import has begun
inline constexpr char kRecordPrefix[] = "record/";       // + layer + expert -> RecordLocation
inline constexpr char kStripPrefix[] = "import/strip/";  // + tensor + strip -> checksum, until done
inline constexpr char kFilePrefix[] = "file/";           // + name -> contents, for Manifest::files
inline constexpr char kProfilePrefix[] = "profile/";     // + name + "/" + section -> section
inline constexpr char kNotePrefix[] = "note/";           // + key -> value

std::string PairKey(std::string_view prefix, uint32_t first, uint32_t second);
// The two integers behind a prefix; false if the suffix has another size.
bool ParsePairSuffix(std::string_view suffix, uint32_t* first, uint32_t* second);
std::string EncodeLocation(const RecordLocation& location);
bool DecodeLocation(std::string_view value, RecordLocation* location);
std::string EncodeChecksum(uint64_t checksum);
bool DecodeChecksum(std::string_view value, uint64_t* checksum);

struct CatalogueBatch {
  std::vector<std::pair<std::string, std::string>> puts;
  std::vector<std::string> deletes;
};

class Catalogue {
 public:
  enum class Mode {
    kReadOnly,   // a view of what is written now; works beside a writer
    kReadWrite,  // must exist
    kCreate,     // read-write, made if it is not there
  };
  static Result<std::unique_ptr<Catalogue>> Open(const std::string& directory, Mode mode);
  ~Catalogue();

  Result<std::optional<std::string>> Get(std::string_view key) const;
  // Calls visit with what follows the prefix in each key, in order; stops at an error.
  Status ForEach(std::string_view prefix,
                 const std::function<Status(std::string_view suffix, std::string_view value)>& visit)
      const;
  // All or nothing. sync: durable, with everything written before, when this returns.
  Status Write(const CatalogueBatch& batch, bool sync);
  // Empties the log into tables, so that readers do not have to replay it.
  Status Flush();

 private:
  Catalogue();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace moraine
