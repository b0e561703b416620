// Segments: rows of many adapters of one shape, by the three products of every pass.
//
//   dot      out[m, q]   = Σ_k L[m, k]·F[q, k]         T (X, C) and V (dY, B)
//   expand   L[m, k]   (+)= f·Σ_q W[m, q]·F[q, k]      Y (U, B) and dX (dT, C)
//   outer    dF[q, k]   += f·Σ_m W[m, q]·L[m, k]       dB (U, dY) and dC (dT, X)
//
//   L: rows m = (token, block) of X, dX (a_in blocks of c_in) or dY, Y (a_out blocks of b_out)
//   F: C, or the transpose of B, of the tile's adapter
//
// A warp keeps 256 columns × 8 ranks of F (or of its gradient) in registers: a lane has the columns
// lane + 32·e, so that every access runs along a row whatever its alignment, and meets two rows m at a time.
// A sum over k is that of a lane, then of the warp's lanes in pairs, then of its warps in order; none depends on
// which other rows a tile has.  float32 throughout: θ is not rounded.
#pragma once
#include "tile/operands.cuh"

constexpr int SEGMENT_THREADS = 256, SEGMENT_WARPS = SEGMENT_THREADS / 32;
constexpr int SEGMENT_RANKS = 8, LANE_COLS = 8, SEGMENT_COLS = 32 * LANE_COLS;
constexpr int DOT_ROWS = 32; // rows m of a warp between two barriers of `dot`

/// Sorted rows of one adapter, at most `p.tile_rows`.  Without rows the tile is empty.
struct SegmentTile {
  int32_t slot, first, count;
  int32_t segment; // all rows of the adapter, in its first tile; else 0
  SegmentTile() = default;
  KRON_DEVICE SegmentTile(const KronParams &p, int64_t index) {
    const int32_t *at = p.segments + 4 * index;
    slot = at[0], first = at[1], count = at[2], segment = at[3];
  }
  KRON_DEVICE void put(const KronParams &p, int64_t index) const {
    int32_t *at = p.segments + 4 * index;
    at[0] = slot, at[1] = first, at[2] = count, at[3] = segment;
  }
};

/// The factors, the gradient and s of one slot.
struct Slot {
  const float *b, *c;
  float *grad;
  float scale;
  const float *a;
  KRON_DEVICE Slot(const KronParams &p, int slot) {
    const int64_t at = slot * p.slot_stride;
    a = p.a ? p.a + at : nullptr, b = p.b ? p.b + at : nullptr, c = p.c + at;
    grad = p.grad + (p.grad ? at : 0);
    scale = p.scales ? p.scales[slot] : p.scale;
  }
  /// A_ij; 1 for LoRA.
  KRON_DEVICE float a_at(const KronParams &p, int i, int j) const { return a ? a[i * p.a_in + j] : 1.0f; }
};

/// Number of warps that share a row's columns: the least power of two for all, at most a block's.  The others take other rows.
KRON_DEVICE int column_ways(int width) {
  int ways = 1;
  while (ways < SEGMENT_WARPS && ways * SEGMENT_COLS < width) ways *= 2;
  return ways;
}

/// Number of blocks that divide a row's columns.
KRON_DEVICE int column_blocks(int width) { return int(ceil_div(width, SEGMENT_COLS * column_ways(width))); }

/// The sides of a layer: X and dX with C, Y and dY with B.
enum Side { IN, OUT };
template <Side SIDE> KRON_DEVICE int blocks_of(const KronParams &p) { return SIDE == IN ? p.a_in : p.a_out; }
template <Side SIDE> KRON_DEVICE int width_of(const KronParams &p) { return SIDE == IN ? p.c_in : p.b_out; }

