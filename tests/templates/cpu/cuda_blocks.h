// Runs a kernel on the CPU: its blocks one after the other, the threads of a block as fibers that
// take turns at barriers, votes and exchanges. Included before the kernel's source;
// tests/templates/kernel_on_cpu.py is the other side.
//
// A warp runs as far as it can before the next one starts, so that whatever isn't kept apart by a
// barrier happens in an order that a GPU rarely takes.
//
// What would hang or be undefined on a GPU ends the program: a barrier that not all threads of the
// block reach, a vote or an exchange that not all lanes of the warp reach.
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
#define __align__(bytes) __attribute__((aligned(bytes)))

struct uint2 {
  unsigned x;
  unsigned y;
};

struct float2 {
  float x;
  float y;
};

struct Position {
  unsigned x;
};
inline Position threadIdx{};
inline Position blockIdx{};

namespace cpu {

constexpr std::size_t kStack = 256 * 1024;
constexpr std::size_t kWarp = 32;
constexpr std::size_t kMostThreads = 1024;

enum class Waits {
  kNot,
  kForBlock,
  kForBlockVotes,
  kForBallot,
  kForAny,
  kForAll,
  kForWarp,
  kForShuffle,
  kForMatrices,
  kForProducts,
  kForNothing,
};

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
    current = this;
    do {
      const std::size_t warps = fibers_.size() / kWarp;
      for (std::size_t i = 0; i < warps; ++i) {
        const std::size_t first = (backwards ? warps - 1 - i : i) * kWarp;
        do {
          resume(first, backwards);
        } while (release_warp(first));
      }
    } while (release_block());
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

  // Lets every lane of a warp run up to where it waits.
  void resume(std::size_t first, bool backwards) {
    for (std::size_t i = 0; i < kWarp; ++i) {
      const std::size_t thread = first + (backwards ? kWarp - 1 - i : i);
      if (fibers_[thread].waits != Waits::kNot) continue;
      threadIdx.x = static_cast<unsigned>(thread);
      swapcontext(&scheduler_, &fibers_[thread].context);
    }
  }

  // Lets a warp go on whose lanes have waited for each other only; false if it can't.
  bool release_warp(std::size_t first) {
    const Waits what = fibers_[first].waits;
    unsigned votes = 0;
    for (std::size_t lane = 0; lane < kWarp; ++lane) {
      const Fiber& fiber = fibers_[first + lane];
      if (fiber.waits != what) fail("the lanes of a warp wait for different things");
      if (fiber.vote) votes |= 1u << lane;
    }
    if (what == Waits::kForNothing || is_for_block(what)) return false;
    for (std::size_t lane = 0; lane < kWarp; ++lane) {
      fibers_[first + lane].votes = votes;
      fibers_[first + lane].waits = Waits::kNot;
    }
    return true;
  }

  // The same for the block; false if all of its threads are done.
  bool release_block() {
    const Waits what = fibers_[0].waits;
    unsigned votes = 0;
    for (const Fiber& fiber : fibers_) {
      if (fiber.waits != what) fail("a barrier that not all threads reach");
      votes += fiber.vote;
    }
    if (what == Waits::kForNothing) return false;
    for (Fiber& fiber : fibers_) {
      fiber.votes = votes;
      fiber.waits = Waits::kNot;
    }
    return true;
  }

  static bool is_for_block(Waits what) {
    return what == Waits::kForBlock || what == Waits::kForBlockVotes;
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
  if (threads % kWarp != 0 || threads > kMostThreads || shared > capacity)
    fail("a launch that this can't run");
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

// Shows a thread's value to its warp: returns those of all lanes, which stay as they are up to the
// thread's next exchange of this kind.
template <Waits kWhat, class Value>
const Value* exchange(const Value& value) {
  static Value values[2][kMostThreads];
  static unsigned turns[kMostThreads];
  const unsigned thread = threadIdx.x;
  Value* const shown = values[turns[thread]++ % 2];
  shown[thread] = value;
  vote(kWhat, 0xffffffffu, false);
  return shown + thread / kWarp * kWarp;
}

}  // namespace cpu

inline void __syncthreads() { cpu::Block::current->wait(cpu::Waits::kForBlock, false); }
inline int __syncthreads_or(unsigned value) {
  return cpu::Block::current->wait(cpu::Waits::kForBlockVotes, value != 0) != 0;
}
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
inline float __shfl_xor_sync(unsigned mask, float value, unsigned lanes) {
  if (mask != 0xffffffffu) cpu::fail("a shuffle of a part of the warp");
  return cpu::exchange<cpu::Waits::kForShuffle>(value)[threadIdx.x % cpu::kWarp ^ lanes];
}
inline int __popc(unsigned value) { return __builtin_popcount(value); }
