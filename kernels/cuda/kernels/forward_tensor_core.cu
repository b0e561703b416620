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

  using X = Pieces<ROWS, COLS, THREADS>;

  const KronParams &p;
  const X piece;
  E *xs = nullptr;               // [STAGES][ROWS][COLS], swizzled
  float *cs = nullptr;           // [STAGES][padded(R)][C_PITCH]
  int64_t m0 = 0, token0 = 0;    // first row of this block, and its token
  int j0 = 0, inverse = 0;       // its j, and ⌈2¹⁶ / a_in⌉
  int k0 = 0, k1 = 0;            // its columns
  int rows = 0;                  // of the tile
  const E *x[X::COUNT] = {};     // this thread's chunks of X at the next column to copy
  const float *c = nullptr;      // this thread's first piece of C at that column

  KRON_DEVICE explicit Down(const KronParams &params) : p(params) {}

  /// The tokens between row 0 and row `row` of the tile, without a division.
  KRON_DEVICE int tokens(int row) const { return p.a_in < ROWS ? (j0 + row) * inverse >> 16 : int(j0 + row >= p.a_in); }
  KRON_DEVICE int64_t token(int row) const { return token0 + tokens(row); }
  /// The column of X at which a row starts.
  KRON_DEVICE int64_t col(int row) const { return int64_t(j0 + row - tokens(row) * p.a_in) * p.c_in; }

  /// Starts the copies of the next 64 columns, from k, into a stage; zeros beyond the edges.
  KRON_DEVICE void start(int stage, int k) {
    if (k < k1) {
      const bool in_col = k + 8 * piece.chunk < k1;
      KRON_UNROLL
      for (int i = 0; i < X::COUNT; ++i) {
        const bool inside = in_col && piece.row + i * X::STEP < rows;
        cp_async16(xs + stage * ROWS * COLS + piece.at(i), x[i], inside);
        x[i] += COLS;
      }
      // C: 16 lanes a row, THREADS / 16 rows at a time.
      constexpr int LANES = COLS / 4, STEP = THREADS / LANES;
      const int q0 = threadIdx.x / LANES, col = threadIdx.x % LANES * 4;
      const float *from = c;
      KRON_UNROLL
      for (int q = 0; q < padded(R); q += STEP) {
        const bool inside = q0 + q < R && k + col < k1;
        cp_async16(cs + (stage * padded(R) + q0 + q) * C_PITCH + col, from, inside);
        from += int64_t(STEP) * p.c_in;
      }
      c += COLS;
    }
    cp_async_commit(); // also an empty group, so that each step has one
  }

  /// Zeroes the dropped elements among those that this thread has copied.
  KRON_DEVICE void drop(int stage, int k) const {
    KRON_ROLLED
    for (int i = 0; i < X::COUNT; ++i) {
      const int row = piece.row + i * X::STEP;
      if (row < rows && k + 8 * piece.chunk < k1)
        drop_chunk(p, xs + stage * ROWS * COLS + piece.at(i), token(row), col(row) + k + 8 * piece.chunk);
    }
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
    token0 = m0 / p.a_in, j0 = int(m0 - token0 * p.a_in), inverse = (0xffff + p.a_in) / p.a_in;
    rows = p.rows * p.a_in - m0 < ROWS ? int(p.rows * p.a_in - m0) : ROWS;
    const int longer = slice < p.t_longer, width = p.t_slice + longer * COLS;
    k0 = slice * p.t_slice + (longer ? slice : p.t_longer) * COLS, k1 = p.c_in - k0 < width ? p.c_in : k0 + width;
    KRON_UNROLL
    for (int i = 0; i < X::COUNT; ++i) {
      const int row = piece.row + i * X::STEP;
      x[i] = static_cast<const E *>(p.x) + token(row) * p.x_stride + col(row) + k0 + 8 * piece.chunk;
    }
    c = p.c + int64_t(threadIdx.x / (COLS / 4)) * p.c_in + k0 + threadIdx.x % (COLS / 4) * 4;
    KRON_UNROLL
    for (int s = 0; s < STAGES - 1; ++s) start(s, k0 + s * COLS);
    float sum[padded(R) / 8][4] = {};
    int stage = 0;
    for (int k = k0; k < k1; k += COLS) {
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
        const int row = 16 * warp + lane / 4 + 8 * half, q = 8 * t + lane % 4 * 2;
        if (row >= rows || q >= R) continue;
        Float2 *at = reinterpret_cast<Float2 *>(out + (m0 + row) * R + q);
        *at = {p.keep_scale * sum[t][2 * half], p.keep_scale * sum[t][2 * half + 1]};
      }
    }
  }
};

