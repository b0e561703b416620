// The only assembly of the project.  Each wrapper has a device half, the
// instruction, and a host half that says in C++ what the instruction does.
//
// Lane l of a warp holds, with g = l / 4 and h = 2·(l % 4):
//   A of m16n8k16   a[0] (g, h..h+1)  a[1] (g+8, h..)  a[2] (g, h+8..)  a[3] (g+8, h+8..)
//   B of m16n8k16   b[0] (k = h..h+1, n = g)           b[1] (k = h+8.., n = g)
//   C, D            d[0], d[1] (g, h..h+1)             d[2], d[3] (g+8, h..h+1)
// m16n8k8 has a[0], a[1] and b[0] of the same.  (PTX ISA, "Matrix fragments")
#pragma once
#include <stdint.h>

#ifdef KRON_EMULATE
#include "emulate.h"
#define KRON_DEVICE inline
#define KRON_CONSTEXPR constexpr
#define KRON_UNROLL
#define KRON_KERNEL(name, threads)                                                                                     \
  static void name(const KronParams &p);                                                                               \
  static const emu::Register register_##name(#name, name, threads);                                                    \
  static void name(const KronParams &p)
#else
#define KRON_DEVICE __device__ __forceinline__
#define KRON_CONSTEXPR __host__ __device__ constexpr
#define KRON_UNROLL _Pragma("unroll")
#define KRON_SITE
#define KRON_SITE_ARG
#define KRON_SITE_PASS
#define KRON_KERNEL(name, threads)                                                                                     \
  extern "C" __global__ void __launch_bounds__(threads, 1) name(const __grid_constant__ KronParams p)
#endif

struct bf16 {
  static constexpr bool BF16 = true;
  uint16_t bits;
};
struct f16 {
  static constexpr bool BF16 = false;
  uint16_t bits;
};

// ---- Dynamic shared memory -------------------------------------------------

/// Hands out the block's dynamic shared memory, array after array, each on a 16-byte boundary.
struct Shared {
  uint32_t offset = 0, index = 0;
  template <class T> KRON_DEVICE T *take(uint32_t n) {
    const uint32_t at = offset, bytes = n * uint32_t(sizeof(T));
    offset += (bytes + 15) / 16 * 16;
#ifdef KRON_EMULATE
    return static_cast<T *>(emu::shared_take(at, bytes, index++));
#else
    extern __shared__ __align__(128) unsigned char kron_shared[];
    return reinterpret_cast<T *>(kron_shared + at);
#endif
  }
};

// ---- Rounding: to nearest, ties to even ------------------------------------

KRON_DEVICE float to_float(float v) { return v; }
KRON_DEVICE float to_float(bf16 v) {
#ifdef KRON_EMULATE
  const uint32_t bits = uint32_t(v.bits) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
#else
  return __uint_as_float(uint32_t(v.bits) << 16);
#endif
}
KRON_DEVICE float to_float(f16 v) {
  float f;
#ifdef KRON_EMULATE
  const int exponent = v.bits >> 10 & 31, mantissa = v.bits & 1023;
  if (exponent == 31) f = mantissa ? NAN : INFINITY;
  else if (exponent == 0) f = std::ldexp(float(mantissa), -24);
  else f = std::ldexp(float(mantissa + 1024), exponent - 25);
  if (v.bits & 0x8000) f = -f;
#else
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v.bits));
#endif
  return f;
}

