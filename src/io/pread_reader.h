// PreadReader: the fallback where io_uring is disabled. Threads that each do one pread at a time.
//
// Queue depth is the number of threads, and every read costs two wake-ups and a system call of its
// own (docs/io.md has the figures); it is correct everywhere, which is what a fallback is for.
#pragma once

#include <memory>

#include "io/block_reader.h"

namespace moraine {

Result<std::unique_ptr<BlockReader>> CreatePreadReader(const BlockReaderOptions& options);

}  // namespace moraine
