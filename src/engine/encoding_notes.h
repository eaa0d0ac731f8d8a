// What an import makes of a checkpoint's matrices, in words for the manifest's notes: what is carried
// exactly, what is lossy, and how much is lost.
//
// Loss is measured on a sample before the import begins, because a note must be known by then and be
// the same in every import of a source. It is the relative RMS error of the weights themselves, all
// alike: an import that importance weights is encoded with its weights here, too, and its loss, counted
// without them, is rather larger.
//
// Cost: eight matrices of a role, one panel of 16 rows of each.
// Threads: owned by one thread.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "base/status.h"
#include "compute/encoding.h"
#include "engine/source_matrix.h"
#include "store/checkpoint.h"

namespace moraine {

class EncodingNotes {
 public:
  explicit EncodingNotes(const char* what) : what_(what) {}

  // role: what the matrix is for, "gate and up". What the matrix points to must outlive the notes.
  void Add(const std::string& role, const SourceMatrix& matrix, Encoding encoding, uint32_t rows,
           uint32_t cols);

  // "experts are q4, exactly the checkpoint's Q4_0"; nothing of what is plainly exact.
  Status AppendTo(const Checkpoint& checkpoint, std::vector<std::string>* notes) const;

 private:
  struct Sample {
    SourceMatrix matrix;
    uint32_t rows, cols;
  };
  struct Choice {
    std::map<std::string, std::vector<Sample>> samples_of_role;
  };

  static Result<double> MeasureLoss(const Checkpoint& checkpoint,
                                    const std::vector<Sample>& samples, Encoding encoding);

  const char* what_;
  std::map<std::tuple<std::string, SourceType, Encoding>, Choice> chosen_;
};

}  // namespace moraine