/// A walk over the rows m = (token, block) of some sorted rows.
template <Side SIDE> struct Walk {
  const KronParams &p;
  const int32_t *order;
  int blocks, token, block;
  KRON_DEVICE Walk(const KronParams &params, int first, int m)
      : p(params), order(params.order + first), blocks(blocks_of<SIDE>(params)), token(m / blocks), block(m % blocks) {}
  KRON_DEVICE void next() {
    if (++block == blocks) block = 0, ++token;
  }
  /// Goes on by some whole tokens and less than one.
  KRON_DEVICE void skip(int tokens, int rest) {
    token += tokens, block += rest;
    if (block >= blocks) block -= blocks, ++token;
  }
  KRON_DEVICE int64_t row() const { return order[token]; }
  /// The column at which the block starts.
  KRON_DEVICE int64_t col() const { return int64_t(block) * width_of<SIDE>(p); }
  /// Leaves in `columns`, whose bit e is column k + 32·e of the block, those that the mask of X keeps.
  KRON_DEVICE uint32_t kept(uint32_t columns, int64_t row, int k) const {
    if (SIDE == OUT || p.threshold == 0) return columns;
    uint32_t mask = 0;
    KRON_ROLLED
    for (int e = 0; e < LANE_COLS; ++e) mask |= uint32_t(keeps(p, row, col() + k + 32 * e)) << e;
    return columns & mask;
  }
};

/// Bit e is set if a row has a column k + 32·e.
KRON_DEVICE uint32_t columns_inside(int k, int width) {
  uint32_t mask = 0;
  KRON_UNROLL
  for (int e = 0; e < LANE_COLS; ++e) mask |= uint32_t(k + 32 * e < width) << e;
  return mask;
}
/// Bit i is set if there is a rank q0 + i.
KRON_DEVICE uint32_t ranks_inside(const KronParams &p, int q0) {
  return p.rank - q0 < SEGMENT_RANKS ? (1u << (p.rank - q0)) - 1 : (1u << SEGMENT_RANKS) - 1;
}

/// x[e] = column k + 32·e of the walk's row for the bits of `columns`; zeros elsewhere and where X was dropped.
template <class E, Side SIDE>
KRON_DEVICE void load_columns(float (&x)[LANE_COLS], const Walk<SIDE> &at, const void *matrix, int64_t stride, int k, uint32_t columns) {
  const int64_t row = columns ? at.row() : 0;
  const E *from = static_cast<const E *>(matrix) + row * stride + at.col() + k;
  columns = at.kept(columns, row, k);
  KRON_UNROLL
  for (int e = 0; e < LANE_COLS; ++e) x[e] = columns >> e & 1 ? to_float(from[32 * e]) : 0.0f;
}

/// f[e][i] = F[q0 + i, k + 32·e] for the bits e of `columns` and i of `ranks`, zeros elsewhere; `from` is F[q0, k].
template <Side SIDE> KRON_DEVICE void load_factor(float (&f)[LANE_COLS][SEGMENT_RANKS], const KronParams &p, const float *from, uint32_t columns, uint32_t ranks) {
  constexpr int OUTER = SIDE == IN ? SEGMENT_RANKS : LANE_COLS, INNER = SIDE == IN ? LANE_COLS : SEGMENT_RANKS;
  KRON_UNROLL
  for (int o = 0; o < OUTER; ++o, from += SIDE == IN ? p.c_in : 32 * p.rank) {
    KRON_UNROLL
    for (int n = 0; n < INNER; ++n) {
      const int e = SIDE == IN ? n : o, i = SIDE == IN ? o : n;
      f[e][i] = columns >> e & ranks >> i & 1 ? from[SIDE == IN ? 32 * n : n] : 0.0f;
    }
  }
}

/// As above, of a slot; `k` is that of a lane.
template <Side SIDE> KRON_DEVICE void load_factor(float (&f)[LANE_COLS][SEGMENT_RANKS], const KronParams &p, const Slot &slot, int q0, int k) {
  const int width = width_of<SIDE>(p), first = k - int(threadIdx.x % 32);
  if (SIDE == OUT && !slot.b) { // B = identity
    KRON_UNROLL
    for (int e = 0; e < LANE_COLS; ++e) {
      KRON_UNROLL
      for (int i = 0; i < SEGMENT_RANKS; ++i) f[e][i] = k + 32 * e == q0 + i ? 1.0f : 0.0f;
    }
    return;
  }
  const float *from = SIDE == IN ? slot.c + int64_t(q0) * p.c_in + k : slot.b + int64_t(k) * p.rank + q0;
  if (width - first >= SEGMENT_COLS && p.rank - q0 >= SEGMENT_RANKS) load_factor<SIDE>(f, p, from, 0xffu, 0xffu); // no edge
  else load_factor<SIDE>(f, p, from, columns_inside(k, width), ranks_inside(p, q0));
}

