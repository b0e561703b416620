// Forward on tensor cores: bf16 and f16, ranks 4 … 128, 16-byte rows.
//
//   down   T[m, q] = κ·Σ_k X[m, k]·C[q, k]              m = (token, j): rows·a_in × R
//   up     Y[n, (i, b)] (+)= s·Σ_q U[n, i, q]·B[b, q]      U[n, i, q] = Σ_j A_ij·T[n, j, q]
//
// The plain loops are those of forward_simt.cu.
//
// down: a block has 64 rows m of one slice of k.  X and C stream through
//   STAGES stages of 64 columns by cp.async.  C stays float32 in shared memory
//   and is rounded as a fragment is read, so nothing is converted beforehand.
//   Dropout: the thread that copied a chunk of X zeroes its elements, before the
//   barrier that publishes it, with one Philox call for 8 elements.
// up: a warp has 32 columns of one block i and 64 tokens, in four steps of 16.
//   B's fragments live in registers, U in shared memory.  Y is read and written
//   in 16-byte pieces, and the reads start before U is computed.  At small m a
//   block has fewer columns than its warps could take, so that there are more
//   blocks; all threads of a block add up T's parts.
#include "tile/tensor_core.cuh"

template <class E, int R> struct Down {
  static constexpr int THREADS = 128, ROWS = 64, COLS = 64, STAGES = R <= 32 ? 4 : R <= 64 ? 3 : 2;
  static constexpr int C_PITCH = COLS + 8; // two-float reads of 4 lanes × 8 rows meet each bank once

  const KronParams &p;
  E *xs = nullptr;                // [STAGES][ROWS][COLS], swizzled
  float *cs = nullptr;            // [STAGES][padded(R)][C_PITCH]
  int64_t m0 = 0, k0 = 0, k1 = 0; // first row and columns of this block

  KRON_DEVICE explicit Down(const KronParams &params) : p(params) {}

  /// Starts the copies of columns k … k + 63 into a stage; zeros beyond the edges.
  KRON_DEVICE void start(int stage, int64_t k) const {
    if (k < k1) {
      each_chunk<ROWS, COLS, THREADS>([&](int row, int chunk) {
        const int64_t m = m0 + row, col = k + 8 * chunk;
        const bool inside = m < p.rows * p.a_in && col < k1;
        const E *from = static_cast<const E *>(p.x);
        if (inside) from += m / p.a_in * p.x_stride + m % p.a_in * p.c_in + col;
        cp_async16(xs + stage * ROWS * COLS + swizzled<COLS>(row, chunk), from, inside);
      });
      KRON_UNROLL
      for (int e = threadIdx.x; e < padded(R) * COLS / 4; e += THREADS) {
        const int q = e / (COLS / 4), col = e % (COLS / 4) * 4;
        const bool inside = q < R && k + col < k1;
        const float *from = inside ? p.c + int64_t(q) * p.c_in + k + col : p.c;
        cp_async16(cs + (stage * padded(R) + q) * C_PITCH + col, from, inside);
      }
    }
    cp_async_commit(); // also an empty group, so that each step has one
  }

  /// Zeroes the dropped elements among those that this thread has copied.
  KRON_DEVICE void drop(int stage, int64_t k) const {
    each_chunk<ROWS, COLS, THREADS>([&](int row, int chunk) {
      const int64_t m = m0 + row, col = m % p.a_in * p.c_in + k + 8 * chunk;
      if (m < p.rows * p.a_in && k + 8 * chunk < k1)
        drop_chunk(p, xs + stage * ROWS * COLS + swizzled<COLS>(row, chunk), m / p.a_in, col);
    });
  }

  /// Adds one stage: warp w has rows 16w … 16w + 15 and all q.
  KRON_DEVICE void step(float (&sum)[padded(R) / 8][4], int stage) const {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, h = lane % 4 * 2;
    KRON_UNROLL
    for (int k = 0; k < COLS; k += 16) {
      uint32_t a[4];
      load_a16<COLS>(a, xs + stage * ROWS * COLS, 16 * warp, k / 8);
      KRON_UNROLL
      for (int t = 0; t < padded(R) / 8; ++t) {
        const float *c = cs + (stage * padded(R) + 8 * t + g) * C_PITCH + k + h;
        const uint32_t b[2] = {pack<E>(c[0], c[1]), pack<E>(c[8], c[9])};
        mma<E, 16>(sum[t], a, b);
      }
    }
  }

  KRON_DEVICE void run() {
    Shared shared;
    xs = shared.take<E>(STAGES * ROWS * COLS);
    cs = shared.take<float>(STAGES * padded(R) * C_PITCH);
    const int slice = int(blockIdx.x % p.t_splits);
    m0 = int64_t(blockIdx.x / p.t_splits) * ROWS;
    k0 = int64_t(slice) * p.t_slice, k1 = k0 + p.t_slice < p.c_in ? k0 + p.t_slice : p.c_in;
    KRON_UNROLL
    for (int s = 0; s < STAGES - 1; ++s) start(s, k0 + s * COLS);
    float sum[padded(R) / 8][4] = {};
    int stage = 0;
    for (int64_t k = k0; k < k1; k += COLS) {
      cp_async_wait<STAGES - 2>();
      if (p.threshold) drop(stage, k);
      __syncthreads(); // this stage has arrived for all threads; the last one has been read by all
      start(stage == 0 ? STAGES - 1 : stage - 1, k + (STAGES - 1) * COLS);
      step(sum, stage);
      stage = stage == STAGES - 1 ? 0 : stage + 1;
    }
    cp_async_wait<0>();
    float *out = p.t_splits > 1 ? p.t_parts + slice * (p.rows * p.a_in * R) : p.t;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    KRON_UNROLL
    for (int t = 0; t < padded(R) / 8; ++t) {
      KRON_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int64_t m = m0 + 16 * warp + lane / 4 + 8 * half;
        const int q = 8 * t + lane % 4 * 2;
        if (m >= p.rows * p.a_in || q >= R) continue;
        out[m * R + q] = p.keep_scale * sum[t][2 * half];
        out[m * R + q + 1] = p.keep_scale * sum[t][2 * half + 1];
      }
    }
  }
};

