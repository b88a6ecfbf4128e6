// Threads that stay together for a kernel of many short steps.
//
// A parallel_for waits until each of its threads has come and gone: below a microsecond where all are spinning, but a
// slice of the system's time, milliseconds, where another program has the core of one. A pyramid of warps is hundreds
// of steps. So a crew enters parallel_for once. Its leader runs the kernel and publishes each step; whoever is there
// takes the next task, and the leader waits for tasks that have been taken, never for a thread that has not shown up.
//
// The ticket is all that is contended: the number of the step in its upper half, the tasks not yet taken in its lower
// one. A task is taken by lowering it from the very value that was read, so that a thread that comes too late, with a
// step that is over, takes nothing.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>

#include "cpu/loop.h"

namespace vidgen {

class Crew {
 public:
  // The leader's: calls body(loop), whose steps the helpers share, then sends them away. Nothing may throw in there.
  template <class Body>
  void lead(int64_t threads, const Body& body) {
    body(Loop{threads, this, step});
    ticket_.store(kDismissed, std::memory_order_release);
  }

  // A helper's: returns when the leader has finished, at once if it had before.
  void help() {
    for (uint64_t ticket; (ticket = ticket_.load(std::memory_order_acquire)) != kDismissed;) {
      if (take(ticket)) {
        idle_since_ = 0;
      } else {
        rest();
      }
    }
  }

 private:
  using Task = void (*)(void* context, int64_t index);

  static constexpr uint64_t kDismissed = ~uint64_t{0}, kCount = 0xffffffff;

  static void step(void* crew, int64_t tasks, Task task, void* context) {
    static_cast<Crew*>(crew)->share(tasks, task, context);
  }

  void share(int64_t tasks, Task task, void* context) {
    task_.store(task, std::memory_order_relaxed);
    context_.store(context, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    // a step of 2^31 tasks would be one of 10^10 rows
    ticket_.store((++number_ & 0x7fffffff) << 32 | uint64_t(tasks), std::memory_order_release);
    for (uint64_t ticket; (ticket = ticket_.load(std::memory_order_acquire)) & kCount;) take(ticket);
    idle_since_ = 0;
    while (done_.load(std::memory_order_acquire) != tasks) rest();
  }

  // Takes and does a task of the step of `ticket`, if one is left.
  bool take(uint64_t ticket) {
    if ((ticket & kCount) == 0) return false;
    const Task task = task_.load(std::memory_order_relaxed);
    void* const context = context_.load(std::memory_order_relaxed);
    if (!ticket_.compare_exchange_strong(ticket, ticket - 1, std::memory_order_acq_rel)) return false;
    task(context, int64_t(ticket & kCount) - 1);
    done_.fetch_add(1, std::memory_order_release);
    return true;
  }

  // Looks again soon; after some time, lets others have the core first.
  static void rest() {
    if (++idle_since_ > 256) {
      std::this_thread::yield();
    } else {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
  }

  static inline thread_local int64_t idle_since_ = 0;
  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<int64_t> done_{0};
  std::atomic<Task> task_{nullptr};
  std::atomic<void*> context_{nullptr};
  uint64_t number_ = 0;
};

}  // namespace vidgen
