// The outside of a store: which files there are, what marks a directory as a store, and the lock
// that keeps two writers apart.
#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"
#include "store/posix_file.h"

namespace moraine {

std::string CatalogueDirectory(const std::string& store);
std::string PacksDirectory(const std::string& store);
std::string DensePackPath(const std::string& store);

// Makes the directory a store of this format unless it is one, durably. kFailedPrecondition if there
// is something else in it.
Status CreateStoreDirectory(const std::string& store);
// kNotFound, kFailedPrecondition (not a store) or kUnsupported (another version).
Status CheckStoreFormat(const std::string& store);
// The writer's lock, held while the file is open: flock on STORE_FORMAT, which the kernel releases
// when a process dies. kFailedPrecondition naming the store if it is held, here or elsewhere.
Result<PosixFile> LockStoreForWriting(const std::string& store);

}  // namespace moraine
