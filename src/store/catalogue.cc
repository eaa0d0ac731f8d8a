#include "store/catalogue.h"

#include <rocksdb/cache.h>
#include <rocksdb/db.h>
#include <rocksdb/env.h>
#include <rocksdb/filter_policy.h>
#include <rocksdb/table.h>
#include <rocksdb/write_batch.h>

#include <bit>
#include <cstring>

#include "base/bytes.h"

namespace moraine {
namespace {

static_assert(std::endian::native == std::endian::little, "values are stored as they lie in memory");

void AppendBigEndian(uint32_t value, std::string* out) {
  for (int shift = 24; shift >= 0; shift -= 8) out->push_back(static_cast<char>(value >> shift));
}

uint32_t ReadBigEndian(std::string_view bytes) {
  uint32_t value = 0;
  for (const char byte : bytes.substr(0, 4)) value = value << 8 | static_cast<uint8_t>(byte);
  return value;
}

Status FromRocks(const rocksdb::Status& status, const std::string& directory) {
  if (status.ok()) return OkStatus();
  std::string message = directory + ": " + status.ToString();
  if (status.IsNoSpace()) return ResourceExhausted(std::move(message));
  if (status.IsCorruption()) return Corruption(std::move(message));
  if (status.IsNotFound()) return NotFound(std::move(message));
  return IoError(std::move(message));
}

// The database holds tens of thousands of entries of 40 bytes and a few files of some MB: defaults
// (64 MiB memtables, 8 MiB cache, thousands of open files) would only cost memory.
rocksdb::Options SmallOptions(bool create) {
  rocksdb::Options options;
  options.create_if_missing = create;
  options.write_buffer_size = 1 * kMiB;
  options.arena_block_size = 64 * kKiB;
  options.max_write_buffer_number = 2;
  options.max_total_wal_size = 4 * kMiB;
  options.compression = rocksdb::kNoCompression;
  options.max_background_jobs = 2;  // one flush, one compaction
  options.max_open_files = 32;
  options.info_log_level = rocksdb::InfoLogLevel::WARN_LEVEL;
  options.max_log_file_size = 64 * kKiB;
  options.keep_log_file_num = 2;
  options.max_manifest_file_size = 1 * kMiB;
  options.stats_dump_period_sec = 0;
  options.stats_persist_period_sec = 0;
  options.skip_stats_update_on_db_open = true;
  rocksdb::BlockBasedTableOptions table;
  table.block_cache = rocksdb::NewLRUCache(512 * kKiB, /*num_shard_bits=*/0);
  table.cache_index_and_filter_blocks = true;
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  return options;
}

}  // namespace

std::string PairKey(std::string_view prefix, uint32_t first, uint32_t second) {
  std::string key(prefix);
  AppendBigEndian(first, &key);
  AppendBigEndian(second, &key);
  return key;
}

bool ParsePairSuffix(std::string_view suffix, uint32_t* first, uint32_t* second) {
  if (suffix.size() != 8) return false;
  *first = ReadBigEndian(suffix);
  *second = ReadBigEndian(suffix.substr(4));
  return true;
}

std::string EncodeLocation(const RecordLocation& location) {
  const uint64_t fields[4] = {location.pack, location.offset, location.bytes, location.checksum};
  return std::string(reinterpret_cast<const char*>(fields), sizeof(fields));
}

bool DecodeLocation(std::string_view value, RecordLocation* location) {
  uint64_t fields[4];
  if (value.size() != sizeof(fields)) return false;
  std::memcpy(fields, value.data(), sizeof(fields));
  if (fields[0] > UINT32_MAX) return false;
  *location = {static_cast<uint32_t>(fields[0]), fields[1], fields[2], fields[3]};
  return true;
}

std::string EncodeChecksum(uint64_t checksum) {
  return std::string(reinterpret_cast<const char*>(&checksum), sizeof(checksum));
}

bool DecodeChecksum(std::string_view value, uint64_t* checksum) {
  if (value.size() != sizeof(*checksum)) return false;
  std::memcpy(checksum, value.data(), sizeof(*checksum));
  return true;
}

struct Catalogue::Impl {
  std::string directory;
  std::unique_ptr<rocksdb::DB> db;
};

Catalogue::Catalogue() : impl_(std::make_unique<Impl>()) {}
Catalogue::~Catalogue() = default;

Result<std::unique_ptr<Catalogue>> Catalogue::Open(const std::string& directory, Mode mode) {
  const rocksdb::Options options = SmallOptions(mode == Mode::kCreate);
  rocksdb::DB* db = nullptr;
  rocksdb::Status status;
  if (mode == Mode::kReadOnly) {
    // A writer beside us may retire a table between our reading of its manifest and the opening of
    // the table. The new manifest no longer names it, so looking again helps.
    constexpr int kAttempts = 5;
    for (int attempt = 0; attempt < kAttempts; ++attempt) {
      status = rocksdb::DB::OpenForReadOnly(options, directory, &db);
      if (status.ok()) break;
    }
  } else {
    status = rocksdb::DB::Open(options, directory, &db);
  }
  RETURN_IF_ERROR(FromRocks(status, directory));
  std::unique_ptr<Catalogue> catalogue(new Catalogue());
  catalogue->impl_->directory = directory;
  catalogue->impl_->db.reset(db);
  return catalogue;
}

Result<std::optional<std::string>> Catalogue::Get(std::string_view key) const {
  std::string value;
  const rocksdb::Status status =
      impl_->db->Get(rocksdb::ReadOptions(), rocksdb::Slice(key.data(), key.size()), &value);
  if (status.IsNotFound()) return std::optional<std::string>();
  RETURN_IF_ERROR(FromRocks(status, impl_->directory));
  return std::optional<std::string>(std::move(value));
}

Status Catalogue::ForEach(
    std::string_view prefix,
    const std::function<Status(std::string_view suffix, std::string_view value)>& visit) const {
  rocksdb::ReadOptions read_options;
  read_options.fill_cache = false;
  const std::unique_ptr<rocksdb::Iterator> iterator(impl_->db->NewIterator(read_options));
  const rocksdb::Slice prefix_slice(prefix.data(), prefix.size());
  for (iterator->Seek(prefix_slice); iterator->Valid() && iterator->key().starts_with(prefix_slice);
       iterator->Next()) {
    const std::string_view key(iterator->key().data(), iterator->key().size());
    RETURN_IF_ERROR(visit(key.substr(prefix.size()),
                          std::string_view(iterator->value().data(), iterator->value().size())));
  }
  return FromRocks(iterator->status(), impl_->directory);
}

Status Catalogue::Write(const CatalogueBatch& batch, bool sync) {
  rocksdb::WriteBatch writes;
  for (const auto& [key, value] : batch.puts) {
    RETURN_IF_ERROR(FromRocks(writes.Put(key, value), impl_->directory));
  }
  for (const std::string& key : batch.deletes) {
    RETURN_IF_ERROR(FromRocks(writes.Delete(key), impl_->directory));
  }
  rocksdb::WriteOptions options;
  options.sync = sync;
  return FromRocks(impl_->db->Write(options, &writes), impl_->directory);
}

Status Catalogue::Flush() {
  return FromRocks(impl_->db->Flush(rocksdb::FlushOptions()), impl_->directory);
}

}  // namespace moraine
