#include "store/record_checksum.h"

#include <gtest/gtest.h>

#include <vector>

#include "base/random.h"

namespace moraine {
namespace {

TEST(RecordChecksum, PiecesOnAnyThreadMakeTheSameAsTheWhole) {
  Random random(1);
  for (const uint64_t bytes : {uint64_t{4096}, kChecksumPieceBytes, kChecksumPieceBytes + 4096,
                               5 * kChecksumPieceBytes - 4096}) {
    std::vector<std::byte> record(bytes);
    for (std::byte& byte : record) byte = static_cast<std::byte>(random.Below(256));
    std::vector<uint64_t> pieces(ChecksumPieceCount(bytes));
    for (uint32_t i = static_cast<uint32_t>(pieces.size()); i-- > 0;) {
      pieces[i] = ChecksumPiece(record, i);
    }
    EXPECT_EQ(CombineChecksumPieces(pieces), RecordChecksum(record)) << bytes;
    const uint64_t right = RecordChecksum(record);
    record[random.Below(bytes)] ^= std::byte{4};
    EXPECT_NE(RecordChecksum(record), right) << bytes;
  }
}

}  // namespace
}  // namespace moraine
