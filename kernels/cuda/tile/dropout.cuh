// The dropout mask: recomputed wherever it is needed, never stored.
//
// κ = 1/(1 − p) is not applied to X but once to T and once to dT: dropping an
// element is then exact in every dtype.
#pragma once
#include "device.cuh"

/// Mask of the columns 8·block … 8·block + 7 of X's row `token`: bit k is set
/// if column 8·block + k is kept.  Philox4x32-10 (Salmon et al., SC 2011), counter
/// (token·⌈d_in/8⌉ + block, offset), key `seed`; column k takes 16 of its bits.
/// The numbers in memory are read here, at each launch of a captured graph anew.
KRON_DEVICE uint32_t keep_mask(const KronParams &p, int64_t token, int64_t block) {
  const int64_t d_in = int64_t(p.a_in) * p.c_in;
  const uint64_t counter = uint64_t(token) * uint64_t((d_in + 7) / 8) + uint64_t(block);
  uint64_t seed = p.seed, offset = p.offset;
  if (p.key) seed += p.key[0], offset += p.key[1];
  uint32_t c[4] = {uint32_t(counter), uint32_t(counter >> 32), uint32_t(offset), uint32_t(offset >> 32)};
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint32_t low0 = 0xD2511F53u * c[0], high0 = __umulhi(0xD2511F53u, c[0]);
    const uint32_t low1 = 0xCD9E8D57u * c[2], high1 = __umulhi(0xCD9E8D57u, c[2]);
    c[0] = high1 ^ c[1] ^ k0, c[1] = low1, c[2] = high0 ^ c[3] ^ k1, c[3] = low0;
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  uint32_t mask = 0;
  KRON_UNROLL
  for (int i = 0; i < 4; ++i) {
    mask |= uint32_t((c[i] & 0xffffu) >= p.threshold) << (2 * i);
    mask |= uint32_t((c[i] >> 16) >= p.threshold) << (2 * i + 1);
  }
  return mask;
}

/// True if column `col` of X's row `token` is kept.
KRON_DEVICE bool keeps(const KronParams &p, int64_t token, int64_t col) {
  return p.threshold == 0 || (keep_mask(p, token, col / 8) >> (col % 8) & 1);
}
