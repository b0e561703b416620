// Rows of many adapters of one shape in one call, by an index table in device memory: every dtype, rank, width and
// alignment.  The launches depend on the numbers of rows and slots alone, never on the table.
//
//   sort    order = the rows with an adapter, by slot and then by number; tiles of them, of one adapter each
//   down    T[n, j, q] = κ·Σ_k X[n, (j, k)]·C[q, k]        U[n, i, q] = Σ_j A_ij·T[n, j, q]
//   up      Y[n, (i, b)] (+)= s·Σ_q U[n, i, q]·B[b, q]
//
//   dy      V[n, i, q] = Σ_b dY[n, (i, b)]·B[b, q]         dT[n, j, q] = s·κ·Σ_i A_ij·V[n, i, q]     U as in down
//   grad    dA[i, j] += s·Σ_{n, q} V·T     dB[b, q] += s·Σ_{n, i} dY·U     dC[q, k] += Σ_{n, j} dT·X
//   dx      dX[n, (j, k)] (+)= Σ_q dT[n, j, q]·C[q, k], 0 where X was dropped
//
// A, B, C, s and the gradient are those of a row's slot.  T is in the order of X's rows; U, V and dT are in sorted order.
// A row without a slot of the pool is not touched.  Each element of a gradient has one writer, which adds up the
// segment's rows in order.  The plain loops are those of forward_simt.cu and backward_simt.cu.
#include "tile/segments.cuh"

/// Block: a slot.  Each warp has consecutive rows of the table.  It counts the rows of lower slots and those of the
/// block's slot, then writes the numbers of the latter after those of earlier warps.  Block 0 also counts the rows whose
/// number is outside the pool.
///
/// The tiles of a slot begin at its first sorted row if there is a tile for every row (p.tiles = p.rows), else at
/// start / tile_rows + slot, and the slot before has ended there: its tiles are at most (start − its start) / tile_rows + 1.
KRON_KERNEL(kron_sort, SEGMENT_THREADS) {
  constexpr int LOADS = 8, STEP = 32 * LOADS; // table entries of a warp in flight
  const int slot = int(blockIdx.x), lane = threadIdx.x % 32, warp = threadIdx.x / 32, rows = int(p.rows);
  const int share = int(ceil_div(ceil_div(rows, SEGMENT_WARPS), 32)) * 32;
  const int begin = warp * int64_t(share) < rows ? warp * share : rows, end = rows - begin < share ? rows : begin + share;
  Shared shared;
  int *counts = shared.take<int>(4 * SEGMENT_WARPS); // of each warp: lower, own, outside, first outside
  /// Calls f(row, entry) for the warp's rows, LOADS of them for each lane; entry is −1 beyond the end.
  const auto each = [&](auto f) {
    for (int row0 = begin; row0 < end; row0 += STEP) {
      int entry[LOADS];
      KRON_UNROLL
      for (int i = 0; i < LOADS; ++i) entry[i] = end - row0 > 32 * i + lane ? p.table[row0 + 32 * i + lane] : -1;
      KRON_UNROLL
      for (int i = 0; i < LOADS; ++i) f(row0 + 32 * i, entry[i]);
    }
  };
  int lower = 0, own = 0, outside = 0, first = -1;
  each([&](int row0, int entry) {
    lower += __popc(__ballot_sync(0xffffffffu, entry >= 0 && entry < slot));
    own += __popc(__ballot_sync(0xffffffffu, entry == slot));
    if (slot > 0) return;
    const uint32_t bad = __ballot_sync(0xffffffffu, entry < -1 || entry >= p.slots);
    if (outside == 0 && bad) first = row0 + __ffs(int(bad)) - 1;
    outside += __popc(bad);
  });
  if (lane == 0) {
    int *at = counts + 4 * warp;
    at[0] = lower, at[1] = own, at[2] = outside, at[3] = first;
  }
  __syncthreads(); // every warp's counts have been written
  int start = 0, total = 0, next = 0;
  outside = 0, first = -1;
  for (int w = 0; w < SEGMENT_WARPS; ++w) {
    const int *at = counts + 4 * w;
    start += at[0];
    if (w < warp) next += at[1];
    total += at[1];
    if (first < 0) first = at[3];
    outside += at[2];
  }
  if (slot == 0 && threadIdx.x == 0) p.status[0] = uint32_t(outside), p.status[1] = uint32_t(first);
  if (total > 0) {
    next += start;
    each([&](int row0, int entry) {
      const uint32_t mine = __ballot_sync(0xffffffffu, entry == slot);
      if (entry == slot) p.order[next + __popc(mine & ((1u << lane) - 1))] = row0 + lane;
      next += __popc(mine);
    });
  }
  const bool each_row = p.tiles == rows;
  const int from = each_row ? start : start / p.tile_rows + slot;
  int to = each_row ? start + total : (start + total) / p.tile_rows + slot + 1;
  if (slot == p.slots - 1) to = p.tiles;
  for (int at = from + threadIdx.x; at < to; at += SEGMENT_THREADS) {
    const int64_t row = int64_t(at - from) * (each_row ? 1 : p.tile_rows);
    SegmentTile tile;
    tile.slot = slot, tile.first = int(start + row), tile.count = 0, tile.segment = 0;
    if (row < total && int(row) % p.tile_rows == 0) {
      tile.count = total - int(row) < p.tile_rows ? total - int(row) : p.tile_rows;
      tile.segment = row == 0 ? total : 0;
    }
    tile.put(p, at);
  }
}