/// The sums of 16 values over a warp's lanes; lanes 2·n and 2·n + 1 get that of value n.
KRON_DEVICE float warp_sums(float (&v)[2 * SEGMENT_RANKS]) {
  KRON_UNROLL
  for (int stage = 0; stage < 4; ++stage) {
    const int width = SEGMENT_RANKS >> stage, mask = 16 >> stage;
    const bool high = threadIdx.x & mask;
    KRON_UNROLL
    for (int i = 0; i < SEGMENT_RANKS; ++i) {
      if (i >= width) continue;
      const float keep = high ? v[i + width] : v[i], send = high ? v[i] : v[i + width];
      v[i] = keep + __shfl_xor_sync(0xffffffffu, send, mask);
    }
  }
  return v[0] + __shfl_xor_sync(0xffffffffu, v[0], 1);
}

/// Calls put(m, q, Σ_k L[m, k]·F[q, k]) for the rows m < m_end of a tile and the ranks q0 … q0 + 7, by the whole
/// block; ends with a barrier.  `sums` has SEGMENT_WARPS · DOT_ROWS · SEGMENT_RANKS floats.
template <class E, Side SIDE, class Put>
KRON_DEVICE void segment_dot(const KronParams &p, float *sums, const SegmentTile &tile, const Slot &slot, int q0, const void *matrix, int64_t stride, Put put) {
  constexpr int OF_WARP = DOT_ROWS * SEGMENT_RANKS;
  static_assert(OF_WARP == SEGMENT_THREADS, "a thread has one sum of each warp");
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int m_end = tile.count * blocks_of<SIDE>(p), slices = int(ceil_div(width_of<SIDE>(p), SEGMENT_COLS));
  const int ways = column_ways(width_of<SIDE>(p)), groups = SEGMENT_WARPS / ways, used = slices < ways ? slices : ways;
  for (int m0 = 0; m0 < m_end; m0 += DOT_ROWS * groups) {
    const int begin = m0 + warp / ways * DOT_ROWS, end = m_end - begin < DOT_ROWS ? m_end : begin + DOT_ROWS;
    for (int slice = warp % ways; slice < slices && begin < end; slice += ways) {
      const int k = slice * SEGMENT_COLS + lane;
      float f[LANE_COLS][SEGMENT_RANKS];
      load_factor<SIDE>(f, p, slot, q0, k);
      const uint32_t columns = columns_inside(k, width_of<SIDE>(p));
      Walk<SIDE> at(p, tile.first, begin);
      KRON_ROLLED
      for (int m = begin; m < end; m += 2) {
        float x[2][LANE_COLS], v[2 * SEGMENT_RANKS] = {};
        KRON_UNROLL
        for (int half = 0; half < 2; ++half) load_columns<E>(x[half], at, matrix, stride, k, m + half < end ? columns : 0), at.next();
        KRON_UNROLL
        for (int n = 0; n < 2 * SEGMENT_RANKS; ++n) {
          KRON_UNROLL
          for (int e = 0; e < LANE_COLS; ++e) v[n] = __fmaf_rn(x[n / SEGMENT_RANKS][e], f[e][n % SEGMENT_RANKS], v[n]);
        }
        const float sum = warp_sums(v);
        float *own = sums + warp * OF_WARP + (m - begin) * SEGMENT_RANKS + lane / 2;
        // A lane has the same elements in every slice.
        if (lane % 2 == 0 && m + lane / 16 < end) *own = slice == warp % ways ? sum : *own + sum;
      }
    }
    __syncthreads(); // every warp's sums have been written
    const int row = threadIdx.x / SEGMENT_RANKS, q = q0 + threadIdx.x % SEGMENT_RANKS;
    for (int group = 0; group < groups; ++group) {
      const int m = m0 + group * DOT_ROWS + row;
      if (m >= m_end || q >= p.rank) continue;
      float sum = 0;
      KRON_ROLLED
      for (int way = 0; way < used; ++way) sum += sums[(group * ways + way) * OF_WARP + threadIdx.x];
      put(m, q, sum);
    }
    __syncthreads(); // the sums have been read; what was put is visible to the block
  }
}

