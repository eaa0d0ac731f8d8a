#include "engine/store_record_source.h"

#include <algorithm>

#include "store/record_checksum.h"

namespace moraine {

StoreRecordSource::StoreRecordSource(const Store& store, std::vector<FileId> files,
                                     uint32_t slots, ThreadPool& pool)
    : store_(store),
      files_(std::move(files)),
      copies_(static_cast<uint32_t>(store.expert_pack_copies(0).size())),
      pool_(pool) {
  uint64_t largest = 0;
  for (const LayerManifest& layer : store.manifest().layers) {
    largest = std::max(largest, layer.record_bytes);
  }
  pieces_per_slot_ = ChecksumPieceCount(largest);
  if (pieces_per_slot_ > 1) pieces_.resize(size_t{slots} * pieces_per_slot_);
}

RecordSource::Location StoreRecordSource::Locate(ExpertKey key) const {
  const RecordLocation& place = store_.Locate(key);
  return {files_[place.pack], place.offset, place.bytes, copies_};
}

void StoreRecordSource::OnPart(uint32_t slot, std::span<const std::byte> record, uint64_t offset,
                               uint64_t length) const {
  CHECK(offset % kChecksumPieceBytes == 0, "chunks are whole checksum pieces");
  if (ChecksumPieceCount(record.size()) == 1) return;  // nothing to be gained
  const size_t first = size_t{slot} * pieces_per_slot_;
  const auto first_piece = static_cast<uint32_t>(offset / kChecksumPieceBytes);
  // On the threads that will compute with it: the bytes are in their caches then.
  pool_.ParallelFor(ChecksumPieceCount(length), [&](uint32_t i, uint32_t) {
    pieces_[first + first_piece + i] = ChecksumPiece(record, first_piece + i);
  });
}

Status StoreRecordSource::Verify(ExpertKey key, uint32_t slot,
                                 std::span<const std::byte> bytes) const {
  const uint32_t count = ChecksumPieceCount(bytes.size());
  if (count == 1) return store_.VerifyRecord(key, bytes);
  return store_.CheckRecordChecksum(
      key, CombineChecksumPieces({&pieces_[size_t{slot} * pieces_per_slot_], count}));
}

}  // namespace moraine
