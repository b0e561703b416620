// Forward on the SIMT tile: every dtype, rank, width and alignment.
//
//   down   T[m, q] = κ·Σ_k X[m, k]·C[q, k]            m = (token, j): rows·a_in × rank
//   up     Y[n, (i, b)] (+)= s·Σ_q U[n, i, q]·B[b, q]      U[n, i, q] = Σ_j A_ij·T[n, j, q]
//
//   for m, q: for k: t[m][q] += x[m][k]·c[q][k]
//   for n, i, b: for q: y[n][i·b_out + b] += s·u[n][i][q]·b[b][q]
//
// `down` cuts k into t_splits slices so that a call of few tokens still fills the
// GPU.  `up` adds the slices in order as it loads T, and its first column tile
// writes the sum to T for the backward pass.
#include "tile/simt.cuh"

/// Block (tile of m, slice of k, tile of q).
template <class E, int TN> KRON_DEVICE void down(const KronParams &p) {
  const int64_t n0 = int64_t(blockIdx.x % p.col_tiles) * TN, rest = blockIdx.x / p.col_tiles;
  const int slice = int(rest % p.t_splits);
  const int64_t m0 = rest / p.t_splits * TILE_M, m_end = p.rows * p.a_in;
  const int64_t k0 = int64_t(slice) * p.t_slice, k1 = k0 + p.t_slice < p.c_in ? k0 + p.t_slice : p.c_in;
  Shared shared;
  SimtTile<TN> tile(shared);
  tile.template contract<ALONG_K, ALONG_K>(
      m0, m_end, n0, p.rank, k0, k1, [&](int64_t m, int64_t k) { return load_x<E>(p, m, int(k)); },
      [&](int64_t q, int64_t k) { return p.c[q * p.c_in + k]; });
  float *out = p.t_splits > 1 ? p.t_parts + slice * m_end * p.rank : p.t;
  tile.each(m0, m_end, n0, p.rank, [&](int64_t m, int64_t q, float sum) { out[m * p.rank + q] = p.keep_scale * sum; });
}

/// Block (tile of tokens, i, tile of b).  At small m a tile has fewer columns, and the threads share U's sums.
template <class E> KRON_DEVICE void up(const KronParams &p) {
  constexpr int TN = 64;
  const int tiles = int(ceil_div(p.b_out, p.cols)), col = int(blockIdx.x % p.col_tiles), i = col / tiles;
  const int64_t b0 = int64_t(col % tiles) * p.cols, b_end = p.b_out - b0 < p.cols ? p.b_out : b0 + p.cols;
  const int64_t m0 = int64_t(blockIdx.x / p.col_tiles) * TILE_M;
  const int tokens = p.rows - m0 < TILE_M ? int(p.rows - m0) : TILE_M;
  const RankRange q(p, b0, int(b_end - b0));
  Shared shared;
  SimtTile<TN> tile(shared);
  float *scratch = shared.take<float>(2 * SIMT_THREADS);
  const bool small_m = p.rows <= TILE_M;
  const auto fill = [&](int64_t k, int depth) {
    const auto u = [&](int64_t n, int64_t q) { return load_u(p, n, i, int(q)); };
    if (!small_m) return SimtTile<TN>::template stage<TILE_M, ALONG_K>(tile.l, m0, p.rows, k, q.end, u);
    block_sum(
        scratch, tokens * depth, [&](int e, Lane lane) { return load_u(p, e / depth, i, int(k) + e % depth, lane); },
        [&](int e, float u) { tile.l[e % depth * (TILE_M + 1) + e / depth] = u; });
  };
  tile.template contract<ALONG_K>(fill, b0, b_end, q.begin, q.end,
                                  [&](int64_t b, int64_t q) { return load_b(p, b, int(q)); });
  tile.each(m0, p.rows, b0, b_end, [&](int64_t n, int64_t b, float sum) {
    put(static_cast<E *>(p.y) + n * p.y_stride + int64_t(i) * p.b_out + b, p.scale * sum, p.accumulate);
  });
  if (p.t_splits > 1 && col == 0) put_t(p, small_m ? scratch + SIMT_THREADS : nullptr, m0, tokens);
}

#define KRON_FORWARD(E)                                                                                                \
  KRON_KERNEL(kron_down_##E##_t16, SIMT_THREADS) { down<E, 16>(p); }                                                   \
  KRON_KERNEL(kron_down_##E##_t64, SIMT_THREADS) { down<E, 64>(p); }                                                   \
  KRON_KERNEL(kron_up_##E##_t64, SIMT_THREADS) { up<E>(p); }

KRON_FORWARD(f32)
KRON_FORWARD(f16)
KRON_FORWARD(bf16)
