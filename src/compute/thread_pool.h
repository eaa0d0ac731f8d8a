// ThreadPool: the workers of all kernels, pinned, waiting in microseconds.
//
// A decode step is hundreds of parallel regions of 20 us to 1 ms. Futex wake-ups (10 to 50 us on a
// virtual machine) would eat them, so workers spin for a while before they sleep, and the calling
// thread works too. Work is claimed by an atomic counter in units of tasks: which thread runs which
// task varies, what a task computes does not, so results are bit-identical for any thread count.
//
// A worker may run on any CPU of its NUMA node, not on one alone: the caller moves (a read's
// completion wakes it where the interrupt was), and a worker tied to the CPU that the caller is on
// waits for its time slice while another CPU idles. Seen: a third more time a token while reading.
//
// Threads: ParallelFor may be called by one thread at a time (the engine thread).
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

#include "memory/topology.h"

namespace moraine {

struct ThreadPoolOptions {
  int thread_count = 0;  // including the caller; 0: one per CPU of the topology
  bool pin = true;       // workers to the CPUs of their NUMA node; the caller is not pinned
};

class ThreadPool {
 public:
  ThreadPool(const Topology& topology, const ThreadPoolOptions& options);
  ~ThreadPool();

  int thread_count() const;

  // Calls function(task_index, thread_index) for each task in [0, task_count), on all threads, and
  // returns when all are done. No allocation. thread_index < thread_count() selects scratch.
  template <typename Function>
  void ParallelFor(uint32_t task_count, Function&& function) {
    using Plain = std::remove_reference_t<Function>;
    Run(task_count,
        [](void* context, uint32_t task, uint32_t thread) {
          (*static_cast<Plain*>(context))(task, thread);
        },
        const_cast<void*>(static_cast<const void*>(&function)));
  }

 private:
  using TaskFunction = void (*)(void* context, uint32_t task, uint32_t thread);
  void Run(uint32_t task_count, TaskFunction function, void* context);

  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace moraine
