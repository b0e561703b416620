// Elements of the operands, and the dropout mask.
//
// A row of X is also a_in rows of c_in columns, so X is a matrix of
// rows·a_in × c_in whose row m is (token m / a_in, block j = m % a_in); dY
// likewise with a_out and b_out, and T, dT are rows·a_in × rank.
//
// κ = 1/(1 − p) is not applied to X but once to T and once to dT: dropping an
// element is then exact in every dtype.
#pragma once
#include "params.h"
#include "ptx.cuh"

/// A_ij; 1 for LoRA.
KRON_DEVICE float load_a(const KronParams &p, int i, int j) { return p.a ? p.a[int64_t(i) * p.a_in + j] : 1.0f; }

/// Element `at` of a sum of `splits` parts that lie `length` apart: in the order of the parts, sixteen loads at a time.
KRON_DEVICE float load_sum(const float *parts, int splits, int64_t length, int64_t at) {
  constexpr int LOADS = 16;
  float sum = 0;
  int s = 0;
  for (; s + LOADS <= splits; s += LOADS) {
    float part[LOADS];
    KRON_UNROLL
    for (int i = 0; i < LOADS; ++i) part[i] = parts[(s + i) * length + at];
    KRON_UNROLL
    for (int i = 0; i < LOADS; ++i) sum += part[i];
  }
  for (; s < splits; ++s) sum += parts[s * length + at];
  return sum;
}

/// One of the lanes that share a sum: it has the parts lane, lane + lanes, ….
struct Share {
  int lane, lanes;
};

/// What a share adds to element `at`.
KRON_DEVICE float load_sum(const float *parts, int splits, int64_t length, int64_t at, Share share) {
  if (share.lanes > 1) {
    parts += share.lane * length;
    splits = (splits - share.lane + share.lanes - 1) / share.lanes;
    length *= share.lanes;
  }
  return load_sum(parts, splits, length, at);
}

/// put(e, Σ over the shares of sum(e, share)) for e < count, by the whole block.  Neighbouring threads have
/// neighbouring elements.  Where `room` has a number for each thread and there are more threads than elements,
/// several share one: each adds up its parts, those of a warp meet pairwise, and the warps' sums are added in
/// order, which takes a barrier.  The next use of `room` has to be behind another.
template <class Int, class Sum, class Put> KRON_DEVICE void each_sum(float *room, Int count, Sum sum, Put put) {
  const int threads = int(blockDim.x), thread = int(threadIdx.x);
  int width = threads; // elements side by side: the least power of two that holds all
  if (room && 2 * count <= threads)
    for (width = 1; width < count;) width *= 2;
  const Share share = {thread / width, threads / width};
  float value = 0;
  for (Int e = thread % width; e < count && share.lane < share.lanes; e += threads) {
    value = sum(e, share);
    if (share.lanes == 1) put(e, value);
  }
  if (share.lanes == 1) return;
  for (int mask = 16; mask >= width; mask /= 2) value += __shfl_xor_sync(0xffffffffu, value, mask);
  const int step = width < 32 ? 32 : width;
  if (thread % step < width) room[thread / step * width + thread % width] = value;
  __syncthreads(); // every warp's sums have been written
  if (thread >= count) return;
  value = 0;
  for (int at = thread; at < threads / step * width; at += width) value += room[at];
  put(Int(thread), value);
}

/// A share of T[token, j, q], which has one part but while `down` has left more.
KRON_DEVICE float load_t(const KronParams &p, int64_t token, int j, int q, Share share) {
  const int64_t at = (token * p.a_in + j) * p.rank + q;
  if (p.t_splits > 1) return load_sum(p.t_parts, p.t_splits, p.rows * p.a_in * p.rank, at, share);
  return share.lane == 0 ? p.t[at] : 0.0f;
}

/// A share of U[token, i, q] = Σ_j A_ij·T[token, j, q].
KRON_DEVICE float load_u(const KronParams &p, int64_t token, int i, int q, Share share = {0, 1}) {
  float u = 0;
  for (int j = 0; j < p.a_in; ++j) u += load_a(p, i, j) * load_t(p, token, j, q, share);
  return u;
}

/// Sums T's parts into T for the tokens n0 … n0 + tokens − 1.
KRON_DEVICE void put_t(const KronParams &p, float *room, int64_t n0, int tokens) {
  const int64_t width = int64_t(p.a_in) * p.rank;
  each_sum(
      room, tokens * width,
      [&](int64_t e, Share share) { return load_sum(p.t_parts, p.t_splits, p.rows * width, n0 * width + e, share); },
      [&](int64_t e, float t) { p.t[n0 * width + e] = t; });
}

/// A share of dT[m, q], m = (token, j).
KRON_DEVICE float load_dt(const KronParams &p, int64_t m, int q, Share share = {0, 1}) {
  return load_sum(p.dt_parts, p.dt_splits, p.rows * p.a_in * p.rank, m * p.rank + q, share);
}

/// Elements of [dA | dB] in θ.
KRON_DEVICE int64_t ab_len(const KronParams &p) {
  return (p.a ? int64_t(p.a_out) * p.a_in : 0) + (p.b ? int64_t(p.b_out) * p.rank : 0);
}

/// Element `at` of [dA | dB]: s times the sum of its bare parts.
KRON_DEVICE float load_ab(const KronParams &p, int64_t at) {
  const int64_t b_len = p.b ? int64_t(p.b_out) * p.rank : 0, a_len = ab_len(p) - b_len;
  return p.scale * (at < a_len ? load_sum(p.da_parts, p.da_splits, a_len, at)
                               : load_sum(p.db_parts, p.db_splits, b_len, at - a_len));
}

/// grad += dA and dB, shared out among all threads of the grid.
KRON_DEVICE void add_ab(const KronParams &p, int threads) {
  for (int64_t at = int64_t(blockIdx.x) * threads + threadIdx.x; at < ab_len(p); at += int64_t(gridDim.x) * threads)
    p.grad[at] += load_ab(p, at);
}

/// The old value plus v, or v: one rounding.
template <class E> KRON_DEVICE void put(E *at, float v, bool add) {
  *at = from_float<E>(add ? to_float(*at) + v : v);
}

/// Which of the columns 8·block … 8·block + 7 of X's row `token` are kept: bit
/// k for column 8·block + k.  Philox4x32-10 (Salmon et al., SC 2011), counter
/// (token·⌈d_in/8⌉ + block, offset), key `seed`; column k takes 16 of its bits.
KRON_DEVICE uint32_t keep_mask(const KronParams &p, int64_t token, int64_t block) {
  const int64_t d_in = int64_t(p.a_in) * p.c_in;
  const uint64_t counter = uint64_t(token) * uint64_t((d_in + 7) / 8) + uint64_t(block);
  uint32_t c[4] = {uint32_t(counter), uint32_t(counter >> 32), uint32_t(p.offset), uint32_t(p.offset >> 32)};
  uint32_t k0 = uint32_t(p.seed), k1 = uint32_t(p.seed >> 32);
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

/// Whether column `col` of X's row `token` is kept.
KRON_DEVICE bool keeps(const KronParams &p, int64_t token, int64_t col) {
  return p.threshold == 0 || (keep_mask(p, token, col / 8) >> (col % 8) & 1);
}

/// X[m, k] with dropped elements as 0.
template <class E> KRON_DEVICE float load_x(const KronParams &p, int64_t m, int k) {
  const int64_t token = m / p.a_in, col = m % p.a_in * p.c_in + k;
  if (!keeps(p, token, col)) return 0.0f;
  return to_float(static_cast<const E *>(p.x)[token * p.x_stride + col]);
}
