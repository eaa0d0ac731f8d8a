// IoUringReader: the fast BlockReader. One system call submits a whole miss set, completions are
// seen in shared memory, and neither costs a context switch.
//
// - Registered buffers save the pinning of a record's 768 pages at every read; registered files
//   save a reference count. Both are optimisations: where the kernel refuses them, plain reads go
//   on.
// - SINGLE_ISSUER | DEFER_TASKRUN (Linux 6.1): completions are processed when this thread asks for
//   them, not by interrupting its kernels. Older kernels get COOP_TASKRUN, or no flag.
// - The ring is created disabled and enabled by the first Submit, which makes that thread the
//   single issuer: start-up may happen on another one.
// - Off unless IoUringTuning asks: SQPOLL (a core that spins for the price of one system call a
//   layer) and IOPOLL (needs polled queues, which few drivers have switched on; the first Submit
//   tries one read of each file, and makes the ring anew without it where that is refused).
#pragma once

#include <functional>
#include <memory>

#include "io/block_reader.h"

struct io_uring;
struct io_uring_params;

namespace moraine {

// io_uring_queue_init_params, or what a test puts in its place to play a kernel that refuses.
// Returns 0 or -errno.
using RingSetup = std::function<int(unsigned entries, io_uring* ring, io_uring_params* params)>;
RingSetup KernelRingSetup();

// kUnsupported when the ring cannot be had (the message says which errno and what it may mean).
Result<std::unique_ptr<BlockReader>> CreateIoUringReader(const BlockReaderOptions& options,
                                                         const RingSetup& setup);
// CreateBlockReader with the set-up replaced.
Result<std::unique_ptr<BlockReader>> CreateBlockReaderWithSetup(const BlockReaderOptions& options,
                                                                const RingSetup& setup);

}  // namespace moraine
