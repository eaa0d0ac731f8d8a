#include "store/store.h"

#include <fcntl.h>
#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "base/bytes.h"
#include "store/catalogue.h"
#include "store/checksum_mismatch.h"
#include "store/pack_header.h"
#include "store/posix_file.h"
#include "store/profile_section.h"
#include "store/record_checksum.h"
#include "store/store_directory.h"

namespace moraine {
namespace {

// Dense tensors are read in pieces, and each piece's pages are dropped: the weights are then in
// their arena, and a second copy in the page cache would count against the same memory limit.
constexpr uint64_t kDenseReadBytes = 8 * kMiB;

std::string Describe(ExpertKey key) {
  return "layer " + std::to_string(key.layer.value()) + " expert " +
         std::to_string(key.expert.value());
}

std::string SectionKey(const std::string& profile, const std::string& section) {
  return kProfilePrefix + profile + "/" + section;
}

Result<CatalogueBatch> ProfileBatch(const std::string& name,
                                    const std::map<std::string, std::string>& sections) {
  RETURN_IF_ERROR(CheckProfileName("profile", name));
  CatalogueBatch batch;
  for (const auto& [section, payload] : sections) {
    RETURN_IF_ERROR(CheckProfileName("profile section", section));
    batch.puts.emplace_back(SectionKey(name, section), WrapProfileSection(payload));
  }
  return batch;
}

}  // namespace

class Store::Impl {
 public:
  Status Open(const std::string& store_directory, StoreMode store_mode);
  const RecordLocation& Locate(ExpertKey key) const {
    const uint32_t layer = key.layer.value();
    CHECK(layer < manifest.layers.size(), "no " + Describe(key));
    CHECK(key.expert.value() < manifest.layers[layer].expert_count, "no " + Describe(key));
    return records[layer_begin[layer] + key.expert.value()];
  }
  // The database to write to; kFailedPrecondition for a read-only store.
  Result<Catalogue*> Writable();
  // The database to read from: ours, or a fresh view beside whoever writes.
  Result<std::optional<std::string>> Get(const std::string& key) const;
  Result<std::vector<std::string>> ListSuffixes(const std::string& prefix) const;
  // Deletes the sections of a profile that the batch does not write.
  Status DeleteOtherSections(const std::string& profile, CatalogueBatch* batch) const;

  std::string directory;
  StoreMode mode = StoreMode::kReadOnly;
  Manifest manifest;
  DriveSet drives;
  std::vector<std::string> expert_packs;
  std::string dense_pack;
  PosixFile dense_file;
  std::vector<size_t> layer_begin;  // index into records of each layer's expert 0
  std::vector<RecordLocation> records;

 private:
  Status ReadManifest(const Catalogue& catalogue);
  Status ReadIndex(const Catalogue& catalogue);
  Status CheckPack(const PackHeader& header, const std::string& path, uint64_t needed_bytes) const;
  Status CheckPacks();

