// Runs KERNEL_SOURCE on the CPU where warps exchange numbers: a CUDA thread is a fiber, and fibers take turns in one
// thread, a warp as long as it can go on, blocks from the last to the first.
//
// Kernels take one struct. A barrier is passed when all threads of a block that still run have come to it, an exchange
// when all of a warp have; where that cannot be any more, or where everybody waits for a count that nobody raises, the
// program ends with a message. Under AddressSanitizer it finds accesses outside of tensors and shared memory, under
// ThreadSanitizer missing barriers: turns order nothing there, only barriers and fences do. Shared memory is static.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
extern "C" {
// volatile numbers are what threads tell each other that they have got somewhere (--param tsan-distinguish-volatile)
void __tsan_volatile_read4(void*) {}
void __tsan_volatile_write4(void*) {}
}
#define UNSEEN __attribute__((no_sanitize("thread")))
#else
static void __tsan_acquire(void*) {}
static void __tsan_release(void*) {}
#define UNSEEN
#endif

#if defined(__x86_64__)
// Puts the registers that a call keeps on the stack, whose end goes to *from, and takes up another stack.
extern "C" void emulation_switch(void** from, void* to);
asm(R"(
.text
emulation_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
)");
#else
#include <ucontext.h>
#endif

static thread_local uint3 threadIdx, blockIdx;
static dim3 gridDim;

namespace emulation {

constexpr size_t kStack = 128 << 10;
constexpr int kWarp = 32;

#if defined(__x86_64__)
struct Context {
  void* end = nullptr;

  void begin_at(char* stack, void (*entry)()) {
    void** const top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(stack) + kStack) & ~uintptr_t{15});
    std::fill(top - 8, top, nullptr);
    top[-2] = reinterpret_cast<void*>(entry);
    end = top - 8;
  }
};

static void change(Context& from, Context& to) { emulation_switch(&from.end, to.end); }
#else
struct Context {
  ucontext_t state;

  void begin_at(char* stack, void (*entry)()) {
    getcontext(&state);
    state.uc_stack.ss_sp = stack;
    state.uc_stack.ss_size = kStack;
    makecontext(&state, entry, 0);
  }
};

// Ten times slower: it asks the system for the mask of signals.
static void change(Context& from, Context& to) { swapcontext(&from.state, &to.state); }
#endif

enum class State { ready, at_exchange, at_barrier, asleep, done };

struct Fiber {
  Context context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  State state;
  unsigned index;
  double slots[2];  // what a lane shows the others; two, as the next exchange may begin before all have looked
  unsigned exchanges, barriers;  // of this block, so far
  int vote;
  void* tsan = nullptr;
  void* asan = nullptr;
#if defined(__SANITIZE_THREAD__)
  ~Fiber() { __tsan_destroy_fiber(tsan); }
#endif
};

// Of one thread of the system, which plays one block after the other, or one of those that run together.
static thread_local std::vector<std::unique_ptr<Fiber>> fibers;
static thread_local Fiber* current;
static thread_local Context scheduler;
static thread_local void *scheduler_tsan, *scheduler_asan;
static thread_local const void* scheduler_stack;
static thread_local size_t scheduler_stack_size;
static thread_local void (*job)(const void*);
static thread_local const void* job_arguments;
// Whether blocks of other threads may raise the count that everybody waits for.
static thread_local bool others_run;
// What ThreadSanitizer takes for the order of things: blocks, fences, and barriers, one and the next (whoever passes
// one late must not see what others did after it).
static thread_local char begun, ended, barriers[2];
static char fences;

[[noreturn]] static void fail(const char* why) {
  std::fprintf(stderr, "emulation: %s\n", why);
  std::exit(5);
}

UNSEEN static void back(State state) {
  Fiber* const self = current;
  self->state = state;
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(scheduler_tsan, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&self->asan, scheduler_stack, scheduler_stack_size);
#endif
  change(self->context, scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(self->asan, &scheduler_stack, &scheduler_stack_size);
#endif
}

UNSEEN static void entry() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_size);
#endif
  for (;;) {
    __tsan_acquire(&begun);
    job(job_arguments);
    __tsan_release(&ended);
    back(State::done);
  }
}

