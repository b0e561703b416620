// A joined group: adapters of one a_in on one X, in calls that read X once.
//
// C of all terms, one below the other, is the C of one stacked adapter.  Its `down`
// computes T of all terms, its `dx` dC and dX of all.  Between them a term has its own
// `up`, `dy` and `reduce`.  These kernels carry float32 from one to the other:
//
//   stack   C[first + q, k]   = C_term[q, k]
//   split   T_term[m, q]      = T[m, first + q]           m = (token, j)
//   join    dT[m, first + q]  = Σ of the parts of dT_term[m, q]
//
// The rank of the stack may be larger than that of all terms: the padding is a term of zeros.
// A block has one term, and rows m or columns k.
#include "tile/operands.cuh"

constexpr int GROUP_THREADS = 256, GROUP_ROWS = 128;

KRON_KERNEL(kron_stack, GROUP_THREADS) {
  const KronStacked &term = p.stacked[blockIdx.x % p.col_tiles];
  const int k = int(blockIdx.x / p.col_tiles) * GROUP_THREADS + int(threadIdx.x);
  if (k >= p.c_in) return;
  for (int q = 0; q < term.rank; ++q)
    p.stack[int64_t(term.first + q) * p.c_in + k] = term.c ? term.c[int64_t(q) * p.c_in + k] : 0.0f;
}

/// Calls f(m, q) for the ranks q of a term and the rows m of this block.
template <class F> KRON_DEVICE void each_element(const KronParams &p, const KronStacked &term, F f) {
  const int64_t m0 = int64_t(blockIdx.x / p.col_tiles) * GROUP_ROWS, left = p.rows * p.a_in - m0;
  const int rows = left < GROUP_ROWS ? int(left) : GROUP_ROWS;
  for (int e = threadIdx.x; e < rows * term.rank; e += GROUP_THREADS) {
    const int m = int(uint32_t(e) / uint32_t(term.rank));
    f(m0 + m, e - m * term.rank);
  }
}

KRON_KERNEL(kron_split, GROUP_THREADS) {
  const KronStacked &term = p.stacked[blockIdx.x % p.col_tiles];
  const float *parts = p.t_splits > 1 ? p.t_parts : p.t;
  each_element(p, term, [&](int64_t m, int q) {
    term.t[m * term.rank + q] = load_sum(parts, p.t_splits, p.rows * p.a_in * p.rank, m * p.rank + term.first + q);
  });
}

KRON_KERNEL(kron_join, GROUP_THREADS) {
  const KronStacked &term = p.stacked[blockIdx.x % p.col_tiles];
  const int64_t length = p.rows * p.a_in * term.rank;
  each_element(p, term, [&](int64_t m, int q) {
    p.dt_parts[m * p.rank + term.first + q] = load_sum(term.dt_parts, term.dt_splits, length, m * term.rank + q);
  });
}
