// The SIMT tile: any contraction of two operands, float32, scalar edges.
//
//   out[m, n] = Σ_{k0 ≤ k < k1} L(m, k)·R(n, k)          64 × TN a block of 256 threads
//
//   for m in m0..min(m0 + 64, m_end): for n in n0..min(n0 + TN, n_end):
//     for k in k0..k1: acc[m][n] = fma(L(m, k), R(n, k), acc[m][n])
//
// Every kernel without tensor cores is this loop with its own L and R.  Sums run
// over ascending k, 32 values of k at a time through shared memory.  A thread
// has the rows ty + 16·i and the columns tx + 16·j, so that both the shared
// reads and the caller's stores run along n.  L_LAYOUT and R_LAYOUT name the
// index in which an operand is contiguous; neighbouring lanes load along it.
#pragma once
#include "tile/operands.cuh"

constexpr int SIMT_THREADS = 256, TILE_M = 64, TILE_K = 32;

enum Layout { ALONG_K, ALONG_OUT };

template <int TN> struct SimtTile {
  float acc[4][TN / 16]; // rows ty + 16·i, columns tx + 16·j
  float *l, *r;          // [TILE_K][TILE_M + 1], [TILE_K][TN + 1]

  KRON_DEVICE explicit SimtTile(Shared &shared)
      : l(shared.take<float>(TILE_K * (TILE_M + 1))), r(shared.take<float>(TILE_K * (TN + 1))) {
    KRON_UNROLL
    for (int i = 0; i < 4; ++i) {
      KRON_UNROLL
      for (int j = 0; j < TN / 16; ++j) acc[i][j] = 0;
    }
  }

  /// Fills s[k][o] with f(o0 + o, k0 + k), zeros beyond the edges.
  template <int T, Layout LAYOUT, class F>
  KRON_DEVICE static void stage(float *s, int64_t o0, int64_t o_end, int64_t k0, int64_t k1, F f) {
    for (int e = threadIdx.x; e < T * TILE_K; e += SIMT_THREADS) {
      const int k = LAYOUT == ALONG_K ? e % TILE_K : e / T, o = LAYOUT == ALONG_K ? e / TILE_K : e % T;
      s[k * (T + 1) + o] = o0 + o < o_end && k0 + k < k1 ? f(o0 + o, k0 + k) : 0.0f;
    }
  }

  /// Adds Σ_k left(m, k)·right(n, k) to the sums.
  template <Layout L_LAYOUT, Layout R_LAYOUT, class L, class R>
  KRON_DEVICE void contract(int64_t m0, int64_t m_end, int64_t n0, int64_t n_end, int64_t k0, int64_t k1, L left, R right) {
    const auto fill = [&](int64_t k, int) { stage<TILE_M, L_LAYOUT>(l, m0, m_end, k, k1, left); };
    contract<R_LAYOUT>(fill, n0, n_end, k0, k1, right);
  }

  /// As above, but fill(k, depth) writes l[0 … depth − 1], the left operand of k … k + depth − 1.
  template <Layout R_LAYOUT, class Fill, class R>
  KRON_DEVICE void contract(Fill fill, int64_t n0, int64_t n_end, int64_t k0, int64_t k1, R right) {
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    for (int64_t k = k0; k < k1; k += TILE_K) {
      const int depth = k1 - k < TILE_K ? int(k1 - k) : TILE_K;
      __syncthreads(); // the last step has been read
      fill(k, depth);
      stage<TN, R_LAYOUT>(r, n0, n_end, k, k1, right);
      __syncthreads(); // this step has been written
      for (int s = 0; s < depth; ++s) {
        KRON_UNROLL
        for (int i = 0; i < 4; ++i) {
          const float lv = l[s * (TILE_M + 1) + ty + 16 * i];
          KRON_UNROLL
          for (int j = 0; j < TN / 16; ++j) acc[i][j] = __fmaf_rn(lv, r[s * (TN + 1) + tx + 16 * j], acc[i][j]);
        }
      }
    }
  }

  /// Calls f(m, n, sum) for every element of the block inside the edges.
  template <class F> KRON_DEVICE void each(int64_t m0, int64_t m_end, int64_t n0, int64_t n_end, F f) const {
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    KRON_UNROLL
    for (int i = 0; i < 4; ++i) {
      KRON_UNROLL
      for (int j = 0; j < TN / 16; ++j) {
        const int64_t m = m0 + ty + 16 * i, n = n0 + tx + 16 * j;
        if (m < m_end && n < n_end) f(m, n, acc[i][j]);
      }
    }
  }
};

/// The rank indices with a non-zero element in the columns n0 … n0 + width of Bᵀ:
/// all, or with a full inner factor (B = identity) those columns themselves.
struct RankRange {
  int begin, end;
  KRON_DEVICE RankRange(const KronParams &p, int64_t n0, int width) {
    begin = p.b ? 0 : int(n0);
    end = p.b ? p.rank : (n0 + width < p.rank ? int(n0) + width : p.rank);
  }
};

/// Stores a tile of dX, rows m = (n, j) from m0 and columns k from k0.
template <class E, int TN> KRON_DEVICE void put_dx(const KronParams &p, const SimtTile<TN> &tile, int64_t m0, int64_t k0) {
  tile.each(m0, p.rows * p.a_in, k0, p.c_in, [&](int64_t m, int64_t k, float sum) {
    const int64_t n = m / p.a_in, col = m % p.a_in * p.c_in + k;
    put(static_cast<E *>(p.dx) + n * p.dx_stride + col, keeps(p, n, col) ? sum : 0.0f, p.accumulate);
  });
}
