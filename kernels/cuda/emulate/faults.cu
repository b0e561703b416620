// Kernels with one fault each, for the emulator's own tests; host only.
#include "device.cuh"

/// Half of the block waits at one barrier, half at another.
KRON_KERNEL(fault_divergent_barrier, 64) {
  (void)p;
  if (threadIdx.x < 32) __syncthreads();
  else
    __syncthreads();
}
/// One thread never comes to the barrier.
KRON_KERNEL(fault_early_exit, 64) {
  (void)p;
  if (threadIdx.x == 7) return;
  __syncthreads();
}
/// A lane passes a mask that leaves it out.
KRON_KERNEL(fault_lane_outside_mask, 32) {
  (void)p;
  __syncwarp(0xfffffffeu);
}
/// Lanes pass different masks.
KRON_KERNEL(fault_different_masks, 32) {
  (void)p;
  __syncwarp(threadIdx.x == 31 ? 0x80000000u | 1u : 0xffffffffu);
}
/// Commits a copy and never waits for it.
KRON_KERNEL(fault_unwaited_copy, 32) {
  Shared shared;
  cp_async16(shared.take<Vec4>(32) + threadIdx.x, p.x, true);
  cp_async_commit();
}
/// Takes one byte more than the launch brings (64 bytes).
KRON_KERNEL(fault_too_much_shared, 32) {
  (void)p;
  Shared shared;
  shared.take<char>(65);
}
/// A copy to an odd address.
KRON_KERNEL(fault_misaligned_copy, 32) {
  Shared shared;
  cp_async16(shared.take<char>(64) + 4, p.x, true);
  cp_async_commit();
  cp_async_wait<0>();
}
/// Every thread reads its neighbour's value without a barrier in between.
KRON_KERNEL(fault_missing_barrier, 64) {
  Shared shared;
  float *s = shared.take<float>(64);
  s[threadIdx.x] = float(threadIdx.x);
  static_cast<float *>(p.y)[threadIdx.x] = s[(threadIdx.x + 32) % 64];
}
/// Reads a copy although one group may still be under way.
KRON_KERNEL(fault_weak_wait, 32) {
  Shared shared;
  float *s = shared.take<float>(128);
  cp_async16(s + 4 * threadIdx.x, static_cast<const float *>(p.x) + 4 * threadIdx.x, true);
  cp_async_commit();
  cp_async_wait<1>();
  static_cast<float *>(p.y)[threadIdx.x] = s[4 * threadIdx.x];
  cp_async_wait<0>();
}
/// Eight rows in the same four banks.
KRON_KERNEL(fault_bank_conflicts, 32) {
  Shared shared;
  bf16 *s = shared.take<bf16>(32 * 64);
  for (int i = 0; i < 64; ++i) s[threadIdx.x * 64 + i] = bf16{uint16_t(i)};
  __syncwarp();
  uint32_t out[4];
  ldmatrix<4, false>(out, s + threadIdx.x * 64);
  static_cast<uint32_t *>(p.y)[threadIdx.x] = out[0];
}
/// Every block adds to the same element; only ThreadSanitizer detects it.
KRON_KERNEL(fault_racing_blocks, 32) {
  if (threadIdx.x == 0) static_cast<float *>(p.y)[0] += 1.0f;
}
/// Reads element 256 of 256; only AddressSanitizer detects it.
KRON_KERNEL(fault_read_past_end, 32) {
  static_cast<float *>(p.y)[threadIdx.x] = static_cast<const float *>(p.x)[225 + threadIdx.x];
}