#ifdef KRON_EMULATE
inline uint16_t emu_round_bf16(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  if (v != v) return 0x7fff;
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline uint16_t emu_round_f16(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
  if (v != v) return 0x7fff;
  const double a = std::fabs(double(v));
  if (a >= 65520.0) return sign | 0x7c00;
  if (a == 0) return sign;
  int exponent = 0;
  std::frexp(a, &exponent);
  // The grid's step: 2^(e−11) for normals, 2^-24 below them; nearbyint ties to even.
  const int step = (exponent < -13 ? -13 : exponent) - 11;
  const uint32_t units = uint32_t(std::nearbyint(std::ldexp(a, -step)));
  return uint16_t(sign | (units + (uint32_t(step + 24) << 10)));
}
#endif

template <class E> KRON_DEVICE E from_float(float v);
template <> KRON_DEVICE float from_float<float>(float v) { return v; }
template <> KRON_DEVICE bf16 from_float<bf16>(float v) {
  bf16 r;
#ifdef KRON_EMULATE
  r.bits = emu_round_bf16(v);
#else
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r.bits) : "f"(v));
#endif
  return r;
}
template <> KRON_DEVICE f16 from_float<f16>(float v) {
  f16 r;
#ifdef KRON_EMULATE
  r.bits = emu_round_f16(v);
#else
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r.bits) : "f"(v));
#endif
  return r;
}

/// Two elements in one register, the first in the low half.
template <class E> KRON_DEVICE uint32_t pack(float low, float high);
template <> KRON_DEVICE uint32_t pack<bf16>(float low, float high) {
#ifdef KRON_EMULATE
  return emu_round_bf16(low) | uint32_t(emu_round_bf16(high)) << 16;
#else
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
#endif
}
template <> KRON_DEVICE uint32_t pack<f16>(float low, float high) {
#ifdef KRON_EMULATE
  return emu_round_f16(low) | uint32_t(emu_round_f16(high)) << 16;
#else
  uint32_t r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
#endif
}
template <class E> KRON_DEVICE float unpack_low(uint32_t v) { return to_float(E{uint16_t(v)}); }
template <class E> KRON_DEVICE float unpack_high(uint32_t v) { return to_float(E{uint16_t(v >> 16)}); }

// ---- Global memory, 16 bytes -----------------------------------------------

struct alignas(16) Vec4 {
  uint32_t x, y, z, w;
};

// ---- cp.async --------------------------------------------------------------

/// Starts a copy of 16 bytes to shared memory; zeros instead when `valid` is false.
KRON_DEVICE void cp_async16(void *shared, const void *global, bool valid) {
#ifdef KRON_EMULATE
  emu::cp_async(shared, global, 16, valid ? 16 : 0);
#else
  const uint32_t to = uint32_t(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(valid ? 16 : 0) : "memory");
#endif
}
KRON_DEVICE void cp_async_commit() {
#ifdef KRON_EMULATE
  emu::cp_async_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
/// Waits until at most the `NEWEST` newest groups of this thread are under way.
template <int NEWEST> KRON_DEVICE void cp_async_wait(KRON_SITE) {
#ifdef KRON_EMULATE
  emu::cp_async_wait(NEWEST, site);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(NEWEST) : "memory");
#endif
}

// ---- ldmatrix: 8 × 8 matrices of 16-bit elements, one row address a lane ----

#ifdef KRON_EMULATE
struct EmuLdmatrix {
  uint16_t row[8]; // read by the lane itself, so that a race is seen where it happens
  uint32_t chunk;  // 16-byte chunk of shared memory: banks repeat every 8
  uint32_t out[4];
};
template <int N, bool TRANS> KRON_COMBINE void emu_ldmatrix(void *const *lanes) {
  uint64_t conflicts = 0;
  for (int matrix = 0; matrix < N; ++matrix) {
    EmuLdmatrix *rows[8];
    for (int i = 0; i < 8; ++i) rows[i] = static_cast<EmuLdmatrix *>(lanes[matrix * 8 + i]);
    int worst = 1;
    for (int i = 0; i < 8; ++i) {
      int same = 1; // different chunks in the same four banks
      for (int k = 0; k < i; ++k) {
        bool seen = false;
        for (int l = 0; l < k; ++l) seen |= rows[l]->chunk == rows[k]->chunk;
        same += !seen && rows[k]->chunk != rows[i]->chunk && rows[k]->chunk % 8 == rows[i]->chunk % 8;
      }
      worst = same > worst ? same : worst;
    }
    conflicts += uint64_t(worst - 1);
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, h = lane % 4 * 2;
      auto *to = static_cast<EmuLdmatrix *>(lanes[lane]);
      const uint32_t low = TRANS ? rows[h]->row[g] : rows[g]->row[h];
      const uint32_t high = TRANS ? rows[h + 1]->row[g] : rows[g]->row[h + 1];
      to->out[matrix] = low | high << 16;
    }
  }
  emu::count_bank_conflicts(conflicts);
}
#endif

