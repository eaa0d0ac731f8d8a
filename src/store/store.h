// Store: an imported model on disk.
//
//   STORE/
//     STORE_FORMAT             "moraine store, format 2": a foreign directory is told from a store
//     catalogue/               RocksDB: manifest, record index, import progress, heat, warm sets
//     packs/dense-000.pack     dense tensors, each at a 4 KiB-aligned offset
//     DRIVES                   only if the expert packs are elsewhere or mirrored: store/drive_set.h
//     packs/experts-NNN.pack   4 KiB header page (magic, format, store uuid, pack number), then
//                              records one behind the other, layer by layer, expert by expert
//
// A record has no header of its own: its bytes are exactly the operand of the kernels. Its checksum
// and place are in the catalogue, which is read into flat arrays here when the store opens and never
// touched on the decode path.
//
// Threads: thread-compatible; const methods are safe from several threads. Profiles and
// notes may be saved from any thread and never block readers of the index.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/status.h"
#include "store/drive_set.h"
#include "store/manifest.h"

namespace moraine {

enum class StoreMode {
  kReadOnly,   // any number of processes
  kReadWrite,  // one process; kFailedPrecondition naming the store if another has it
};

struct RecordLocation {
  uint32_t pack = 0;      // index into expert_pack_paths()
  uint64_t offset = 0;    // multiple of 4096
  uint64_t bytes = 0;     // multiple of 4096
  uint64_t checksum = 0;  // RecordChecksum of the bytes, padding included
};

class Store {
 public:
  // kNotFound: no such directory. kFailedPrecondition: not a store, an unfinished import (says how
  // to finish it), or opened for writing elsewhere. kUnsupported: another format version.
  // kCorruption: catalogue or packs do not fit together (pack shorter than the index says, another
  // store's pack, ...), naming the file.
  static Result<std::unique_ptr<Store>> Open(const std::string& directory, StoreMode mode);
  ~Store();

  const std::string& directory() const;
  const Manifest& manifest() const;
  StoreMode mode() const;

  const std::vector<std::string>& expert_pack_paths() const;
  const DriveSet& drives() const;
  // The pack and, in a mirrored store, its copy: the same bytes.
  std::vector<std::string> expert_pack_copies(uint32_t pack) const;
  const std::string& dense_pack_path() const;
  // CHECKs that the key is in range and the layer has experts.
  const RecordLocation& Locate(ExpertKey key) const;
  // kCorruption if the bytes do not have the record's checksum; the message names pack file, offset,
  // layer and expert, both checksums. copy: the one that the message names.
  Status VerifyRecord(ExpertKey key, std::span<const std::byte> bytes, uint32_t copy = 0) const;
  // The same for a caller that has computed the checksum itself (on several threads).
  Status CheckRecordChecksum(ExpertKey key, uint64_t checksum, uint32_t copy = 0) const;

  // Reads a dense tensor's bytes and verifies its checksum. `destination` has tensor.bytes.
  Status ReadDense(const DenseTensor& tensor, std::span<std::byte> destination) const;

  // Workload profiles: named sets of named sections, whose bytes are the engine's business
  // (engine/workload_profile.h); each is kept with its length and checksum. Each call takes effect at
  // once or not at all, by RocksDB's WAL, not synced: a kill loses nothing, a power failure at most the
  // last calls. Read-only stores: kFailedPrecondition. A bad name is kInvalidArgument.
  // Writes the sections given; the profile's others stay.
  Status SaveProfile(const std::string& name, const std::map<std::string, std::string>& sections);
  // The sections given are all that the profile has afterwards.
  Status ReplaceProfile(const std::string& name, const std::map<std::string, std::string>& sections);
  // kNotFound if there is none; kCorruption naming store, profile and section.
  Result<std::string> LoadProfileSection(const std::string& name, const std::string& section) const;
  Result<std::vector<std::string>> ListProfileSections(const std::string& name) const;
  Result<std::vector<std::string>> ListProfiles() const;
  // kNotFound if there is none.
  Status DeleteProfile(const std::string& name);
  // As it is, damaged sections included; what was called `to` is replaced. kNotFound.
  Status RenameProfile(const std::string& from, const std::string& to);
  // Small persistent values of the operator's tools (drive measurements, last run's statistics).
  Status PutNote(const std::string& key, const std::string& value);
  Result<std::string> GetNote(const std::string& key) const;

 private:
  Store();
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace moraine
