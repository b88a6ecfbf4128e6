// A crew of csrc/bind/crew.h on threads of this program's own: every task of every step is done once, and a step sees
// all that the one before has written. Prints what went wrong, or nothing.
#include "bind/crew.h"

#include <cstdio>
#include <vector>

int main() {
  for (int round = 0; round < 200; ++round) {
    vidgen::Crew crew;
    const int64_t threads = 1 + round % 4;
    std::vector<std::thread> helpers;
    for (int64_t i = 1; i < threads; ++i) helpers.emplace_back([&] { crew.help(); });
    // plain numbers: unless steps follow one another, a sanitizer sees the race and the sums come out wrong
    std::vector<int64_t> before(40, 1), after(40);
    int64_t expected = 1;
    crew.lead(threads, [&](const vidgen::Loop& loop) {
      for (int64_t step = 0; step < 60; ++step) {
        const int64_t tasks = 1 + step * 13 % 40;
        std::vector<int64_t>* both[] = {&before, &after};
        after = before;
        loop.run(
            loop.crew, tasks,
            [](void* context, int64_t i) {
              auto** lists = static_cast<std::vector<int64_t>**>(context);
              // of another task's number of the step before
              (*lists[1])[size_t(i)] += (*lists[0])[size_t((i * 7 + 3) % 40)] % 3;
            },
            both);
        std::vector<int64_t> serial = before;
        for (int64_t i = 0; i < tasks; ++i) serial[size_t(i)] += before[size_t((i * 7 + 3) % 40)] % 3;
        if (serial != after) expected = 0;
        before.swap(after);
      }
    });
    for (std::thread& helper : helpers) helper.join();
    if (expected == 0) std::printf("round %d: a task was lost, repeated or early\n", round);
  }
}
