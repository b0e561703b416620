// The emulator's state: fibers, warps, and one machine for each thread of the host.
// fibers.cpp runs fibers and blocks; emulator.cpp has the functions that fibers and Rust call.
#pragma once
#include <cstddef>
#include <memory>
#include <vector>

#include "emulate/emulator.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define POISON(p, n) __asan_poison_memory_region(p, n)
#define UNPOISON(p, n) __asan_unpoison_memory_region(p, n)
#else
#define POISON(p, n) ((void)(p), (void)(n))
#define UNPOISON(p, n) ((void)(p), (void)(n))
#endif
#if defined(KRON_TSAN)
#include <sanitizer/tsan_interface.h>
#define RELEASE(p) __tsan_release(p)
#define ACQUIRE(p) __tsan_acquire(p)
#else
#define RELEASE(p) ((void)(p))
#define ACQUIRE(p) ((void)(p))
#endif

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emu {

constexpr size_t STACK = 256 << 10;
constexpr uint32_t MAX_THREADS = 1024, MAX_SHARED = 227 << 10, MAX_ARRAYS = 15, RED_ZONE = 64;
constexpr size_t MEMORY = MAX_SHARED + (MAX_ARRAYS + 1) * RED_ZONE;
#if defined(KRON_TSAN)
constexpr size_t CREWS = 3; // sets of fibers that blocks take in turn: see run_block
#else
constexpr size_t CREWS = 1;
#endif
constexpr uint32_t PCT_REDRAW = 32; // picks per redraw of a warp's priority, on average

/// A registered kernel.
struct Entry {
  const char *name;
  Kernel kernel;
  uint32_t max_threads;
};

/// A barrier or collective at which a fiber waits.
struct Meeting {
  const char *what = nullptr;
  Site site = {nullptr, 0};
  uint32_t mask = 0;
  void *argument = nullptr;
};

/// A cp.async whose bytes have not arrived.
struct Copy {
  void *to = nullptr;
  const void *from = nullptr;
  uint32_t bytes = 0, valid = 0, group = 0;
};

/// A CUDA thread.
struct Fiber {
  enum State { RUNNABLE, AT_WARP, AT_BLOCK, DONE } state = RUNNABLE;
  Meeting meeting;
  std::vector<Copy> copies; // under way
  uint32_t groups = 0;      // committed groups
  uint32_t open = 0;        // copies since the last commit
  uint32_t waited = 0;      // groups known to have arrived
  char *stack = nullptr;
#if defined(__x86_64__)
  void *sp = nullptr;
#else
  ucontext_t context;
#endif
  void *fake_stack = nullptr, *tsan = nullptr;
};

/// Bit masks of a warp's runnable lanes and of those that have come to its meeting.
struct Warp {
  uint32_t runnable = 0, arrived = 0;
  uint64_t priority = 0;
};

/// The launch of one host thread.
struct Machine {
  const Entry *entry = nullptr;
  const KronParams *params = nullptr;
  KronEmuOptions options{};
  KronEmuReport *report = nullptr;
  uint64_t grid = 0, block_index = 0, random = 0;
  uint32_t block = 0, shared_bytes = 0, arrived = 0, done = 0, current = 0;
  bool failed = false;
  std::vector<Fiber> fibers, crews[CREWS]; // the running block's, and those of the blocks before it
  std::vector<Warp> warps;
  std::vector<Site> sites;       // barriers and waits met since the launch
  char *shared = nullptr;        // MAX_SHARED bytes and the red zones
  std::unique_ptr<char[]> syncs; // ThreadSanitizer's names for the block's barrier and, 8 bytes apart, its warps'
  Fiber home;                    // the caller's own stack
  const void *home_bottom = nullptr;
  size_t home_size = 0;
  ~Machine();
};
extern thread_local Machine machine;

/// Returns zeroed memory.  With `at` it replaces the pages there, so that ThreadSanitizer forgets who touched them.
char *map(size_t bytes, void *at = nullptr);
/// Returns 48 random bits.
uint64_t draw();
/// Runs another fiber, or the caller of the launch if none can run.
void yield(bool ends);
/// Returns to the caller of the launch for good.
[[noreturn]] void leave();
void set_waiting(uint32_t thread, Fiber::State state);
void set_runnable(uint32_t thread);
/// Runs the block `machine.block_index` to its end.
void run_block();

inline Fiber &self() { return machine.fibers[machine.current]; }

} // namespace emu
