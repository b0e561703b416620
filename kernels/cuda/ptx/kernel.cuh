// How nvcc declares a kernel, its functions and its shared memory.
#pragma once
#include <stdint.h>

#include "params.h"

#define KRON_DEVICE __device__ __forceinline__
#define KRON_CONSTEXPR __host__ __device__ constexpr
#define KRON_UNROLL _Pragma("unroll")
// The emulator notes the call site of every collective; the device has no use for it.
#define KRON_SITE
#define KRON_SITE_ARG
#define KRON_SITE_PASS
#define KRON_KERNEL(name, threads)                                                                                     \
  extern "C" __global__ void __launch_bounds__(threads, 1) name(const __grid_constant__ KronParams p)

/// The array of dynamic shared memory at a byte offset; its length and index matter to the emulator alone.
KRON_DEVICE void *shared_array(uint32_t offset, uint32_t, uint32_t) {
  extern __shared__ __align__(128) unsigned char kron_shared[];
  return kron_shared + offset;
}
