// Backward for at most 64 tokens on the SIMT tile: every dtype, rank, width and
// alignment, in two kernels.  At this size latency dominates, so a call has few
// launches and many blocks with little work each.
//
//   dy   V[n, i, q]  = Σ_b dY[n, (i, b)]·B[b, q]
//        dT[n, j, q] = s·κ·Σ_i A_ij·V[n, i, q]      dA[i, j] += s·Σ_{n, q} V[n, i, q]·T[n, j, q]
//        dB[b, q]   += s·Σ_{n, i} dY[n, (i, b)]·U[n, i, q]
//   dx   dX[m, k]  (+)= Σ_q dT[m, q]·C[q, k], 0 where X was dropped       m = (token, j)
//        dC[q, k]   += Σ_m dT[m, q]·X[m, k]
//
// The plain loops are those of backward_simt.cu.  V, dT and dA are linear in dY:
// a block has some columns b of some i, and computes one part of dT and dA.  dB
// needs no V, so other blocks compute it, each for a range of i.  `dx` sums the
// parts of dT as it loads them and adds dC directly to the gradient; its threads
// share the sums of dA's and dB's parts.
//
// The number of parts determines their ranges.  The plan leaves no part empty.
#include "tile/simt.cuh"

constexpr int SMALL_M_COLS = 32; // columns of a tile, q in `dy` and k in `dx`: one for each lane
constexpr int WARPS = SIMT_THREADS / 32;

/// The indices begin … begin + width, cut off at `total`.
struct Range {
  int begin, end;
  KRON_DEVICE Range(int at, int width, int total) : begin(at), end(total - at < width ? total : at + width) {}
};
/// Returns the index-th of `parts` equal ranges of 0 … total.
KRON_DEVICE Range part_of(int total, int parts, int index) {
  const int width = int(ceil_div(total, parts));
  return Range(index * width, width, total);
}

