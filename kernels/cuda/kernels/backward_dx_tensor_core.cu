// Backward over X on tensor cores: bf16 and f16, ranks 4 … 128.  X is read
// once, dX read (when added to) and written once.
//
//   dX[m, k]  (+)= Σ_q dT[m, q]·C[q, k], 0 where X was dropped       m = (token, j)
//   dC[q, k]   += Σ_m dT[m, q]·X[m, k]
//
// The plain loops are those of backward_simt.cu.  dT already contains s and κ.
//
// A block has up to 128 columns k and one chunk of the tiles of rows m, which it
// takes one by one.  dC's sum stays in registers over all tiles (a warp has 16
// columns and every q); for dX a warp has 32 columns and 32 rows.  While a tile is
// multiplied, the next but one of X is copied and dT of the next is summed, so that
// a tile has one barrier.  Dropout: the threads that copied X's chunks zero them,
// and dX takes one Philox call for the 8 columns that a thread writes.
//
// At small m (kernels s…) the plan gives dC no parts, and no `reduce` follows.  The
// first block of each column tile sums dC over all rows into the gradient; each
// other block computes dX of one tile, which needs no X.  All threads of the grid
// share the sums of dA's and dB's parts, which `dy` has written.
#include "tile/row_tiles.cuh"
#include "tile/tensor_core.cuh"

