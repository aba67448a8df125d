// CUDA's built-ins for a host C++ compiler, so that device.cu and the CUDA branch of portable.h run, unmodified, on a
// machine without a card. What nvcc and a GPU decide is decided here by a seeded generator: the order of threads.
//
// Each thread of a launch is a fiber with a stack of its own; one runs at a time. A fiber gives way
//   - before an atomic operation or a relaxed load, now and then: any other fiber of any block goes on;
//   - in __activemask(), always: it waits there for others of its warp. A mask has lanes of one warp that wait at one
//     place of the code: often all of them, at times some, as on a card whose threads have drifted apart.
// Not shown: a card's weaker order of plain writes, and its speed. Kernels here use neither shared memory nor barriers
// nor shuffles, so there are none; a kernel that does will not compile.
#pragma once
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>
#include <vector>

namespace emulation {

constexpr unsigned WARP = 32, NEVER = 0;
constexpr size_t STACK_BYTES = 128 << 10;

struct Index {
  unsigned x, y, z;
};

struct Fiber {
  jmp_buf here;
  Index block, thread;
  const void* site = nullptr;  // where it waits for its warp
  unsigned mask = 0;           // what it is told there
  bool started = false, done = true;
};

using Kernel = void (*)(unsigned long long, unsigned long long, unsigned long long, unsigned long long,
                        unsigned long long);

struct Launch {
  Kernel kernel;
  const unsigned long long* arguments;
  Index grid, block;
};

inline std::vector<Fiber*> fibers, ready, waiting;
inline Fiber* current;
inline jmp_buf scheduler;
inline Launch launch;
inline unsigned long long state = 1;
inline unsigned until_switch = 1;
inline unsigned long long switches, masks_of_many, left_out;  // for tests: has it been exercised?

inline unsigned draw(unsigned below) {
  state ^= state << 13, state ^= state >> 7, state ^= state << 17;
  return (unsigned)(state >> 32) % below;
}

__attribute__((noinline)) inline void jump(jmp_buf from, jmp_buf to) {
  if (!_setjmp(from)) _longjmp(to, 1);
}

inline void body() {
  for (;;) {  // a fiber is used again by later launches
    const unsigned long long* a = launch.arguments;
    launch.kernel(a[0], a[1], a[2], a[3], a[4]);
    current->done = true;
    jump(current->here, scheduler);
  }
}

// Makes a fiber that waits at the top of `body`: switched to once by ucontext, which costs system calls, never again.
inline Fiber* made() {
  static ucontext_t maker;
  Fiber* fiber = new Fiber;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = malloc(STACK_BYTES);
  context.uc_stack.ss_size = STACK_BYTES;
  context.uc_link = nullptr;
  makecontext(
      &context,
      [] {
        if (!_setjmp(current->here)) setcontext(&maker);
        body();
      },
      0);
  current = fiber;
  volatile bool back = false;
  getcontext(&maker);
  if (!back) {
    back = true;
    setcontext(&context);
  }
  return fiber;
}

inline void give_way() {
  if (--until_switch) return;
  until_switch = 1 + draw(12);
  ++switches;
  ready.push_back(current);
  jump(current->here, scheduler);
}

__attribute__((noinline)) inline unsigned active_mask() {
  current->site = __builtin_return_address(0);
  waiting.push_back(current);
  jump(current->here, scheduler);
  return current->mask;
}

inline unsigned warp_of(const Fiber& fiber) { return fiber.thread.x / WARP; }

// Lets a warp go on that waits: all of its lanes that wait at one place, or some of them.
inline void release() {
  const Fiber* first = waiting[draw((unsigned)waiting.size())];
  const bool all = draw(4) != 0;
  std::vector<Fiber*> go, stay;
  for (Fiber* fiber : waiting) {
    const bool with =
        fiber->site == first->site && fiber->block.x == first->block.x && warp_of(*fiber) == warp_of(*first);
    const bool goes = with && (all || fiber == first || draw(2));
    left_out += with && !goes;
    (goes ? go : stay).push_back(fiber);
  }
  unsigned mask = 0;
  for (const Fiber* fiber : go) mask |= 1u << fiber->thread.x % WARP;
  masks_of_many += go.size() > 1;
  for (Fiber* fiber : go) fiber->mask = mask, ready.push_back(fiber);
  waiting.swap(stay);
}

// `threads`: how many have anything to do; the others of a grid would end at once.
inline void run(const Launch& what, unsigned threads) {
  launch = what;
  while (fibers.size() < threads) fibers.push_back(made());
  for (unsigned i = 0; i < threads; ++i) {
    Fiber* fiber = fibers[i];
    fiber->block = {i / what.block.x, 0, 0};
    fiber->thread = {i % what.block.x, 0, 0};
    fiber->done = false;
    ready.push_back(fiber);
  }
  while (!ready.empty() || !waiting.empty()) {
    // Early at times: a thread may be spinning until one that waits has done its part.
    if (!waiting.empty() && (ready.empty() || draw(64) == 0)) release();
    const unsigned pick = draw((unsigned)ready.size());
    current = ready[pick];
    ready[pick] = ready.back();
    ready.pop_back();
    jump(scheduler, current->here);
  }
  for (unsigned i = 0; i < threads; ++i)
    if (!fibers[i]->done) abort();
}

}  // namespace emulation

#define __CUDACC__ 1
#define __device__
#define __global__ __attribute__((visibility("default"), noinline))
#define __forceinline__ inline __attribute__((always_inline))
#define __constant__ static
#define __launch_bounds__(...)
#define __INTADDR__(address) ((unsigned long long)(address))  // no constant to g++,
#define static_assert(...)                                    // so what asserts offsets is left to the other builds

#define threadIdx (::emulation::current->thread)
#define blockIdx (::emulation::current->block)
#define blockDim (::emulation::launch.block)
#define gridDim (::emulation::launch.grid)

template <class T>
T atomicCAS(T* p, T expected, T desired) {
  ::emulation::give_way();
  const T old = *p;
  if (old == expected) *p = desired;
  return old;
}
template <class T>
T atomicAdd(T* p, T value) {
  ::emulation::give_way();
  const T old = *p;
  *p = old + value;
  return old;
}
template <class T>
T atomicMax(T* p, T value) {
  ::emulation::give_way();
  const T old = *p;
  if (old < value) *p = value;
  return old;
}
template <class T>
T atomicExch(T* p, T value) {
  ::emulation::give_way();
  const T old = *p;
  *p = value;
  return old;
}
template <class T>
T relaxed_load(const T* p) {
  ::emulation::give_way();
  return *(const volatile T*)p;
}
#define __activemask() ::emulation::active_mask()

inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)(((unsigned __int128)a * b) >> 64);
}

// portable.h loads by PTX: asm volatile("ld.relaxed... %0, [%1];" : "=l"(value) : "l"(p) : "memory");
#define asm
#define volatile(...) value = relaxed_load(p)
