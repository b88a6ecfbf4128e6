// Threads that work on one thing together and meet often: a barrier of a fraction of a microsecond.
//
// A barrier needs its members to run at the same time, which no thread pool promises. So a team is made by roll call:
// who comes before the roll is closed is a member, who comes later is not. Members are threads that run, and the
// operating system gives each of them its turn, so nobody waits for ever.
#pragma once

#include <sched.h>

#include <cstdint>

namespace vidgen {

struct Team {
  static constexpr int kClosed = 1 << 30;
  alignas(64) int roll = 0;  // members so far; kClosed is added at the end
  alignas(64) int arrived = 0;
  alignas(64) int meetings = 0;

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

// A processor that spins this long (some 50 microseconds) lets others have their turn: the member that is waited for
// may be among them.
constexpr int kPatience = 2000;

inline __attribute__((always_inline)) void pause_briefly(int& spins) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
  if (++spins > kPatience) sched_yield();
}

// Returns when all members have come; what they wrote before is then seen by all.
inline __attribute__((always_inline)) void meet(Team& team, int members) {
  if (members == 1) return;
  const int meeting = __atomic_load_n(&team.meetings, __ATOMIC_RELAXED);
  if (__atomic_add_fetch(&team.arrived, 1, __ATOMIC_ACQ_REL) == members) {
    __atomic_store_n(&team.arrived, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&team.meetings, meeting + 1, __ATOMIC_RELEASE);
    return;
  }
  for (int spins = 0; __atomic_load_n(&team.meetings, __ATOMIC_ACQUIRE) == meeting;) pause_briefly(spins);
}

}  // namespace vidgen