/// W[m, q] = Σ_j A_ij·T[n, j, q] for the rows m = (n, i) of a tile and the ranks q0 … q0 + 7, by the whole block.
KRON_DEVICE void put_u(const KronParams &p, const SegmentTile &tile, const Slot &slot, int q0) {
  for (int e = threadIdx.x; e < tile.count * p.a_out * SEGMENT_RANKS; e += SEGMENT_THREADS) {
    const int m = e / SEGMENT_RANKS, q = q0 + e % SEGMENT_RANKS, n = m / p.a_out, i = m % p.a_out;
    if (q >= p.rank) continue;
    const float *t = p.t + int64_t(p.order[tile.first + n]) * p.a_in * p.rank + q;
    float u = 0;
    for (int j = 0; j < p.a_in; ++j) u = __fmaf_rn(slot.a_at(p, i, j), t[int64_t(j) * p.rank], u);
    p.u[(int64_t(tile.first) * p.a_out + m) * p.rank + q] = u;
  }
}

/// Block (tile, ranks q0 … q0 + 7).
template <class E> KRON_DEVICE void segment_down(const KronParams &p) {
  const SegmentTile tile(p, blockIdx.x / p.col_tiles);
  if (tile.count == 0) return;
  const int q0 = int(blockIdx.x % p.col_tiles) * SEGMENT_RANKS;
  const Slot slot(p, tile.slot);
  Shared shared;
  float *sums = shared.take<float>(SEGMENT_THREADS * SEGMENT_WARPS);
  segment_dot<E, IN>(p, sums, tile, slot, q0, p.x, p.x_stride, [&](int m, int q, float sum) {
    const int64_t row = p.order[tile.first + m / p.a_in];
    p.t[(row * p.a_in + m % p.a_in) * p.rank + q] = p.keep_scale * sum;
  });
  put_u(p, tile, slot, q0);
}

/// Block (tile, slices of b_out).
template <class E> KRON_DEVICE void segment_up(const KronParams &p) {
  const SegmentTile tile(p, blockIdx.x / p.col_tiles);
  if (tile.count == 0) return;
  const Slot slot(p, tile.slot);
  const int part = int(blockIdx.x % p.col_tiles);
  if (p.rank <= SEGMENT_RANKS) segment_expand<E, OUT, true>(p, tile, slot, part, p.u, slot.scale, p.y, p.y_stride);
  else segment_expand<E, OUT, false>(p, tile, slot, part, p.u, slot.scale, p.y, p.y_stride);
}

/// Block (tile, ranks q0 … q0 + 7).
template <class E> KRON_DEVICE void segment_dy(const KronParams &p) {
  const SegmentTile tile(p, blockIdx.x / p.col_tiles);
  if (tile.count == 0) return;
  const int q0 = int(blockIdx.x % p.col_tiles) * SEGMENT_RANKS;
  const Slot slot(p, tile.slot);
  Shared shared;
  float *sums = shared.take<float>(SEGMENT_THREADS * SEGMENT_WARPS);
  float *v = p.v + int64_t(tile.first) * p.a_out * p.rank, *dt = p.dt_parts + int64_t(tile.first) * p.a_in * p.rank;
  segment_dot<E, OUT>(p, sums, tile, slot, q0, p.dy, p.dy_stride,
                      [&](int m, int q, float sum) { v[int64_t(m) * p.rank + q] = sum; });
  const float factor = slot.scale * p.keep_scale;
  for (int e = threadIdx.x; e < tile.count * p.a_in * SEGMENT_RANKS; e += SEGMENT_THREADS) {
    const int m = e / SEGMENT_RANKS, q = q0 + e % SEGMENT_RANKS, n = m / p.a_in, j = m % p.a_in;
    if (q >= p.rank) continue;
    float sum = 0;
    for (int i = 0; i < p.a_out; ++i) sum = __fmaf_rn(slot.a_at(p, i, j), v[(int64_t(n) * p.a_out + i) * p.rank + q], sum);
    dt[int64_t(m) * p.rank + q] = factor * sum;
  }
  put_u(p, tile, slot, q0);
}

