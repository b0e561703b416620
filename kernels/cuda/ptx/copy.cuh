// cp.async: copies from global to shared memory that run while the thread works on.
#pragma once
#include "ptx/kernel.cuh"

/// Starts a copy of 16 bytes to shared memory; zeros instead when `valid` is false, and `global` is not read.
KRON_DEVICE void cp_async16(void *shared, const void *global, bool valid) {
  const uint32_t to = uint32_t(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(valid ? 16 : 0) : "memory");
}

/// Closes the group of copies that this thread has started since the last commit.
KRON_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

/// Waits until at most the `NEWEST` newest groups of this thread are under way.
template <int NEWEST> KRON_DEVICE void cp_async_wait(KRON_SITE) {
  asm volatile("cp.async.wait_group %0;" ::"n"(NEWEST) : "memory");
}
