// Merge: W[(i, b), (j, k)] (+)= s·A_ij·Σ_q B[b, q]·C[q, k], or the rows of ΔW themselves.
//
//   for b, k: bc = Σ_q B[b][q]·C[q][k]
//     for i, j: w[i·b_out + b][j·c_in + k] += s·A[i][j]·bc
//
// A block computes one 64 × 64 tile of B·C and adds it to all a_out·a_in places of
// W that share it.  ΔW never exists as a whole; W is read and written once.  w may
// be a band of the weight, the rows first_row … first_row + w_rows.  If every row of
// every block of W starts on a 16-byte boundary, the tile goes through shared memory
// and a thread stores 16 bytes of a row at a time; otherwise it stores single elements.
#include "tile/simt.cuh"

/// Stores 16 bytes of a row of W: old elements plus factor·bc, or factor·bc, each with one rounding.
template <class E> KRON_DEVICE void put16(E *at, float factor, const float (&bc)[16 / sizeof(E)], bool add) {
  Vec4 bytes = {};
  if (add) bytes = *reinterpret_cast<const Vec4 *>(at);
  E piece[16 / sizeof(E)];
  memcpy(piece, &bytes, 16);
  KRON_UNROLL
  for (int e = 0; e < int(16 / sizeof(E)); ++e) put(piece + e, factor * bc[e], add);
  memcpy(&bytes, piece, 16);
  *reinterpret_cast<Vec4 *>(at) = bytes;
}

/// Calls f(row0, j, s·A_ij) for each block (i, j) of W with a row of the tile from b0; row b of the block is row row0 + b of w.
template <class F> KRON_DEVICE void each_block(const KronParams &p, int64_t b0, F f) {
  for (int i = 0; i < p.a_out; ++i) {
    const int64_t row0 = int64_t(i) * p.b_out - p.first_row;
    if (row0 + b0 >= p.w_rows || row0 + b0 + TILE_M <= 0) continue;
    for (int j = 0; j < p.a_in; ++j) f(row0, j, p.scale * load_a(p, i, j));
  }
}

template <class E> KRON_DEVICE void merge(const KronParams &p) {
  constexpr int TN = 64;
  const int64_t k0 = int64_t(blockIdx.x % p.col_tiles) * TN, b0 = int64_t(blockIdx.x / p.col_tiles) * TILE_M;
  const RankRange q(p, b0, TILE_M);
  Shared shared;
  SimtTile<TN> tile(shared);
  tile.template contract<ALONG_K, ALONG_OUT>(
      b0, p.b_out, k0, p.c_in, q.begin, q.end, [&](int64_t b, int64_t q) { return load_b(p, b, int(q)); },
      [&](int64_t k, int64_t q) { return p.c[q * p.c_in + k]; });
  E *w = static_cast<E *>(p.w);
  if ((reinterpret_cast<uintptr_t>(w) | p.w_stride * sizeof(E) | p.c_in * sizeof(E)) % 16 != 0) {
    each_block(p, b0, [&](int64_t row0, int j, float factor) {
      tile.each(b0, p.b_out, k0, p.c_in, [&](int64_t b, int64_t k, float sum) {
        const int64_t row = row0 + b;
        if (row < 0 || row >= p.w_rows) return;
        put(w + row * p.w_stride + int64_t(j) * p.c_in + k, factor * sum, p.accumulate);
      });
    });
    return;
  }
  // A thread has the WIDTH columns from k of the tile's rows b, b + STEP, ….
  constexpr int WIDTH = 16 / sizeof(E), STEP = SIMT_THREADS * WIDTH / TN, PIECES = TILE_M / STEP;
  float *sums = shared.take<float>(TILE_M * TN);
  tile.each(0, TILE_M, 0, TN, [&](int64_t b, int64_t k, float sum) { sums[b * TN + k] = sum; });
  __syncthreads();
  const int b = threadIdx.x * WIDTH / TN, k = threadIdx.x * WIDTH % TN;
  float bc[PIECES][WIDTH];
  KRON_UNROLL
  for (int piece = 0; piece < PIECES; ++piece) {
    KRON_UNROLL
    for (int e = 0; e < WIDTH; ++e) bc[piece][e] = sums[(b + STEP * piece) * TN + k + e];
  }
  if (k0 + k >= p.c_in) return;
  each_block(p, b0, [&](int64_t row0, int j, float factor) {
    KRON_UNROLL
    for (int piece = 0; piece < PIECES; ++piece) {
      const int64_t at = b0 + b + STEP * piece, row = row0 + at;
      if (at < p.b_out && row >= 0 && row < p.w_rows)
        put16(w + row * p.w_stride + int64_t(j) * p.c_in + k0 + k, factor, bc[piece], p.accumulate);
    }
  });
}

KRON_KERNEL(kron_merge_f32_t64, SIMT_THREADS) { merge<f32>(p); }
KRON_KERNEL(kron_merge_f16_t64, SIMT_THREADS) { merge<f16>(p); }
KRON_KERNEL(kron_merge_bf16_t64, SIMT_THREADS) { merge<bf16>(p); }