/// dA of some pairs (i, j), a warp's one after the other: a lane has every 32nd (n, q) of the segment.
KRON_DEVICE void segment_da(const KronParams &p, const SegmentTile &tile, const Slot &slot, int first, int step) {
  const int lane = threadIdx.x % 32;
  for (int pair = first; pair < p.a_out * p.a_in; pair += step) {
    const int i = pair / p.a_in, j = pair % p.a_in;
    float sum = 0;
    int n = lane / p.rank, q = lane % p.rank;
    while (n < tile.segment) {
      const int64_t row = p.order[tile.first + n];
      sum = __fmaf_rn(p.v[((int64_t(tile.first) + n) * p.a_out + i) * p.rank + q], p.t[(row * p.a_in + j) * p.rank + q], sum);
      n += 32 / p.rank, q += 32 % p.rank;
      if (q >= p.rank) q -= p.rank, ++n;
    }
    KRON_UNROLL
    for (int mask = 16; mask > 0; mask /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
    if (lane == 0) slot.grad[pair] += slot.scale * sum;
  }
}

/// Block (first tile of a segment, part): first the parts of dC, then those of dB, each with some slices and 8 ranks, then
/// those of dA.
template <class E> KRON_DEVICE void segment_grad(const KronParams &p) {
  const SegmentTile tile(p, blockIdx.x / p.col_tiles);
  if (tile.segment == 0) return;
  Shared shared;
  float *sums = shared.take<float>(SEGMENT_WARPS / 2 * 32 * LANE_COLS * SEGMENT_RANKS);
  const int ranks = int(ceil_div(p.rank, SEGMENT_RANKS)), at = int(blockIdx.x % p.col_tiles);
  const int dc = column_blocks(p.c_in) * ranks, db = p.b ? column_blocks(p.b_out) * ranks : 0;
  if (at < dc) {
    segment_outer<E, IN>(p, sums, tile, at / ranks, at % ranks * SEGMENT_RANKS, p.dt_parts, p.x, p.x_stride);
  } else if (at < dc + db) {
    const int to = at - dc;
    segment_outer<E, OUT>(p, sums, tile, to / ranks, to % ranks * SEGMENT_RANKS, p.u, p.dy, p.dy_stride);
  } else {
    const int step = (p.col_tiles - dc - db) * SEGMENT_WARPS;
    segment_da(p, tile, Slot(p, tile.slot), (at - dc - db) * SEGMENT_WARPS + threadIdx.x / 32, step);
  }
}

/// Block (tile, slices of c_in).
template <class E> KRON_DEVICE void segment_dx(const KronParams &p) {
  const SegmentTile tile(p, blockIdx.x / p.col_tiles);
  if (tile.count == 0) return;
  const Slot slot(p, tile.slot);
  const int part = int(blockIdx.x % p.col_tiles);
  if (p.rank <= SEGMENT_RANKS) segment_expand<E, IN, true>(p, tile, slot, part, p.dt_parts, 1.0f, p.dx, p.dx_stride);
  else segment_expand<E, IN, false>(p, tile, slot, part, p.dt_parts, 1.0f, p.dx, p.dx_stride);
}

#define KRON_SEGMENTS(E)                                                                                               \
  KRON_KERNEL_RESIDENT(kron_down_##E##_segments, SEGMENT_THREADS, 2) { segment_down<E>(p); }                           \
  KRON_KERNEL_RESIDENT(kron_up_##E##_segments, SEGMENT_THREADS, 2) { segment_up<E>(p); }                               \
  KRON_KERNEL_RESIDENT(kron_dy_##E##_segments, SEGMENT_THREADS, 2) { segment_dy<E>(p); }                               \
  KRON_KERNEL_RESIDENT(kron_grad_##E##_segments, SEGMENT_THREADS, 2) { segment_grad<E>(p); }                           \
  KRON_KERNEL_RESIDENT(kron_dx_##E##_segments, SEGMENT_THREADS, 2) { segment_dx<E>(p); }

KRON_SEGMENTS(f32)
KRON_SEGMENTS(f16)
KRON_SEGMENTS(bf16)
