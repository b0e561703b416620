// Backward over dY on tensor cores: bf16 and f16, ranks 4 … 128.  dY is read once.
//
//   V[n, i, q]    = Σ_b dY[n, (i, b)]·B[b, q]
//   dB[b, q]     += Σ_{n, i} dY[n, (i, b)]·U[n, i, q]       U[n, i, q] = Σ_j A_ij·T[n, j, q]
//   dA[i, j]     += Σ_{n, q} V[n, i, q]·T[n, j, q]
//   dT[n, j, q]   = s·κ·Σ_i A_ij·V[n, i, q]                 κ = 1/(1 − p)
//
// The plain loops are those of backward_simt.cu.  The parts of dB and dA are unscaled; `reduce` applies s.
//
// A block has up to 128 columns b, one group of i and one chunk of tokens.  It goes
// through the chunk ROWS tokens at a time and, for each, through the i of its group.
// V, dT and dA are linear in the columns, so every block sums over its own columns;
// the results are parts that the next kernels add in order.  dB's sum stays in
// registers over all steps (a warp has 16 columns and every q), dT's in shared
// memory over the i of one tile of tokens.
#include "tile/tensor_core.cuh"

template <class E, int R> struct Dy {
  static constexpr int THREADS = 256, WARPS = 8, ROWS = R <= 32 ? 64 : 32, COLS = 128, STAGES = 3;
  // RP: R padded to 8.
  static constexpr int RP = R < 8 ? 8 : R, TILES = RP / 8;
  // V: a warp has 16 rows and V_TILES fragments along q; at low rank some warps are idle.
  static constexpr int ROW_TILES = ROWS / 16, Q_PARTS = WARPS / ROW_TILES;
  static constexpr int V_TILES = TILES < Q_PARTS ? 1 : TILES / Q_PARTS;

  const KronParams &p;
  E *ys = nullptr;            // dY: [STAGES][ROWS][COLS], swizzled
  E *us = nullptr;            // U_i: [ROWS][R]
  float *vs = nullptr;        // V_i: [ROWS][RP]
  float *dts = nullptr;       // Σ_i A_ij·V_i: [ROWS][a_in][R]
  float *das = nullptr;       // dA: [WARPS][rows_per_group][a_in]
  int b0 = 0, b_end = 0;      // columns of this block
  int i0 = 0, count = 0;      // first i and number of i of this block
  int64_t begin = 0, end = 0; // tokens of this block

  KRON_DEVICE explicit Dy(const KronParams &params) : p(params) {}

  /// Step s of the block has the tokens token(s) … token(s) + ROWS − 1 and row i_of(s) of A.
  KRON_DEVICE int64_t token(int64_t step) const { return begin + step / count * ROWS; }
  KRON_DEVICE int i_of(int64_t step) const { return i0 + int(step % count); }

  /// Starts the copies of one step of dY into a stage; zeros beyond the edges.
  KRON_DEVICE void start(int stage, int64_t step) const {
    if (token(step) < end) {
      each_chunk<ROWS, COLS, THREADS>([&](int row, int chunk) {
        const int64_t n = token(step) + row;
        const bool inside = n < end && b0 + 8 * chunk < b_end;
        const E *from = static_cast<const E *>(p.dy);
        if (inside) from += n * p.dy_stride + int64_t(i_of(step)) * p.b_out + b0 + 8 * chunk;
        cp_async16(ys + stage * ROWS * COLS + swizzled<COLS>(row, chunk), from, inside);
      });
    }
    cp_async_commit();
  }

  /// U_i of one tile of tokens, rounded to E.
  KRON_DEVICE void fill_u(int64_t n0, int i) const {
    for (int e = threadIdx.x; e < ROWS * RP; e += THREADS) {
      const int row = e / RP, q = e % RP;
      us[row * pitch(RP) + q] = from_float<E>(n0 + row < end && q < R ? load_u(p, n0 + row, i, q) : 0.0f);
    }
  }

  /// Loads B's fragments for V: columns b0 + 16·k …, fragments v0 … along q.
  KRON_DEVICE void load_b(uint32_t (&b)[COLS / 16][V_TILES][2], int v0) const {
    const int lane = threadIdx.x % 32, g = lane / 4, h = lane % 4 * 2;
    const auto at = [&](int col, int q) { return b0 + col < b_end && q < R ? p.b[int64_t(b0 + col) * R + q] : 0.0f; };
    KRON_UNROLL
    for (int k = 0; k < COLS / 16; ++k) {
      KRON_UNROLL
      for (int t = 0; t < V_TILES; ++t) {
        const int q = 8 * (v0 + t) + g, col = 16 * k + h;
        b[k][t][0] = pack<E>(at(col, q), at(col + 1, q));
        b[k][t][1] = pack<E>(at(col + 8, q), at(col + 9, q));
      }
    }
  }

  /// Writes V_i of this block's columns to vs.
  KRON_DEVICE void fill_v(int stage, const uint32_t (&b)[COLS / 16][V_TILES][2], int row0, int v0) const {
    const int lane = threadIdx.x % 32, g = lane / 4, h = lane % 4 * 2;
    float v[V_TILES][4] = {};
    KRON_UNROLL
    for (int k = 0; k < COLS / 16; ++k) {
      uint32_t a[4];
      load_a16<COLS>(a, ys + stage * ROWS * COLS, row0, 2 * k);
      KRON_UNROLL
      for (int t = 0; t < V_TILES; ++t) mma<E, 16>(v[t], a, b[k][t]);
    }
    KRON_UNROLL
    for (int t = 0; t < V_TILES; ++t) {
      KRON_UNROLL
      for (int e = 0; e < 4; ++e) vs[(row0 + g + e / 2 * 8) * RP + 8 * (v0 + t) + h + e % 2] = v[t][e];
    }
  }

  /// Adds V_i to dT and dA; a thread has the same (row, q) in every step.
  KRON_DEVICE void add_v(int64_t n0, int i) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int j = 0; j < p.a_in; ++j) {
      const float a = load_a(p, i, j);
      float da = 0;
      for (int e = threadIdx.x; e < ROWS * R; e += THREADS) {
        const int row = e / R, q = e % R;
        const float v = vs[row * RP + q];
        float *dt = dts + (row * p.a_in + j) * R + q;
        *dt = __fmaf_rn(a, v, *dt);
        if (p.a && n0 + row < end) da = __fmaf_rn(v, p.t[((n0 + row) * p.a_in + j) * R + q], da);
      }
      if (!p.a) continue;
      KRON_UNROLL
      for (int mask = 16; mask > 0; mask /= 2) da += __shfl_xor_sync(0xffffffffu, da, mask);
      if (lane == 0) das[(warp * p.rows_per_group + i - i0) * p.a_in + j] += da;
    }
  }

  /// Writes dT of one tile of tokens as this block's part; applies scale and κ.
  KRON_DEVICE void put_dt(int64_t n0, int part) const {
    float *out = p.dt_parts + (int64_t(part) * p.rows + n0) * p.a_in * R;
    for (int j = 0; j < p.a_in; ++j) {
      for (int e = threadIdx.x; e < ROWS * R; e += THREADS) {
        const int at = (e / R * p.a_in + j) * R + e % R;
        if (n0 + e / R < end) out[at] = p.scale * p.keep_scale * dts[at];
        dts[at] = 0;
      }
    }
  }

  KRON_DEVICE void run() {
    const int col = int(blockIdx.x % p.col_tiles), rest = int(blockIdx.x / p.col_tiles);
    const int z = rest % p.row_chunks, group = rest / p.row_chunks;
    b0 = col * p.cols, b_end = p.b_out - b0 < p.cols ? p.b_out : b0 + p.cols;
    i0 = group * p.rows_per_group;
    count = p.a_out - i0 < p.rows_per_group ? p.a_out - i0 : p.rows_per_group;
    begin = z * p.chunk_rows, end = begin + p.chunk_rows < p.rows ? begin + p.chunk_rows : p.rows;
    Shared shared;
    ys = shared.take<E>(STAGES * ROWS * COLS);
    us = shared.take<E>(ROWS * pitch(RP));
    vs = shared.take<float>(ROWS * RP);
    dts = shared.take<float>(ROWS * p.a_in * R);
    das = shared.take<float>(WARPS * p.rows_per_group * p.a_in);
    KRON_UNROLL
    for (int s = 0; s < STAGES - 1; ++s) start(s, s);
    for (int j = 0; j < p.a_in; ++j)
      for (int e = threadIdx.x; e < ROWS * R; e += THREADS) dts[(e / R * p.a_in + j) * R + e % R] = 0;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, h = lane % 4 * 2;
    for (int e = lane; e < p.rows_per_group * p.a_in; e += 32) das[warp * p.rows_per_group * p.a_in + e] = 0;
    const int row0 = warp % ROW_TILES * 16, v0 = warp / ROW_TILES * V_TILES;
    uint32_t b[COLS / 16][V_TILES][2];
    load_b(b, v0);
    float db[TILES][4] = {};
    int stage = 0;
    for (int64_t step = 0; token(step) < end; ++step) {
      cp_async_wait<STAGES - 2>();
      __syncthreads(); // this stage has arrived for all threads; U and V of the last step have been read
      start(stage == 0 ? STAGES - 1 : stage - 1, step + STAGES - 1);
      fill_u(token(step), i_of(step));
      if (v0 < TILES) fill_v(stage, b, row0, v0);
      __syncthreads(); // U and V have been written
      outer<E, R, ROWS, COLS>(db, ys + stage * ROWS * COLS, 2 * warp, us);
      add_v(token(step), i_of(step));
      if (step % count == count - 1) put_dt(token(step), group * p.col_tiles + col);
      stage = stage == STAGES - 1 ? 0 : stage + 1;
    }
    cp_async_wait<0>();
    float *out = p.db_parts + int64_t(z * p.a_row_groups + group) * p.b_out * R;
    KRON_UNROLL
    for (int t = 0; t < TILES; ++t) {
      KRON_UNROLL
      for (int e = 0; e < 4; ++e) {
        const int row = b0 + 16 * warp + g + e / 2 * 8, q = 8 * t + h + e % 2;
        if (row < b_end && q < R) out[int64_t(row) * R + q] = db[t][e];
      }
    }
    if (!p.a) return;
    __syncthreads(); // every warp's sum of dA has been written
    for (int e = threadIdx.x; e < count * p.a_in; e += THREADS)
      p.da_parts[(int64_t(z * p.col_tiles + col) * p.a_out + i0) * p.a_in + e] =
          load_sum(das, WARPS, int64_t(p.rows_per_group) * p.a_in, e);
  }
};

#define KRON_DY(E, R)                                                                                                  \
  KRON_KERNEL(kron_dy_##E##_r##R, 256) { Dy<E, R>(p).run(); }
KRON_TENSOR_CORE(KRON_DY)
