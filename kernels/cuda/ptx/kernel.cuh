// How nvcc declares a kernel, its functions and its shared memory.
#pragma once
#include <stdint.h>

#include "params.h"

#define KRON_DEVICE __device__ __forceinline__
#define KRON_CONSTEXPR __host__ __device__ constexpr
#define KRON_UNROLL _Pragma("unroll")
#define KRON_UNROLL_N _Pragma("unroll UNROLL") // a constant of that name
#define KRON_ROLLED _Pragma("unroll 1")
// The emulator notes the call site of every collective; the device has no use for it.
#define KRON_SITE
#define KRON_SITE_ARG
#define KRON_SITE_PASS

/// Allows the stream's next kernel to start if its launch is programmatic, then waits until the kernels before have
/// ended and their writes are visible.  Every kernel begins with it, so a kernel that starts early meets the writes
/// of all before it, not of the last one alone.  Where the launch is not programmatic both do nothing.
KRON_DEVICE void take_turn() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

#define KRON_KERNEL(name, threads) KRON_KERNEL_RESIDENT(name, threads, 1)
/// A kernel of which `blocks` blocks must fit on a multiprocessor: the compiler limits its registers accordingly.
#define KRON_KERNEL_RESIDENT(name, threads, blocks)                                                                    \
  KRON_DEVICE void name##_body(const KronParams &p);                                                                   \
  extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ KronParams p) {           \
    take_turn();                                                                                                       \
    name##_body(p);                                                                                                    \
  }                                                                                                                    \
  KRON_DEVICE void name##_body(const KronParams &p)

/// The array of dynamic shared memory at a byte offset; its length and index matter to the emulator alone.
KRON_DEVICE void *shared_array(uint32_t offset, uint32_t, uint32_t) {
  extern __shared__ __align__(128) unsigned char kron_shared[];
  return kron_shared + offset;
}
