// Backward on the SIMT tile, for more tokens than backward_small_m.cu takes: every dtype, rank, width and alignment.
//
//   V[n, i, q]   = Σ_b dY[n, (i, b)]·B[b, q]
//   dT[n, j, q]  = s·κ·Σ_i A_ij·V[n, i, q]
//   dA[i, j]    += s·Σ_{n, q} V[n, i, q]·T[n, j, q]
//   dB[b, q]    += s·Σ_{n, i} dY[n, (i, b)]·U[n, i, q]
//   dC[q, k]    += Σ_m dT[m, q]·X[m, k]                    m = (token, j)
//   dX[m, k]   (+)= Σ_q dT[m, q]·C[q, k], 0 where X was dropped
//
// Sums over tokens are cut into row_chunks chunks, and each chunk gives one part.
// `reduce` adds the parts in order, so the bits do not depend on the GPU.
#include "tile/simt.cuh"

/// V: block (tile of m = (n, i), tile of q).
template <class E, int TN> KRON_DEVICE void v(const KronParams &p) {
  const int64_t q0 = int64_t(blockIdx.x % p.col_tiles) * TN, m0 = int64_t(blockIdx.x / p.col_tiles) * TILE_M;
  const int64_t m_end = p.rows * p.a_out;
  const E *dy = static_cast<const E *>(p.dy);
  // With B = identity only the columns b = q of this tile are non-zero.
  const int64_t b0 = p.b ? 0 : q0, b1 = p.b || q0 + TN > p.b_out ? p.b_out : q0 + TN;
  Shared shared;
  SimtTile<TN> tile(shared);
  tile.template contract<ALONG_K, ALONG_OUT>(
      m0, m_end, q0, p.rank, b0, b1,
      [&](int64_t m, int64_t b) { return to_float(dy[m / p.a_out * p.dy_stride + m % p.a_out * p.b_out + b]); },
      [&](int64_t q, int64_t b) { return load_b(p, b, int(q)); });
  tile.each(m0, m_end, q0, p.rank, [&](int64_t m, int64_t q, float sum) { p.v[m * p.rank + q] = sum; });
}

/// dT, one thread an element; applies scale and κ.
KRON_KERNEL(kron_dt, SIMT_THREADS) {
  const int64_t at = int64_t(blockIdx.x) * SIMT_THREADS + threadIdx.x;
  if (at >= p.rows * p.a_in * p.rank) return;
  const int q = int(at % p.rank), j = int(at / p.rank % p.a_in);
  const int64_t n = at / p.rank / p.a_in;
  float sum = 0;
  for (int i = 0; i < p.a_out; ++i) sum += load_a(p, i, j) * p.v[(n * p.a_out + i) * p.rank + q];
  p.dt_parts[at] = p.scale * p.keep_scale * sum;
}

/// The tokens begin … begin + count of chunk z.  The plan keeps `count` times a_out,
/// a_in or rank below 2³¹, so that a sum over a chunk needs only 32-bit divisions.
struct Chunk {
  int64_t begin, count;
  KRON_DEVICE Chunk(const KronParams &p, int64_t z) {
    begin = z * p.chunk_rows;
    count = p.rows - begin < p.chunk_rows ? p.rows - begin : p.chunk_rows;
  }
  /// Returns the token of the k-th term if each token has `per` terms.
  KRON_DEVICE int64_t token(int64_t k, int per) const { return begin + uint32_t(k) / uint32_t(per); }
};

/// dA: block (chunk of tokens, tile of i, tile of j), summed over k = (n, q).
KRON_KERNEL(kron_da, SIMT_THREADS) {
  constexpr int TN = 16;
  const int64_t j0 = int64_t(blockIdx.x % p.col_tiles) * TN, rest = blockIdx.x / p.col_tiles;
  const int64_t z = rest % p.row_chunks, i0 = rest / p.row_chunks * TILE_M;
  const Chunk n(p, z);
  Shared shared;
  SimtTile<TN> tile(shared);
  tile.template contract<ALONG_K, ALONG_K>(
      i0, p.a_out, j0, p.a_in, 0, n.count * p.rank,
      [&](int64_t i, int64_t k) { return p.v[(n.token(k, p.rank) * p.a_out + i) * p.rank + uint32_t(k) % uint32_t(p.rank)]; },
      [&](int64_t j, int64_t k) { return p.t[(n.token(k, p.rank) * p.a_in + j) * p.rank + uint32_t(k) % uint32_t(p.rank)]; });
  float *out = p.da_parts + z * p.a_out * p.a_in;
  tile.each(i0, p.a_out, j0, p.a_in, [&](int64_t i, int64_t j, float sum) { out[i * p.a_in + j] = sum; });
}

