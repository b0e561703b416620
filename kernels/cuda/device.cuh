// The device as the kernels see it: element types, shared memory and the primitives.
//
// Every primitive exists twice under one name.  ptx/ has the device's halves, and
// nothing else contains assembly; emulate/ has the same in C++ for the host.
#pragma once
#include "elements.h"
#include "params.h"

#ifdef KRON_EMULATE
#include "emulate/copy.h"
#include "emulate/kernel.h"
#include "emulate/matrix.h"
#include "emulate/round.h"
#else
#include "ptx/copy.cuh"
#include "ptx/kernel.cuh"
#include "ptx/matrix.cuh"
#include "ptx/round.cuh"
#endif

/// Hands out the block's dynamic shared memory, array after array, each on a 16-byte boundary.
struct Shared {
  uint32_t offset = 0, index = 0;
  template <class T> KRON_DEVICE T *take(uint32_t n) {
    const uint32_t at = offset, bytes = n * uint32_t(sizeof(T));
    offset += (bytes + 15) / 16 * 16;
    return static_cast<T *>(shared_array(at, bytes, index++));
  }
};

/// The elements in the low and the high half of a register that `pack` made.
template <class E> KRON_DEVICE float unpack_low(uint32_t v) { return to_float(E{uint16_t(v)}); }
template <class E> KRON_DEVICE float unpack_high(uint32_t v) { return to_float(E{uint16_t(v >> 16)}); }