UNSEEN static void go(Fiber* fiber) {
  current = fiber;
  fiber->state = State::ready;
  threadIdx = {fiber->index, 0, 0};
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(fiber->tsan, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&scheduler_asan, fiber->stack.get(), kStack);
#endif
  change(scheduler, fiber->context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(scheduler_asan, nullptr, nullptr);
#endif
}

static void need(size_t threads) {
#if defined(__SANITIZE_THREAD__)
  scheduler_tsan = __tsan_get_current_fiber();
#endif
  while (fibers.size() < threads) {
    Fiber* const fiber = fibers.emplace_back(std::make_unique<Fiber>()).get();
    fiber->index = unsigned(fibers.size() - 1);
    fiber->context.begin_at(fiber->stack.get(), entry);
#if defined(__SANITIZE_THREAD__)
    fiber->tsan = __tsan_create_fiber(0);
#endif
  }
}

// Lets the lanes of a warp go on until none can; returns whether any could.
UNSEEN static bool turn(std::unique_ptr<Fiber>* lanes, int count) {
  bool moved = false;
  for (;;) {
    for (int i = 0; i < count; ++i)
      if (lanes[i]->state == State::ready) moved = true, go(lanes[i].get());
    int waiting = 0, gone = 0;
    for (int i = 0; i < count; ++i) {
      waiting += lanes[i]->state == State::at_exchange;
      gone += lanes[i]->state == State::done;
    }
    if (waiting == 0 || waiting + gone < count) return moved;
    if (gone > 0) fail("lanes exchange numbers with lanes that have ended");
    for (int i = 0; i < count; ++i) lanes[i]->state = State::ready;
  }
}

UNSEEN static void run_block(unsigned threads) {
  for (unsigned i = 0; i < threads; ++i)
    fibers[i]->state = State::ready, fibers[i]->exchanges = fibers[i]->barriers = 0;
  for (int idle = 0; idle < (others_run ? 100'000'000 : 1000);) {
    bool moved = false;
    for (unsigned first = 0; first < threads; first += kWarp)
      moved |= turn(&fibers[first], int(std::min<unsigned>(kWarp, threads - first)));
    unsigned at_barrier = 0, asleep = 0, done = 0;
    for (unsigned i = 0; i < threads; ++i) {
      at_barrier += fibers[i]->state == State::at_barrier;
      asleep += fibers[i]->state == State::asleep;
      done += fibers[i]->state == State::done;
    }
    if (done == threads) return;
    const bool passed = at_barrier > 0 && at_barrier + done == threads;
    for (unsigned i = 0; i < threads; ++i)
      if (fibers[i]->state == State::asleep || passed) {
        if (fibers[i]->state != State::done) fibers[i]->state = State::ready;
      }
    idle = moved && asleep < threads - done ? 0 : idle + 1;
    if (others_run && asleep > 0) std::this_thread::yield();
  }
  fail("everybody waits, and nobody will come");
}

template <class Arguments>
struct Call {
  void (*kernel)(Arguments);
  Arguments arguments;
};

template <class Arguments>
UNSEEN void take_up(const Call<Arguments>& call, unsigned threads) {
  need(threads);
  job_arguments = &call;
  job = [](const void* what) {
    const auto* const call = static_cast<const Call<Arguments>*>(what);
    call->kernel(call->arguments);
  };
}

template <class Arguments>
UNSEEN cudaError_t launch(void (*kernel)(Arguments), dim3 grid, dim3 block, void** pointers, size_t, cudaStream_t) {
  if (block.x > 1024 || grid.y > 65535 || grid.z > 65535) return cudaErrorInvalidConfiguration;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaErrorInvalidConfiguration;
  const Call<Arguments> call{kernel, *static_cast<Arguments*>(pointers[0])};
  take_up(call, block.x);
  for (unsigned z = grid.z; z-- > 0;)
    for (unsigned y = grid.y; y-- > 0;)
      for (unsigned x = grid.x; x-- > 0;) {
        blockIdx = {x, y, z};
        __tsan_release(&begun);
        run_block(block.x);
        __tsan_acquire(&ended);
      }
  return cudaSuccess;
}

// Blocks that run together: each is a thread of the system, and what is shared by its threads that thread's own.
template <class Arguments>
UNSEEN cudaError_t launch_together(void (*kernel)(Arguments), dim3 grid, dim3 block, void** pointers, size_t,
                                   cudaStream_t) {
  const Call<Arguments> call{kernel, *static_cast<Arguments*>(pointers[0])};
  gridDim = grid;
  std::vector<std::thread> blocks;
  for (unsigned x = grid.x; x-- > 0;)
    blocks.emplace_back([&call, x, block] {
      others_run = true;
      take_up(call, block.x);
      blockIdx = {x, 0, 0};
      __tsan_release(&begun);
      run_block(block.x);
      __tsan_acquire(&ended);
    });
  for (std::thread& each : blocks) each.join();
  return cudaSuccess;
}

static std::vector<char> read_values(size_t bytes) {
  std::vector<char> values(bytes);
  if (std::fread(values.data(), 1, bytes, stdin) != bytes) std::exit(2);
  return values;
}

}  // namespace emulation

