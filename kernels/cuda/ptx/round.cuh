// Rounding between float32 and 16-bit elements: to nearest, ties to even.
#pragma once
#include "elements.h"
#include "ptx/kernel.cuh"

KRON_DEVICE float to_float(float v) { return v; }
KRON_DEVICE float to_float(bf16 v) { return __uint_as_float(uint32_t(v.bits) << 16); }
KRON_DEVICE float to_float(f16 v) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v.bits));
  return f;
}

template <class E> KRON_DEVICE E from_float(float v);
template <> KRON_DEVICE float from_float<float>(float v) { return v; }
template <> KRON_DEVICE bf16 from_float<bf16>(float v) {
  bf16 r;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r.bits) : "f"(v));
  return r;
}
template <> KRON_DEVICE f16 from_float<f16>(float v) {
  f16 r;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r.bits) : "f"(v));
  return r;
}

/// Two elements in one register, the first in the low half.
template <class E> KRON_DEVICE uint32_t pack(float low, float high);
template <> KRON_DEVICE uint32_t pack<bf16>(float low, float high) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
template <> KRON_DEVICE uint32_t pack<f16>(float low, float high) {
  uint32_t r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