template <class E, int R> KRON_DEVICE void up(const KronParams &p) {
  constexpr int THREADS = 256, ROWS = 64, WARP_COLS = 32;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int tiles = (p.b_out + p.cols - 1) / p.cols;
  const int col = int(blockIdx.x % p.col_tiles), i = col / tiles, first = col % tiles * p.cols;
  const int b_end = p.b_out - first < p.cols ? p.b_out : first + p.cols; // of this block
  const int b0 = first + warp * WARP_COLS;                               // of this warp
  const int64_t n0 = int64_t(blockIdx.x / p.col_tiles) * ROWS;

  // This thread's 16-byte pieces of Y: rows lane / 4 + 8·piece, 8 columns.
  const int b = b0 + lane % 4 * 8;
  E *y = static_cast<E *>(p.y) + int64_t(i) * p.b_out + b;
  const auto row = [&](int piece) { return n0 + lane / 4 + 8 * piece; };
  Vec4 old[ROWS / 8] = {};
  if (p.accumulate && b < b_end) {
    KRON_UNROLL
    for (int piece = 0; piece < ROWS / 8; ++piece)
      if (row(piece) < p.rows) old[piece] = *reinterpret_cast<const Vec4 *>(y + row(piece) * p.y_stride);
  }

  Shared shared;
  E *us = shared.take<E>(ROWS * pitch(padded(R))); // U_i: [ROWS][R]
  float *scratch = shared.take<float>(2 * THREADS);
  const bool small_m = p.rows <= ROWS;
  const int tokens = p.rows - n0 < ROWS ? int(p.rows - n0) : ROWS;
  const auto u_at = [&](int e) -> E & { return us[e / padded(R) * pitch(padded(R)) + e % padded(R)]; };
  block_sum(
      small_m ? scratch : nullptr, tokens * padded(R),
      [&](int e, Lane lane) {
        const int q = e % padded(R);
        return q < R ? load_u(p, n0 + e / padded(R), i, q, lane) : 0.0f;
      },
      [&](int e, float u) { u_at(e) = from_float<E>(u); });
  for (int e = tokens * padded(R) + threadIdx.x; e < ROWS * padded(R); e += blockDim.x) u_at(e) = from_float<E>(0.0f);
  if (p.t_splits > 1 && col == 0) put_t(p, small_m ? scratch + THREADS : nullptr, n0, tokens);
  Expand<E, R> expand; // B's 32 columns
  expand.load([&](int n, int q) { return b0 + n < b_end ? p.b[int64_t(b0 + n) * R + q] : 0.0f; });
  __syncthreads();
  if (b0 >= b_end) return; // this warp was only needed for U
  KRON_UNROLL
  for (int step = 0; step < ROWS / 16; ++step) {
    float out[2][8];
    expand.rows(out, us, 16 * step);
    KRON_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int piece = 2 * step + half;
      KRON_UNROLL
      for (int c = 0; c < 8; ++c) out[half][c] *= p.scale;
      if (b < b_end && row(piece) < p.rows) put8<E>(y + row(piece) * p.y_stride, old[piece], out[half], p.accumulate);
    }
  }
}

#define KRON_FORWARD(E, R)                                                                                             \
  KRON_KERNEL(kron_down_##E##_r##R, 128) { Down<E, R>(p).run(); }                                                      \
  KRON_KERNEL(kron_up_##E##_r##R, 256) { up<E, R>(p); }
KRON_TENSOR_CORE(KRON_FORWARD)