/// dB: block (chunk of tokens, tile of b, tile of q), summed over k = (n, i).
template <class E, int TN> KRON_DEVICE void db(const KronParams &p) {
  const int64_t q0 = int64_t(blockIdx.x % p.col_tiles) * TN, rest = blockIdx.x / p.col_tiles;
  const int64_t z = rest % p.row_chunks, b0 = rest / p.row_chunks * TILE_M;
  const Chunk n(p, z);
  const E *dy = static_cast<const E *>(p.dy);
  Shared shared;
  SimtTile<TN> tile(shared);
  tile.template contract<ALONG_OUT, ALONG_OUT>(
      b0, p.b_out, q0, p.rank, 0, n.count * p.a_out,
      [&](int64_t b, int64_t k) {
        return to_float(dy[n.token(k, p.a_out) * p.dy_stride + int64_t(uint32_t(k) % uint32_t(p.a_out)) * p.b_out + b]);
      },
      [&](int64_t q, int64_t k) { return load_u(p, n.token(k, p.a_out), int(uint32_t(k) % uint32_t(p.a_out)), int(q)); });
  float *out = p.db_parts + z * p.b_out * p.rank;
  tile.each(b0, p.b_out, q0, p.rank, [&](int64_t b, int64_t q, float sum) { out[b * p.rank + q] = sum; });
}

/// dC: block (chunk of tokens, tile of k, tile of q), summed over m = (n, j).
template <class E, int TN> KRON_DEVICE void dc(const KronParams &p) {
  const int64_t q0 = int64_t(blockIdx.x % p.col_tiles) * TN, rest = blockIdx.x / p.col_tiles;
  const int64_t z = rest % p.row_chunks, k0 = rest / p.row_chunks * TILE_M;
  const Chunk n(p, z);
  Shared shared;
  SimtTile<TN> tile(shared);
  tile.template contract<ALONG_OUT, ALONG_OUT>(
      k0, p.c_in, q0, p.rank, n.begin * p.a_in, (n.begin + n.count) * p.a_in,
      [&](int64_t k, int64_t m) { return load_x<E>(p, m, int(k)); },
      [&](int64_t q, int64_t m) { return load_dt(p, m, int(q)); });
  float *out = p.dc_parts + z * p.rank * p.c_in;
  tile.each(k0, p.c_in, q0, p.rank, [&](int64_t k, int64_t q, float sum) { out[q * p.c_in + k] = sum; });
}

/// dX: block (tile of m = (n, j), tile of k), summed over q.
template <class E> KRON_DEVICE void dx(const KronParams &p) {
  constexpr int TN = 64;
  const int64_t k0 = int64_t(blockIdx.x % p.col_tiles) * TN, m0 = int64_t(blockIdx.x / p.col_tiles) * TILE_M;
  Shared shared;
  SimtTile<TN> tile(shared);
  tile.template contract<ALONG_K, ALONG_OUT>(
      m0, p.rows * p.a_in, k0, p.c_in, 0, p.rank, [&](int64_t m, int64_t q) { return load_dt(p, m, int(q)); },
      [&](int64_t k, int64_t q) { return p.c[q * p.c_in + k]; });
  put_dx<E>(p, tile, m0, k0);
}

/// grad += Σ parts: a block takes 32 elements of θ at a time, each with 8 lanes whose sums it adds in order.
/// Applies s to dA and dB; dC has it from dT.
KRON_KERNEL_RESIDENT(kron_reduce, SIMT_THREADS, 4) {
  constexpr int WIDTH = 32, LANES = SIMT_THREADS / WIDTH;
  const int64_t c_begin = ab_len(p), end = c_begin + int64_t(p.rank) * p.c_in;
  const Lane lane = {int(threadIdx.x / WIDTH), LANES};
  Shared shared;
  float *sums = shared.take<float>(SIMT_THREADS);
  for (int64_t first = int64_t(blockIdx.x) * WIDTH; first < end; first += int64_t(gridDim.x) * WIDTH) {
    const int64_t at = first + threadIdx.x % WIDTH;
    if (at < end)
      sums[threadIdx.x] = at < c_begin ? load_ab(p, at, lane) : load_sum(p.dc_parts, p.dc_splits, p.dc_stride, at - c_begin, lane);
    __syncthreads(); // every lane's sum has been written
    if (lane.index == 0 && at < end) p.grad[at] += (at < c_begin ? p.scale : 1.0f) * load_sum(sums + threadIdx.x, LANES, WIDTH, 0);
    __syncthreads(); // the sums have been read
  }
}

#define KRON_BACKWARD(E)                                                                                               \
  KRON_KERNEL(kron_v_##E##_t16, SIMT_THREADS) { v<E, 16>(p); }                                                         \
  KRON_KERNEL(kron_v_##E##_t64, SIMT_THREADS) { v<E, 64>(p); }                                                         \
  KRON_KERNEL(kron_db_##E##_t16, SIMT_THREADS) { db<E, 16>(p); }                                                       \
  KRON_KERNEL(kron_db_##E##_t64, SIMT_THREADS) { db<E, 64>(p); }                                                       \
  KRON_KERNEL(kron_dc_##E##_t16, SIMT_THREADS) { dc<E, 16>(p); }                                                       \
  KRON_KERNEL(kron_dc_##E##_t64, SIMT_THREADS) { dc<E, 64>(p); }                                                       \
  KRON_KERNEL(kron_dx_##E##_t64, SIMT_THREADS) { dx<E>(p); }

KRON_BACKWARD(f32)
KRON_BACKWARD(f16)
KRON_BACKWARD(bf16)
