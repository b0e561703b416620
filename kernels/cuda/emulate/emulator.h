// The emulator's interface: to Rust (extern "C") and to the host halves of the primitives.
//
// One CUDA thread is one fiber; blocks run one after another.  A fiber runs
// until it meets others at a barrier or a warp collective.  Every meeting is
// checked: all lanes come from the same call site, and each lane lies inside
// its own mask.  A fault ends the launch with a message that names kernel and line.
#pragma once
#include <cstdint>

#include "params.h"

namespace emu {

/// The place of a kernel's call of a collective.
struct Site {
  const char *file;
  int line;
};
#define KRON_SITE emu::Site site = {__builtin_FILE(), __builtin_LINE()}
#define KRON_SITE_ARG , KRON_SITE
#define KRON_SITE_PASS , site

/// Order of the runnable fibers; RANDOM and PCT draw from the seed.
enum Schedule : uint32_t { FIFO = 0, REVERSE = 1, RANDOM = 2, PCT = 3 };
/// Arrival of the bytes of a cp.async: at the wait, at once, or by a coin per copy.
enum Async : uint32_t { LAZY = 0, EAGER = 1, COIN = 2 };

extern "C" {
struct KronEmuOptions {
  uint32_t schedule;
  uint32_t async;
  uint64_t seed;
  /* An injected fault: a barrier at this place is left out, a wait at it lets one more group be under way. */
  const char *fault_file; // the end of its path; null: no fault
  int32_t fault_line;
};
struct KronEmuReport {
  uint64_t bank_conflicts; // extra shared-memory passes of all ldmatrix
  uint64_t faults;         // number of times that a kernel reached the injected fault
  char message[1024];      // empty after a launch without errors
};
/// Runs a launch and returns 0; on failure returns 1 and writes the reason into `report->message`.
int kron_emulate(const char *kernel, const KronParams *params, uint64_t grid, uint32_t block,
                 uint32_t shared, const KronEmuOptions *options, KronEmuReport *report);
/// Returns the name of the i-th kernel, or null.
const char *kron_emulate_kernel(uint32_t i);
/// Returns the i-th place of a barrier or a wait in this thread's last launch, or a null file.
Site kron_emulate_site(uint32_t i);
}

using Kernel = void (*)(const KronParams &);
/// Adds a kernel to the table of kernels before main.
struct Register {
  Register(const char *name, Kernel kernel, uint32_t max_threads);
};

struct Index {
  unsigned x;
};
Index thread_index();
Index block_index();
Index block_dim();
Index grid_dim();

/// Ends the launch with a message; does not return.
[[noreturn]] void fail(const char *format, ...);

/// Returns the index-th array of the block's dynamic shared memory, with a
/// poisoned zone on both sides.  Fails if the launch brought less memory.
void *shared_array(uint32_t offset, uint32_t bytes, uint32_t index);

void cp_async(void *shared, const void *global, uint32_t bytes, uint32_t valid);
void cp_async_commit();
void cp_async_wait(uint32_t newest, Site site);

/// Called by the last lane of a meeting, with the arguments of all lanes; null for a lane outside the mask.
using Combine = void (*)(void *const lanes[32]);
/// Waits until all lanes of `mask` have come; the last one runs `combine`.
/// A null argument makes the meeting a barrier that orders memory.
void warp_meet(uint32_t mask, const char *what, Site site, void *argument, Combine combine);
/// Waits until all threads of the block have come.
void barrier(Site site);
void count_bank_conflicts(uint64_t n);

} // namespace emu

/// Combines touch only the arguments of lanes that wait: no race, but ThreadSanitizer cannot know.
#define KRON_COMBINE __attribute__((no_sanitize("thread"))) static inline
