// Merge: W[(i, b), (j, k)] (+)= s·A_ij·Σ_q B[b, q]·C[q, k], or the rows of ΔW themselves.
//
//   for b, k: bc = Σ_q B[b][q]·C[q][k]
//     for i, j: w[i·b_out + b][j·c_in + k] += s·A[i][j]·bc
//
// A block makes one 64 × 64 tile of B·C and adds it to all a_out·a_in places
// of W that share it: ΔW is never whole, W is read and written once.  w may be
// a band of the weight, the rows first_row … first_row + w_rows.
#include "contract.cuh"

template <class E> KRON_DEVICE void merge(const KronParams &p) {
  constexpr int TN = 64;
  const int64_t k0 = int64_t(blockIdx.x % p.col_tiles) * TN, b0 = int64_t(blockIdx.x / p.col_tiles) * TILE_M;
  const RankRange q(p, b0, TILE_M);
  Shared shared;
  Tile<TN> tile(shared);
  tile.template contract<ALONG_K, ALONG_OUT>(
      b0, p.b_out, k0, p.c_in, q.begin, q.end, [&](int64_t b, int64_t q) { return load_b(p, b, int(q)); },
      [&](int64_t k, int64_t q) { return p.c[q * p.c_in + k]; });
  for (int i = 0; i < p.a_out; ++i) {
    const int64_t row0 = int64_t(i) * p.b_out - p.first_row; // w's row of b = 0
    if (row0 + b0 >= p.w_rows || row0 + b0 + TILE_M <= 0) continue;
    for (int j = 0; j < p.a_in; ++j) {
      const float factor = p.scale * load_a(p, i, j);
      tile.each(b0, p.b_out, k0, p.c_in, [&](int64_t b, int64_t k, float sum) {
        const int64_t row = row0 + b;
        if (row < 0 || row >= p.w_rows) return;
        put(static_cast<E *>(p.w) + row * p.w_stride + int64_t(j) * p.c_in + k, factor * sum, p.accumulate);
      });
    }
  }
}

using f32 = float;
KRON_KERNEL(kron_merge_f32_t64, TILE_THREADS) { merge<f32>(p); }
KRON_KERNEL(kron_merge_f16_t64, TILE_THREADS) { merge<f16>(p); }
KRON_KERNEL(kron_merge_bf16_t64, TILE_THREADS) { merge<bf16>(p); }