/// Loads N (2 or 4) matrices; lanes 8i…8i+7 give the row addresses of matrix i.
template <int N, bool TRANS> KRON_DEVICE void ldmatrix(uint32_t *out, const void *row KRON_SITE_ARG) {
#ifdef KRON_EMULATE
  EmuLdmatrix e = {};
  if (reinterpret_cast<uintptr_t>(row) % 16) emu::fail("ldmatrix row at an address that is not a multiple of 16");
  if (int(threadIdx.x % 32) < 8 * N) std::memcpy(e.row, row, 16); // the other lanes' addresses are ignored
  e.chunk = uint32_t(reinterpret_cast<uintptr_t>(row) / 16);
  emu::warp_meet(0xffffffffu, "ldmatrix", site, &e, emu_ldmatrix<N, TRANS>);
  for (int i = 0; i < N; ++i) out[i] = e.out[i];
#else
  static_assert(N == 2 || N == 4, "ldmatrix loads 2 or 4 matrices");
  const uint32_t from = uint32_t(__cvta_generic_to_shared(row));
  if constexpr (N == 4 && TRANS)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3]) : "r"(from) : "memory");
  else if constexpr (N == 4)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3]) : "r"(from) : "memory");
  else if constexpr (TRANS)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(out[0]), "=r"(out[1]) : "r"(from) : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(out[0]), "=r"(out[1]) : "r"(from) : "memory");
#endif
}

// ---- mma: D (16 × 8, float32) += A (16 × K) · B (K × 8) ----------------------

#ifdef KRON_EMULATE
struct EmuMma {
  const uint32_t *a, *b;
  float *d;
};
template <class E, int K> KRON_COMBINE void emu_mma(void *const *lanes) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto *m = static_cast<const EmuMma *>(lanes[lane]);
    const int g = lane / 4, h = lane % 4 * 2;
    for (int i = 0; i < K / 4; ++i) {
      const int row = g + i % 2 * 8, k = h + i / 2 * 8;
      a[row][k] = unpack_low<E>(m->a[i]);
      a[row][k + 1] = unpack_high<E>(m->a[i]);
    }
    for (int i = 0; i < K / 8; ++i) {
      b[h + i * 8][g] = unpack_low<E>(m->b[i]);
      b[h + i * 8 + 1][g] = unpack_high<E>(m->b[i]);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    const auto *m = static_cast<const EmuMma *>(lanes[lane]);
    const int g = lane / 4, h = lane % 4 * 2;
    for (int i = 0; i < 4; ++i)
      for (int k = 0; k < K; ++k) m->d[i] += a[g + i / 2 * 8][k] * b[k][h + i % 2];
  }
}
#endif

/// d += a·b over K (8 or 16) products, in E's tensor-core instruction.
template <class E, int K> KRON_DEVICE void mma(float *d, const uint32_t *a, const uint32_t *b KRON_SITE_ARG) {
#ifdef KRON_EMULATE
  EmuMma m = {a, b, d};
  emu::warp_meet(0xffffffffu, "mma", site, &m, emu_mma<E, K>);
#else
#define KRON_MMA16(type)                                                                                               \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 "                                          \
               "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                                       \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                        \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
#define KRON_MMA8(type)                                                                                                \
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32." type "." type ".f32 "                                           \
               "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"                                                   \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                        \
               : "r"(a[0]), "r"(a[1]), "r"(b[0]))
  static_assert(K == 8 || K == 16, "mma multiplies 8 or 16 deep");
  if constexpr (K == 16) {
    if constexpr (E::BF16) KRON_MMA16("bf16");
    else KRON_MMA16("f16");
  } else {
    if constexpr (E::BF16) KRON_MMA8("bf16");
    else KRON_MMA8("f16");
  }
#undef KRON_MMA16
#undef KRON_MMA8
#endif
}
