// Backward for at most 64 tokens on the general tile: every dtype, rank, width
// and alignment, in two kernels.  With so few rows a call is a chain of
// latencies, so it has few launches and many blocks with little to do each.
//
//   dy   V[n, i, q]  = Σ_b dY[n, (i, b)]·B[b, q]
//        dT[n, j, q] = s·κ·Σ_i A_ij·V[n, i, q]      dA[i, j] += s·Σ_{n, q} V[n, i, q]·T[n, j, q]
//        dB[b, q]   += s·Σ_{n, i} dY[n, (i, b)]·U[n, i, q]
//   dx   dX[m, k]  (+)= Σ_q dT[m, q]·C[q, k], 0 where X was dropped       m = (token, j)
//        dC[q, k]   += Σ_m dT[m, q]·X[m, k]
//
// The plain loops are backward.cu's.  V, dT and dA are linear in dY: a block
// takes some columns b of some i, and its share of dT and dA is a part.  dB
// needs no V, so other blocks make it, from parts of the i.  `dx` sums the
// parts of dT as it loads them, adds dC straight into the gradient, and its
// threads share out the sums of dA's and dB's parts.
//
// A part's range follows from the number of parts, and the plan leaves none empty.
#include "contract.cuh"

constexpr int FEW_COLS = 32; // columns of a tile, q in `dy` and k in `dx`: one a lane
constexpr int WARPS = TILE_THREADS / 32;

/// Indices begin … begin + width, at most to `total`.
struct Range {
  int begin, end;
  KRON_DEVICE Range(int at, int width, int total) : begin(at), end(total - at < width ? total : at + width) {}
};
/// The index-th of `parts` equal ranges of 0 … total.
KRON_DEVICE Range part_of(int total, int parts, int index) {
  const int width = int(ceil_div(total, parts));
  return Range(index * width, width, total);
}

