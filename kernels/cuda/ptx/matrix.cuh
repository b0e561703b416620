// The tensor cores' instructions: ldmatrix and mma.
//
// Lane l of a warp holds, with g = l / 4 and h = 2·(l % 4):
//   A of m16n8k16   a[0] (g, h..h+1)  a[1] (g+8, h..)  a[2] (g, h+8..)  a[3] (g+8, h+8..)
//   B of m16n8k16   b[0] (k = h..h+1, n = g)           b[1] (k = h+8.., n = g)
//   C, D            d[0], d[1] (g, h..h+1)             d[2], d[3] (g+8, h..h+1)
// m16n8k8 has a[0], a[1] and b[0] of the same.  (PTX ISA, "Matrix fragments")
#pragma once
#include "ptx/kernel.cuh"

/// Loads N (2 or 4) matrices of 8 × 8 16-bit elements; lanes 8i…8i+7 give the row addresses of matrix i.
template <int N, bool TRANS> KRON_DEVICE void ldmatrix(uint32_t *out, const void *row KRON_SITE_ARG) {
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
}

/// d (16 × 8, float32) += a (16 × K) · b (K × 8) over K (8 or 16) products of E.
template <class E, int K> KRON_DEVICE void mma(float *d, const uint32_t *a, const uint32_t *b KRON_SITE_ARG) {
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
}
