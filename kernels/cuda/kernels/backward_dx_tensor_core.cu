// Backward over X on tensor cores: bf16 and f16, ranks 4 … 128.  X is read
// once, dX read (when added to) and written once.
//
//   dX[m, k]  (+)= Σ_q dT[m, q]·C[q, k], 0 where X was dropped       m = (token, j)
//   dC[q, k]   += Σ_m dT[m, q]·X[m, k]
//
// The plain loops are those of backward_simt.cu.  dT already contains s and κ.
//
// A block has up to 128 columns k and one chunk of rows m, in steps of 64 rows.
// dC's sum stays in registers over all steps (a warp has 16 columns and every
// q); for dX a warp has 32 columns and 32 rows.  Dropout: the threads that
// copied X's chunks zero them, and dX takes one Philox call for the 8 columns
// that a thread writes.
//
// At small m the plan gives dC no parts, and no `reduce` follows.  The first
// block of each column tile sums dC over all rows into the gradient; each other
// block computes dX of 64 rows, which needs no X.  All threads of the grid share
// the sums of dA's and dB's parts, which `dy` has written.
#include "tile/tensor_core.cuh"

template <class E, int R> struct Dx {
  static constexpr int THREADS = 256, ROWS = 64, COLS = 128, STAGES = 3;
  static constexpr int RP = R < 8 ? 8 : R, TILES = RP / 8;

  const KronParams &p;
  E *xs = nullptr;                  // X: [STAGES][ROWS][COLS], swizzled
  E *us = nullptr;                  // dT: [ROWS][R]
  float *scratch = nullptr;         // of block_sum: [THREADS]
  int k0 = 0, k_end = 0;            // columns of this block
  int64_t begin = 0, end = 0;       // rows m of this block
  bool sums = false, puts = false;  // this block sums dC, and stores dX

  KRON_DEVICE explicit Dx(const KronParams &params) : p(params) {}

  /// Starts the copies of rows m0 … m0 + 63 of X into a stage; zeros beyond the edges.
  KRON_DEVICE void start(int stage, int64_t m0) const {
    if (sums && m0 < end) {
      each_chunk<ROWS, COLS, THREADS>([&](int row, int chunk) {
        const int64_t m = m0 + row;
        const bool inside = m < end && k0 + 8 * chunk < k_end;
        const E *from = static_cast<const E *>(p.x);
        if (inside) from += m / p.a_in * p.x_stride + m % p.a_in * p.c_in + k0 + 8 * chunk;
        cp_async16(xs + stage * ROWS * COLS + swizzled<COLS>(row, chunk), from, inside);
      });
    }
    cp_async_commit();
  }

  /// Zeroes the dropped elements among those that this thread has copied.
  KRON_DEVICE void drop(int stage, int64_t m0) const {
    each_chunk<ROWS, COLS, THREADS>([&](int row, int chunk) {
      const int64_t m = m0 + row;
      if (m < end && k0 + 8 * chunk < k_end)
        drop_chunk(p, xs + stage * ROWS * COLS + swizzled<COLS>(row, chunk), m / p.a_in,
                   m % p.a_in * p.c_in + k0 + 8 * chunk);
    });
  }

  KRON_DEVICE E &dt_at(int e) const { return us[e / RP * pitch(RP) + e % RP]; }

  /// dT of rows m0 … m0 + 63, rounded to E.
  KRON_DEVICE void fill_dt(int64_t m0) const {
    const auto dt = [&](int e, Lane lane) {
      return e % RP < R ? load_dt(p, m0 + e / RP, e % RP, lane) : 0.0f;
    };
    const int count = end - m0 < ROWS ? int(end - m0) * RP : ROWS * RP;
    // At rank 128 lanes would pay only for a single row, and no register is left for them.
    float *shared = R < 128 && p.dc_splits == 0 ? scratch : nullptr;
    block_sum(shared, count, dt, [&](int e, float sum) { dt_at(e) = from_float<E>(sum); });
    for (int e = count + threadIdx.x; e < ROWS * RP; e += THREADS) dt_at(e) = from_float<E>(0.0f);
  }

  /// dX of this warp: columns 32·(warp % 4) …, rows 32·(warp / 4) ….
  KRON_DEVICE void put_dx(const Expand<E, R> &expand, int64_t m0) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int k = k0 + warp % 4 * 32 + lane % 4 * 8;
    KRON_UNROLL
    for (int step = 0; step < 2; ++step) {
      const int row0 = warp / 4 * 32 + 16 * step;
      E *at[2];
      Vec4 old[2] = {};
      KRON_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int64_t m = m0 + row0 + lane / 4 + 8 * half;
        at[half] = nullptr;
        if (m >= end || k >= k_end) continue;
        at[half] = static_cast<E *>(p.dx) + m / p.a_in * p.dx_stride + m % p.a_in * p.c_in + k;
        if (p.accumulate) old[half] = *reinterpret_cast<const Vec4 *>(at[half]);
      }
      float out[2][8];
      expand.rows(out, us, row0);
      KRON_UNROLL
      for (int half = 0; half < 2; ++half) {
        if (!at[half]) continue;
        const int64_t m = m0 + row0 + lane / 4 + 8 * half;
        if (p.threshold) {
          const uint32_t keep = keep_mask(p, m / p.a_in, (m % p.a_in * p.c_in + k) / 8);
          KRON_UNROLL
          for (int c = 0; c < 8; ++c) out[half][c] = keep >> c & 1 ? out[half][c] : 0.0f;
        }
        put8<E>(at[half], old[half], out[half], p.accumulate);
      }
    }
  }

  KRON_DEVICE void run() {
    const int z = int(blockIdx.x / p.col_tiles);
    const int64_t m_end = p.rows * p.a_in;
    k0 = int(blockIdx.x % p.col_tiles) * p.cols, k_end = p.c_in - k0 < p.cols ? p.c_in : k0 + p.cols;
    const bool whole = p.dc_splits == 0;
    sums = !whole || z == 0, puts = p.dx && (!whole || z > 0);
    begin = (whole && z > 0 ? z - 1 : z) * p.chunk_rows;
    end = (whole && z == 0) || begin + p.chunk_rows > m_end ? m_end : begin + p.chunk_rows;
    Shared shared;
    xs = shared.take<E>(STAGES * ROWS * COLS);
    us = shared.take<E>(ROWS * pitch(RP));
    scratch = shared.take<float>(THREADS);
    KRON_UNROLL
    for (int s = 0; s < STAGES - 1; ++s) start(s, begin + s * ROWS);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, h = lane % 4 * 2;
    Expand<E, R> expand; // C's 32 columns
    const int n0 = k0 + warp % 4 * 32;
    expand.load([&](int n, int q) { return n0 + n < k_end ? p.c[int64_t(q) * p.c_in + n0 + n] : 0.0f; });
    float dc[TILES][4] = {};
    int stage = 0;
    for (int64_t m0 = begin; m0 < end; m0 += ROWS) {
      cp_async_wait<STAGES - 2>();
      if (sums && p.threshold) drop(stage, m0);
      __syncthreads(); // this stage has arrived for all threads; dT of the last step has been read
      start(stage == 0 ? STAGES - 1 : stage - 1, m0 + (STAGES - 1) * ROWS);
      fill_dt(m0);
      __syncthreads(); // dT has been written
      if (sums) outer<E, R, ROWS, COLS>(dc, xs + stage * ROWS * COLS, 2 * warp, us);
      if (puts) put_dx(expand, m0);
      stage = stage == STAGES - 1 ? 0 : stage + 1;
    }
    cp_async_wait<0>();
    if (whole) add_ab(p, THREADS);
    if (!sums) return;
    float *out = whole ? p.grad + ab_len(p) : p.dc_parts + int64_t(z) * R * p.c_in;
    KRON_UNROLL
    for (int t = 0; t < TILES; ++t) {
      KRON_UNROLL
      for (int e = 0; e < 4; ++e) {
        const int k = k0 + 16 * warp + g + e / 2 * 8, q = 8 * t + h + e % 2;
        if (k >= k_end || q >= R) continue;
        float *at = out + int64_t(q) * p.c_in + k;
        *at = whole ? *at + dc[t][e] : dc[t][e];
      }
    }
  }
};

#define KRON_DX(E, R)                                                                                                  \
  KRON_KERNEL(kron_dx_##E##_r##R, 256) { Dx<E, R>(p).run(); }
KRON_TENSOR_CORE(KRON_DX)