/// dT's and dA's share of one part: a range of i, as many at a time as fill the tile's 64 rows (i, n),
/// and a range of b, which with B = identity is that of q.
template <class E> KRON_DEVICE void share(const KronParams &p, int part) {
  const int slices = p.dt_splits / p.i_groups, slice = part % slices, q_tile = int(blockIdx.x % p.col_tiles);
  const int q0 = q_tile * FEW_COLS, rows = int(p.rows), most = TILE_M / rows;
  const int width = p.rank - q0 < FEW_COLS ? p.rank - q0 : FEW_COLS; // of this tile of q
  const Range group = part_of(p.a_out, p.i_groups, part / slices);
  const Range columns = p.b ? part_of(p.b_out, slices, slice) : Range(q0, FEW_COLS, p.b_out);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const E *dy = static_cast<const E *>(p.dy);
  float *dt = p.dt_parts + part * p.rows * p.a_in * p.rank;
  float *da = p.da_parts + (int64_t(slice) * p.col_tiles + q_tile) * p.a_out * p.a_in;
  for (int i0 = group.begin; i0 < group.end; i0 += most) {
    const int count = group.end - i0 < most ? group.end - i0 : most;
    Shared shared; // the same memory at every turn
    Tile<FEW_COLS> tile(shared);
    float *vs = shared.take<float>(TILE_M * FEW_COLS); // V: [count][rows][FEW_COLS]
    tile.template contract<ALONG_K, ALONG_OUT>(
        0, count * rows, q0, p.rank, columns.begin, columns.end,
        [&](int64_t m, int64_t b) {
          return to_float(dy[int(m) % rows * p.dy_stride + int64_t(i0 + int(m) / rows) * p.b_out + b]);
        },
        [&](int64_t q, int64_t b) { return load_b(p, b, int(q)); });
    tile.each(0, count * rows, 0, FEW_COLS, [&](int64_t m, int64_t q, float sum) { vs[m * FEW_COLS + q] = sum; });
    __syncthreads(); // V has been written
    // dT: a thread has the same elements at every turn.
    for (int64_t e = threadIdx.x; e < p.rows * p.a_in * width; e += TILE_THREADS) {
      const int64_t m = e / width;
      const int q = int(e % width), n = int(m / p.a_in), j = int(m % p.a_in);
      float sum = 0;
      for (int i = 0; i < count; ++i) sum += load_a(p, i0 + i, j) * vs[(i * rows + n) * FEW_COLS + q];
      float *at = dt + m * p.rank + q0 + q;
      sum *= p.scale * p.keep_scale;
      *at = i0 == group.begin ? sum : *at + sum;
    }
    // dA: a warp has a pair (i, j), which no other turn has.
    for (int64_t pair = warp; p.a && pair < int64_t(count) * p.a_in; pair += WARPS) {
      const int i = int(pair / p.a_in), j = int(pair % p.a_in);
      float sum = 0;
      for (int e = lane; e < rows * width; e += 32) {
        const int n = e / width, q = e % width;
        sum += vs[(i * rows + n) * FEW_COLS + q] * p.t[(int64_t(n) * p.a_in + j) * p.rank + q0 + q];
      }
      KRON_UNROLL
      for (int mask = 16; mask > 0; mask /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
      if (lane == 0) da[int64_t(i0 + i) * p.a_in + j] = sum;
    }
  }
}

/// One tile of dB, summed over a range of i and all tokens: k = (i, n).
template <class E> KRON_DEVICE void few_db(const KronParams &p, int block) {
  const int64_t q0 = int64_t(blockIdx.x % p.col_tiles) * FEW_COLS, b0 = int64_t(block / p.db_splits) * TILE_M;
  const int part = block % p.db_splits;
  const Range i = part_of(p.a_out, p.db_splits, part);
  const E *dy = static_cast<const E *>(p.dy);
  Shared shared;
  Tile<FEW_COLS> tile(shared);
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
template <class E> KRON_DEVICE void few_dy(const KronParams &p) {
  const int block = int(blockIdx.x / p.col_tiles);
  if (block < p.dt_splits) share<E>(p, block);
  else few_db<E>(p, block - p.dt_splits);
}

/// s[m·m_step + q·q_step] = dT[m0 + m, q0 + q], m < m_count, q < q_count.
KRON_DEVICE void fill_dt(const KronParams &p, float *room, float *s, int64_t m0, int m_count, int m_step, int q0,
                         int q_count, int q_step) {
  each_sum(
      room, m_count * q_count,
      [&](int e, Share share) { return load_dt(p, m0 + e / q_count, q0 + e % q_count, share); },
      [&](int e, float dt) { s[e / q_count * m_step + e % q_count * q_step] = dt; });
}

/// Blocks (tile of q, tile of k) with dC, then (tile of m, tile of k) with dX.
template <class E> KRON_DEVICE void few_dx(const KronParams &p) {
  add_ab(p, TILE_THREADS);
  const int64_t k0 = int64_t(blockIdx.x % p.col_tiles) * FEW_COLS, row = int64_t(blockIdx.x / p.col_tiles) * TILE_M;
  const int64_t q_end = ceil_div(p.rank, TILE_M) * TILE_M, m_end = p.rows * p.a_in;
  const auto tile_rows = [](int64_t left) { return left < TILE_M ? int(left) : TILE_M; };
  Shared shared;
  Tile<FEW_COLS> tile(shared);
  float *room = shared.take<float>(TILE_THREADS);
  if (row < q_end) {
    const int count = tile_rows(p.rank - row);
    tile.template contract<ALONG_OUT>(
        [&](int64_t m, int depth) { fill_dt(p, room, tile.l, m, depth, TILE_M + 1, int(row), count, 1); }, //
        k0, p.c_in, 0, m_end, [&](int64_t k, int64_t m) { return load_x<E>(p, m, int(k)); });
    float *out = p.grad + ab_len(p);
    tile.each(row, p.rank, k0, p.c_in, [&](int64_t q, int64_t k, float sum) { out[q * p.c_in + k] += sum; });
  } else {
    const int64_t m0 = row - q_end;
    const int count = tile_rows(m_end - m0);
    tile.template contract<ALONG_OUT>(
        [&](int64_t q, int depth) { fill_dt(p, room, tile.l, m0, count, 1, int(q), depth, TILE_M + 1); }, //
        k0, p.c_in, 0, p.rank, [&](int64_t k, int64_t q) { return p.c[q * p.c_in + k]; });
    put_dx<E>(p, tile, m0, k0);
  }
}

#define KRON_FEW(E)                                                                                                    \
  KRON_KERNEL(kron_dy_##E##_t32, TILE_THREADS) { few_dy<E>(p); }                                                       \
  KRON_KERNEL(kron_dx_##E##_t32, TILE_THREADS) { few_dx<E>(p); }

using f32 = float;
KRON_FEW(f32)
KRON_FEW(f16)
KRON_FEW(bf16)
