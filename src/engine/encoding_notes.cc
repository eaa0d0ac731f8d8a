#include "engine/encoding_notes.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "compute/aligned_array.h"
#include "compute/encode.h"

namespace moraine {
namespace {

// Matrices of a role that are looked at, one panel of rows of each: enough for two digits, and
// less than the import does in a second.
constexpr size_t kSampledMatrices = 8;

}  // namespace

void EncodingNotes::Add(const std::string& role, const SourceMatrix& matrix, Encoding encoding,
                        uint32_t rows, uint32_t cols) {
  const SourceTensor& tensor = *matrix.tensor;
  Choice& choice = chosen_[{std::string(tensor.packing), tensor.type, encoding}];
  std::vector<Sample>& samples = choice.samples_of_role[role];
  if (!IsExact(tensor.type, encoding) && samples.size() < kSampledMatrices) {
    samples.push_back({matrix, rows, cols});
  }
}

Status EncodingNotes::AppendTo(const Checkpoint& checkpoint,
                               std::vector<std::string>* notes) const {
  for (const auto& [key, choice] : chosen_) {
    const auto& [packing, type, encoding] = key;
    const char* name = EncodingName(encoding);
    const std::string source = packing.empty() ? SourceTypeName(type) : packing;
    if (IsExact(type, encoding)) {
      if (!IsQuantised(type)) continue;
      notes->push_back(
          fmt::format("{} are {}, exactly the checkpoint's {}", what_, name, source));
      continue;
    }
    std::string losses;
    double largest = 0;
    bool carried = true;
    for (const auto& [role, samples] : choice.samples_of_role) {
      carried &= std::ranges::all_of(samples, [encoding = encoding](const Sample& sample) {
        return CarriesBlocks(sample.matrix, encoding);
      });
      const Result<double> loss = MeasureLoss(checkpoint, samples, encoding);
      // A synthetic model has nothing that could be lost.
      if (loss.status().code() == StatusCode::kUnsupported) continue;
      RETURN_IF_ERROR(loss.status());
      largest = std::max(largest, *loss);
      losses += fmt::format("{}{} {:.2g} %", losses.empty() ? "" : ", ", role, 100 * *loss);
    }
    // Blocks that are carried, of a type that the encoding does not hold whatever is in it.
    if (!losses.empty() && carried && largest == 0) {
      notes->push_back(fmt::format("{} are {}, the checkpoint's {}: exactly so in a sample", what_,
                                   name, source));
      continue;
    }
    if (!losses.empty()) losses.insert(0, "; relative RMS error of a sample: ");
    notes->push_back(fmt::format("{} are {}, made from {}: lossy{}", what_, name, source, losses));
  }
  return OkStatus();
}

Result<double> EncodingNotes::MeasureLoss(const Checkpoint& checkpoint,
                                          const std::vector<Sample>& samples, Encoding encoding) {
  double error = 0, power = 0;
  for (const auto& [matrix, rows, cols] : samples) {
    const uint32_t count = std::min(kTileRows, rows);
    const uint32_t first = (rows - count) / 2 / kTileRows * kTileRows;
    std::vector<float> values, decoded(cols);
    RETURN_IF_ERROR(ReadRows(checkpoint, matrix, first, count, cols, &values));
    const AlignedArray<std::byte> tiles(MatrixBytes(encoding, count, cols));
    const MatrixView view = MatrixView::Plain(tiles.data(), encoding, count, cols);
    // What cannot be encoded is the import's to refuse, with its place.
    const Status encoded = CarriesBlocks(matrix, encoding)
                               ? EncodeMatrixRows(checkpoint, matrix, first, count, view, 0)
                               : EncodeRows(view, 0, count, values.data(), matrix.importance);
    if (!encoded.ok()) continue;
    for (uint32_t r = 0; r < count; ++r) {
      DecodeRow(view, r, decoded.data());
      for (uint32_t c = 0; c < cols; ++c) {
        const double value = values[size_t{r} * cols + c], difference = decoded[c] - value;
        error += difference * difference;
        power += value * value;
      }
    }
  }
  return power > 0 ? std::sqrt(error / power) : 0.0;
}

}  // namespace moraine
