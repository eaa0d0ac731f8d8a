#include "engine/store_record_source.h"

#include <algorithm>

#include "store/record_checksum.h"

namespace moraine {

StoreRecordSource::StoreRecordSource(const Store& store, std::vector<FileId> files,
                                     ThreadPool& pool)
    : store_(store),
      files_(std::move(files)),
      copies_(static_cast<uint32_t>(store.expert_pack_copies(0).size())),
      pool_(pool) {
  uint64_t largest = 0;
  for (const LayerManifest& layer : store.manifest().layers) {
    largest = std::max(largest, layer.record_bytes);
  }
  pieces_.resize(ChecksumPieceCount(largest));
}

RecordSource::Location StoreRecordSource::Locate(ExpertKey key) const {
  const RecordLocation& place = store_.Locate(key);
  return {files_[place.pack], place.offset, place.bytes, copies_};
}

Status StoreRecordSource::Verify(ExpertKey key, std::span<const std::byte> bytes) const {
  const uint32_t count = ChecksumPieceCount(bytes.size());
  if (count == 1) return store_.VerifyRecord(key, bytes);
  // On the threads that will compute with it: the bytes are in their caches then.
  pool_.ParallelFor(count, [&](uint32_t piece, uint32_t) {
    pieces_[piece] = ChecksumPiece(bytes, piece);
  });
  return store_.CheckRecordChecksum(key, CombineChecksumPieces({pieces_.data(), count}));
}

}  // namespace moraine
