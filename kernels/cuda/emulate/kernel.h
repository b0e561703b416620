// How the host compiler declares a kernel, its functions and its shared memory; CUDA's indices, barriers and intrinsics.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "emulate/emulator.h"

#define KRON_DEVICE inline
#define KRON_CONSTEXPR constexpr
#define KRON_UNROLL
#define KRON_UNROLL_N static_assert(UNROLL > 0, "a number of copies");
#define KRON_ROLLED
#define KRON_KERNEL(name, threads)                                                                                     \
  static void name(const KronParams &p);                                                                               \
  static const emu::Register register_##name(#name, name, threads);                                                    \
  static void name(const KronParams &p)

#define KRON_KERNEL_RESIDENT(name, threads, blocks) KRON_KERNEL(name, threads)

#define threadIdx (emu::thread_index())
#define blockIdx (emu::block_index())
#define blockDim (emu::block_dim())
#define gridDim (emu::grid_dim())

inline void *shared_array(uint32_t offset, uint32_t bytes, uint32_t index) {
  return emu::shared_array(offset, bytes, index);
}

inline void __syncthreads(KRON_SITE) { emu::barrier(site); }

KRON_COMBINE void emu_nothing(void *const *) {}
inline void __syncwarp(uint32_t mask = 0xffffffffu KRON_SITE_ARG) {
  emu::warp_meet(mask, "__syncwarp", site, nullptr, emu_nothing);
}

/// A lane's argument of a shuffle.
struct EmuShuffle {
  float value = 0, result = 0;
  unsigned source = 0;
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
  EmuShuffle s;
  s.value = value;
  s.source = (threadIdx.x & 31) ^ unsigned(lane_mask);
  emu::warp_meet(mask, "__shfl_xor_sync", site, &s, emu_shuffle);
  return s.result;
}

/// A lane's argument of a ballot.
struct EmuBallot {
  bool value = false;
  uint32_t result = 0;
};
KRON_COMBINE void emu_ballot(void *const *lanes) {
  uint32_t votes = 0;
  for (int lane = 0; lane < 32; ++lane)
    if (auto *from = static_cast<EmuBallot *>(lanes[lane]); from && from->value) votes |= 1u << lane;
  for (int lane = 0; lane < 32; ++lane)
    if (auto *to = static_cast<EmuBallot *>(lanes[lane])) to->result = votes;
}
inline uint32_t __ballot_sync(uint32_t mask, bool value KRON_SITE_ARG) {
  EmuBallot b;
  b.value = value;
  emu::warp_meet(mask, "__ballot_sync", site, &b, emu_ballot);
  return b.result;
}

inline int __popc(uint32_t v) { return __builtin_popcount(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline float __fmaf_rn(float a, float b, float c) { return std::fmaf(a, b, c); }
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return uint32_t((uint64_t(a) * b) >> 32); }
