// Threads that work on one thing together and meet often: a barrier of a fraction of a microsecond.
//
// A barrier needs its members to run at the same time, which no thread pool promises. So a team is made by roll call:
// who comes before the roll is closed is a member, who comes later is not. Members are threads that run, and the
// operating system gives each of them its turn, so nobody waits for ever.
//
// Where other programs want the cores, too, the member that is waited for may have lost its own. Who has waited for a
// while sleeps until the last one comes: a sleeper that wakes is given a core at once, one that kept yielding its core
// would get it back behind everybody else, milliseconds later, meeting after meeting.
#pragma once

#include <sched.h>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdint>

namespace vidgen {

struct Team {
  static constexpr int kClosed = 1 << 30;
  alignas(64) int roll = 0;  // members so far; kClosed is added at the end
  alignas(64) int arrived = 0;
  alignas(64) int meetings = 0;
  int sleepers = 0;

  // The number of a new member, or -1: the roll is closed.
  int enroll() {
    int seen = __atomic_load_n(&roll, __ATOMIC_ACQUIRE);
    while (seen < kClosed)
      if (__atomic_compare_exchange_n(&roll, &seen, seen + 1, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) return seen;
    return -1;
  }
  void close() { __atomic_fetch_or(&roll, kClosed, __ATOMIC_ACQ_REL); }
  bool closed() const { return __atomic_load_n(&roll, __ATOMIC_ACQUIRE) >= kClosed; }
  __attribute__((always_inline)) int members() const { return __atomic_load_n(&roll, __ATOMIC_ACQUIRE) & ~kClosed; }
};

// Who has spun this often (some 50 microseconds) lets others have the core: the one that is waited for may need it.
constexpr int kPatience = 2000;

inline __attribute__((always_inline)) void pause_briefly(int& spins) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
  if (++spins > kPatience) sched_yield();
}

// Sleeps until `meetings` is no longer `meeting`.
inline __attribute__((always_inline)) void sleep_through(Team& team, int meeting) {
#if defined(__linux__)
  __atomic_add_fetch(&team.sleepers, 1, __ATOMIC_SEQ_CST);
  while (__atomic_load_n(&team.meetings, __ATOMIC_SEQ_CST) == meeting)
    syscall(SYS_futex, &team.meetings, FUTEX_WAIT_PRIVATE, meeting, nullptr, nullptr, 0);
  __atomic_sub_fetch(&team.sleepers, 1, __ATOMIC_SEQ_CST);
#else
  while (__atomic_load_n(&team.meetings, __ATOMIC_ACQUIRE) == meeting) sched_yield();
#endif
}

inline __attribute__((always_inline)) void wake_sleepers(Team& team) {
#if defined(__linux__)
  // either a sleeper is seen here, or it sees the new number before it sleeps: both sides write first, then read
  if (__atomic_load_n(&team.sleepers, __ATOMIC_SEQ_CST) > 0)
    syscall(SYS_futex, &team.meetings, FUTEX_WAKE_PRIVATE, 1 << 30, nullptr, nullptr, 0);
#endif
}

// Returns when all members have come; what they wrote before is then seen by all.
inline __attribute__((always_inline)) void meet(Team& team, int members) {
  if (members == 1) return;
  const int meeting = __atomic_load_n(&team.meetings, __ATOMIC_RELAXED);
  if (__atomic_add_fetch(&team.arrived, 1, __ATOMIC_ACQ_REL) == members) {
    __atomic_store_n(&team.arrived, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&team.meetings, meeting + 1, __ATOMIC_SEQ_CST);
    wake_sleepers(team);
    return;
  }
  for (int spins = 0; __atomic_load_n(&team.meetings, __ATOMIC_ACQUIRE) == meeting;) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
    if (++spins > kPatience) return sleep_through(team, meeting);
  }
}

}  // namespace vidgen