/// U_i of a tile of tokens from n0, rounded to E, four elements at a time; T's parts are added in order.
template <class E, int R> KRON_DEVICE void fill_u(const KronParams &p, E *us, int64_t n0, int tokens, int i) {
  constexpr int ROWS = 64, FOURS = ROWS * R / 4;
  const int64_t width = int64_t(p.a_in) * R;
  for (int e = threadIdx.x; e < FOURS; e += blockDim.x) {
    const int row = e / (R / 4), q = e % (R / 4) * 4;
    const float *from = (p.t_splits > 1 ? p.t_parts : p.t) + (n0 + row) * width + q;
    const float *a = p.a + int64_t(i) * p.a_in;
    Float4 u = {};
    KRON_ROLLED
    for (int j = 0; j < p.a_in; ++j, from += R) {
      const Float4 t = load_sum4(from, p.t_splits, p.rows * width, row < tokens);
      const float aj = p.a ? a[j] : 1.0f;
      u = {__fmaf_rn(aj, t.x, u.x), __fmaf_rn(aj, t.y, u.y), __fmaf_rn(aj, t.z, u.z), __fmaf_rn(aj, t.w, u.w)};
    }
    uint32_t *pairs = reinterpret_cast<uint32_t *>(us + row * pitch(padded(R)) + q);
    pairs[0] = pack<E>(u.x, u.y), pairs[1] = pack<E>(u.z, u.w);
  }
  if (R < padded(R)) // the columns q ≥ R
    for (int e = threadIdx.x; e < ROWS * padded(R); e += blockDim.x)
      if (e % padded(R) >= R) us[e / padded(R) * pitch(padded(R)) + e % padded(R)] = from_float<E>(0.0f);
}

/// Sums T's parts into T for the tokens n0 … n0 + tokens − 1.
template <int R> KRON_DEVICE void put_t4(const KronParams &p, int64_t n0, int tokens) {
  const int64_t width = int64_t(p.a_in) * R, first = n0 * width;
  KRON_ROLLED
  for (int e = 4 * threadIdx.x; e < tokens * width; e += 4 * blockDim.x)
    *reinterpret_cast<Float4 *>(p.t + first + e) = load_sum4(p.t_parts + first + e, p.t_splits, p.rows * width, true);
}

template <class E, int R, bool SMALL_M> KRON_DEVICE void up(const KronParams &p) {
  constexpr int THREADS = 256, ROWS = 64, WARP_COLS = 32;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int tiles = (p.b_out + p.cols - 1) / p.cols;
  const int col = int(blockIdx.x % p.col_tiles), i = col / tiles, first = col % tiles * p.cols;
  const int b_end = p.b_out - first < p.cols ? p.b_out : first + p.cols; // of this block
  const int b0 = first + warp * WARP_COLS;                               // of this warp
  const int64_t n0 = int64_t(blockIdx.x / p.col_tiles) * ROWS;
  const int tokens = p.rows - n0 < ROWS ? int(p.rows - n0) : ROWS;

  // This thread's 16-byte pieces of Y: rows lane / 4 + 8·piece, 8 columns.
  const int b = b0 + lane % 4 * 8;
  E *y = static_cast<E *>(p.y) + (n0 + lane / 4) * p.y_stride + int64_t(i) * p.b_out + b;
  const int64_t y_step = 8 * p.y_stride;
  const auto inside = [&](int piece) { return b < b_end && lane / 4 + 8 * piece < tokens; };
  Vec4 old[ROWS / 8] = {};
  if (p.accumulate) {
    KRON_UNROLL
    for (int piece = 0; piece < ROWS / 8; ++piece)
      if (inside(piece)) old[piece] = *reinterpret_cast<const Vec4 *>(y + piece * y_step);
  }

  Shared shared;
  E *us = shared.take<E>(ROWS * pitch(padded(R))); // U_i: [ROWS][R]
  float *scratch = SMALL_M ? shared.take<float>(2 * THREADS) : nullptr;
  if constexpr (SMALL_M) {
    const auto u_at = [&](int e) -> E & { return us[e / padded(R) * pitch(padded(R)) + e % padded(R)]; };
    block_sum(
        scratch, tokens * padded(R),
        [&](int e, Lane lane) {
          const int q = e % padded(R);
          return q < R ? load_u(p, n0 + e / padded(R), i, q, lane) : 0.0f;
        },
        [&](int e, float u) { u_at(e) = from_float<E>(u); });
    for (int e = tokens * padded(R) + threadIdx.x; e < ROWS * padded(R); e += blockDim.x) u_at(e) = from_float<E>(0.0f);
    if (p.t_splits > 1 && col == 0) put_t(p, scratch + THREADS, n0, tokens);
  } else {
    fill_u<E, R>(p, us, n0, tokens, i);
    if (p.t_splits > 1 && col == 0) put_t4<R>(p, n0, tokens);
  }
  Expand<E, R> expand; // B's 32 columns
  expand.load([&](int n, int q) { return b0 + n < b_end ? p.b[(b0 + n) * R + q] : 0.0f; });
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
      if (inside(piece)) put8<E>(y + piece * y_step, old[piece], out[half], p.accumulate);
    }
  }
}

#define KRON_FORWARD(E, R)                                                                                             \
  KRON_KERNEL_RESIDENT(kron_down_##E##_r##R, 128, R <= 16 ? 4 : R <= 32 ? 3 : 2) { Down<E, R>(p).run(); }              \
  KRON_KERNEL_RESIDENT(kron_up_##E##_r##R, 256, R <= 64 ? 2 : 1) { up<E, R, false>(p); }                               \
  KRON_KERNEL(kron_up_##E##_s##R, 256) { up<E, R, true>(p); }
KRON_TENSOR_CORE(KRON_FORWARD)
