// DriveSet: over which directories (drives) the expert packs of a store are spread.
//
//   STORE/DRIVES                    where they are; a text file, one directory a line:
//     moraine drives, format 1
//     stripe 2 /nvme1/q30           weight 2: two records of three
//     stripe 1 /nvme2/q30
//     mirror 1 /nvme3/q30           every pack once more; its weight is for choosing what to read
//   /nvme1/q30/experts-000.pack     packs 0, 2, 4, ..: pack n is in stripe n mod 2
//   /nvme2/q30/experts-001.pack
//
// Without the file, or without stripes in it, all packs are in STORE/packs. The dense pack always is:
// it is read once, at start. A pack and its copy in the mirror are the same bytes, header included, so
// a mirror is added by copying the packs and adding the line, and replaces a lost drive by editing it.
//
// A relative path is relative to STORE. When drives are mounted elsewhere, the file is edited, in any
// editor: what ties a directory to its store is not its path but the header page of every pack in it
// (store uuid and pack number), which is checked when the store opens; a missing, swapped or foreign
// directory is an error that names the file.
//
// Why whole records and not pieces of each: one record is one read with one checksum, and drives need
// nothing of each other but the catalogue. What that costs when a layer misses few: docs/drives.md.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"

namespace moraine {

struct DriveSet {
  struct Drive {
    std::string directory;
    uint32_t weight = 1;  // share of the records, relative to the others'; 1 to 1000
  };
  std::vector<Drive> stripes;
  std::optional<Drive> mirror;

  uint32_t stripe_count() const {
    return stripes.empty() ? 1 : static_cast<uint32_t>(stripes.size());
  }
  std::string ExpertPackPath(const std::string& store, uint32_t number) const;
  // The pack and, if there is a mirror, its copy.
  std::vector<std::string> ExpertPackPaths(const std::string& store, uint32_t number) const;
  // Where expert packs are: pack n on drive n mod stripe_count(), its copy on the last one.
  std::vector<Drive> ExpertDrives(const std::string& store) const;
  // The directories that hold packs, STORE/packs first.
  std::vector<std::string> PackDirectories(const std::string& store) const;

  // kInvalidArgument: a weight out of range, a directory twice.
  Status Check() const;
  // An empty set if the store has no DRIVES file. kCorruption naming file and line.
  static Result<DriveSet> Read(const std::string& store);
  // Durable when it returns. An empty set removes the file.
  Status Write(const std::string& store) const;
};

// Deals records to stripes so that any run of records is spread as the weights say (smooth weighted
// round robin, as nginx does it): with equal weights neighbours alternate, so that what a layer misses
// is spread over the drives.
class StripeDealer {
 public:
  explicit StripeDealer(const DriveSet& drives);
  uint32_t Next();

 private:
  std::vector<int64_t> weights_, credit_;
  int64_t total_ = 0;
};

}  // namespace moraine