/// One part of dT and dA, from a range of i and a range of b.  With B = identity the range of b is that of q.
/// Each step takes as many i as fit into the tile's 64 rows (i, n).
template <class E> KRON_DEVICE void small_m_dt(const KronParams &p, int part) {
  const int slices = p.dt_splits / p.a_row_groups, slice = part % slices, q_tile = int(blockIdx.x % p.col_tiles);
  const int q0 = q_tile * SMALL_M_COLS, rows = int(p.rows), i_per_step = TILE_M / rows;
  const int width = p.rank - q0 < SMALL_M_COLS ? p.rank - q0 : SMALL_M_COLS; // of this tile of q
  const Range group = part_of(p.a_out, p.a_row_groups, part / slices);
  const Range columns = p.b ? part_of(p.b_out, slices, slice) : Range(q0, SMALL_M_COLS, p.b_out);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const E *dy = static_cast<const E *>(p.dy);
  float *dt = p.dt_parts + part * p.rows * p.a_in * p.rank;
  float *da = p.da_parts + (int64_t(slice) * p.col_tiles + q_tile) * p.a_out * p.a_in;
  for (int i0 = group.begin; i0 < group.end; i0 += i_per_step) {
    const int count = group.end - i0 < i_per_step ? group.end - i0 : i_per_step;
    Shared shared; // the same memory in every step
    SimtTile<SMALL_M_COLS> tile(shared);
    float *vs = shared.take<float>(TILE_M * SMALL_M_COLS); // V: [count][rows][SMALL_M_COLS]
    tile.template contract<ALONG_K, ALONG_OUT>(
        0, count * rows, q0, p.rank, columns.begin, columns.end,
        [&](int64_t m, int64_t b) {
          return to_float(dy[int(m) % rows * p.dy_stride + int64_t(i0 + int(m) / rows) * p.b_out + b]);
        },
        [&](int64_t q, int64_t b) { return load_b(p, b, int(q)); });
    tile.each(0, count * rows, 0, SMALL_M_COLS, [&](int64_t m, int64_t q, float sum) { vs[m * SMALL_M_COLS + q] = sum; });
    __syncthreads(); // V has been written
    // dT: a thread has the same elements in every step.
    for (int64_t e = threadIdx.x; e < p.rows * p.a_in * width; e += SIMT_THREADS) {
      const int64_t m = e / width;
      const int q = int(e % width), n = int(m / p.a_in), j = int(m % p.a_in);
      float sum = 0;
      for (int i = 0; i < count; ++i) sum += load_a(p, i0 + i, j) * vs[(i * rows + n) * SMALL_M_COLS + q];
      float *at = dt + m * p.rank + q0 + q;
      sum *= p.scale * p.keep_scale;
      *at = i0 == group.begin ? sum : *at + sum;
    }
    // dA: a warp has a pair (i, j), which occurs in no other step.
    for (int64_t pair = warp; p.a && pair < int64_t(count) * p.a_in; pair += WARPS) {
      const int i = int(pair / p.a_in), j = int(pair % p.a_in);
      float sum = 0;
      for (int e = lane; e < rows * width; e += 32) {
        const int n = e / width, q = e % width;
        sum += vs[(i * rows + n) * SMALL_M_COLS + q] * p.t[(int64_t(n) * p.a_in + j) * p.rank + q0 + q];
      }
      KRON_UNROLL
      for (int mask = 16; mask > 0; mask /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
      if (lane == 0) da[int64_t(i0 + i) * p.a_in + j] = sum;
    }
  }
}

/// One tile of dB, summed over a range of i and all tokens: k = (i, n).
template <class E> KRON_DEVICE void small_m_db(const KronParams &p, int block) {
  const int64_t q0 = int64_t(blockIdx.x % p.col_tiles) * SMALL_M_COLS, b0 = int64_t(block / p.db_splits) * TILE_M;
  const int part = block % p.db_splits;
  const Range i = part_of(p.a_out, p.db_splits, part);
  const E *dy = static_cast<const E *>(p.dy);
  Shared shared;
  SimtTile<SMALL_M_COLS> tile(shared);
  tile.template contract<ALONG_OUT, ALONG_OUT>(
      b0, p.b_out, q0, p.rank, 0, (i.end - i.begin) * p.rows,
      [&](int64_t b, int64_t k) {
        return to_float(dy[k % p.rows * p.dy_stride + (i.begin + k / p.rows) * p.b_out + b]);
      },
      [&](int64_t q, int64_t k) { return load_u(p, k % p.rows, i.begin + int(k / p.rows), int(q)); });
  float *out = p.db_parts + int64_t(part) * p.b_out * p.rank;
  tile.each(b0, p.b_out, q0, p.rank, [&](int64_t b, int64_t q, float sum) { out[b * p.rank + q] = sum; });
}

/// Blocks (part of dT, tile of q), then (tile of b, part of dB, tile of q).
template <class E> KRON_DEVICE void small_m_dy(const KronParams &p) {
  const int block = int(blockIdx.x / p.col_tiles);
  if (block < p.dt_splits) small_m_dt<E>(p, block);
  else small_m_db<E>(p, block - p.dt_splits);
}

/// s[m·m_step + q·q_step] = dT[m0 + m, q0 + q], m < m_count, q < q_count.
KRON_DEVICE void fill_dt(const KronParams &p, float *scratch, float *s, int64_t m0, int m_count, int m_step, int q0,
                         int q_count, int q_step) {
  block_sum(
      scratch, m_count * q_count,
      [&](int e, Lane lane) { return load_dt(p, m0 + e / q_count, q0 + e % q_count, lane); },
      [&](int e, float dt) { s[e / q_count * m_step + e % q_count * q_step] = dt; });
}

/// Blocks (tile of q, tile of k) with dC, then (tile of m, tile of k) with dX.
template <class E> KRON_DEVICE void small_m_dx(const KronParams &p) {
  add_ab(p, SIMT_THREADS);
  const int64_t k0 = int64_t(blockIdx.x % p.col_tiles) * SMALL_M_COLS, row = int64_t(blockIdx.x / p.col_tiles) * TILE_M;
  const int64_t q_end = ceil_div(p.rank, TILE_M) * TILE_M, m_end = p.rows * p.a_in;
  const auto tile_rows = [](int64_t left) { return left < TILE_M ? int(left) : TILE_M; };
  Shared shared;
  SimtTile<SMALL_M_COLS> tile(shared);
  float *scratch = shared.take<float>(SIMT_THREADS);
  if (row < q_end) {
    const int count = tile_rows(p.rank - row);
    tile.template contract<ALONG_OUT>(
        [&](int64_t m, int depth) { fill_dt(p, scratch, tile.l, m, depth, TILE_M + 1, int(row), count, 1); }, //
        k0, p.c_in, 0, m_end, [&](int64_t k, int64_t m) { return load_x<E>(p, m, int(k)); });
    float *out = p.grad + ab_len(p);
    tile.each(row, p.rank, k0, p.c_in, [&](int64_t q, int64_t k, float sum) { out[q * p.c_in + k] += sum; });
  } else {
    const int64_t m0 = row - q_end;
    const int count = tile_rows(m_end - m0);
    tile.template contract<ALONG_OUT>(
        [&](int64_t q, int depth) { fill_dt(p, scratch, tile.l, m0, count, 1, int(q), depth, TILE_M + 1); }, //
        k0, p.c_in, 0, p.rank, [&](int64_t k, int64_t q) { return p.c[q * p.c_in + k]; });
    put_dx<E>(p, tile, m0, k0);
  }
}

#define KRON_SMALL_M(E)                                                                                                    \
  KRON_KERNEL(kron_dy_##E##_t32, SIMT_THREADS) { small_m_dy<E>(p); }                                                       \
  KRON_KERNEL(kron_dx_##E##_t32, SIMT_THREADS) { small_m_dx<E>(p); }

KRON_SMALL_M(f32)
KRON_SMALL_M(f16)
KRON_SMALL_M(bf16)
