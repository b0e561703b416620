// Elements of the operands as the kernels read and write them.
//
// A row of X is also a_in rows of c_in columns, so X is a matrix of
// rows·a_in × c_in whose row m is (token m / a_in, block j = m % a_in); dY
// likewise with a_out and b_out, and T, dT are rows·a_in × rank.
#pragma once
#include "tile/dropout.cuh"
#include "tile/sum.cuh"

KRON_DEVICE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// A_ij; 1 for LoRA.
KRON_DEVICE float load_a(const KronParams &p, int i, int j) { return p.a ? p.a[int64_t(i) * p.a_in + j] : 1.0f; }

/// B[b, q], the identity for a full inner factor.
KRON_DEVICE float load_b(const KronParams &p, int64_t b, int q) {
  return p.b ? p.b[b * p.rank + q] : (b == q ? 1.0f : 0.0f);
}

/// A lane's partial sum of T[token, j, q].  T has several parts only between `down` and `up`.
KRON_DEVICE float load_t(const KronParams &p, int64_t token, int j, int q, Lane lane) {
  const int64_t at = (token * p.a_in + j) * p.rank + q;
  if (p.t_splits > 1) return load_sum(p.t_parts, p.t_splits, p.rows * p.a_in * p.rank, at, lane);
  return lane.index == 0 ? p.t[at] : 0.0f;
}

/// A lane's partial sum of U[token, i, q] = Σ_j A_ij·T[token, j, q].
KRON_DEVICE float load_u(const KronParams &p, int64_t token, int i, int q, Lane lane = {}) {
  float u = 0;
  for (int j = 0; j < p.a_in; ++j) u += load_a(p, i, j) * load_t(p, token, j, q, lane);
  return u;
}

/// Sums T's parts into T for the tokens n0 … n0 + tokens − 1.
KRON_DEVICE void put_t(const KronParams &p, float *scratch, int64_t n0, int tokens) {
  const int64_t width = int64_t(p.a_in) * p.rank;
  block_sum(
      scratch, tokens * width,
      [&](int64_t e, Lane lane) { return load_sum(p.t_parts, p.t_splits, p.rows * width, n0 * width + e, lane); },
      [&](int64_t e, float t) { p.t[n0 * width + e] = t; });
}

/// A lane's partial sum of dT[m, q], m = (token, j).
KRON_DEVICE float load_dt(const KronParams &p, int64_t m, int q, Lane lane = {}) {
  return load_sum(p.dt_parts, p.dt_splits, p.rows * p.a_in * p.rank, m * p.rank + q, lane);
}

/// Length of [dA | dB] in θ.
KRON_DEVICE int64_t ab_len(const KronParams &p) {
  return (p.a ? int64_t(p.a_out) * p.a_in : 0) + (p.b ? int64_t(p.b_out) * p.rank : 0);
}

/// A lane's partial sum of element `at` of [dA | dB], without s.
KRON_DEVICE float load_ab(const KronParams &p, int64_t at, Lane lane = {}) {
  const int64_t b_len = p.b ? int64_t(p.b_out) * p.rank : 0, a_len = ab_len(p) - b_len;
  return at < a_len ? load_sum(p.da_parts, p.da_splits, a_len, at, lane)
                    : load_sum(p.db_parts, p.db_splits, b_len, at - a_len, lane);
}

/// grad += dA and dB, s times the sums of their parts, distributed over all threads of the grid.
KRON_DEVICE void add_ab(const KronParams &p, int threads) {
  for (int64_t at = int64_t(blockIdx.x) * threads + threadIdx.x; at < ab_len(p); at += int64_t(gridDim.x) * threads)
    p.grad[at] += p.scale * load_ab(p, at);
}

/// Stores the old value plus v, or v, with one rounding.
template <class E> KRON_DEVICE void put(E *at, float v, bool add) {
  *at = from_float<E>(add ? to_float(*at) + v : v);
}

/// X[m, k] with dropped elements as 0.
template <class E> KRON_DEVICE float load_x(const KronParams &p, int64_t m, int k) {
  const int64_t token = m / p.a_in, col = m % p.a_in * p.c_in + k;
  if (!keeps(p, token, col)) return 0.0f;
  return to_float(static_cast<const E *>(p.x)[token * p.x_stride + col]);
}