template <class E, int R, bool SMALL_M> struct Dx {
  static constexpr int THREADS = 256, ROWS = RowTiles::ROWS, COLS = 128, STAGES = 3;
  static constexpr int RP = padded(R), TILES = RP / 8;
  static constexpr int DT_LEN = ROWS * pitch(RP), PAD = RP > R ? RP - R : 1; // of one tile of dT
  // At rank 128 no register is left for pointers that advance, nor for old values of dX before they are needed.
  static constexpr bool ADVANCES = R < 128;
  using X = Pieces<ROWS, COLS, THREADS>;

  const KronParams &p;
  const RowTiles tiles;
  const X piece;
  E *xs = nullptr;                 // X: [STAGES][ROWS][COLS], swizzled
  E *us = nullptr;                 // dT: [2][ROWS][R]
  float *scratch = nullptr;        // small m, of block_sum: [THREADS]
  int k0 = 0, k_end = 0;           // columns of this block
  const E *x[X::COUNT] = {};       // X: this thread's chunks of the next tile to copy
  E *dx[4] = {};                   // dX: this thread's pieces of the tile that is multiplied

  KRON_DEVICE explicit Dx(const KronParams &params) : p(params), tiles(params) {}

  /// Row of this thread's i-th piece of dX in a tile, and its column.
  KRON_DEVICE int dx_row(int i) const { return threadIdx.x / 128 * 32 + threadIdx.x % 32 / 4 + 8 * i; }
  KRON_DEVICE int dx_col() const { return k0 + threadIdx.x / 32 % 4 * 32 + threadIdx.x % 4 * 8; }

  /// Where this thread's chunk k of a tile of X lies, and its i-th piece of dX.
  KRON_DEVICE const E *x_at(int tile, int k) const {
    const int row = piece.row + k * X::STEP;
    return static_cast<const E *>(p.x) + (tiles.first(tile) + tiles.token(row)) * p.x_stride + tiles.col(p, row) + k0 +
           8 * piece.chunk;
  }
  KRON_DEVICE E *dx_at(int tile, int i) const {
    const int row = dx_row(i);
    return static_cast<E *>(p.dx) + (tiles.first(tile) + tiles.token(row)) * p.dx_stride + tiles.col(p, row) + dx_col();
  }

  /// Starts the copies of a tile of X into a stage, zeros beyond the edges.
  template <bool SUMS> KRON_DEVICE void start(int stage, int tile, int end) {
    if (SUMS && tile < end) {
      const int rows = tiles.rows(p, tile);
      const bool in_col = k0 + 8 * piece.chunk < k_end;
      const int64_t step = tiles.tokens * p.x_stride;
      KRON_UNROLL
      for (int k = 0; k < X::COUNT; ++k) {
        const bool inside = in_col && piece.row + k * X::STEP < rows;
        cp_async16(xs + stage * ROWS * COLS + piece.at(k), ADVANCES ? x[k] : x_at(tile, k), inside);
        x[k] += step;
      }
    }
    cp_async_commit();
  }

  /// Zeroes the dropped elements among those that this thread has copied.
  KRON_DEVICE void drop(int stage, int tile) const {
    const int rows = tiles.rows(p, tile), k = k0 + 8 * piece.chunk;
    KRON_ROLLED
    for (int i = 0; i < X::COUNT; ++i) {
      const int row = piece.row + i * X::STEP;
      if (row < rows && k < k_end)
        drop_chunk(p, xs + stage * ROWS * COLS + piece.at(i), tiles.first(tile) + tiles.token(row), tiles.col(p, row) + k);
    }
  }

  /// dT of a tile's rows, rounded to E; zeros beyond them.
  KRON_DEVICE void fill_dt(E *to, int tile) const {
    const int rows = tiles.rows(p, tile);
    const int64_t m0 = tiles.first(tile) * p.a_in;
    if constexpr (SMALL_M && R < 128) {
      const int count = rows * RP;
      const auto at = [&](int e) -> E & { return to[e / RP * pitch(RP) + e % RP]; };
      const auto dt = [&](int e, Lane lane) { return e % RP < R ? load_dt(p, m0 + e / RP, e % RP, lane) : 0.0f; };
      block_sum(scratch, count, dt, [&](int e, float sum) { at(e) = from_float<E>(sum); });
      for (int e = count + threadIdx.x; e < ROWS * RP; e += THREADS) at(e) = from_float<E>(0.0f);
    } else {
      // Four elements of a row at a time. At rank 128 lanes would pay only for a single row, and no register is left for them.
      constexpr int FOURS = ROWS * R / 4;
      const int64_t length = p.rows * p.a_in * R;
      const float *from = p.dt_parts + m0 * R + 4 * threadIdx.x;
      constexpr int UNROLL = R <= 32 ? 2 : 1; // registers are scarce at high rank
      KRON_UNROLL_N
      for (int i = 0; i < (FOURS + THREADS - 1) / THREADS; ++i) {
        const int e = int(threadIdx.x) + i * THREADS, row = e / (R / 4);
        if (FOURS < THREADS && e >= FOURS) break;
        const Float4 sum = load_sum4(from + 4 * i * THREADS, p.dt_splits, length, row < rows);
        uint32_t *pairs = reinterpret_cast<uint32_t *>(to + row * pitch(RP) + e % (R / 4) * 4);
        pairs[0] = pack<E>(sum.x, sum.y), pairs[1] = pack<E>(sum.z, sum.w);
      }
    }
  }

  /// The old values of this thread's pieces of dX: all loads, before the tile's first store.
  KRON_DEVICE void load_old(Vec4 (&old)[4], int tile, int rows) const {
    KRON_UNROLL
    for (int i = 0; i < 4; ++i) {
      old[i] = {};
      if (p.accumulate && dx_row(i) < rows && dx_col() < k_end) old[i] = *reinterpret_cast<const Vec4 *>(ADVANCES ? dx[i] : dx_at(tile, i));
    }
  }

  /// The dropout masks of this thread's pieces of dX, eight bits each.
  KRON_DEVICE uint32_t kept(int tile) const {
    uint32_t keep = 0;
    KRON_ROLLED
    for (int i = 0; i < 4; ++i) {
      const int row = dx_row(i);
      keep |= keep_mask(p, tiles.first(tile) + tiles.token(row), (tiles.col(p, row) + dx_col()) / 8) << (8 * i);
    }
    return keep;
  }

  /// dX of this warp: columns 32·(warp % 4) …, rows 32·(warp / 4) ….
  KRON_DEVICE void put_dx(const Expand<E, R> &expand, const E *dt, const Vec4 (&old)[4], int tile, int rows) const {
    const uint32_t keep = p.threshold ? kept(tile) : 0;
    KRON_UNROLL
    for (int step = 0; step < 2; ++step) {
      float out[2][8];
      expand.rows(out, dt, threadIdx.x / 128 * 32 + 16 * step);
      KRON_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int i = 2 * step + half;
        if (p.threshold) {
          KRON_UNROLL
          for (int c = 0; c < 8; ++c) out[half][c] = keep >> (8 * i + c) & 1 ? out[half][c] : 0.0f;
        }
        if (dx_row(i) < rows && dx_col() < k_end) put8<E>(ADVANCES ? dx[i] : dx_at(tile, i), old[i], out[half], p.accumulate);
      }
    }
  }

  KRON_DEVICE void run() {
    const int z = int(blockIdx.x / p.col_tiles);
    k0 = int(blockIdx.x % p.col_tiles) * p.cols, k_end = p.c_in - k0 < p.cols ? p.c_in : k0 + p.cols;
    TileRange range(p, z);
    Shared shared;
    xs = shared.take<E>(STAGES * ROWS * COLS);
    us = shared.take<E>(2 * DT_LEN);
    if (SMALL_M) scratch = shared.take<float>(THREADS);
    if (!SMALL_M) return work<true, true>(range, z);
    range.begin = z == 0 ? 0 : z - 1, range.end = z == 0 ? p.tiles : z;
    add_ab(p, THREADS);
    if (z == 0) work<true, false>(range, z);
    else work<false, true>(range, z);
  }

  /// Works off the tiles of this block: sums dC, stores dX, or both. Both in one would need too many registers at small m.
  template <bool SUMS, bool PUTS> KRON_DEVICE void work(const TileRange &range, int z) {
    const bool puts = PUTS && p.dx;
    KRON_UNROLL
    for (int k = 0; k < X::COUNT; ++k) x[k] = x_at(range.begin, k);
    KRON_UNROLL
    for (int i = 0; i < 4; ++i) dx[i] = dx_at(range.begin, i);
    KRON_UNROLL
    for (int s = 0; s < STAGES - 1; ++s) start<SUMS>(s, range.begin + s, range.end);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, h = lane % 4 * 2;
    Expand<E, R> expand; // C's 32 columns
    const int n0 = k0 + warp % 4 * 32;
    if (PUTS) expand.load([&](int n, int q) { return n0 + n < k_end ? p.c[q * p.c_in + n0 + n] : 0.0f; });
    if (!SMALL_M) {
      // The columns q ≥ R, which nothing else writes.
      for (int e = threadIdx.x; R < RP && e < 2 * ROWS * PAD; e += THREADS)
        us[e / PAD * pitch(RP) + R + e % PAD] = from_float<E>(0.0f);
      fill_dt(us, range.begin);
    }
    float dc[TILES][4] = {};
    int stage = 0;
    E *dt = us;
    for (int tile = range.begin; tile < range.end; ++tile) {
      cp_async_wait<STAGES - 2>();
      if (SUMS && p.threshold) drop(stage, tile);
      __syncthreads(); // this stage and this tile's dT have arrived for all threads; the last ones have been read by all
      start<SUMS>(stage == 0 ? STAGES - 1 : stage - 1, tile + STAGES - 1, range.end);
      const int rows = tiles.rows(p, tile);
      Vec4 old[4];
      if (ADVANCES && puts) load_old(old, tile, rows);
      if constexpr (SMALL_M) {
        fill_dt(dt, tile);
        __syncthreads(); // dT has been written
      } else if (tile + 1 < range.end) {
        fill_dt(dt == us ? us + DT_LEN : us, tile + 1);
      }
      if (SUMS) outer<E, R, ROWS, COLS>(dc, xs + stage * ROWS * COLS, 2 * warp, dt);
      if (!ADVANCES && puts) load_old(old, tile, rows);
      if (puts) put_dx(expand, dt, old, tile, rows);
      KRON_UNROLL
      for (int i = 0; i < 4; ++i) dx[i] += tiles.tokens * p.dx_stride;
      stage = stage == STAGES - 1 ? 0 : stage + 1;
      if (!SMALL_M) dt = dt == us ? us + DT_LEN : us;
    }
    cp_async_wait<0>();
    if (!SUMS) return;
    float *out = SMALL_M ? p.grad + ab_len(p) : p.dc_parts + int64_t(z) * R * p.c_in;
    KRON_UNROLL
    for (int t = 0; t < TILES; ++t) {
      KRON_UNROLL
      for (int e = 0; e < 4; ++e) {
        const int k = k0 + 16 * warp + g + e / 2 * 8, q = 8 * t + h + e % 2;
        if (k >= k_end || q >= R) continue;
        float *at = out + int64_t(q) * p.c_in + k;
        *at = SMALL_M ? *at + dc[t][e] : dc[t][e];
      }
    }
  }
};

#define KRON_DX(E, R)                                                                                                  \
  KRON_KERNEL_RESIDENT(kron_dx_##E##_r##R, 256, R <= 32 ? 2 : 1) { Dx<E, R, false>(p).run(); }                         \
  KRON_KERNEL(kron_dx_##E##_s##R, 256) { Dx<E, R, true>(p).run(); }
KRON_TENSOR_CORE(KRON_DX)