/// L[m, k] (+)= factor·Σ_q W[m, q]·F[q, k] for the rows of a tile, by the whole block: `part` is the block's range of
/// column_ways slices.  W has the tile's rows m one after the other.  With at most 8 ranks F stays in registers.
template <class E, Side SIDE, bool FEW_RANKS>
KRON_DEVICE void segment_expand(const KronParams &p, const SegmentTile &tile, const Slot &slot, int part, const float *w, float factor, void *matrix, int64_t stride) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, width = width_of<SIDE>(p);
  const int ways = column_ways(width), groups = SEGMENT_WARPS / ways, k0 = (part * ways + warp % ways) * SEGMENT_COLS;
  const int m_end = tile.count * blocks_of<SIDE>(p), k = k0 + lane;
  if (k0 >= width) return;
  // With B = identity only the ranks of these columns.
  const bool identity = SIDE == OUT && !slot.b;
  const int q_begin = identity ? k0 : 0, q_end = identity && p.rank - k0 > SEGMENT_COLS ? k0 + SEGMENT_COLS : p.rank;
  w += int64_t(tile.first) * blocks_of<SIDE>(p) * p.rank;
  float f[LANE_COLS][SEGMENT_RANKS];
  if (FEW_RANKS) load_factor<SIDE>(f, p, slot, 0, k);
  Walk<SIDE> at(p, tile.first, 2 * (warp / ways));
  const uint32_t columns = columns_inside(k, width);
  const int tokens = 2 * (groups - 1) / at.blocks, rest = 2 * (groups - 1) % at.blocks;
  KRON_ROLLED
  for (int m = 2 * (warp / ways); m < m_end; m += 2 * groups, at.skip(tokens, rest)) {
    float acc[2][LANE_COLS] = {};
    KRON_ROLLED
    for (int q0 = FEW_RANKS ? 0 : q_begin; q0 < (FEW_RANKS ? 1 : q_end); q0 += SEGMENT_RANKS) {
      if (!FEW_RANKS && !identity) load_factor<SIDE>(f, p, (SIDE == IN ? slot.c + int64_t(q0) * p.c_in + k : slot.b + int64_t(k) * p.rank + q0), columns, ranks_inside(p, q0));
      if (!FEW_RANKS && identity) load_factor<SIDE>(f, p, slot, q0, k);
      KRON_UNROLL
      for (int half = 0; half < 2; ++half) {
        float u[SEGMENT_RANKS];
        const uint32_t ranks = m + half < m_end ? ranks_inside(p, q0) : 0;
        const float *from = w + int64_t(m + half) * p.rank + q0;
        KRON_UNROLL
        for (int i = 0; i < SEGMENT_RANKS; ++i) u[i] = ranks >> i & 1 ? from[i] : 0.0f;
        KRON_UNROLL
        for (int e = 0; e < LANE_COLS; ++e) {
          KRON_UNROLL
          for (int i = 0; i < SEGMENT_RANKS; ++i) acc[half][e] = __fmaf_rn(u[i], f[e][i], acc[half][e]);
        }
      }
    }
    KRON_UNROLL
    for (int half = 0; half < 2; ++half, at.next()) {
      if (m + half >= m_end) break;
      const int64_t row = at.row();
      E *to = static_cast<E *>(matrix) + row * stride + at.col() + k;
      float old[LANE_COLS] = {};
      if (p.accumulate) {
        KRON_UNROLL
        for (int e = 0; e < LANE_COLS; ++e)
          if (columns >> e & 1) old[e] = to_float(to[32 * e]);
      }
      if (SIDE == IN && p.threshold) {
        const uint32_t kept = at.kept(columns, row, k);
        KRON_UNROLL
        for (int e = 0; e < LANE_COLS; ++e) acc[half][e] = kept >> e & 1 ? acc[half][e] : 0.0f;
      }
      KRON_UNROLL
      for (int e = 0; e < LANE_COLS; ++e)
        if (columns >> e & 1) to[32 * e] = from_float<E>(__fmaf_rn(factor, acc[half][e], old[e]));
    }
  }
}

