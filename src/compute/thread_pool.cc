#include "compute/thread_pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <climits>
#include <thread>
#include <vector>

#include "base/check.h"

namespace moraine {
namespace {

// A decode step's gaps between regions (norms, softmax of the router) are a few microseconds, a
// futex wake-up on a virtual machine 10 to 50: spinning for about one wake-up is never more than
// twice the best choice, and leaves the CPU to others when the model is idle.
constexpr std::chrono::microseconds kSpinTime{50};

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Blocks while *word == expected. Spurious returns are the caller's business.
void FutexWait(std::atomic<uint32_t>* word, uint32_t expected) {
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, nullptr, nullptr, 0);
}
void FutexWake(std::atomic<uint32_t>* word, int count) {
  syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, count, nullptr, nullptr, 0);
}

// True as soon as `ready()`; false after the spin time.
template <typename Ready>
bool SpinUntil(bool may_spin, Ready ready) {
  if (ready()) return true;
  if (!may_spin) return false;
  const auto end = std::chrono::steady_clock::now() + kSpinTime;
  do {
    for (int i = 0; i < 32; ++i) {
      if (ready()) return true;
      Pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

}  // namespace

// One region:
//
//   caller:  job_ = ..; done_ = 0; state_ = (generation, task_count) -> claim and run -> wait done_
//   worker:  sees a new epoch_ -> claims by CAS (generation, n) -> (generation, n - 1) -> runs
//            -> done_ + 1 -> ... until n = 0 -> spins, then sleeps on epoch_
//
// job_ is written only while no claim is outstanding: the caller leaves a region when done_ equals
// its task count, and a late worker's CAS fails because the generation moved on or n is 0. So job_
// needs no lock; the release of state_ and the acquire of a successful claim order it.
class ThreadPool::Impl {
 public:
  Impl(const Topology& topology, const ThreadPoolOptions& options) {
    std::vector<const NumaNode*> node_of_cpu;
    for (const NumaNode& node : topology.nodes) {
      node_of_cpu.insert(node_of_cpu.end(), node.cpus.size(), &node);
    }
    CHECK(!node_of_cpu.empty(), "the topology has no CPU");
    const size_t cpu_count = node_of_cpu.size();
    thread_count_ = options.thread_count > 0 ? options.thread_count : static_cast<int>(cpu_count);
    // With more threads than CPUs a spinning thread takes the CPU from one that has work.
    may_spin_ = thread_count_ <= static_cast<int>(cpu_count);
    for (int i = 1; i < thread_count_; ++i) {
      const auto& cpus = node_of_cpu[static_cast<size_t>(i) % cpu_count]->cpus;
      workers_.emplace_back([this, i, cpus = options.pin ? cpus : std::vector<int>()] {
        Work(static_cast<uint32_t>(i), cpus);
      });
    }
  }

  ~Impl() {
    stopping_.store(true);
    epoch_.fetch_add(1);
    FutexWake(&epoch_, INT_MAX);
    for (std::thread& worker : workers_) worker.join();
  }

  int thread_count() const { return thread_count_; }

  void Run(uint32_t task_count, TaskFunction function, void* context) {
    if (task_count == 0) return;
    CHECK(!running_.exchange(true, std::memory_order_relaxed),
          "ParallelFor is not reentrant and has one caller at a time");
    if (task_count == 1 || thread_count_ == 1) {
      for (uint32_t task = 0; task < task_count; ++task) function(context, task, 0);
    } else {
      RunOnAll({function, context, task_count});
    }
    running_.store(false, std::memory_order_relaxed);
  }

 private:
  struct Job {
    TaskFunction function = nullptr;
    void* context = nullptr;
    uint32_t task_count = 0;
  };

  void RunOnAll(const Job& job) {
    job_ = job;
    done_.store(0, std::memory_order_relaxed);
    const uint64_t generation = (state_.load(std::memory_order_relaxed) >> 32) + 1;
    state_.store(generation << 32 | job.task_count, std::memory_order_release);
    // Pairs with Sleep(): either the sleeper is counted here, or it sees the new epoch.
    epoch_.fetch_add(1, std::memory_order_seq_cst);
    const uint32_t sleepers = sleepers_.load(std::memory_order_seq_cst);
    if (sleepers > 0) FutexWake(&epoch_, static_cast<int>(job.task_count - 1));
    ClaimAndRun(0);
    const auto finished = [&] {
      return done_.load(std::memory_order_acquire) == job.task_count;
    };
    if (SpinUntil(may_spin_, finished)) return;
    caller_sleeps_.store(true, std::memory_order_seq_cst);
    while (true) {
      const uint32_t done = done_.load(std::memory_order_seq_cst);
      if (done == job.task_count) break;
      FutexWait(&done_, done);
    }
    caller_sleeps_.store(false, std::memory_order_relaxed);
  }

  void ClaimAndRun(uint32_t thread) {
    uint64_t state = state_.load(std::memory_order_acquire);
    while (static_cast<uint32_t>(state) != 0) {
      if (!state_.compare_exchange_weak(state, state - 1, std::memory_order_acq_rel,
                                        std::memory_order_acquire)) {
        continue;
      }
      const Job job = job_;
      job.function(job.context, job.task_count - static_cast<uint32_t>(state), thread);
      // seq_cst pairs with caller_sleeps_: the last one sees the sleeper, or the sleeper sees it.
      const uint32_t done = done_.fetch_add(1, std::memory_order_seq_cst) + 1;
      if (done == job.task_count && caller_sleeps_.load(std::memory_order_seq_cst)) {
        FutexWake(&done_, 1);
      }
      state = state_.load(std::memory_order_acquire);
    }
  }

  void Work(uint32_t thread, const std::vector<int>& cpus) {
    if (!cpus.empty()) {
      cpu_set_t set;
      CPU_ZERO(&set);
      for (int cpu : cpus) CPU_SET(cpu, &set);
      // A refusal (the CPU was taken away since detection) costs speed only.
      pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
    }
    uint32_t seen = 0;
    while (true) {
      const auto changed = [&] { return epoch_.load(std::memory_order_acquire) != seen; };
      if (!SpinUntil(may_spin_, changed)) Sleep(seen);
      // The epoch first: a stop after this load changes the epoch again, one before it is seen here.
      // The other way round, the epoch of the stop could be taken for that of a region.
      seen = epoch_.load(std::memory_order_acquire);
      if (stopping_.load()) return;
      ClaimAndRun(thread);
    }
  }

  void Sleep(uint32_t seen) {
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    while (epoch_.load(std::memory_order_seq_cst) == seen) FutexWait(&epoch_, seen);
    sleepers_.fetch_sub(1, std::memory_order_relaxed);
  }

  int thread_count_ = 1;
  bool may_spin_ = true;
  std::vector<std::thread> workers_;
  Job job_;
  std::atomic<bool> running_{false};
  std::atomic<bool> stopping_{false};
  // Each on its own cache line: claims, completions and epochs are written by different threads.
  alignas(64) std::atomic<uint64_t> state_{0};  // generation << 32 | unclaimed tasks
  alignas(64) std::atomic<uint32_t> done_{0};
  std::atomic<bool> caller_sleeps_{false};
  alignas(64) std::atomic<uint32_t> epoch_{0};
  std::atomic<uint32_t> sleepers_{0};
};

ThreadPool::ThreadPool(const Topology& topology, const ThreadPoolOptions& options)
    : impl_(std::make_unique<Impl>(topology, options)) {}
ThreadPool::~ThreadPool() = default;
int ThreadPool::thread_count() const { return impl_->thread_count(); }
void ThreadPool::Run(uint32_t task_count, TaskFunction function, void* context) {
  impl_->Run(task_count, function, context);
}

}  // namespace moraine
