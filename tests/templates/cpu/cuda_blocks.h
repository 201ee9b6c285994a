// Runs a kernel on the CPU: its blocks one after the other, the threads of a block as fibers that
// take turns at barriers and warp votes. Included before the kernel's source; tests/templates/
// kernel_on_cpu.py is the other side.
//
// What would hang or be undefined on a GPU ends the program: a barrier that not all threads of the
// block reach, a vote that not all lanes of the warp reach.
#pragma once

#include <ucontext.h>

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#define __device__
#define __global__
#define __shared__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct uint2 {
  unsigned x;
  unsigned y;
};

struct Position {
  unsigned x;
};
inline Position threadIdx{};
inline Position blockIdx{};

namespace cpu {

constexpr std::size_t kStack = 256 * 1024;
constexpr int kWarp = 32;

enum class Waits { kNot, kForBlock, kForBallot, kForAny, kForAll, kForWarp, kForNothing };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  Waits waits = Waits::kNot;
  bool vote = false;
  unsigned votes = 0;
};

[[noreturn]] inline void fail(const char* reason) {
  std::fprintf(stderr, "block %u: %s\n", blockIdx.x, reason);
  std::abort();
}

// One block at a time.
class Block {
 public:
  explicit Block(std::size_t threads) : fibers_(threads) {}

  // Runs `body` in every thread; `backwards`: those with high numbers take their turns first.
  template <class Body>
  void run(const Body& body, bool backwards) {
    body_ = [](const void* given) { (*static_cast<const Body*>(given))(); };
    given_ = &body;
    for (Fiber& fiber : fibers_) {
      fiber.waits = Waits::kNot;
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = kStack;
      fiber.context.uc_link = &scheduler_;
      makecontext(&fiber.context, &Block::enter, 0);
    }
    while (turn(backwards)) release();
  }

  // Called by a thread: comes back when all of its block or warp have called it, with their votes.
  unsigned wait(Waits what, bool vote) {
    Fiber& fiber = fibers_[threadIdx.x];
    fiber.waits = what;
    fiber.vote = vote;
    swapcontext(&fiber.context, &scheduler_);
    return fiber.votes;
  }

  inline static Block* current = nullptr;

 private:
  static void enter() {
    current->body_(current->given_);
    current->fibers_[threadIdx.x].waits = Waits::kForNothing;
  }

  // Lets every thread run up to its next barrier; false if all were done.
  bool turn(bool backwards) {
    current = this;
    bool any = false;
    for (std::size_t i = 0; i < fibers_.size(); ++i) {
      const std::size_t thread = backwards ? fibers_.size() - 1 - i : i;
      if (fibers_[thread].waits != Waits::kNot) continue;
      any = true;
      threadIdx.x = static_cast<unsigned>(thread);
      swapcontext(&scheduler_, &fibers_[thread].context);
    }
    return any;
  }

  // Lets those go on that everybody else has caught up with.
  void release() {
    bool all_done = true, released = false;
    for (std::size_t first = 0; first < fibers_.size(); first += kWarp) {
      const Waits what = fibers_[first].waits;
      unsigned votes = 0;
      for (std::size_t lane = 0; lane < kWarp; ++lane) {
        const Fiber& fiber = fibers_[first + lane];
        if (fiber.waits != what) fail("the lanes of a warp wait for different things");
        if (fiber.vote) votes |= 1u << lane;
      }
      all_done = all_done && what == Waits::kForNothing;
      if (what == Waits::kForNothing || what == Waits::kForBlock) continue;
      released = true;
      for (std::size_t lane = 0; lane < kWarp; ++lane) {
        fibers_[first + lane].votes = votes;
        fibers_[first + lane].waits = Waits::kNot;
      }
    }
    if (all_done || released) return;
    for (Fiber& fiber : fibers_) {
      if (fiber.waits != Waits::kForBlock) fail("a barrier that not all threads reach");
      fiber.waits = Waits::kNot;
    }
  }

  std::vector<Fiber> fibers_;
  ucontext_t scheduler_{};
  void (*body_)(const void*) = nullptr;
  const void* given_ = nullptr;
};

// Launches as cuLaunchKernel does: arguments[i] is the address of argument i. `memory` is the
// kernel's shared memory, of which it may use the first `shared` bytes.
template <class... Arguments, std::size_t... kIndices>
void launch(void (*kernel)(Arguments...), void** arguments, unsigned grid, unsigned threads,
            unsigned char* memory, std::size_t capacity, std::size_t shared, bool backwards,
            std::index_sequence<kIndices...>) {
  constexpr unsigned char kUntouched = 0xee;
  if (threads % kWarp != 0 || shared > capacity) fail("a launch that this can't run");
  Block block(threads);
  for (unsigned i = 0; i < grid; ++i) {
    blockIdx.x = i;
    std::memset(memory, kUntouched, capacity);
    block.run([&] { kernel(*static_cast<Arguments*>(arguments[kIndices])...); }, backwards);
    for (std::size_t byte = shared; byte < capacity; ++byte) {
      if (memory[byte] != kUntouched) fail("it wrote beyond its shared memory");
    }
  }
}

template <class... Arguments>
void launch(void (*kernel)(Arguments...), void** arguments, unsigned grid, unsigned threads,
            void* memory, std::size_t capacity, std::size_t shared, bool backwards) {
  launch(kernel, arguments, grid, threads, static_cast<unsigned char*>(memory), capacity, shared,
         backwards, std::index_sequence_for<Arguments...>{});
}

inline unsigned vote(Waits what, unsigned mask, bool value) {
  if (mask != 0xffffffffu) fail("a vote of a part of the warp");
  return Block::current->wait(what, value);
}

}  // namespace cpu

inline void __syncthreads() { cpu::Block::current->wait(cpu::Waits::kForBlock, false); }
inline void __syncwarp() { cpu::vote(cpu::Waits::kForWarp, 0xffffffffu, false); }
inline unsigned __ballot_sync(unsigned mask, bool value) {
  return cpu::vote(cpu::Waits::kForBallot, mask, value);
}
inline bool __any_sync(unsigned mask, bool value) {
  return cpu::vote(cpu::Waits::kForAny, mask, value) != 0;
}
inline bool __all_sync(unsigned mask, bool value) {
  return cpu::vote(cpu::Waits::kForAll, mask, value) == 0xffffffffu;
}
inline int __popc(unsigned value) { return __builtin_popcount(value); }