UNSEEN static void __syncthreads() {
  char* const barrier = &emulation::barriers[emulation::current->barriers++ % 2];
  __tsan_release(barrier);
  emulation::back(emulation::State::at_barrier);
  __tsan_acquire(barrier);
}

UNSEEN static void __nanosleep(unsigned) { emulation::back(emulation::State::asleep); }

static void __threadfence_block() {
  __tsan_release(&emulation::fences);
  __tsan_acquire(&emulation::fences);
}

static void __threadfence() {
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  __threadfence_block();
}

UNSEEN static unsigned atomicAdd(unsigned* count, unsigned more) {
  return __atomic_fetch_add(count, more, __ATOMIC_RELAXED);
}

// Products that are never merged with a sum.
__attribute__((noinline)) static float __fmul_rn(float a, float b) { return a * b; }
__attribute__((noinline)) static double __dmul_rn(double a, double b) { return a * b; }

// Reads past L1.
template <class T>
T __ldcg(const T* from) {
  return *from;
}

UNSEEN static int __syncthreads_or(int vote) {
  emulation::current->vote = vote;
  __syncthreads();
  int any = 0;
  for (const auto& fiber : emulation::fibers) any |= fiber->vote;
  __syncthreads();
  return any != 0;
}

// Orders no memory, as on a GPU.
template <class T>
UNSEEN T __shfl_xor_sync(unsigned, T value, int mask) {
  auto* const self = emulation::current;
  const unsigned slot = self->exchanges++ % 2;
  self->slots[slot] = value;
  emulation::back(emulation::State::at_exchange);
  return T(emulation::fibers[self->index ^ unsigned(mask)]->slots[slot]);
}

template <class T>
UNSEEN T __shfl_sync(unsigned, T value, int from) {
  auto* const self = emulation::current;
  const unsigned slot = self->exchanges++ % 2;
  self->slots[slot] = value;
  emulation::back(emulation::State::at_exchange);
  return T(emulation::fibers[self->index / emulation::kWarp * emulation::kWarp + unsigned(from)]->slots[slot]);
}

static float emulated_rsqrt(float x) { return 1 / std::sqrt(x); }
static double emulated_rsqrt(double x) { return 1 / std::sqrt(x); }

#define rsqrtf emulated_rsqrt
#define rsqrt emulated_rsqrt
#define cudaLaunchKernel emulation::launch
#define cudaLaunchCooperativeKernel emulation::launch_together
#undef __shared__
#define __shared__ static thread_local
#ifndef __launch_bounds__
#define __launch_bounds__(...)
#endif
using std::max;
using std::min;

#include KERNEL_SOURCE