  PosixFile lock_;
  // Null for read-only stores: they open the database for a moment whenever they need it, which
  // costs 3 ms, no memory in between, and always sees what the writer saved last.
  std::unique_ptr<Catalogue> catalogue_;
};

Status Store::Impl::Open(const std::string& store_directory, StoreMode store_mode) {
  directory = store_directory;
  mode = store_mode;
  RETURN_IF_ERROR(CheckStoreFormat(directory));
  if (mode == StoreMode::kReadWrite) {
    ASSIGN_OR_RETURN(lock_, LockStoreForWriting(directory));
  }
  Result<PosixFile> current = PosixFile::Open(CatalogueDirectory(directory) + "/CURRENT", O_RDONLY);
  if (!current.ok() && current.status().code() == StatusCode::kNotFound) {
    return FailedPrecondition(directory + ": the import has not got beyond its first step; run "
                              "`moraine import` again with the same arguments");
  }
  ASSIGN_OR_RETURN(std::unique_ptr<Catalogue> catalogue,
                   Catalogue::Open(CatalogueDirectory(directory), mode == StoreMode::kReadWrite
                                                                      ? Catalogue::Mode::kReadWrite
                                                                      : Catalogue::Mode::kReadOnly));
  RETURN_IF_ERROR(ReadManifest(*catalogue));
  RETURN_IF_ERROR(ReadIndex(*catalogue));
  if (mode == StoreMode::kReadWrite) catalogue_ = std::move(catalogue);
  return CheckPacks();
}

Status Store::Impl::ReadManifest(const Catalogue& catalogue) {
  ASSIGN_OR_RETURN(const std::optional<std::string> json, catalogue.Get(kManifestKey));
  if (!json) {
    return FailedPrecondition(directory + ": the import is not finished; run `moraine import` "
                              "again with the same arguments to continue it");
  }
  Result<Manifest> parsed = Manifest::FromJson(*json);
  if (!parsed.ok()) return parsed.status().WithContext(directory);
  manifest = std::move(parsed).value();
  return catalogue.ForEach(kFilePrefix, [&](std::string_view name, std::string_view contents) {
    manifest.files.emplace(name, contents);
    return OkStatus();
  });
}

Status Store::Impl::ReadIndex(const Catalogue& catalogue) {
  const auto bad = [&](const std::string& what) {
    return Corruption(CatalogueDirectory(directory) + ": " + what);
  };
  layer_begin.reserve(manifest.layers.size());
  size_t expected = 0;
  for (const LayerManifest& layer : manifest.layers) {
    layer_begin.push_back(expected);
    expected += layer.expert_count;
  }
  // Entries come in key order, so each must be the next expert; nothing is allocated for experts
  // that only the manifest knows of.
  uint32_t layer = 0, expert = 0;
  const auto skip_finished_layers = [&] {
    while (layer < manifest.layers.size() && expert == manifest.layers[layer].expert_count) {
      ++layer;
      expert = 0;
    }
  };
  RETURN_IF_ERROR(
      catalogue.ForEach(kRecordPrefix, [&](std::string_view suffix, std::string_view value) {
        skip_finished_layers();
        uint32_t key_layer = 0, key_expert = 0;
        if (!ParsePairSuffix(suffix, &key_layer, &key_expert) ||
            layer == manifest.layers.size() || key_layer != layer || key_expert != expert) {
          return bad("record index: expected layer " + std::to_string(layer) + " expert " +
                     std::to_string(expert) + ", found layer " + std::to_string(key_layer) +
                     " expert " + std::to_string(key_expert));
        }
        RecordLocation location;
        if (!DecodeLocation(value, &location) || location.offset % kPackAlignment != 0 ||
            location.offset == 0 || location.bytes != manifest.layers[layer].record_bytes ||
            location.offset + location.bytes < location.offset) {
          return bad("record index: bad place for layer " + std::to_string(layer) + " expert " +
                     std::to_string(expert));
        }
        records.push_back(location);
        ++expert;
        return OkStatus();
      }));
  if (records.size() != expected) {
    return bad("record index: has " + std::to_string(records.size()) + " experts, expected " +
               std::to_string(expected));
  }
  return OkStatus();
}

Status Store::Impl::CheckPack(const PackHeader& header, const std::string& path,
                              uint64_t needed_bytes) const {
  Result<PosixFile> file = PosixFile::Open(path, O_RDONLY);
  if (!file.ok()) {
    if (file.status().code() != StatusCode::kNotFound) return file.status();
    std::string hint;
    if (!path.starts_with(PacksDirectory(directory))) {
      hint = " (" + directory + "/DRIVES says that it is there)";
    }
    if (drives.mirror && header.kind == PackKind::kExperts) {
      hint += "; if that drive is lost, let " + directory + "/DRIVES name the other copy alone";
    }
    return Corruption(path + ": the pack is missing" + hint);
  }
  ASSIGN_OR_RETURN(const uint64_t size, file->Size());
  if (size < needed_bytes) {
    return Corruption(path + ": the pack has " + std::to_string(size) + " bytes, expected " +
                      std::to_string(needed_bytes) + ": it has been truncated");
  }
  PackHeader::Page page;
  RETURN_IF_ERROR(file->ReadAt(0, page));
  return header.CheckPage(page, path);
}

Status Store::Impl::CheckPacks() {
  for (const DenseTensor& tensor : manifest.dense) {
    if (tensor.offset > manifest.dense_pack_bytes ||
        tensor.bytes > manifest.dense_pack_bytes - tensor.offset) {
      return Corruption(directory + ": manifest: tensor '" + tensor.name +
                        "' lies outside the dense pack");
    }
  }
  ASSIGN_OR_RETURN(drives, DriveSet::Read(directory));
  dense_pack = DensePackPath(directory);
  RETURN_IF_ERROR(CheckPack({PackKind::kDense, 0, manifest.store_uuid}, dense_pack,
                            manifest.dense_pack_bytes));
  ASSIGN_OR_RETURN(dense_file, PosixFile::Open(dense_pack, O_RDONLY));
  const uint32_t stripes = drives.stripe_count();
  std::vector<uint32_t> begun(stripes);  // packs of each stripe
  std::vector<uint64_t> needed;
  for (const RecordLocation& record : records) {
    // A stripe's packs are filled one after the other, so a number that leaves a gap is wrong, not far.
    uint32_t& count = begun[record.pack % stripes];
    if (record.pack / stripes > count) {
      return Corruption(CatalogueDirectory(directory) + ": record index: pack " +
                        std::to_string(record.pack) + " follows pack " +
                        std::to_string(needed.size()));
    }
    count = std::max(count, record.pack / stripes + 1);
    if (record.pack >= needed.size()) needed.resize(record.pack + 1, kPackAlignment);
    needed[record.pack] = std::max(needed[record.pack], record.offset + record.bytes);
  }
  for (uint32_t pack = 0; pack < needed.size(); ++pack) {
    const PackHeader header = {PackKind::kExperts, pack, manifest.store_uuid};
    expert_packs.push_back(drives.ExpertPackPath(directory, pack));
    const std::vector<std::string> copies = drives.ExpertPackPaths(directory, pack);
    for (const std::string& path : copies) {
      RETURN_IF_ERROR(CheckPack(header, path, needed[pack]));
    }
    std::error_code ignored;  // both are there
    if (copies.size() > 1 && std::filesystem::equivalent(copies[0], copies[1], ignored)) {
      return Corruption(copies[0] + " and " + copies[1] +
                        ": are one file, expected a pack and its copy on another drive");
    }
  }
  return OkStatus();
}

Result<Catalogue*> Store::Impl::Writable() {
  if (catalogue_ == nullptr) {
    return FailedPrecondition(directory + ": the store is open read-only");
  }
  return catalogue_.get();
}

Result<std::optional<std::string>> Store::Impl::Get(const std::string& key) const {
  if (catalogue_ != nullptr) return catalogue_->Get(key);
  ASSIGN_OR_RETURN(const std::unique_ptr<Catalogue> catalogue,
                   Catalogue::Open(CatalogueDirectory(directory), Catalogue::Mode::kReadOnly));
  return catalogue->Get(key);
}

Result<std::vector<std::string>> Store::Impl::ListSuffixes(const std::string& prefix) const {
  std::unique_ptr<Catalogue> view;
  if (catalogue_ == nullptr) {
    ASSIGN_OR_RETURN(view, Catalogue::Open(CatalogueDirectory(directory),
                                           Catalogue::Mode::kReadOnly));
  }
  const Catalogue& catalogue = view != nullptr ? *view : *catalogue_;
  std::vector<std::string> suffixes;
  RETURN_IF_ERROR(catalogue.ForEach(prefix, [&](std::string_view suffix, std::string_view) {
    suffixes.emplace_back(suffix);
    return OkStatus();
  }));
  return suffixes;
}

Store::Store() : impl_(std::make_unique<Impl>()) {}
Store::~Store() = default;

Result<std::unique_ptr<Store>> Store::Open(const std::string& directory, StoreMode mode) {
  std::unique_ptr<Store> store(new Store());
  RETURN_IF_ERROR(store->impl_->Open(directory, mode));
  return store;
}

const std::string& Store::directory() const { return impl_->directory; }
const Manifest& Store::manifest() const { return impl_->manifest; }
StoreMode Store::mode() const { return impl_->mode; }
const std::vector<std::string>& Store::expert_pack_paths() const { return impl_->expert_packs; }
const DriveSet& Store::drives() const { return impl_->drives; }
std::vector<std::string> Store::expert_pack_copies(uint32_t pack) const {
  return impl_->drives.ExpertPackPaths(impl_->directory, pack);
}
const std::string& Store::dense_pack_path() const { return impl_->dense_pack; }
const RecordLocation& Store::Locate(ExpertKey key) const { return impl_->Locate(key); }

Status Store::VerifyRecord(ExpertKey key, std::span<const std::byte> bytes,
                           uint32_t copy) const {
  CHECK(bytes.size() == impl_->Locate(key).bytes, "a record is verified whole");
  return CheckRecordChecksum(key, RecordChecksum(bytes), copy);
}

Status Store::CheckRecordChecksum(ExpertKey key, uint64_t checksum, uint32_t copy) const {
  const RecordLocation& location = impl_->Locate(key);
  if (checksum == location.checksum) return OkStatus();
  return ChecksumMismatch(expert_pack_copies(location.pack)[copy], location.offset, Describe(key),
                          location.checksum, checksum);
}

Status Store::ReadDense(const DenseTensor& tensor, std::span<std::byte> destination) const {
  CHECK(destination.size() == tensor.bytes, tensor.name);
  XXH3_state_t* hash = XXH3_createState();
  XXH3_64bits_reset(hash);
  Status status;
  for (uint64_t done = 0; status.ok() && done < tensor.bytes;) {
    const uint64_t count = std::min(kDenseReadBytes, tensor.bytes - done);
    const std::span<std::byte> piece = destination.subspan(done, count);
    status = impl_->dense_file.ReadAt(tensor.offset + done, piece);
    impl_->dense_file.DropCache(tensor.offset + done, count);
    if (status.ok()) XXH3_64bits_update(hash, piece.data(), piece.size());
    done += count;
  }
  const uint64_t checksum = XXH3_64bits_digest(hash);
  XXH3_freeState(hash);
  RETURN_IF_ERROR(status);
  if (checksum == tensor.checksum) return OkStatus();
  return ChecksumMismatch(impl_->dense_pack, tensor.offset, "tensor '" + tensor.name + "'",
                          tensor.checksum, checksum);
}

Status Store::Impl::DeleteOtherSections(const std::string& profile, CatalogueBatch* batch) const {
  ASSIGN_OR_RETURN(const std::vector<std::string> sections, ListSuffixes(SectionKey(profile, "")));
  for (const std::string& section : sections) {
    const std::string key = SectionKey(profile, section);
    const bool written = std::any_of(batch->puts.begin(), batch->puts.end(),
                                     [&](const auto& put) { return put.first == key; });
    if (!written) batch->deletes.push_back(key);
  }
  return OkStatus();
}

Status Store::SaveProfile(const std::string& name,
                          const std::map<std::string, std::string>& sections) {
  ASSIGN_OR_RETURN(Catalogue* const catalogue, impl_->Writable());
  ASSIGN_OR_RETURN(const CatalogueBatch batch, ProfileBatch(name, sections));
  return catalogue->Write(batch, /*sync=*/false);
}

Status Store::ReplaceProfile(const std::string& name,
                             const std::map<std::string, std::string>& sections) {
  ASSIGN_OR_RETURN(Catalogue* const catalogue, impl_->Writable());
  ASSIGN_OR_RETURN(CatalogueBatch batch, ProfileBatch(name, sections));
  RETURN_IF_ERROR(impl_->DeleteOtherSections(name, &batch));
  return catalogue->Write(batch, /*sync=*/false);
}

Result<std::string> Store::LoadProfileSection(const std::string& name,
                                              const std::string& section) const {
  const std::string where = impl_->directory + ": profile '" + name + "', section '" + section + "'";
  ASSIGN_OR_RETURN(const std::optional<std::string> value,
                   impl_->Get(SectionKey(name, section)));
  if (!value) return NotFound(where + ": there is none");
  Result<std::string> payload = UnwrapProfileSection(*value);
  if (!payload.ok()) return payload.status().WithContext(where);
  return payload;
}

Result<std::vector<std::string>> Store::ListProfileSections(const std::string& name) const {
  return impl_->ListSuffixes(kProfilePrefix + name + "/");
}

Result<std::vector<std::string>> Store::ListProfiles() const {
  ASSIGN_OR_RETURN(const std::vector<std::string> keys, impl_->ListSuffixes(kProfilePrefix));
  std::vector<std::string> names;
  for (const std::string& key : keys) {
    const std::string name = key.substr(0, key.find('/'));
    if (names.empty() || names.back() != name) names.push_back(name);
  }
  return names;
}

Status Store::DeleteProfile(const std::string& name) {
  ASSIGN_OR_RETURN(Catalogue* const catalogue, impl_->Writable());
  CatalogueBatch batch;
  RETURN_IF_ERROR(impl_->DeleteOtherSections(name, &batch));
  if (batch.deletes.empty()) return NotFound(impl_->directory + ": no profile '" + name + "'");
  return catalogue->Write(batch, /*sync=*/false);
}

Status Store::RenameProfile(const std::string& from, const std::string& to) {
  ASSIGN_OR_RETURN(Catalogue* const catalogue, impl_->Writable());
  RETURN_IF_ERROR(CheckProfileName("profile", to));
  ASSIGN_OR_RETURN(const std::vector<std::string> sections, ListProfileSections(from));
  if (sections.empty()) return NotFound(impl_->directory + ": no profile '" + from + "'");
  CatalogueBatch batch;
  for (const std::string& section : sections) {
    ASSIGN_OR_RETURN(std::optional<std::string> value, impl_->Get(SectionKey(from, section)));
    if (value) batch.puts.emplace_back(SectionKey(to, section), std::move(*value));
  }
  RETURN_IF_ERROR(impl_->DeleteOtherSections(from, &batch));
  RETURN_IF_ERROR(impl_->DeleteOtherSections(to, &batch));
  return catalogue->Write(batch, /*sync=*/false);
}

Status Store::PutNote(const std::string& key, const std::string& value) {
  ASSIGN_OR_RETURN(Catalogue* const catalogue, impl_->Writable());
  return catalogue->Write({.puts = {{kNotePrefix + key, value}}, .deletes = {}}, /*sync=*/false);
}

Result<std::string> Store::GetNote(const std::string& key) const {
  ASSIGN_OR_RETURN(std::optional<std::string> value, impl_->Get(kNotePrefix + key));
  if (!value) return NotFound(impl_->directory + ": no note '" + key + "'");
  return *std::move(value);
}

}  // namespace moraine
