// The host's stand-in for the device: the same .cu files, compiled as C++.
//
// One CUDA thread is one fiber; blocks run one after another.  A fiber runs
// until it meets others (a barrier or a warp collective), and every meeting
// is checked: the same call site in all lanes, the lane inside its own mask.
// What a launch does wrong comes back as a sentence with kernel and line.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "params.h"

namespace emu {

/// Where a kernel called a collective.
struct Site {
  const char *file;
  int line;
};
#define KRON_SITE emu::Site site = {__builtin_FILE(), __builtin_LINE()}
#define KRON_SITE_ARG , KRON_SITE
#define KRON_SITE_PASS , site

/// Order in which runnable fibers run; all but the first two draw from the seed.
enum Schedule : uint32_t { FIFO = 0, REVERSE = 1, RANDOM = 2, PCT = 3 };
/// When the bytes of a cp.async land: at the wait, at once, or a coin per copy.
enum Async : uint32_t { LAZY = 0, EAGER = 1, COIN = 2 };

extern "C" {
struct KronEmuOptions {
  uint32_t schedule;
  uint32_t async;
  uint64_t seed;
  /* A fault to put in: the barrier at this place is left out, the wait at it lets one more group be under way. */
  const char *fault_file; // the end of its path; null: no fault
  int32_t fault_line;
};
struct KronEmuReport {
  uint64_t bank_conflicts; // extra shared-memory passes of all ldmatrix
  uint64_t faults;         // times that the fault was met
  char message[1024];      // empty when all went well
};
/// 0 when the launch ran to its end; otherwise `report->message` says why not.
int kron_emulate(const char *kernel, const KronParams *params, uint64_t grid, uint32_t block,
                 uint32_t shared, const KronEmuOptions *options, KronEmuReport *report);
/// The name of the i-th kernel, or null.
const char *kron_emulate_kernel(uint32_t i);
/// The i-th place of a barrier or a wait that this thread's last launch met, or a null file.
Site kron_emulate_site(uint32_t i);
}

using Kernel = void (*)(const KronParams &);
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

/// The index-th array of the block's dynamic shared memory, with a poisoned
/// zone on both sides; taking more than the launch brought is an error.
void *shared_take(uint32_t offset, uint32_t bytes, uint32_t index);

void cp_async(void *shared, const void *global, uint32_t bytes, uint32_t valid);
void cp_async_commit();
void cp_async_wait(uint32_t newest, Site site);

/// All lanes of `mask` meet; the last one runs `combine` over everyone's
/// arguments.  Lanes outside the mask have a null argument, and a null
/// argument of the caller makes the meeting a barrier that orders memory.
using Combine = void (*)(void *const lanes[32]);
void warp_meet(uint32_t mask, const char *what, Site site, void *argument, Combine combine);
void barrier(Site site);
void count_bank_conflicts(uint64_t n);

} // namespace emu

#define threadIdx (emu::thread_index())
#define blockIdx (emu::block_index())
#define blockDim (emu::block_dim())
#define gridDim (emu::grid_dim())

/// Combines only touch the arguments of lanes that wait: no race, but ThreadSanitizer cannot know.
#define KRON_COMBINE __attribute__((no_sanitize("thread"))) static inline

inline void __syncthreads(KRON_SITE) { emu::barrier(site); }

KRON_COMBINE void emu_nothing(void *const *) {}
inline void __syncwarp(uint32_t mask = 0xffffffffu KRON_SITE_ARG) {
  emu::warp_meet(mask, "__syncwarp", site, nullptr, emu_nothing);
}

struct EmuShuffle {
  float value, result;
  unsigned source;
};
KRON_COMBINE void emu_shuffle(void *const *lanes) {
  for (int lane = 0; lane < 32; ++lane) {
    auto *to = static_cast<EmuShuffle *>(lanes[lane]);
    if (!to) continue;
    auto *from = static_cast<EmuShuffle *>(lanes[to->source & 31]);
    if (!from) emu::fail("lane %d shuffles from lane %u, which is not in the mask", lane, to->source & 31);
    to->result = from->value;
  }
}
inline float __shfl_xor_sync(uint32_t mask, float value, int lane_mask KRON_SITE_ARG) {
  EmuShuffle s = {value, 0, (threadIdx.x & 31) ^ unsigned(lane_mask)};
  emu::warp_meet(mask, "__shfl_xor_sync", site, &s, emu_shuffle);
  return s.result;
}

inline float __fmaf_rn(float a, float b, float c) { return std::fmaf(a, b, c); }
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return uint32_t((uint64_t(a) * b) >> 32); }