/// dF[q, k] += f·Σ_m W[m, q]·L[m, k] over all rows of a segment, where f is s for dB, by the whole block, for the 8 ranks from q0: `part`
/// is the block's range of column_ways slices.  The other warps take other pairs of rows, and add up what they have in
/// halves.  `sums` has SEGMENT_WARPS / 2 · 32 · LANE_COLS · SEGMENT_RANKS floats.
template <class E, Side SIDE>
KRON_DEVICE void segment_outer(const KronParams &p, float *sums, const SegmentTile &tile, int part, int q0, const float *w, const void *matrix, int64_t stride) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, width = width_of<SIDE>(p);
  const int ways = column_ways(width), groups = SEGMENT_WARPS / ways, way = warp % ways, group = warp / ways;
  const int k = (part * ways + way) * SEGMENT_COLS + lane;
  const uint32_t columns = columns_inside(k, width), ranks = ranks_inside(p, q0);
  float acc[LANE_COLS][SEGMENT_RANKS] = {};
  w += (int64_t(tile.first) * blocks_of<SIDE>(p) + 2 * group) * p.rank + q0;
  Walk<SIDE> at(p, tile.first, 2 * group);
  KRON_ROLLED
  for (; at.token < tile.segment; w += 2 * groups * p.rank) {
    float x[2][LANE_COLS];
    bool valid[2];
    KRON_UNROLL
    for (int half = 0; half < 2; ++half, at.next()) {
      valid[half] = at.token < tile.segment;
      load_columns<E>(x[half], at, matrix, stride, k, valid[half] ? columns : 0);
    }
    KRON_UNROLL
    for (int half = 0; half < 2; ++half) {
      float u[SEGMENT_RANKS];
      KRON_UNROLL
      for (int i = 0; i < SEGMENT_RANKS; ++i) u[i] = valid[half] && ranks >> i & 1 ? w[half * p.rank + i] : 0.0f;
      KRON_UNROLL
      for (int e = 0; e < LANE_COLS; ++e) {
        KRON_UNROLL
        for (int i = 0; i < SEGMENT_RANKS; ++i) acc[e][i] = __fmaf_rn(u[i], x[half][e], acc[e][i]);
      }
    }
    KRON_ROLLED
    for (int other = 2; other < 2 * groups; ++other) at.next(); // the other warps' rows
  }
  KRON_ROLLED
  for (int half = groups / 2; half > 0; half /= 2) {
    float *of_pair = sums + (group % half * ways + way) * (32 * LANE_COLS * SEGMENT_RANKS) + lane;
    KRON_UNROLL
    for (int n = 0; n < LANE_COLS * SEGMENT_RANKS; ++n)
      if (group >= half && group < 2 * half) of_pair[32 * n] = acc[n / SEGMENT_RANKS][n % SEGMENT_RANKS];
    __syncthreads(); // the upper half has been written
    KRON_UNROLL
    for (int n = 0; n < LANE_COLS * SEGMENT_RANKS; ++n)
      if (group < half) acc[n / SEGMENT_RANKS][n % SEGMENT_RANKS] += of_pair[32 * n];
    __syncthreads(); // it has been read
  }
  if (group > 0) return;
  // Read once more: over the loops above its register is missing on sm_120.
  const Slot slot(p, SegmentTile(p, blockIdx.x / p.col_tiles).slot);
  const int64_t b_len = p.b ? int64_t(p.b_out) * p.rank : 0;
  float *grad = slot.grad + ab_len(p) - (SIDE == OUT ? b_len : 0);
  const float factor = SIDE == OUT ? slot.scale : 1.0f;
  KRON_UNROLL
  for (int e = 0; e < LANE_COLS; ++e) {
    KRON_UNROLL
    for (int i = 0; i < SEGMENT_RANKS; ++i)
      if (k + 32 * e < width && q0 + i < p.rank) grad[SIDE == IN ? (q0 + i) * p.c_in + k + 32 * e : (k + 32 * e) * p.rank + q0 + i] += factor * acc[e][i];
  }
}
